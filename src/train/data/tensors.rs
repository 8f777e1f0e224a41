//! Data sets of tensors, and tensors as they are.

use super::formats::{self, Reader};
use super::{DataError, Source};
use crate::ir::{Shape, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// The tensors of a file as they are, of whatever shapes.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::Open { path: path.to_path_buf(), error })?;
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
    Ok(Source::Tensors { tensors, examples })
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
