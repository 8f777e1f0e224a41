//! The formats that data files come in.
//!
//! A new format is one file that reads rows, or tensors, and one line in [`FORMATS`].

mod arrow;
mod columnar;
mod csv;
mod json;
mod npz;
mod parquet;
mod safetensors;

use super::DataError;
use super::input::{Input, PACKED};
use super::sink::{Place, Placed, Sink};
use crate::file_kind::Kind;
use crate::ir::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// One format.
#[derive(Clone, Copy)]
pub struct Format {
    /// What names of such files end in, without the dot; the first is the one that messages show.
    pub extensions: &'static [&'static str],
    /// Whether a file's content may be of this format.
    pub holds: fn(&Kind) -> bool,
    pub reader: Reader,
}

/// What a format holds.
#[derive(Clone, Copy)]
pub enum Reader {
    /// Rows of text, which need a tokenizer.
    Rows(ReadRows),
    /// Tensors by name.
    Tensors(ReadTensors),
}

/// Hands over the rows of a file, one after the other.
pub type ReadRows = fn(&Input, &mut dyn Sink) -> Result<(), DataError>;

/// Reads the tensors in a file's bytes.
pub type ReadTensors = fn(&Path, &[u8]) -> Result<BTreeMap<String, Tensor>, DataError>;

/// Every format.
pub const FORMATS: &[Format] =
    &[json::FORMAT, csv::FORMAT, parquet::FORMAT, arrow::FORMAT, safetensors::FORMAT, npz::FORMAT];

/// The format that a file's name says, that of what a packed file holds.
pub fn named(path: &Path) -> Option<Format> {
    let mut name = path.file_name()?.to_str()?.to_lowercase();
    if let Some((inside, ending)) = name.rsplit_once('.')
        && PACKED.contains(&ending)
    {
        name = inside.to_string();
    }
    let extension = name.rsplit_once('.')?.1;
    FORMATS.iter().find(|f| f.extensions.contains(&extension)).copied()
}

/// Extensions of some formats as a sentence has them: `.a, .b or .c`.
pub fn listed(joint: &str, which: fn(&Format) -> bool) -> String {
    let all: Vec<String> = FORMATS.iter().filter(|f| which(f)).map(|f| format!(".{}", f.extensions[0])).collect();
    match &all[..] {
        [first @ .., last] if !first.is_empty() => format!("{}{joint}{last}", first.join(", ")),
        all => all.concat(),
    }
}

/// Integers as 32-bit ones.
pub fn integers<T: Copy + std::fmt::Display + TryInto<i32>>(
    values: impl Iterator<Item = T>,
) -> Result<Vec<i32>, String> {
    let narrow = |x: T| {
        x.try_into().map_err(|_| {
            format!("{x} does not fit 32 bits\nhint: integers must lie between {} and {}", i32::MIN, i32::MAX)
        })
    };
    values.map(narrow).collect()
}

/// Doubles rounded to f32.
pub fn floats(values: impl Iterator<Item = f64>) -> Result<Vec<f32>, String> {
    let narrow = |x: f64| match (x as f32).is_infinite() && x.is_finite() {
        true => Err(format!("{x:e} does not fit 32 bits\nhint: the largest float of 32 bits is {:e}", f32::MAX)),
        false => Ok(x as f32),
    };
    values.map(narrow).collect()
}
