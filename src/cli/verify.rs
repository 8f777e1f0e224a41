//! `verify`

use super::common::{DataArgs, Outcome, Printer, read_data, table};
use super::merge::check_tolerance;
use crate::adapter;
use crate::pipeline::{self, Error, Verification, VerifyRequest};
use crate::settings::defaults;
use crate::verify::Difference;
use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    first: PathBuf,
    second: PathBuf,
    /// Inputs to compare on [default: synthetic]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
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

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let how = args.how.config();
    how.check()?;
    check_tolerance(args.tolerance)?;
    let (first, second) = (pipeline::read(&args.first)?, pipeline::read(&args.second)?);
    let adapter = args.adapter.as_deref().map(adapter::read).transpose().map_err(Error::from)?;
    let data = match args.data.is_empty() {
        true => None,
        false => Some(read_data(&how, &args.data, &first, printer)?),
    };
    let request =
        VerifyRequest { first: &first, second: &second, adapter: adapter.as_ref(), data: data.as_ref(), how: &how };
    let Verification { engine, batches, outputs, notes } = pipeline::verify(&request)?;
    // Not a number is above any tolerance.
    let above = outputs.iter().any(|d| d.exceeds(args.tolerance));
    let result = Result_ { engine, batches, outputs, tolerance: args.tolerance, above_tolerance: above, notes };
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
