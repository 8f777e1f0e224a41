//! `eval`

use super::common::{DataArgs, Outcome, Printer, TypeArgs};
use crate::pipeline::{self, EvalRequest};
use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,
    /// What to measure on: .jsonl, .safetensors or .npz
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// An adapter for an injected model: a file, a run directory, or a folder that PEFT saved
    #[arg(long, value_name = "FILE|DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    how: DataArgs,
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
    args.how.check()?;
    let model = pipeline::read(&args.model)?;
    pipeline::model_notes(&model).iter().for_each(|n| printer.note(n));
    let adapter = args.adapter.as_deref().map(|path| pipeline::read_adapter(path, &model)).transpose()?;
    let adapter = adapter.map(|(adapter, notes)| {
        notes.iter().for_each(|n| printer.note(n));
        adapter
    });
    let data = args.how.read(&args.data, &model, printer)?;
    let mut device = args.how.device.open_for(&args.types)?;
    let request = EvalRequest {
        model: &model,
        adapter: adapter.as_ref(),
        data: &data,
        batch_size: args.how.batch_size,
        max_length: args.how.max_length,
        loss: args.how.loss(),
        loss_output: args.how.loss_output.as_deref(),
        mixed: args.types.mixed(),
        guard: false,
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
