//! Flags of `inject` for starts that read more than the model.

use super::common::{DataArgs, Printer, Usage, read_data};
use crate::adapters::{Init, Loftq};
use crate::inject::Options;
use crate::onnx::Model;
use crate::pipeline;
use crate::settings::defaults;
use anyhow::Result;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct StartArgs {
    /// What --init reads. For eva: data to run the model on. For loftq: the model from before it was quantised
    #[arg(long, value_name = "FILE")]
    init_data: Option<PathBuf>,
    /// For --init eva: a target gets at most this many times --rank; 1 leaves ranks alone [default: 2]
    #[arg(long, value_name = "F", allow_hyphen_values = true)]
    eva_rho: Option<f64>,
    /// For --init loftq: 4 (NF4) or 8 bits for weights that the file holds as floats [default: 4]
    #[arg(long, value_name = "N")]
    loftq_bits: Option<usize>,
    /// For --init loftq: how often quantisation and factors are found in turn [default: 1]
    #[arg(long, value_name = "N")]
    loftq_iter: Option<usize>,
}

impl StartArgs {
    pub fn loftq(&self) -> Loftq {
        let usual = Loftq::default();
        Loftq { bits: self.loftq_bits.unwrap_or(usual.bits), iterations: self.loftq_iter.unwrap_or(usual.iterations) }
    }

    /// Options with what the start reads.
    pub fn complete(&self, options: Options, base: &Arc<Model>, how: &DataArgs, printer: &Printer) -> Result<Options> {
        let init = options.init;
        let for_loftq = [("--loftq-bits", self.loftq_bits.is_some()), ("--loftq-iter", self.loftq_iter.is_some())];
        let stray = for_loftq.into_iter().filter(|_| init != Init::Loftq);
        let stray = stray.chain([("--eva-rho", self.eva_rho.is_some() && init != Init::Eva)]);
        let reads = matches!(init, Init::Eva | Init::Loftq);
        let mut stray = stray.chain([("--init-data", self.init_data.is_some() && !reads)]);
        if let Some((flag, _)) = stray.find(|s| s.1) {
            return Err(Usage(format!("{flag} means nothing to --init {init}\nhint: leave it out")).into());
        }
        let Some(file) = &self.init_data else { return Ok(options) };
        if options.adapter.is_some() {
            let why = "--init-data goes with a fresh start, and --adapter gives the factors";
            return Err(Usage(format!("{why}\nhint: leave one of them out")).into());
        }
        if init == Init::Loftq {
            let original = pipeline::read(file)?;
            return Ok(pipeline::with_originals(base, &options, &original)?);
        }
        let config = how.config();
        config.check()?;
        let data = read_data(&config, std::slice::from_ref(file), base, printer)?;
        let calibration = pipeline::calibration(&config, &data)?;
        let rho = self.eva_rho.unwrap_or(defaults::EVA_RHO);
        let mut device = how.device.open()?;
        let (options, said) = pipeline::with_directions(base, &options, &calibration, rho, device.as_mut())?;
        printer.note(said);
        Ok(options)
    }
}
