//! `--config FILE.toml`: its entries become flags, in front of those on the command line, which win. `train --resume -o RUN` reads the
//! run's own file in the same way.

use super::common::Usage;
use crate::settings::{ConfigError, RunConfig, nearest};
use anyhow::{Context, Result};
use clap::ArgMatches;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The arguments with those of configuration files put in after the subcommand.
pub fn arguments(command: clap::Command, given: Vec<OsString>) -> Result<Vec<OsString>> {
    // What is given, as far as it is understood; what is not is said when all of it is read.
    let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(&given) else { return Ok(given) };
    let Some((subcommand, matches)) = matches.subcommand() else { return Ok(given) };
    let mut files = Vec::new();
    if subcommand == "train" && flag(matches, "resume") && path(matches, "output").is_none() {
        return Err(Usage("--resume needs -o RUN_DIR, the run to continue".into()).into());
    }
    if let (true, "train", Some(run)) = (flag(matches, "resume"), subcommand, path(matches, "output")) {
        let file = run.join("config.toml");
        if !file.exists() {
            let why = format!("cannot resume from {}: it holds no config.toml", run.display());
            return Err(anyhow::anyhow!("{why}\nhint: --resume goes on with the run in -o RUN_DIR"));
        }
        files.push(file);
    }
    files.extend(config_path(&given));
    let Some(at) = position(&given, subcommand) else { return Ok(given) };
    let known = flags(&command, subcommand);
    let mut out = given[..=at].to_vec();
    let mut model = None;
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot open {}", file.display()))?;
        let table: toml::Table = text.parse().map_err(|e| Usage(format!("{} is not TOML: {e}", file.display())))?;
        for (key, value) in &table {
            let flag = format!("--{}", key.replace('_', "-"));
            match (key.as_str(), value.as_str()) {
                // A model is named by position.
                ("model", Some(name)) => model = Some(OsString::from(name)),
                // A run directory's file says its form.
                ("version", None) => version(file, value)?,
                _ if !known.contains(&&flag[2..]) => {
                    return Err(ConfigError::unknown(file, key, nearest(&flag[2..], &known)).into());
                }
                _ if overridden(&given, &flag) => {}
                _ => out.extend(flag_values(file, key, &flag, value)?),
            }
        }
    }
    let missing = matches.try_contains_id("model").is_ok_and(|there| !there);
    out.extend(model.filter(|_| missing));
    out.extend_from_slice(&given[at + 1..]);
    Ok(out)
}

/// The flags of a subcommand, without their dashes.
fn flags<'a>(command: &'a clap::Command, subcommand: &str) -> Vec<&'a str> {
    let own = command.find_subcommand(subcommand).into_iter().flat_map(|c| c.get_arguments());
    command.get_arguments().chain(own).filter_map(|a| a.get_long()).collect()
}

/// Refuses a file of a form that is not known.
fn version(file: &Path, value: &toml::Value) -> Result<()> {
    match value.as_integer() {
        Some(n) if (1..=i64::from(RunConfig::VERSION)).contains(&n) => Ok(()),
        _ => {
            let why = format!("it is of version {value}, and this program knows {} alone", RunConfig::VERSION);
            Err(ConfigError::File { path: file.to_path_buf(), why }.into())
        }
    }
}

fn flag(matches: &ArgMatches, name: &str) -> bool {
    matches.try_get_one::<bool>(name).is_ok_and(|f| f == Some(&true))
}

fn path(matches: &ArgMatches, name: &str) -> Option<PathBuf> {
    matches.try_get_one::<PathBuf>(name).ok().flatten().cloned()
}

/// Where the subcommand stands: the value of `--config` may be called like one.
fn position(given: &[OsString], subcommand: &str) -> Option<usize> {
    let value = |i: usize| i > 0 && given[i - 1] == OsStr::new("--config");
    (1..given.len()).find(|&i| given[i] == OsStr::new(subcommand) && !value(i))
}

fn overridden(given: &[OsString], flag: &str) -> bool {
    let assigned = format!("{flag}=");
    given.iter().map(|a| a.to_string_lossy()).any(|a| a == flag || a.starts_with(&assigned))
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

fn flag_values(path: &Path, key: &str, flag: &str, value: &toml::Value) -> Result<Vec<OsString>> {
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
