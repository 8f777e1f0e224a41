//! `run`

use super::common::{DeviceArg, Outcome, Printer};
use crate::pipeline::{self, Error};
use crate::train::data;
use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,
    /// One tensor for each input of the model, in its type and shape: .npz or .safetensors
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where to write every output: .safetensors or .npz
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// An adapter for an injected model: a file, or a run directory
    #[arg(long, value_name = "FILE|RUN_DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(Serialize)]
struct Result_ {
    output: PathBuf,
    outputs: Vec<Row>,
    device: String,
}

#[derive(Serialize)]
struct Row {
    name: String,
    element: String,
    shape: Vec<usize>,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let model = pipeline::read(&args.model)?;
    pipeline::model_notes(&model).iter().for_each(|n| printer.note(n));
    let adapter = args.adapter.as_deref().map(|path| pipeline::read_adapter(path, &model)).transpose()?;
    let adapter = adapter.map(|(adapter, notes)| {
        notes.iter().for_each(|n| printer.note(n));
        adapter
    });
    let given = data::read_tensors(&args.data).map_err(Error::from)?;
    let mut inputs = vec![("the model", &*args.model), ("the data", &*args.data)];
    inputs.extend(args.adapter.as_deref().map(|a| ("the adapter", a)));
    super::output::guard_always(&args.output, inputs, &[&*model])?;
    let mut device = args.device.open()?;
    let outputs = pipeline::run(&model, adapter.as_ref(), given, device.as_mut())?;
    pipeline::save(&outputs, &args.output)?;
    let rows =
        outputs.iter().map(|o| Row { name: o.name.clone(), element: o.element.to_string(), shape: o.dims.clone() });
    let result = Result_ { output: args.output.clone(), outputs: rows.collect(), device: device.name() };
    printer.result(&result, || {
        let rows = result.outputs.iter().map(|o| format!("{}: {} {:?}", o.name, o.element, o.shape));
        format!("{}\nwrote {}", rows.collect::<Vec<_>>().join("\n"), result.output.display())
    });
    Ok(Outcome::Done)
}
