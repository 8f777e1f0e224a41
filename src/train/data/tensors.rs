//! Data sets of tensors, and tensors as they are.

use super::formats::{self, Reader};
use super::input::Input;
use super::{DataError, Source};
use crate::ir::{Shape, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// The tensors of a file as they are, of whatever shapes.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, DataError> {
    let bytes = Input::open(path)?.bytes()?;
    match formats::named(path).map(|f| f.reader) {
        Some(Reader::Tensors(tensors)) => tensors(path, &bytes),
        _ => {
            let kinds = formats::listed(" and ", |f| matches!(f.reader, Reader::Tensors(_)));
            let why = format!("tensors come in {kinds} files\nhint: numpy.savez(FILE, input_name=array)");
            Err(DataError::Format { path: path.to_path_buf(), why })
        }
    }
}

/// Checks that all tensors hold the same number of examples along their first axis. One without axes is the same for all.
pub fn source(path: &Path, tensors: BTreeMap<String, Tensor>) -> Result<Source, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let mut with_axes = tensors.iter().filter_map(|(name, t)| Some((name, *t.shape().first()?)));
    let Some((first, examples)) = with_axes.next() else {
        let why = match tensors.is_empty() {
            true => "it holds no tensor",
            false => "none of its tensors has an axis of examples",
        };
        return Err(bad(format!("{why}\nhint: one tensor for each graph input, examples along the first axis")));
    };
    if let Some((name, n)) = with_axes.find(|(_, n)| *n != examples) {
        return Err(bad(format!(
            "'{first}' holds {examples} examples, but '{name}' holds {n}\n\
             hint: examples stand along the first axis of every tensor, as many in each"
        )));
    }
    if tensors.get("labels").is_some_and(|t| t.shape().is_empty()) {
        return Err(bad(format!("'labels' is one number, but '{first}' holds {examples} examples")));
    }
    Ok(Source::Tensors { tensors, examples, images: None })
}

/// The examples of several files one after the other. Their tensors must have the same names, types and extents.
pub fn joined(path: &Path, parts: Vec<(&Path, Source)>) -> Result<Source, DataError> {
    let (mut all, mut examples) = (BTreeMap::<String, Tensor>::new(), 0);
    let first = parts.first().map_or(path, |p| p.0).to_path_buf();
    for (at, (path, part)) in parts.into_iter().enumerate() {
        let Source::Tensors { tensors, examples: more, .. } = part else { continue };
        if at == 0 {
            (all, examples) = (tensors, more);
            continue;
        }
        let bad = |why: String| {
            let hint = "hint: files that are read together hold the same tensors";
            DataError::Format { path: path.to_path_buf(), why: format!("{why} {}\n{hint}", first.display()) }
        };
        if let Some(name) = all.keys().find(|n| !tensors.contains_key(*n)) {
            return Err(bad(format!("it has no '{name}', unlike")));
        }
        for (name, t) in tensors {
            let Some(before) = all.get_mut(&name) else { return Err(bad(format!("it holds '{name}', unlike"))) };
            let (mut ty, other) = (before.ty(), t.ty());
            if ty.shape.is_empty() && *before == t {
                continue;
            }
            if ty.dtype != other.dtype || ty.shape.get(1..) != other.shape.get(1..) || ty.shape.is_empty() {
                return Err(bad(format!("'{name}' is {other} in it, and {ty} in")));
            }
            ty.shape = Shape([&[ty.shape[0] + other.shape[0]], &ty.shape[1..]].concat());
            let words = before.words().iter().chain(t.words()).copied().collect();
            *before = Tensor::from_words(&ty, words);
        }
        examples += more;
    }
    Ok(Source::Tensors { tensors: all, examples, images: None })
}

/// Some rows of a tensor along its first axis; a tensor without axes as it is.
pub fn rows(t: &Tensor, rows: &[usize]) -> Tensor {
    let mut ty = t.ty();
    if ty.shape.is_empty() {
        return t.clone();
    }
    let width = ty.shape[1..].iter().product::<usize>();
    let words = rows.iter().flat_map(|&r| &t.words()[r * width..(r + 1) * width]).copied().collect();
    ty.shape = Shape([&[rows.len()], &ty.shape[1..]].concat());
    Tensor::from_words(&ty, words)
}
