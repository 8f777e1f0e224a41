//! `run.json`: what a run trains and how it ended. `run.lock`: held while the run is in use.

use super::TrainError;
use atomic_write_file::AtomicWriteFile;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::Path;

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// At work, or ended without saying so.
    Running,
    Done,
    /// Ended by Ctrl-C, its state saved.
    Interrupted,
    Failed,
}

/// What a run directory says of its run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub status: Status,
    pub started: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Digest of the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Digests of what the run reads, by the flag that names it.
    #[serde(default)]
    pub digests: BTreeMap<String, String>,
    /// What a step's `tokens` are: `tokens` or `examples`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl Record {
    /// Of a run that starts, or goes on, now.
    pub fn running(base: Option<String>, digests: BTreeMap<String, String>) -> Record {
        Record {
            status: Status::Running,
            started: Timestamp::now(),
            ended: None,
            error: None,
            base,
            digests,
            unit: None,
        }
    }

    pub fn end(&mut self, status: Status, error: Option<String>) {
        (self.status, self.ended, self.error) = (status, Some(Timestamp::now()), error);
    }
}

const FILE: &str = "run.json";
const LOCK: &str = "run.lock";

/// Whether a directory holds a run, or part of one.
pub fn holds_run(dir: &Path) -> bool {
    [FILE, "config.toml", "adapter.safetensors", "metrics.jsonl", "last"].iter().any(|name| dir.join(name).exists())
}

/// A run's record; `None` where there is none, as in runs of earlier versions.
pub fn read(dir: &Path) -> Result<Option<Record>, TrainError> {
    let path = dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(TrainError::Resume { path, why: e.to_string() }),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| TrainError::Resume { path, why: e.to_string() })
}

pub fn write(dir: &Path, record: &Record) -> Result<(), TrainError> {
    let path = dir.join(FILE);
    let text = serde_json::to_vec_pretty(record).expect("text and times");
    let put = || -> std::io::Result<()> {
        let mut file = AtomicWriteFile::open(&path)?;
        file.write_all(&text)?;
        file.commit()
    };
    put().map_err(|error| TrainError::Write { path, error })
}

/// Holds a run directory; let go of when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes a run directory for this process; refused while another process has it.
pub fn lock(dir: &Path) -> Result<Lock, TrainError> {
    let path = dir.join(LOCK);
    let fail = |error| TrainError::Write { path: path.clone(), error };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(TrainError::InUse { path: dir.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(fail(error)),
    }
}

/// Whether another process is at work in a run directory.
pub fn in_use(dir: &Path) -> bool {
    let file = File::open(dir.join(LOCK));
    file.is_ok_and(|f| matches!(f.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Takes a run that was there before out of its directory; other files stay.
pub fn clear(dir: &Path) -> Result<(), TrainError> {
    let fail = |error| TrainError::Write { path: dir.to_path_buf(), error };
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let own =
            [FILE, "config.toml", "adapter.safetensors", "metrics.jsonl", "trace.jsonl", "report.html", "merge.json"]
                .contains(&name.as_str());
        if own || name.starts_with("events.out.tfevents.") {
            std::fs::remove_file(entry.path()).map_err(fail)?;
        } else if name == "last" {
            for name in ["states.safetensors", "progress.json", "progress.next.json"] {
                match std::fs::remove_file(entry.path().join(name)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}
