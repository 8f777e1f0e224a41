//! `quickstart`: the whole line on a model and data that come with the program.

use super::common::{DeviceArg, Outcome, Printer, beside, grouped, table};
use super::progress::{Log, Progress};
use crate::device::Device;
use crate::onnx::{self, Model};
use crate::pipeline::{self, Calibration, Error, EvalRequest, Evaluation, MergeRequest, TrainRequest, digits};
use crate::settings::defaults;
use crate::train::data::{self, Dataset};
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Where the files go
    #[arg(short, long, default_value = defaults::QUICKSTART_FOLDER, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(Serialize)]
struct Result_ {
    device: String,
    rows: Vec<Row>,
    adapter_parameters: usize,
    /// The largest relative difference between the adapter graph and the merged model.
    merge_difference: f64,
    /// What ran the merged file beside us, and how far it is from our own result.
    engine: String,
    engine_difference: f64,
    output: PathBuf,
    seconds: f64,
}

#[derive(Serialize)]
struct Row {
    model: &'static str,
    file: PathBuf,
    accuracy: f64,
    loss: f64,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let start = Instant::now();
    let dir = &args.output;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, bytes) in digits::FILES {
        std::fs::write(dir.join(name), bytes).with_context(|| format!("cannot write {}", dir.join(name).display()))?;
    }
    let options = data::Options::default();
    let read = |name: &str| data::read(&dir.join(name), &options).map_err(Error::from);
    let (train, test) = (read("train.safetensors")?, read("test.safetensors")?);
    let mut device = args.device.open()?;

    let base_path = dir.join("model.onnx");
    let base = pipeline::read(&base_path)?;
    let before = evaluate(&base, None, &test, device.as_mut())?;

    say("inject", "block-shortcut adapters on the attention's queries and values");
    let injected_path = beside(&base_path, "reslora");
    let (model, report) = pipeline::inject(&base, &crate::inject::Options::default())?;
    onnx::write(&model, &injected_path).map_err(Error::from)?;
    let injected = pipeline::read(&injected_path)?;

    say("train", &format!("{} digits rotated by 90°, on {}", train.len(), device.name()));
    let settings = digits::settings();
    let run = dir.join("run");
    let request = TrainRequest::new(&injected, &train, &settings, &run);
    let mut progress = Progress::new(Log::beside(printer.json), "examples");
    let outcome = pipeline::train(&request, device.as_mut(), &mut progress);
    progress.finish();
    let outcome = outcome?;
    if outcome.interrupted {
        return Ok(Outcome::Interrupted);
    }
    let after = evaluate(&injected, Some(&outcome.adapter), &test, device.as_mut())?;

    say("merge", "folding the adapters into the base weights");
    let merged_path = beside(&base_path, "merged");
    let fallback = Some(Calibration::new(&test, digits::BATCH, defaults::MAX_LENGTH));
    let request = MergeRequest { fallback, ..MergeRequest::new(&injected, &outcome.adapter) };
    let merged = pipeline::merge(&request, device.as_mut())?;
    onnx::write(&merged.model, &merged_path).map_err(Error::from)?;
    let merge_difference = merged.differences.iter().map(|d| d.relative).fold(0.0, f64::max);
    let model = pipeline::read(&merged_path)?;
    let finally = evaluate(&model, None, &test, device.as_mut())?;

    say("verify", "running the merged file with tract");
    let rows: Vec<usize> = (0..digits::BATCH).collect();
    let feed = data::Feed::new(pipeline::input_specs(&model), defaults::MAX_LENGTH);
    let batch = test.batch(&feed, &rows).map_err(Error::from)?.inputs;
    let check = pipeline::against_ours(&model, &batch)?;

    let row = |model, file: &Path, e: &Evaluation| Row {
        model,
        file: file.to_path_buf(),
        accuracy: e.accuracy.unwrap_or_default(),
        loss: e.loss,
    };
    let result = Result_ {
        device: device.name(),
        rows: vec![
            row("base", &base_path, &before),
            row("with adapters", &injected_path, &after),
            row("merged", &merged_path, &finally),
        ],
        adapter_parameters: report.adapter_parameters,
        merge_difference,
        engine: check.0,
        engine_difference: check.1,
        output: dir.clone(),
        seconds: start.elapsed().as_secs_f64(),
    };
    printer.result(&result, || text(&result));
    Ok(Outcome::Done)
}

fn say(step: &str, what: &str) {
    eprintln!("{step}: {what}");
}

fn evaluate(
    model: &Arc<Model>,
    adapter: Option<&crate::adapter::Adapter>,
    data: &Dataset,
    device: &mut dyn Device,
) -> Result<Evaluation> {
    let request = EvalRequest { adapter, batch_size: digits::BATCH, ..EvalRequest::new(model, data) };
    Ok(pipeline::evaluate(&request, device)?)
}

fn text(r: &Result_) -> String {
    let rows = r.rows.iter().map(|row| {
        vec![
            row.model.to_string(),
            format!("{:.1} %", 100.0 * row.accuracy),
            format!("{:.4}", row.loss),
            row.file.display().to_string(),
        ]
    });
    let list = table(&["model", "accuracy", "loss", "file"], rows.collect());
    format!(
        "\n{list}\n\naccuracy on digits rotated by 90°, which the base never saw; {} trained parameters\n\
         merging changed the outputs by {:.1e}; {} agrees to {:.1e}\n{:.1} s on {}",
        grouped(r.adapter_parameters),
        r.merge_difference,
        r.engine,
        r.engine_difference,
        r.seconds,
        r.device
    )
}
