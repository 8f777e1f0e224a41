//! `merge`

use super::common::{DataArgs, Outcome, Printer, Usage, beside, exceeds, stem, table};
use super::train;
use crate::adapter;
use crate::merge::{LayerReport, STRATEGIES, Strategy};
use crate::onnx;
use crate::pipeline::{self, Calibration, Error, MergeRequest};
use crate::structure::BASE_KEY;
use crate::train::data::Dataset;
use crate::verify::Difference;
use anyhow::Result;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,
    /// The trained adapter: a file, or a run directory [default: the newest run of the model]
    #[arg(long, value_name = "FILE|RUN_DIR")]
    adapter: Option<PathBuf>,
    /// Where to write the merged model [default: MODEL.merged.onnx]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// auto, exact, input-norm or weight-norm
    #[arg(long, default_value = "auto", value_name = "NAME")]
    strategy: String,
    /// Data to gather norms on
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    #[command(flatten)]
    how: DataArgs,
    /// The largest relative difference of an output; above it nothing is written [default: 1e-4 for exact merges]
    #[arg(long, value_name = "F")]
    tolerance: Option<f64>,
    /// Keep the adapters in the file as side branches: nothing is lost, and their products stay
    #[arg(long, conflicts_with = "strategy")]
    keep_branch: bool,
    /// Write the file even if it differs by more than the tolerance
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Result_ {
    output: Option<PathBuf>,
    adapter: PathBuf,
    strategy: String,
    layers: Vec<LayerReport>,
    also_trained: Vec<String>,
    compared_on: String,
    differences: Vec<Difference>,
    tolerance: Option<f64>,
    above_tolerance: bool,
    notes: Vec<String>,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    args.how.check()?;
    let strategy = strategy(&args.strategy)?;
    let injected = pipeline::read(&args.model)?;
    let path = match &args.adapter {
        Some(path) => path.clone(),
        None => newest_run(&args.model, injected.metadata(BASE_KEY))?,
    };
    let adapter = adapter::read(&path).map_err(Error::from)?;
    let calibrate = args.calibrate.as_ref().map(|c| args.how.read(c, printer)).transpose()?;
    let fallback = if calibrate.is_none() { run_data(&path) } else { None };
    let mut device = args.how.device.open()?;
    let given = |data| Calibration { data, batch_size: args.how.batch_size, max_length: args.how.max_length };
    let request = MergeRequest {
        injected: &injected,
        adapter: &adapter,
        strategy,
        keep_branch: args.keep_branch,
        calibrate: calibrate.as_ref().map(given),
        fallback: fallback.as_ref().map(|(data, how)| Calibration {
            data,
            batch_size: how.batch_size,
            max_length: how.max_length,
        }),
    };
    let merged = pipeline::merge(&request, device.as_mut())?;
    let exact = matches!(merged.report.strategy.as_str(), "exact" | "branch");
    let limit = if args.keep_branch { 1e-4 } else { merged.exact_tolerance };
    let tolerance = args.tolerance.or((exact && limit.is_finite()).then_some(limit));
    let above = tolerance.is_some_and(|t| merged.differences.iter().any(|d| exceeds(d.relative, t)));
    let output = args.output.clone().unwrap_or_else(|| beside(&args.model, "merged"));
    let writes = !above || args.force;
    if writes {
        onnx::write(&merged.model, &output).map_err(Error::from)?;
    }
    let result = Result_ {
        output: writes.then_some(output),
        adapter: path,
        strategy: merged.report.strategy,
        layers: merged.report.layers,
        also_trained: merged.report.also_trained,
        compared_on: merged.compared_on,
        differences: merged.differences,
        tolerance,
        above_tolerance: above,
        notes: merged.report.notes,
    };
    printer.result(&result, || text(&result));
    Ok(if above && !args.force { Outcome::AboveTolerance } else { Outcome::Done })
}

fn strategy(text: &str) -> Result<Option<Strategy>> {
    if text == "auto" {
        return Ok(None);
    }
    let names: Vec<&str> = STRATEGIES.iter().map(|s| s.name).collect();
    let unknown = || Usage(format!("--strategy '{text}' is not known\nhint: auto, {}", names.join(", ")));
    Ok(Some(Strategy::parse(text).ok_or_else(unknown)?))
}

/// The newest run of a model: of those below `runs/` that bear its name, the last one written whose adapter belongs to the
/// same base.
fn newest_run(model: &Path, base: Option<&str>) -> Result<PathBuf> {
    let name = stem(model);
    let entries = std::fs::read_dir("runs").into_iter().flatten().flatten();
    let mut runs: Vec<(std::time::SystemTime, PathBuf)> = entries
        .filter(|e| e.file_name().to_string_lossy().strip_prefix(&name).is_some_and(|r| r.starts_with('-')))
        .filter_map(|e| Some((e.path().join("adapter.safetensors").metadata().ok()?.modified().ok()?, e.path())))
        .collect();
    runs.sort();
    let fits = |path: &PathBuf| adapter::read(path).is_ok_and(|a| a.base.is_none() || a.base.as_deref() == base);
    let found = runs.into_iter().rev().map(|r| r.1).find(fits);
    found.ok_or_else(|| {
        Usage(format!("there is no run of {} in runs/\nhint: train it first, or give --adapter", model.display()))
            .into()
    })
}

/// The training data of the run that an adapter came from, if it is still there.
fn run_data(adapter: &Path) -> Option<(Dataset, DataArgs)> {
    let dir = if adapter.is_dir() { adapter } else { adapter.parent()? };
    let config = train::read_config(dir).ok()?;
    let data = config.how.read(&config.data, &Printer { json: true }).ok()?;
    Some((data, config.how))
}

fn text(r: &Result_) -> String {
    let rows = r.layers.iter().map(|l| {
        let requantised = l.requantised.map_or(String::new(), |e| format!("requantised, {e:.1e} off "));
        let alphas = requantised + &l.alphas.iter().map(|a| format!("{a:.3}")).collect::<Vec<_>>().join(" ");
        vec![l.path.clone(), format!("{:.2e}", l.relative_change), alphas]
    });
    let mut out = table(&["merged", "change of weight", "factors"], rows.collect());
    out += &format!("\n\n{} merge; adapter against merged model on {}:\n", r.strategy, r.compared_on);
    let rows = r
        .differences
        .iter()
        .map(|d| vec![d.output.clone(), format!("{:.2e}", d.relative), format!("{:.2e}", d.largest)]);
    out += &table(&["output", "relative", "largest"], rows.collect());
    for note in &r.notes {
        out += &format!("\nnote: {note}");
    }
    let limit = r.tolerance.unwrap_or_default();
    out + &match &r.output {
        Some(path) => format!("\nwrote {}", path.display()),
        None => format!("\nabove the tolerance of {limit:.1e}: nothing was written (--force writes it all the same)"),
    }
}
