//! `train --resume`: the run that goes on is the run that began. What changes what is computed is refused where it differs, unless
//! `--resume-with` names it.

use super::common::Usage;
use crate::adapters::{BASE_KEY, CONFIG_KEY};
use crate::onnx::{Model, sha256};
use crate::pipeline::Error;
use crate::settings::RunConfig;
use crate::train::checkpoint::{self, Progress};
use crate::train::data::{self, Dataset, Source};
use crate::train::record::{self, Lock, Record};
use crate::train::schedule;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Flags that change nothing of what is computed, or are compared by what their file holds.
const FREE: &[&str] =
    &["version", "output", "device", "save-every", "model", "data", "eval", "tokenizer", "max-steps", "epochs"];
/// Those of them that `--resume-with` may name.
const BY_CONTENT: &[&str] = &["model", "data", "eval", "tokenizer", "chat-template", "max-steps", "epochs"];

/// A run to go on with.
pub struct Kept {
    dir: PathBuf,
    saved: RunConfig,
    record: Option<Record>,
    progress: Progress,
    pub lock: Lock,
}

impl Kept {
    /// Takes a run directory for this process and reads how its run began.
    pub fn open(dir: &Path) -> Result<Kept> {
        let saved = RunConfig::read(dir)?;
        let lock = record::lock(dir).map_err(Error::from)?;
        let progress = checkpoint::progress(&dir.join("last")).map_err(Error::from)?;
        let record = record::read(dir).map_err(Error::from)?;
        Ok(Kept { dir: dir.to_path_buf(), saved, record, progress, lock })
    }

    /// The type in which the run's products multiply; in runs of earlier versions, f16 was called mixed.
    pub fn products(&self) -> Option<&str> {
        self.progress.identity.get("precision").map(|p| if p == "mixed" { "f16" } else { p })
    }

    /// Refuses what differs from the run, unless `with` allows it: the flags, and what was read with them, once that is known
    /// (digests, and the number of examples).
    pub fn check(
        &self,
        now: &RunConfig,
        with: &[String],
        read: Option<(&BTreeMap<String, String>, usize)>,
    ) -> Result<()> {
        let (was_all, now_all) = (flags(&self.saved)?, flags(now)?);
        let keys: BTreeSet<&String> = was_all.keys().chain(now_all.keys()).collect();
        let allowed = allowed(with)?;
        let said = |all: &toml::Table, key: &str| {
            all.get(key).map_or("not given".into(), |v| v.as_str().map_or_else(|| v.to_string(), String::from))
        };
        let mut differ: Vec<(String, String, String)> = Vec::new();
        for key in keys.into_iter().filter(|k| !FREE.contains(&k.as_str())) {
            if was_all.get(key) != now_all.get(key) {
                differ.push((key.clone(), said(&was_all, key), said(&now_all, key)));
            }
        }
        let contents = read.map(|(digests, _)| self.contents(now, digests));
        for (key, was, now) in contents.into_iter().flatten() {
            if !differ.iter().any(|d| d.0 == key) {
                differ.push((key, was, now));
            }
        }
        let steps = read.map(|(_, examples)| (self.saved.train.steps(examples), now.train.steps(examples)));
        if schedule::find(&now.train.schedule).is_some_and(|s| s.reads_total)
            && steps.is_some_and(|(was, total)| was != total)
        {
            // The rate of every step depends on how many there are.
            for key in ["max-steps", "epochs"].into_iter().filter(|k| was_all.get(*k) != now_all.get(*k)) {
                differ.push((key.into(), said(&was_all, key), said(&now_all, key)));
            }
        }
        differ.retain(|d| !allowed.contains(&d.0));
        if !differ.is_empty() {
            let lines: Vec<String> =
                differ.iter().map(|(key, was, now)| format!("{} was {was}, now it is {now}", flag(key))).collect();
            let with: Vec<String> = differ.iter().map(|d| format!("--resume-with {}", d.0)).collect();
            let text = format!("{} would not go on as the run it is:\n  {}", self.dir.display(), lines.join("\n  "));
            let hint = format!(
                "hint: leave out what differs (the run's own settings are taken), or allow it with {}; a fresh -o makes another run",
                with.join(" ")
            );
            return Err(Usage(format!("{text}\n{hint}")).into());
        }
        if let Some(total) = steps.map(|s| s.1).filter(|total| *total < self.progress.step) {
            let (dir, step) = (self.dir.display(), self.progress.step);
            return Err(Usage(format!(
                "{dir} has done {step} steps, which is more than {total}\nhint: a larger --max-steps"
            ))
            .into());
        }
        Ok(())
    }

    /// What is compared by the content of files: the flag, what it was and what it is.
    fn contents(&self, now: &RunConfig, digests: &BTreeMap<String, String>) -> Vec<(String, String, String)> {
        let mut saved = self.record.as_ref().map(|r| r.digests.clone()).unwrap_or_default();
        if let Some(data) = self.progress.identity.get("data") {
            saved.entry("data".into()).or_insert(data.clone());
        }
        let file = |args: &RunConfig, key: &str| match key {
            "model" => Some(args.model.clone()),
            "data" => Some(data::named(&args.data)),
            "eval" if args.eval.is_empty() => None,
            "eval" => Some(data::named(&args.eval)),
            "tokenizer" => args.train.how.tokenizer.clone(),
            _ => None,
        };
        let named = |args: &RunConfig, key: &str, digest: Option<&String>| {
            let path = file(args, key).map(|p| format!("{} ", p.display())).unwrap_or_default();
            digest.map_or("not there".into(), |d| format!("{path}(sha256 {})", d.get(..12).unwrap_or(d)))
        };
        let mut out = Vec::new();
        let keys: BTreeSet<&String> = saved.keys().chain(digests.keys()).collect();
        for key in keys {
            let (a, b) = (saved.get(key), digests.get(key));
            // Runs of earlier versions recorded less.
            let comparable = self.record.is_some() || a.is_some();
            if comparable && a != b {
                out.push((key.clone(), named(&self.saved, key, a), named(now, key, b)));
            }
        }
        if self.record.is_none() && self.saved.eval.is_empty() != now.eval.is_empty() {
            let said = |a: &RunConfig| match a.eval.is_empty() {
                true => "not given".into(),
                false => data::named(&a.eval).display().to_string(),
            };
            out.push(("eval".into(), said(&self.saved), said(now)));
        }
        out
    }
}

/// The flags of a run as its config.toml has them.
fn flags(args: &RunConfig) -> Result<toml::Table> {
    toml::Table::try_from(args).context("the configuration does not serialise")
}

fn flag(key: &str) -> String {
    if key == "model" { "MODEL".into() } else { format!("--{key}") }
}

/// What `--resume-with` names.
fn allowed(with: &[String]) -> Result<BTreeSet<String>> {
    let keys = RunConfig::keys();
    let each = with.iter().flat_map(|given| given.split(','));
    each.map(|given| {
        let name = given.trim().trim_start_matches('-').replace('_', "-").to_lowercase();
        match keys.contains(&name) {
            true => Ok(name),
            false => {
                let mut names: Vec<&str> = keys.iter().map(|k| k.as_str()).filter(|k| !FREE.contains(k)).collect();
                names.extend(BY_CONTENT);
                names.sort_unstable();
                names.dedup();
                let hint = format!("hint: the flags are {}", names.join(", "));
                Err(Usage(format!("--resume-with '{given}' names no flag of train\n{hint}")).into())
            }
        }
    })
    .collect()
}

/// Digests of what a run reads, by flag.
pub fn digests(args: &RunConfig, model: &Model, data: &Dataset, eval: Option<&Dataset>) -> BTreeMap<String, String> {
    let mut out = BTreeMap::from([("model".to_string(), model_digest(model)), ("data".into(), data.digest.clone())]);
    out.extend(eval.map(|e| ("eval".to_string(), e.digest.clone())));
    if matches!(data.source, Source::Text { .. }) {
        out.insert("tokenizer".into(), tokenizer_digest(args));
    }
    if let Some(bytes) = args.train.how.chat_template.as_ref().and_then(|t| std::fs::read(t).ok()) {
        out.insert("chat-template".into(), sha256(&bytes));
    }
    out
}

/// Of the base (as the file says it), the configuration of the adapters, and the values that they start from.
pub fn model_digest(model: &Model) -> String {
    let mut all = Vec::new();
    for key in [BASE_KEY, CONFIG_KEY] {
        all.extend(model.metadata(key).unwrap_or_default().bytes());
    }
    let config: Option<crate::adapters::Config> = crate::merge::config(model).ok();
    for config in config.iter() {
        let names = config.tensor_names().into_iter().chain(config.also_train.iter().cloned());
        names.filter_map(|n| model.initializer(&n).map(|t| t.bytes.to_vec())).for_each(|bytes| all.extend(bytes));
    }
    sha256(&all)
}

/// Of the files that say how text becomes tokens.
fn tokenizer_digest(args: &RunConfig) -> String {
    let folder = |path: &Path| path.parent().map(Path::to_path_buf).unwrap_or_default();
    let file = match &args.train.how.tokenizer {
        Some(path) if path.is_dir() => path.join("tokenizer.json"),
        Some(path) => path.clone(),
        None => folder(&args.model).join("tokenizer.json"),
    };
    let beside = ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"];
    let files = [file.clone()].into_iter().chain(beside.iter().map(|name| file.with_file_name(name)));
    let all: Vec<String> = files.map(|f| std::fs::read(f).map_or(String::new(), |bytes| sha256(&bytes))).collect();
    sha256(all.join("\n").as_bytes())
}
