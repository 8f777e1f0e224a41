//! `eval`

use super::common::{DataArgs, LossTerms, Outcome, Printer, TypeArgs, data_help, read_data};
use crate::pipeline::{self, EvalRequest};
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
}

#[derive(Serialize)]
struct Result_ {
    loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<f64>,
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
    let data = read_data(&how, &args.data, &model, printer)?;
    let mut device = args.how.device.open_for(&args.types)?;
    let request = EvalRequest {
        adapter: adapter.as_ref(),
        products: args.types.products(device.as_ref(), printer),
        ..EvalRequest::configured(&how, &model, &data)?
    };
    let e = pipeline::evaluate(&request, device.as_mut())?;
    e.notes.iter().for_each(|n| printer.note(n));
    let result = Result_ {
        loss: e.loss,
        accuracy: e.accuracy,
        perplexity: e.perplexity,
        counted: e.totals.counted,
        examples: data.len(),
        device: device.name(),
    };
    printer.result(&result, || {
        let accuracy = result.accuracy.map(|a| format!(", accuracy {a:.4}"));
        let other = accuracy.or(result.perplexity.map(|p| format!(", perplexity {p:.3}"))).unwrap_or_default();
        format!("loss {:.4}{other} over {} labels of {} examples", result.loss, result.counted, result.examples)
    });
    Ok(Outcome::Done)
}
