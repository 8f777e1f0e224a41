//! The newest run of a model: found by the base that it trained and by its configuration, wherever below `runs/` it lies.

use super::common::Usage;
use crate::adapter;
use crate::merge;
use crate::onnx::Model;
use crate::structure::BASE_KEY;
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

/// One run of the model, by the time at which it was last heard of.
struct Found {
    path: PathBuf,
    time: Timestamp,
    /// Why its adapter cannot be taken.
    why: Option<String>,
}

/// The run of an injected model that ended last, of those that ended well and fit it.
pub fn newest(model: &Model) -> Result<Taken> {
    let mut found: Vec<Found> = directories(Path::new("runs")).iter().filter_map(|dir| judge(dir, model)).collect();
    // Of two that ended at once, the later by name.
    found.sort_by(|a, b| (b.time, &b.path).cmp(&(a.time, &a.path)));
    let mut passed_over = Vec::new();
    for run in found {
        match run.why {
            None => return Ok(Taken { path: run.path, ended: run.time, passed_over }),
            Some(why) => passed_over.push(Passed { path: run.path, why }),
        }
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
        Status::Failed => Some(format!("it failed: {}", first_line(&record.error.unwrap_or_default()))),
        Status::Running if record::in_use(dir) => Some("it is still running".into()),
        Status::Running => Some("it was cut short (a crash, or it was killed)".into()),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Every directory that holds a run, or part of one.
fn directories(root: &Path) -> Vec<PathBuf> {
    let all = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter().flatten();
    let folders = all.filter(|e| e.file_type().is_dir()).map(|e| e.into_path());
    folders.filter(|d| ["run.json", "adapter.safetensors"].iter().any(|name| d.join(name).is_file())).collect()
}

/// What there is to say of a run; `None` if it is not known to be one of this model.
fn judge(dir: &Path, model: &Model) -> Option<Found> {
    let base = model.metadata(BASE_KEY);
    let (file, path) = (dir.join("adapter.safetensors"), dir.to_path_buf());
    let modified = |p: &Path| Timestamp::try_from(p.metadata().ok()?.modified().ok()?).ok();
    let written = modified(&file);
    let record = match record::read(dir) {
        Ok(record) => record,
        Err(e) => {
            let time = written.or_else(|| modified(&dir.join("run.json")))?;
            return Some(Found { path, time, why: Some(first_line(&e.to_string()).to_string()) });
        }
    };
    if let Some(r) = &record {
        if r.base.is_some() && r.base.as_deref() != base {
            return None;
        }
        if let Some(why) = doubt(dir) {
            let time = r.ended.or(written).unwrap_or(r.started).max(r.started);
            return Some(Found { path, time, why: Some(why) });
        }
    }
    let time = record.as_ref().and_then(|r| r.ended).or(written)?;
    let why = match adapter::read(dir) {
        Err(e) => Some(first_line(&e.to_string()).to_string()),
        Ok(adapter) if adapter.base.is_some() && adapter.base.as_deref() != base => return None,
        Ok(adapter) => merge::fit(model, &adapter).err().map(|e| unhinted(&e.to_string())),
    };
    Some(Found { path, time, why })
}

/// A message on one line, without its hint.
fn unhinted(text: &str) -> String {
    let lines = text.lines().take_while(|l| !l.starts_with("hint:"));
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}
