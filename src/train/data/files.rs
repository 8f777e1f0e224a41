//! Which files a data set is made of: files as given, patterns, and folders as `datasets` saves them.

use super::{DataError, formats};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The files that paths stand for, in order: a file for itself, a pattern such as `train-*.jsonl` for those that fit it by name, a
/// folder that `save_to_disk` wrote for its parts.
pub fn expand(given: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut out = Vec::new();
    for path in given {
        if path.is_dir() {
            out.extend(folder(path)?);
        } else if path.exists() || !path.to_string_lossy().contains(['*', '?', '[']) {
            out.push(path.clone());
        } else {
            out.extend(pattern(path)?);
        }
    }
    Ok(out)
}

/// The files that paths stand for, as far as they are there.
pub fn files(given: &[PathBuf]) -> Vec<PathBuf> {
    expand(given).unwrap_or_else(|_| given.to_vec())
}

fn pattern(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let found = glob::glob(&path.to_string_lossy()).map_err(|e| bad(format!("it is no pattern: {}", e.msg)))?;
    let found: Result<Vec<PathBuf>, _> = found.filter(|f| f.as_ref().map_or(true, |p| p.is_file())).collect();
    match found.map_err(|e| bad(e.to_string()))? {
        none if none.is_empty() => Err(bad("no file fits this pattern\nhint: check the folder and the name".into())),
        found => Ok(found),
    }
}

/// What a folder's JSON file says.
fn object(path: &Path) -> Result<Value, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::Open { path: path.to_path_buf(), error })?;
    serde_json::from_slice(&bytes).map_err(|e| DataError::Format { path: path.to_path_buf(), why: e.to_string() })
}

fn folder(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let splits = path.join("dataset_dict.json");
    if splits.is_file() {
        let named = object(&splits)?;
        let names: Vec<&str> = named["splits"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        return match names[..] {
            [one] => folder(&path.join(one)),
            _ => {
                let best = names.iter().find(|n| **n == "train").or(names.first()).copied().unwrap_or("train");
                let names = names.join(", ");
                Err(bad(format!("it holds the splits {names}\nhint: give one: {}", path.join(best).display())))
            }
        };
    }
    let state = path.join("state.json");
    if state.is_file() {
        let state = object(&state)?;
        if state["_indices_data_files"].as_array().is_some_and(|i| !i.is_empty()) {
            let hint = "hint: save it again: load_from_disk(FOLDER).flatten_indices().save_to_disk(OTHER)";
            return Err(bad(format!("its rows are chosen by a list of indices, which is not supported\n{hint}")));
        }
        let names = state["_data_files"].as_array().into_iter().flatten().filter_map(|f| f["filename"].as_str());
        let files: Vec<PathBuf> = names.map(|name| path.join(name)).collect();
        return match files.is_empty() {
            true => Err(bad("its state.json names no data files\nhint: write it again with save_to_disk".into())),
            false => Ok(files),
        };
    }
    let mut names: Vec<String> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_file() && formats::named(p).is_some())
        .filter_map(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    match names.first() {
        None => {
            Err(bad("it is a folder without data files\nhint: give a file, or a folder that save_to_disk wrote".into()))
        }
        Some(first) => {
            let ending = first.split_once('.').map_or("", |n| n.1);
            let all = path.join(format!("*.{ending}"));
            let hint = format!("hint: give its files: '{}', or {}", all.display(), path.join(first).display());
            Err(bad(format!("it is a folder, and none that save_to_disk wrote\n{hint}")))
        }
    }
}

/// Paths as a message names them together.
pub fn named(given: &[PathBuf]) -> PathBuf {
    match given {
        [one] => one.clone(),
        [first, second] => format!("{}, {}", first.display(), second.display()).into(),
        [first, rest @ ..] => format!("{} and {} more", first.display(), rest.len()).into(),
        [] => PathBuf::new(),
    }
}
