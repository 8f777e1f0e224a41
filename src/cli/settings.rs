//! `--config FILE.toml`: its entries become flags, in front of those on the command line, which win.

use super::common::Usage;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::PathBuf;

/// The arguments with those of the configuration file put in after the subcommand.
pub fn arguments(given: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(path) = config_path(&given) else { return Ok(given) };
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let table: toml::Table = text.parse().map_err(|e| Usage(format!("{} is not TOML: {e}", path.display())))?;
    let Some(at) = given.iter().skip(1).position(|a| !a.to_string_lossy().starts_with('-')) else { return Ok(given) };
    let at = at + 2;
    let mut flags: Vec<OsString> = Vec::new();
    for (key, value) in &table {
        let flag = format!("--{}", key.replace('_', "-"));
        let assigned = format!("{flag}=");
        let overridden = given.iter().any(|a| {
            let a = a.to_string_lossy();
            a == flag || a.starts_with(&assigned)
        });
        // A model is named by position, so a run's own file may carry it.
        if overridden || key == "model" {
            continue;
        }
        flags.extend(flag_values(&path, key, &flag, value)?);
    }
    let mut out = given;
    out.splice(at.min(out.len())..at.min(out.len()), flags);
    Ok(out)
}

fn config_path(given: &[OsString]) -> Option<PathBuf> {
    let mut arguments = given.iter();
    while let Some(a) = arguments.next() {
        let text = a.to_string_lossy();
        if text == "--config" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    None
}

fn flag_values(path: &std::path::Path, key: &str, flag: &str, value: &toml::Value) -> Result<Vec<OsString>> {
    let one = |v: &toml::Value| -> Option<String> {
        match v {
            toml::Value::String(s) => Some(s.clone()),
            toml::Value::Integer(i) => Some(i.to_string()),
            toml::Value::Float(f) => Some(f.to_string()),
            _ => None,
        }
    };
    let bad = || Usage(format!("{}: '{key}' must be text, a number, true or false, or a list of them", path.display()));
    Ok(match value {
        toml::Value::Boolean(true) => vec![flag.into()],
        toml::Value::Boolean(false) => vec![],
        toml::Value::Array(list) => {
            let values: Option<Vec<String>> = list.iter().map(one).collect();
            values.ok_or_else(bad)?.into_iter().map(|v| format!("{flag}={v}").into()).collect()
        }
        other => vec![format!("{flag}={}", one(other).ok_or_else(bad)?).into()],
    })
}
