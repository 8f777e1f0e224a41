//! What can be set: the defaults, each named once, and [`RunConfig`], which says everything that a training run is.
//!
//! This is plain data: names of optimisers, schedules and losses are looked up by who uses them.

pub mod defaults;
mod paths;
mod run_config;

pub use run_config::{DataConfig, RunConfig, TrainConfig};

use std::path::{Path, PathBuf};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot open {}: {error}", path.display())]
    Open { path: PathBuf, error: std::io::Error },
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    /// A setting that no run can have, by its flag.
    #[error("{0}")]
    Value(String),
}

impl ConfigError {
    /// Whether the caller asked for something that cannot be, rather than something failing.
    pub fn is_usage(&self) -> bool {
        !matches!(self, ConfigError::Open { .. })
    }

    /// A key that no setting has, with the one that may be meant.
    pub fn unknown(path: &Path, key: &str, nearest: Option<&str>) -> ConfigError {
        let hint = nearest.map(|n| format!("\nhint: is it '{n}'?")).unwrap_or_default();
        ConfigError::File { path: path.to_path_buf(), why: format!("'{key}' is no setting{hint}") }
    }
}

/// The name that is most like what was written, if one is like it at all.
pub fn nearest<'a>(written: &str, names: &[&'a str]) -> Option<&'a str> {
    let like = |name: &&str| strsim::jaro_winkler(written, name);
    let best = names.iter().copied().max_by(|a, b| like(a).total_cmp(&like(b)))?;
    (like(&best) > 0.7).then_some(best)
}
