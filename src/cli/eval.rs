//! `eval`

use super::common::{DataArgs, LossTerms, Outcome, Printer, TypeArgs, data_help, read_data, scores};
use super::predictions;
use crate::pipeline::{self, EvalRequest};
use crate::train::data;
use crate::train::scores::Scores;
use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(override_usage = "reslora-compile eval MODEL --data FILE... [OPTIONS]")]
pub struct Args {
    model: PathBuf,
    #[arg(long, value_name = "FILE", required = true, num_args = 1.., help = data_help("What to measure on"))]
    data: Vec<PathBuf>,
    /// An adapter for an injected model: a file, a run directory, or a folder that PEFT saved
    #[arg(long, value_name = "FILE|DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    how: DataArgs,
    #[command(flatten)]
    terms: LossTerms,
    #[command(flatten)]
    types: TypeArgs,
    /// What to measure besides the loss: accuracy, f1, confusion-matrix, matthews, spearman, perplexity, exact-match, recall@K
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    metric: Vec<String>,
    /// Write what the model answers for each row, as JSON lines: row, prediction and probabilities, or the value
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
}

#[derive(Serialize)]
struct Result_ {
    loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<f64>,
    #[serde(flatten)]
    scores: Scores,
    /// Labels that counted.
    counted: usize,
    examples: usize,
    device: String,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let how = args.terms.complete(args.how.config());
    how.check()?;
    let model = pipeline::read(&args.model)?;
    pipeline::model_notes(&model).iter().for_each(|n| printer.note(n));
    let adapter = args.adapter.as_deref().map(|path| pipeline::read_adapter(path, &model)).transpose()?;
    let adapter = adapter.map(|(adapter, notes)| {
        notes.iter().for_each(|n| printer.note(n));
        adapter
    });
    let rows = read_data(&how, &args.data, &model, printer)?;
    let metrics = pipeline::metrics(&args.metric)?;
    let mut device = args.how.device.open_for(&args.types)?;
    let request = EvalRequest {
        adapter: adapter.as_ref(),
        metrics: &metrics,
        answers: args.predictions.is_some(),
        products: args.types.products(device.as_ref(), printer),
        ..EvalRequest::configured(&how, &model, &rows)?
    };
    let e = pipeline::evaluate(&request, device.as_mut())?;
    e.notes.iter().for_each(|n| printer.note(n));
    let names = data::class_names(&pipeline::data_options(&how, &model)?);
    if let (Some(path), Some((kind, answers))) = (&args.predictions, &e.answers) {
        predictions::write(path, *kind, answers, &names)?;
    }
    let result = Result_ {
        loss: e.loss,
        accuracy: e.accuracy,
        perplexity: e.perplexity,
        scores: e.scores.clone(),
        counted: e.totals.counted,
        examples: rows.len(),
        device: device.name(),
    };
    printer.result(&result, || {
        let accuracy = result.accuracy.map(|a| format!(", accuracy {a:.4}"));
        let other = accuracy.or(result.perplexity.map(|p| format!(", perplexity {p:.3}"))).unwrap_or_default();
        let line = format!(
            "loss {:.4}{other}{} over {}{} examples",
            result.loss,
            scores(&result.scores),
            if rows.task().texts() > 1 { String::new() } else { format!("{} labels of ", result.counted) },
            result.examples
        );
        predictions::with_tables(line, &result.scores, &names)
    });
    Ok(Outcome::Done)
}
