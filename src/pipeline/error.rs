//! The pipeline's error: each module's error, unchanged.

use crate::device::DeviceError;
use crate::inject::InjectError;

/// An error of any module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] crate::onnx::ReadError),
    #[error(transparent)]
    Write(#[from] crate::onnx::WriteError),
    #[error(transparent)]
    Inject(#[from] crate::inject::InjectError),
    #[error(transparent)]
    Lower(#[from] crate::lower::LowerError),
    #[error(transparent)]
    Build(#[from] crate::ir::BuildError),
    #[error(transparent)]
    Pass(#[from] crate::passes::PassError),
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    #[error(transparent)]
    Data(#[from] crate::train::data::DataError),
    #[error(transparent)]
    Train(#[from] crate::train::TrainError),
    #[error(transparent)]
    Adapter(#[from] crate::adapter::AdapterError),
    #[error(transparent)]
    Merge(#[from] crate::merge::MergeError),
    #[error("cannot write {}: {error}\nhint: --dump-ir takes a folder that can be written, which is made if it is not there", path.display())]
    Dump { path: std::path::PathBuf, error: std::io::Error },
    #[error(transparent)]
    Config(#[from] crate::settings::ConfigError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Model(String),
}

impl Error {
    /// Whether the caller asked for something that cannot be, rather than something failing.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Usage(_) => true,
            Error::Config(e) => e.is_usage(),
            Error::Inject(e) => !matches!(e, InjectError::NoLinear | InjectError::Opset { .. }),
            Error::Device(DeviceError::NoDevice { .. }) => true,
            _ => false,
        }
    }
}
