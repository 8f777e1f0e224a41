//! `verify`

use super::common::{DataArgs, Outcome, Printer, Usage, exceeds, read_data, table};
use super::merge::check_tolerance;
use crate::adapter::Adapter;
use crate::adapters::CONFIG_KEY;
use crate::ir::Tensor;
use crate::merge;
use crate::onnx::{self, Model};
use crate::pipeline::{self, Error};
use crate::settings::defaults;
use crate::train::data;
use crate::verify::{self, Difference, Feed, Output};
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Args {
    first: PathBuf,
    second: PathBuf,
    /// Inputs to compare on [default: synthetic]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// A trained adapter, which goes into whichever of the files is injected (the first, if both are)
    #[arg(long, value_name = "FILE|DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    how: DataArgs,
    /// The largest relative difference of an output; above it the exit code is 3
    #[arg(long, default_value_t = defaults::TOLERANCE, value_name = "F", allow_hyphen_values = true)]
    tolerance: f64,
}

#[derive(Serialize)]
struct Result_ {
    /// What ran the files: tract, or the cpu device where tract could not.
    engine: String,
    batches: usize,
    outputs: Vec<Difference>,
    tolerance: f64,
    above_tolerance: bool,
    notes: Vec<String>,
}

/// The most batches of a data file that are run.
const BATCHES: usize = 4;

type Inputs = Vec<(String, Tensor)>;

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let how = args.how.config();
    how.check()?;
    check_tolerance(args.tolerance)?;
    let (mut first, mut second) = (pipeline::read(&args.first)?, pipeline::read(&args.second)?);
    let mut filled = Vec::new();
    // Kept as long as the models that are mapped from it.
    let _folder = match &args.adapter {
        Some(adapter) => {
            let injected = |m: &Arc<Model>| m.metadata(CONFIG_KEY).is_some();
            let model = match (injected(&first), injected(&second)) {
                (false, false) => {
                    let why = "neither file carries adapters\nhint: --adapter is for a file that inject wrote";
                    return Err(Usage(why.into()).into());
                }
                (false, true) => &mut second,
                (true, both) => {
                    if both {
                        filled.push(format!("both files carry adapters: --adapter goes into {}", args.first.display()));
                    }
                    &mut first
                }
            };
            let folder = tempfile::tempdir().context("no temporary folder")?;
            let (adapter, notes) = pipeline::read_adapter(adapter, model)?;
            filled.extend(notes);
            *model = with_adapter(model, &adapter, folder.path())?;
            Some(folder)
        }
        None => None,
    };
    let batches: Vec<Inputs> = match &args.data {
        Some(path) => {
            let data = read_data(&how, path, &first, printer)?;
            let feed = data::Feed::new(pipeline::input_specs(&first), args.how.max_length);
            let all: Vec<usize> = (0..data.len()).collect();
            let batches = all.chunks(args.how.batch_size).take(BATCHES);
            batches.map(|rows| Ok(data.batch(&feed, rows)?.inputs)).collect::<Result<_, Error>>()?
        }
        None => vec![pipeline::synthetic(&first, 0)?],
    };
    let (engine, outputs, notes) = compare(&first, &second, &batches)?;
    let said = outputs.iter().filter_map(|d| Some(format!("output '{}' {}", d.output, d.not_finite.as_ref()?)));
    let notes = filled.into_iter().chain(notes).chain(said).collect();
    // Not a number is above any tolerance.
    let above = outputs.iter().any(|d| exceeds(d.relative, args.tolerance));
    let result =
        Result_ { engine, batches: batches.len(), outputs, tolerance: args.tolerance, above_tolerance: above, notes };
    printer.result(&result, || {
        let rows = result
            .outputs
            .iter()
            .map(|d| vec![d.output.clone(), format!("{:.2e}", d.largest), format!("{:.2e}", d.relative)]);
        let mut out = table(&["output", "largest difference", "relative"], rows.collect());
        out += &format!("\n\nran with {}", result.engine);
        for note in &result.notes {
            out += &format!("\nnote: {note}");
        }
        out + &match result.above_tolerance {
            true => format!("\nabove the tolerance of {:.1e}", result.tolerance),
            false => format!("\nwithin the tolerance of {:.1e}", result.tolerance),
        }
    });
    Ok(if above { Outcome::AboveTolerance } else { Outcome::Done })
}

/// An injected model as a file that holds the adapter's factors, for an engine that reads files.
fn with_adapter(injected: &Arc<Model>, adapter: &Adapter, folder: &Path) -> Result<Arc<Model>> {
    let (model, _) = merge::keep_branch(injected, adapter).map_err(Error::from)?;
    let path = folder.join(injected.path().file_name().unwrap_or("model.onnx".as_ref()));
    onnx::write(&model, &path).map_err(Error::from)?;
    Ok(pipeline::read(&path)?)
}

/// Runs both files on every batch with one engine, and joins the differences of each output over batches.
pub fn compare(
    first: &Arc<Model>,
    second: &Arc<Model>,
    batches: &[Inputs],
) -> Result<(String, Vec<Difference>, Vec<String>)> {
    let mut notes = Vec::new();
    let tract = |m: &Arc<Model>| -> Result<Vec<Output>, verify::EngineError> {
        let runs: Result<Vec<_>, _> = batches.iter().map(|b| verify::run(m, &feeds(b))).collect();
        Ok(joined(runs?))
    };
    let (engine, a, b) = match (tract(first), tract(second)) {
        (Ok(a), Ok(b)) => ("tract".to_string(), a, b),
        (a, b) => {
            notes.extend(a.err().into_iter().chain(b.err()).map(|e| e.to_string()));
            notes.push("the cpu device ran both files instead".into());
            ("the cpu device".to_string(), ours(first, batches)?, ours(second, batches)?)
        }
    };
    let outputs = verify::compare(&a, &b).map_err(Error::Model)?;
    Ok((engine, outputs, notes))
}

/// Runs one file with tract and on the cpu device; returns the engine and the largest relative difference of an output.
pub fn against_ours(model: &Arc<Model>, batch: &Inputs) -> Result<(String, f64)> {
    let own = ours(model, std::slice::from_ref(batch))?;
    let other = verify::run(model, &feeds(batch)).map_err(|e| Error::Model(e.to_string()))?;
    let differences = verify::compare(&own, &other).map_err(Error::Model)?;
    Ok(("tract".into(), differences.iter().map(|d| d.relative).fold(0.0, |a, b| if b.is_nan() { b } else { a.max(b) })))
}

fn feeds(batch: &Inputs) -> Vec<Feed> {
    let feed = |(name, t): &(String, Tensor)| Feed {
        name: name.clone(),
        dims: t.shape().to_vec(),
        values: match (t.as_f32(), t.as_i32()) {
            (Some(x), _) => x.iter().map(|&x| x as f64).collect(),
            (_, Some(x)) => x.iter().map(|&x| x as f64).collect(),
            _ => vec![],
        },
    };
    batch.iter().map(feed).collect()
}

/// One output from those of all batches, end to end.
fn joined(runs: Vec<Vec<Output>>) -> Vec<Output> {
    let mut runs = runs.into_iter();
    let mut all = runs.next().unwrap_or_default();
    for run in runs {
        for (sum, more) in all.iter_mut().zip(run) {
            sum.values.extend(more.values);
            sum.dims = vec![sum.values.len()];
        }
    }
    all
}

fn ours(model: &Arc<Model>, batches: &[Inputs]) -> Result<Vec<Output>> {
    let trainee = pipeline::load(model, None)?;
    let mut device = pipeline::open_device(pipeline::DeviceChoice::Cpu, pipeline::Numbers::default())?;
    let outputs = pipeline::infer(&trainee, batches, device.as_mut())?;
    let values = |ts: &[Tensor]| -> Vec<f64> {
        ts.iter().flat_map(|t| feeds(&vec![(String::new(), t.clone())])[0].values.clone()).collect()
    };
    Ok(outputs
        .into_iter()
        .map(|(name, ts)| {
            let values = values(&ts);
            let dims = if ts.len() == 1 { ts[0].shape().to_vec() } else { vec![values.len()] };
            Output { name, dims, values }
        })
        .collect())
}
