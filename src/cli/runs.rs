//! The newest run of a model: found by the base that it trained and by its configuration, wherever below `runs/` it lies.

use super::common::Usage;
use crate::adapter;
use crate::adapters::BASE_KEY;
use crate::merge;
use crate::onnx::Model;
use crate::train::record::{self, Status};
use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// A run that was taken, and those that were not.
#[derive(Clone, Debug, Serialize)]
pub struct Taken {
    pub path: PathBuf,
    pub ended: Timestamp,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<Passed>,
}

/// A later run of the model, and why it was not taken.
#[derive(Clone, Debug, Serialize)]
pub struct Passed {
    pub path: PathBuf,
    pub why: String,
}

/// One run that may be of the model, by the time at which it was last heard of.
struct Found {
    path: PathBuf,
    time: Timestamp,
    /// Whether it trained this very file, rather than another one with the same base.
    own: bool,
    /// Why its adapter cannot be taken, as far as the run says it.
    why: Option<String>,
}

/// What an adapter is to a model.
enum Judged {
    Fits,
    /// It belongs to another model.
    Other,
    Not(String),
}

/// The run of an injected model that ended last, of those that ended well and fit it.
pub fn newest(model: &Model) -> Result<Taken> {
    let mut found: Vec<Found> = directories(Path::new("runs")).iter().filter_map(|dir| known(dir, model)).collect();
    // Of two that ended at once, the later by name.
    found.sort_by(|a, b| (b.time, &b.path).cmp(&(a.time, &a.path)));
    let mut passed_over: Vec<Passed> = Vec::new();
    // The newest that trained another file with the same base: taken where none trained this very file.
    let mut other = None;
    for run in found {
        let why = match run.why {
            Some(why) => why,
            None => match judge(&run.path, model) {
                Judged::Fits if run.own => return Ok(Taken { path: run.path, ended: run.time, passed_over }),
                Judged::Fits => {
                    let passed_over = passed_over.clone();
                    other.get_or_insert(Taken { path: run.path, ended: run.time, passed_over });
                    continue;
                }
                Judged::Other => continue,
                Judged::Not(why) => why,
            },
        };
        passed_over.push(Passed { path: run.path, why });
    }
    if let Some(other) = other {
        return Ok(other);
    }
    let mut text = format!("there is no run of {} in runs/", model.path().display());
    if !passed_over.is_empty() {
        text += " that can be merged:";
        passed_over.iter().for_each(|p| text += &format!("\n  {}: {}", p.path.display(), p.why));
    }
    Err(Usage(format!("{text}\nhint: train it first, or give --adapter")).into())
}

/// Why a run's adapter should be looked at twice, if it should.
pub fn doubt(dir: &Path) -> Option<String> {
    let record = record::read(dir).ok()??;
    match record.status {
        Status::Done => None,
        Status::Interrupted => Some("it was interrupted before its last step".into()),
        Status::Failed => Some(format!("it failed: {}", unhinted(&record.error.unwrap_or_default()))),
        Status::Running if record::in_use(dir) => Some("it is still running".into()),
        Status::Running => Some("it was cut short (a crash, or it was killed)".into()),
    }
}

/// Every directory that holds a run, or part of one.
fn directories(root: &Path) -> Vec<PathBuf> {
    let all = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter().flatten();
    let folders = all.filter(|e| e.file_type().is_dir()).map(|e| e.into_path());
    folders.filter(|d| ["run.json", "adapter.safetensors"].iter().any(|name| d.join(name).is_file())).collect()
}

/// What a directory says of its run; `None` where that is one of another model.
fn known(dir: &Path, model: &Model) -> Option<Found> {
    let path = dir.to_path_buf();
    let modified = |name: &str| Timestamp::try_from(dir.join(name).metadata().ok()?.modified().ok()?).ok();
    let written = modified("adapter.safetensors");
    let record = match record::read(dir) {
        Ok(Some(record)) => record,
        Ok(None) => return Some(Found { path, time: written?, own: false, why: None }),
        Err(e) => {
            let time = written.or_else(|| modified("run.json"))?;
            return Some(Found { path, time, own: false, why: Some(unhinted(&e.to_string())) });
        }
    };
    if record.base.is_some() && record.base.as_deref() != model.metadata(BASE_KEY) {
        return None;
    }
    let time = record.ended.or(written).unwrap_or(record.started).max(record.started);
    let own = record.digests.get("model").is_some_and(|d| *d == super::resume::model_digest(model));
    Some(Found { path, time, own, why: doubt(dir) })
}

fn judge(dir: &Path, model: &Model) -> Judged {
    match adapter::read(dir) {
        Err(e) => Judged::Not(unhinted(&e.to_string())),
        Ok(adapter) if adapter.base.is_some() && adapter.base.as_deref() != model.metadata(BASE_KEY) => Judged::Other,
        Ok(adapter) => match merge::fit(model, &adapter) {
            Ok(_) => Judged::Fits,
            Err(e) => Judged::Not(unhinted(&e.to_string())),
        },
    }
}

/// A message on one line, without its hint.
fn unhinted(text: &str) -> String {
    let lines = text.lines().take_while(|l| !l.starts_with("hint:"));
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}
