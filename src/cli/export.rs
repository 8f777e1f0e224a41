//! `export`

use super::common::{Outcome, Printer, Usage};
use crate::adapter;
use crate::pipeline::{self, Error};
use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// The injected model that the adapter belongs to
    model: PathBuf,
    /// The trained adapter: a file, a run directory, or a folder that PEFT saved
    #[arg(long, value_name = "FILE|DIR")]
    adapter: PathBuf,
    /// What to write: peft, a folder that Hugging Face PEFT reads
    #[arg(long, value_name = "NAME", default_value = "peft", value_parser = ["peft"])]
    format: String,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Write over an adapter that is in the folder
    #[arg(long)]
    overwrite: bool,
}

#[derive(Serialize)]
struct Result_ {
    output: PathBuf,
    format: String,
    tensors: usize,
    notes: Vec<String>,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let model = pipeline::read(&args.model)?;
    let (adapter, mut notes) = pipeline::read_adapter(&args.adapter, &model)?;
    let there = adapter::PEFT_FILES.iter().map(|f| args.output.join(f)).find(|f| f.exists());
    if let Some(file) = there.filter(|_| !args.overwrite) {
        let why = format!("{} is there already", file.display());
        return Err(Usage(format!("{why}\nhint: name another folder, or give --overwrite")).into());
    }
    notes.extend(adapter::write_peft(&adapter, &args.output).map_err(Error::from)?);
    let (output, format) = (args.output.clone(), args.format.clone());
    let result = Result_ { output, format, tensors: adapter.tensors.len(), notes };
    printer.result(&result, || {
        let notes: String = result.notes.iter().map(|n| format!("note: {n}\n")).collect();
        format!("{notes}wrote {}", result.output.display())
    });
    Ok(Outcome::Done)
}
