//! Rows on their way from a file to what takes them.

use super::{Column, DataError};
use serde_json::Value;
use std::fmt;

/// What takes the rows of a file.
pub trait Sink {
    /// Names used here, and the file's columns that they stand for.
    fn columns(&self) -> &[(String, String)];

    /// Columns of numbers that the model reads besides, under the names used here.
    fn inputs(&self) -> &[Column];

    /// What a user should know.
    fn note(&mut self, note: String);

    /// What the file calls the classes that its column of labels numbers; before the first row.
    fn classes(&mut self, names: Vec<String>) -> Result<(), DataError>;

    /// The next row, or why it cannot be read. An error ends the reading.
    fn row(&mut self, row: Result<Placed, DataError>) -> Result<(), DataError>;
}

/// A row and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    pub place: Place,
    pub value: Value,
}

/// Where a row stands in its file, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The line it starts on, and its number where several rows share the line.
    Line(usize, Option<usize>),
    /// Its number, in files without lines.
    Row(usize),
}

impl Place {
    /// The word and the number.
    pub fn parts(self) -> (&'static str, usize) {
        match self {
            Place::Line(n, _) => ("line", n),
            Place::Row(n) => ("row", n),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::Line(n, Some(item)) => write!(f, "line {n}: item {item}"),
            Place::Line(n, None) => write!(f, "line {n}"),
            Place::Row(n) => write!(f, "row {n}"),
        }
    }
}
