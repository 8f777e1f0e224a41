//! Tables of text: `.csv`, and `.tsv` with tabs between cells. The first row names the columns.

use super::{Format, Placed, Reader};
use crate::file_kind::Kind;
use crate::train::data::DataError;
use serde_json::{Number, Value};
use std::path::Path;

pub const FORMAT: Format = Format {
    extensions: &["csv", "tsv"],
    holds: |kind| matches!(kind, Kind::Text | Kind::Utf16),
    reader: Reader::Rows(rows),
};

/// Columns whose empty cells are empty texts. An empty cell of another column is as if the row did not have it.
const TEXTS: &[&str] = &["text", "prompt", "completion"];

fn rows(path: &Path, content: &str, columns: &[(String, String)]) -> Result<Vec<Placed>, DataError> {
    let tabs = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
    let delimiter = if tabs { b'\t' } else { b',' };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(content.as_bytes());
    let heads: Vec<String> = reader.headers().map_err(|e| wrong(path, &e))?.iter().map(|h| h.trim().into()).collect();
    if let Some((i, twice)) = heads.iter().enumerate().find(|(i, head)| heads[..*i].contains(head)) {
        let why = format!("its columns {} and {} are both called '{twice}'", 1 + position(&heads, twice), i + 1);
        return Err(DataError::Format { path: path.to_path_buf(), why });
    }
    let name = |head: &String| columns.iter().find(|c| c.1 == *head).map_or(head.clone(), |c| c.0.clone());
    let names: Vec<String> = heads.iter().map(name).collect();
    let mut out = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| wrong(path, &e))?;
        let line = record.position().map_or(0, |p| p.line() as usize);
        let cells = heads.iter().zip(&names).zip(&record).map(|((head, name), text)| (head.clone(), cell(name, text)));
        out.push((line, None, Value::Object(cells.collect())));
    }
    Ok(out)
}

fn position(heads: &[String], head: &String) -> usize {
    heads.iter().position(|h| h == head).unwrap_or(0)
}

/// A cell of a column: a label is a number if it reads as one, everything else is text.
fn cell(name: &str, text: &str) -> Value {
    match name {
        _ if text.is_empty() && !TEXTS.contains(&name) => Value::Null,
        "label" => number(text.trim()).map_or_else(|| text.into(), Value::Number),
        _ => text.into(),
    }
}

fn number(text: &str) -> Option<Number> {
    match text.parse::<i64>() {
        Ok(whole) => Some(whole.into()),
        Err(_) => Number::from_f64(text.parse().ok()?),
    }
}

fn wrong(path: &Path, error: &csv::Error) -> DataError {
    let line = error.position().map_or(1, |p| p.line() as usize);
    let why = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
            "this row has {len} cells, but there are {expected_len} columns\n\
             hint: text that holds a separator or a line break stands in double quotes"
        ),
        _ => error.to_string(),
    };
    DataError::Line { path: path.to_path_buf(), line, why }
}
