//! The library's interface: plain types over the pipeline's functions, which are the ones that the program calls.

mod merging;
mod training;

pub use merging::{MergeRequest, Merged, VerifyRequest, merge, verify};
pub use training::{TrainRequest, evaluate, train};

use crate::adapter::{self, Adapter};
use crate::inject::{self, Options};
use crate::settings::{DataConfig, TrainConfig};
use crate::train::data;
use crate::{device, onnx, pipeline};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Why something failed: what, where and why, and after `hint:` what to try.
#[derive(Debug)]
pub struct Error(pipeline::Error);

impl Error {
    /// Whether the caller asked for something that cannot be, rather than something failing. Messages call settings by the flags of the
    /// program: `--lr` is [`TrainConfig::lr`].
    pub fn is_usage(&self) -> bool {
        self.0.is_usage()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl<E: Into<pipeline::Error>> From<E> for Error {
    fn from(error: E) -> Error {
        Error(error.into())
    }
}

/// An ONNX model. Its bytes stay as they were read, except for what [`inject`] and [`merge`] change. Copies share them.
#[derive(Clone)]
pub struct Model(Arc<onnx::Model>);

impl Model {
    /// The file that it was read from. An injected or merged model has that of its base until it is written and read again.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Reads a model. Its file, and those of its external data, must not change while the model is in use.
///
/// # Errors
/// The file cannot be opened, or is no ONNX model.
pub fn read(path: impl AsRef<Path>) -> Result<Model, Error> {
    Ok(Model(pipeline::read(path.as_ref())?))
}

/// Writes a model. The file is written to a temporary folder, read back and compared before it replaces anything.
///
/// # Errors
/// The file cannot be written, or does not read back as the model.
pub fn write(model: &Model, path: impl AsRef<Path>) -> Result<(), Error> {
    Ok(onnx::write(&model.0, path.as_ref())?)
}

/// A model with adapters, and what was put into it.
pub struct Injected {
    /// Computes what the base computes: adapters start without effect.
    pub model: Model,
    /// Which linear nodes got adapters, and how many numbers are trained.
    pub report: inject::Report,
}

/// Puts adapters into a model.
///
/// # Errors
/// An option that does not go with the structure or the model, a target that the structure does not fit, no linear node to adapt, or an
/// operator that cannot be trained through.
pub fn inject(base: &Model, options: &Options) -> Result<Injected, Error> {
    let (model, report) = pipeline::inject(&base.0, options)?;
    Ok(Injected { model: Model(Arc::new(model)), report })
}

/// Completes options whose start is [`Init::Eva`](crate::adapters::Init::Eva): runs the base over the data for the principal directions of
/// each target's inputs, and gives ranks to targets by the variance that these explain, at most `rho` times a target's own (1 leaves ranks
/// alone). Also says which ranks those are.
///
/// # Errors
/// Data that does not fit the model, or has too few rows for so many directions.
pub fn with_directions(
    base: &Model,
    options: &Options,
    data: &Dataset,
    config: &DataConfig,
    rho: f64,
    device: &mut Device,
) -> Result<(Options, String), Error> {
    let calibration = pipeline::calibration(config, &data.0)?;
    Ok(pipeline::with_directions(&base.0, options, &calibration, rho, device.0.as_mut())?)
}

/// Completes options whose start is [`Init::Loftq`](crate::adapters::Init::Loftq), for targets that the base holds quantised: takes their
/// weights from the model from before that, found by module path.
///
/// # Errors
/// No target is quantised, or the original has no such layer.
pub fn with_originals(base: &Model, options: &Options, original: &Model) -> Result<Options, Error> {
    Ok(pipeline::with_originals(&base.0, options, &original.0)?)
}

/// Examples to train on, or to measure on.
pub struct Dataset(data::Dataset);

impl Dataset {
    /// The number of examples, at least one.
    #[expect(clippy::len_without_is_empty, reason = "a data set without examples is refused when it is read")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Splits off a share of the rows, between 0 and 1 and rounded up, drawn from `seed`: what is left to train on, and what to evaluate on.
    ///
    /// # Errors
    /// The share leaves nothing to train on.
    pub fn split(&self, share: f64, seed: u64) -> Result<(Dataset, Dataset), Error> {
        let (train, eval) = self.0.split(share, seed)?;
        Ok((Dataset(train), Dataset(eval)))
    }

    /// What a user should know, such as how many texts were cut short.
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }
}

/// Reads a data file of any format that the program reads: a path, a pattern such as `train-*.jsonl`, or a folder that `save_to_disk` wrote.
/// The model's folder is where a tokenizer and the names of classes are looked for.
///
/// # Errors
/// The file cannot be opened, a line or tensor of it cannot be used, or it is text and there is no tokenizer.
pub fn read_data(path: impl AsRef<Path>, model: &Model, config: &DataConfig) -> Result<Dataset, Error> {
    config.check()?;
    Ok(Dataset(pipeline::read_data(config, &[path.as_ref().to_path_buf()], &model.0)?))
}

/// What programs run on: a GPU, or the CPU. It keeps weights and compiled programs from call to call.
pub struct Device(Box<dyn device::Device>);

impl Device {
    /// The name of the GPU or CPU.
    pub fn name(&self) -> String {
        self.0.name()
    }
}

/// Opens the device that [`DataConfig::device`] names, for the types of numbers that [`TrainConfig::precision`] and
/// [`TrainConfig::weights`] name.
///
/// # Errors
/// There is no such device, or it offers less than WebGPU guarantees.
pub fn open_device(config: &TrainConfig) -> Result<Device, Error> {
    Ok(Device(pipeline::device(config)?))
}

/// Reads an adapter: a file, a run directory, or a folder that PEFT saved.
///
/// # Errors
/// The file cannot be opened, is no adapter, or holds NaN or infinity.
pub fn read_adapter(path: impl AsRef<Path>) -> Result<Adapter, Error> {
    Ok(adapter::read(path.as_ref())?)
}

/// Writes an adapter as a safetensors file with PEFT's tensor names.
///
/// # Errors
/// The file cannot be written, or the adapter holds NaN or infinity.
pub fn write_adapter(adapter: &Adapter, path: impl AsRef<Path>) -> Result<(), Error> {
    Ok(adapter::write(adapter, path.as_ref())?)
}
