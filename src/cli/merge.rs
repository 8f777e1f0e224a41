//! `merge`

use super::common::{DataArgs, Outcome, Printer, Usage, beside, data_help, read_data, table};
use super::output::guard;
use super::runs::{self, Taken};
use crate::adapter;
use crate::adapters;
use crate::adapters::BASE_KEY;
use crate::merge::{self, LayerReport};
use crate::onnx::{self, Model};
use crate::pipeline::{self, Error, MergeRequest, Metric, Polished};
use crate::settings::{ConfigError, RunConfig, defaults};
use crate::train::data::{self, Dataset};
use crate::verify::Difference;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,
    /// The trained adapter: a file, a run directory, or a folder that PEFT saved [default: the newest run of the model]
    #[arg(long, value_name = "FILE|DIR")]
    adapter: Option<PathBuf>,
    /// Where to write the merged model; a folder gets tokenizer and configuration files too [default: MODEL.merged.onnx]
    #[arg(short, long, value_name = "FILE|DIR/")]
    output: Option<PathBuf>,
    /// auto, exact, input-norm, weight-norm or least-squares
    #[arg(long, default_value = defaults::STRATEGY, value_name = "NAME")]
    strategy: String,
    #[arg(long, value_name = "FILE", num_args = 1.., help = data_help("What to gather norms on"))]
    calibrate: Vec<PathBuf>,
    #[command(flatten)]
    how: DataArgs,
    #[arg(long, value_name = "F", allow_hyphen_values = true, help = tolerance_help())]
    tolerance: Option<f64>,
    /// The ridge of least-squares, a fraction of the mean square of the inputs' features; auto finds one for each layer
    #[arg(long, default_value = defaults::RIDGE, value_name = "auto|F")]
    ridge: String,
    /// Least-squares layer by layer, each on the model merged so far
    #[arg(long)]
    sequential: bool,
    /// Optimiser steps of the merged form after that, on the data
    #[arg(long, value_name = "N")]
    polish: Option<u64>,
    /// Keep the adapters in the file as side branches: nothing is lost, and their products stay
    #[arg(long, conflicts_with = "strategy")]
    keep_branch: bool,
    /// Write the file even if it differs by more than the tolerance
    #[arg(long)]
    force: bool,
    /// Write over a file that is in use: the model, its base or data, or the adapter
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    chosen: Chosen,
}

/// Values of adapters' graph inputs to fold in, a flag for each that the table of adapters names.
#[derive(Clone, Debug, Default)]
struct Chosen(Vec<(String, f64)>);

impl clap::Args for Chosen {
    fn augment_args(command: clap::Command) -> clap::Command {
        let args = adapters::all().into_iter().flat_map(|structure| {
            structure.inputs.iter().map(move |input| {
                let help = format!("For {structure}: {}; without it the branch is kept", input.help);
                let number = clap::value_parser!(f64);
                let arg = clap::Arg::new(input.name).long(input.name).value_name("F").help(help);
                arg.value_parser(number).allow_hyphen_values(true).conflicts_with("keep_branch")
            })
        });
        command.args(args)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Chosen::augment_args(command)
    }
}

impl clap::FromArgMatches for Chosen {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Chosen, clap::Error> {
        let names: Vec<&str> = adapters::all().iter().flat_map(|s| s.inputs).map(|i| i.name).collect();
        let value = |name: &&str| Some((name.to_string(), *matches.get_one::<f64>(name)?));
        Ok(Chosen(names.iter().filter_map(value).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Chosen::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Serialize)]
struct Result_ {
    output: Option<PathBuf>,
    adapter: PathBuf,
    /// The run that was taken, where --adapter did not name one.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Taken>,
    strategy: String,
    layers: Vec<LayerReport>,
    also_trained: Vec<String>,
    compared_on: String,
    differences: Vec<Difference>,
    /// Strategies that were compared, with the largest relative difference of an output.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tried: Vec<(String, f64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<Metric>,
    /// Values of graph inputs that were folded in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    folded: Vec<(String, f64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    polished: Option<Polished>,
    tolerance: Option<f64>,
    above_tolerance: bool,
    /// Less than nine tenths of the gain is in the merged model.
    falls_short: bool,
    notes: Vec<String>,
}

/// What a run trained on, and what it measured on, as far as it can be read again.
fn run_data(run: &RunConfig, model: &Arc<Model>) -> (Option<Dataset>, Option<Dataset>) {
    let read = |given: &[PathBuf]| match given.is_empty() {
        true => None,
        false => read_data(&run.train.how, given, model, &Printer { json: true }).ok(),
    };
    match (read(&run.data), run.eval_split) {
        (Some(all), Some(share)) => all.split(share, run.train.seed).ok().unzip(),
        (data, _) => (data, read(&run.eval)),
    }
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let how = args.how.config();
    how.check()?;
    args.tolerance.map_or(Ok(()), check_tolerance)?;
    let strategy = pipeline::named_strategy(&args.strategy)?;
    let ridge = match args.ridge.as_str() {
        "auto" => None,
        text => match text.parse::<f64>() {
            Ok(r) if r.is_finite() && r >= 0.0 => Some(r),
            _ => return Err(Usage(format!("--ridge '{text}' is neither auto nor a number from 0 up")).into()),
        },
    };
    let injected = pipeline::read(&args.model)?;
    // Before anything else is asked of it.
    let made = merge::config(&injected).map_err(Error::from)?;
    strategy.map_or(Ok(()), |s| merge::check_strategy(&made, s)).map_err(Error::from)?;
    let run = match &args.adapter {
        Some(_) => None,
        None => Some(runs::newest(&injected)?),
    };
    let path = match (&args.adapter, &run) {
        (Some(path), _) => path.clone(),
        (None, Some(run)) => run.path.clone(),
        (None, None) => unreachable!("one of the two is taken"),
    };
    say(&path, run.as_ref(), printer);
    let adapter = adapter::read(&path).map_err(Error::from)?;
    merge::fit(&injected, &adapter).map_err(Error::from)?;
    let calibrate = match args.calibrate.is_empty() {
        true => None,
        false => Some(read_data(&how, &args.calibrate, &injected, printer)?),
    };
    let config = run_config(&path, printer);
    let (fallback, evaluation) = config.as_ref().map_or((None, None), |run| run_data(run, &injected));
    let fallback = fallback.filter(|_| calibrate.is_none());
    let output = args.output.clone().unwrap_or_else(|| beside(&args.model, "merged"));
    // A folder gets the model and what goes with it.
    let folder =
        (output.is_dir() || output.as_os_str().to_string_lossy().ends_with(['/', '\\'])).then(|| output.clone());
    let output = folder.as_ref().map_or(output, |f| f.join("model.onnx"));
    if !args.overwrite {
        let tensors = adapter::file(&path).map_err(Error::from)?;
        let mut inputs = vec![("the model", &*args.model), ("the adapter", &*tensors)];
        inputs.extend(is_base(&output, &injected).then_some(("the base", &*output)));
        let of_run = config.iter().flat_map(|run| [&run.data, &run.eval]);
        let data: Vec<PathBuf> = of_run.chain([&args.calibrate]).flat_map(|given| data::files(given)).collect();
        inputs.extend(data.iter().map(|file| ("the data", &**file)));
        guard(&output, inputs, &[&*injected])?;
    }
    let mut device = args.how.device.open()?;
    let run_how = config.as_ref().map(|run| &run.train.how);
    let trained = config.as_ref().map(|run| &run.train);
    let polish = args.polish.map(|steps| pipeline::polishing(steps, trained, &how)).transpose()?;
    let request = MergeRequest {
        injected: &injected,
        adapter: &adapter,
        strategy,
        keep_branch: args.keep_branch,
        chosen: args.chosen.0.clone(),
        calibrate: calibrate.as_ref().map(|data| pipeline::calibration(&how, data)).transpose()?,
        fallback: fallback.as_ref().zip(run_how).map(|(data, how)| pipeline::calibration(how, data)).transpose()?,
        ridge,
        sequential: args.sequential,
        polish,
        rescue: Some(pipeline::polishing(defaults::RESCUE_STEPS, trained, &how)?),
        evaluate: evaluation.as_ref().zip(run_how).map(|(data, how)| pipeline::calibration(how, data)).transpose()?,
    };
    let merged = pipeline::merge(&request, device.as_mut())?;
    let tolerance = args.tolerance.or(merged.tolerance());
    let above = tolerance.is_some_and(|t| merged.is_above(t));
    // Asked for by name, a strategy is taken for what it gives; left to us, it has to keep what was learnt.
    let short = strategy.is_none() && merged.falls_short();
    let writes = !(above || short) || args.force;
    if writes {
        onnx::write(&merged.model, &output).map_err(Error::from)?;
        if let Some(folder) = &folder {
            copy_companions(&args.model, folder)?;
        }
    }
    let result = Result_ {
        output: writes.then_some(output),
        adapter: path,
        run,
        strategy: merged.report.strategy,
        layers: merged.report.layers,
        also_trained: merged.report.also_trained,
        compared_on: merged.compared_on,
        differences: merged.differences,
        tried: merged.tried,
        metric: merged.metric,
        folded: args.chosen.0.clone(),
        polished: merged.polished,
        tolerance,
        above_tolerance: above,
        falls_short: short,
        notes: merged.report.notes,
    };
    if config.is_some() {
        let dir = if result.adapter.is_dir() { Some(&*result.adapter) } else { result.adapter.parent() };
        dir.map_or(Ok(()), |dir| keep(dir, &args.model, &result)).unwrap_or_else(|e| printer.note(format!("{e:#}")));
    }
    printer.result(&result, || text(&result));
    Ok(if (above || short) && !args.force { Outcome::AboveTolerance } else { Outcome::Done })
}

/// Says which run was taken and which were not.
fn say(path: &Path, run: Option<&Taken>, printer: &Printer) {
    if let Some(run) = run {
        run.passed_over.iter().for_each(|p| printer.note(format!("skipped {}: {}", p.path.display(), p.why)));
        let ended = run.ended.strftime("%Y-%m-%d %H:%M:%S UTC");
        printer.note(format!("{} is taken, the newest run of the model; it ended {ended}", run.path.display()));
    } else if let Some(why) = runs::doubt(path) {
        printer.note(format!("{} is taken as asked, though {why}", path.display()));
    }
}

/// Puts what the merge did into the run's directory, as merge.json and in its page.
fn keep(dir: &Path, model: &Path, result: &Result_) -> Result<()> {
    super::output::write(&dir.join("merge.json"), &serde_json::to_string_pretty(result)?)?;
    let page = || format!("cannot write {}", dir.join("report.html").display());
    crate::train::write_report(dir, &super::common::stem(model)).with_context(page)
}

/// Files that users of a model expect beside it.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "genai_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];

/// Copies what lies beside a model into the folder of the merged one; what is there already stays.
fn copy_companions(model: &Path, folder: &Path) -> Result<()> {
    let from = model.parent().unwrap_or(Path::new(""));
    for name in COMPANIONS {
        let (source, target) = (from.join(name), folder.join(name));
        if source.is_file() && !target.exists() {
            std::fs::copy(&source, &target).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    Ok(())
}

/// Whether a file is the one that a model was injected into.
fn is_base(file: &Path, injected: &Model) -> bool {
    let digest = injected.metadata(BASE_KEY);
    file.exists() && pipeline::read(file).is_ok_and(|m| Some(m.digest().as_str()) == digest)
}

fn tolerance_help() -> String {
    let default = defaults::TOLERANCE;
    format!(
        "The largest relative difference of an output; above it nothing is written [default: {default:e} for exact merges]"
    )
}

/// Refuses a tolerance that nothing is above or below.
pub fn check_tolerance(tolerance: f64) -> Result<()> {
    match tolerance.is_finite() && tolerance >= 0.0 {
        true => Ok(()),
        false => Err(Usage(format!("--tolerance {tolerance} must be a number that is not negative")).into()),
    }
}

/// How the run was trained that an adapter came from, if that is known.
fn run_config(adapter: &Path, printer: &Printer) -> Option<RunConfig> {
    let dir = if adapter.is_dir() { adapter } else { adapter.parent()? };
    match RunConfig::read(dir) {
        Ok(config) => Some(config),
        Err(ConfigError::Open { .. }) => None,
        Err(e) => {
            printer.note(format!("what the run was trained on is not known: {e}"));
            None
        }
    }
}

fn text(r: &Result_) -> String {
    let rows = r.layers.iter().map(|l| {
        let requantised = l.requantised.map(|e| format!("requantised, error {e:.1e}"));
        let ridge = l.ridge.map(|r| format!("ridge {r:.0e}"));
        let alphas = l.alphas.iter().map(|a| format!("{a:.3}"));
        let how: Vec<String> = alphas.chain(ridge).chain(requantised).collect();
        let error = l.error.map_or("-".into(), |e| format!("{e:.2e}"));
        vec![l.path.clone(), format!("{:.2e}", l.relative_change), error, how.join(" ")]
    });
    let mut out = table(&["layer", "weight change", "layer error", "details"], rows.collect());
    out += &format!(
        "\n\n{} merge: error of the merged model against the live adapter, on {}:\n",
        r.strategy, r.compared_on
    );
    let rows = r
        .differences
        .iter()
        .map(|d| vec![d.output.clone(), format!("{:.2e}", d.relative), format!("{:.2e}", d.largest)]);
    out += &table(&["output", "relative", "largest"], rows.collect());
    if let Some(p) = &r.polished {
        out += &format!(
            "\n{} polishing steps: output error {:.2e} before, {:.2e} after",
            p.steps, p.difference[0], p.difference[1]
        );
        if let Some([before, after]) = p.metric {
            out += &format!("; loss {before:.4} before, {after:.4} after");
        }
    }
    for note in &r.notes {
        out += &format!("\nnote: {note}");
    }
    let limit = r.tolerance.unwrap_or_default();
    out += &match &r.output {
        Some(path) => format!("\nwrote {}", path.display()),
        None if r.above_tolerance => {
            format!("\nerror above the tolerance of {limit:.1e}: nothing written (--force writes it anyway)")
        }
        None => format!(
            "\nless than {:.0} % of the gain is left: nothing was written\nhint: --keep-branch keeps the adapters in the file and \
             loses nothing; --force writes the merged file anyway",
            100.0 * pipeline::KEPT
        ),
    };
    let requantised = r.layers.iter().any(|l| l.requantised.is_some_and(|e| e > 0.0));
    out + &gain(r.metric.as_ref(), &r.folded, requantised)
}

/// How much of what was learnt the file holds, as the last line.
fn gain(metric: Option<&Metric>, folded: &[(String, f64)], requantised: bool) -> String {
    let Some(m) = metric else {
        // Exact for these values, whatever the examples of a data set have.
        if !folded.is_empty() {
            let values: Vec<String> = folded.iter().map(|(name, value)| format!("{name} {value}")).collect();
            let values = values.join(", ");
            return match requantised {
                true => format!("\nthe merge is exact for {values}, but for the requantised weights above"),
                false => format!("\nnothing of the gain is lost for {values}: the merge is exact"),
            };
        }
        return "\nhow much of the gain is kept was not measured: give --calibrate FILE with labels".into();
    };
    let mut out = format!("\nnote: {}", m.chosen);
    out += &format!("\non {}: loss {:.4} base, {:.4} live, {:.4} merged", m.measured_on, m.base, m.loss[0], m.loss[1]);
    if let Some([live, merged]) = m.accuracy {
        out += &format!("; accuracy {:.2} % live, {:.2} % merged", 100.0 * live, 100.0 * merged);
    }
    out + &match m.kept {
        Some(kept) if m.falls_short() => {
            format!("; only {:.0} % of the gain is kept (--keep-branch keeps it all)", 100.0 * kept)
        }
        Some(kept) => format!("; {:.0} % of the gain is kept", 100.0 * kept),
        None => "; training gained nothing".into(),
    }
}
