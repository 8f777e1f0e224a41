//! Tables of text: `.csv`, and `.tsv` with tabs between cells. The first row names the columns.

use super::{Format, Place, Placed, Reader, Sink};
use crate::file_kind::Kind;
use crate::train::data::DataError;
use crate::train::data::input::Input;
use serde_json::{Number, Value};

pub const FORMAT: Format = Format {
    extensions: &["csv", "tsv"],
    holds: |kind| matches!(kind, Kind::Text | Kind::Utf16),
    reader: Reader::Rows(rows),
};

/// Columns whose empty cells are empty texts. An empty cell of another column is as if the row did not have it.
const TEXTS: &[&str] = &["text", "prompt", "completion"];

fn rows(input: &Input, sink: &mut dyn Sink) -> Result<(), DataError> {
    let name = input.path.to_string_lossy().to_lowercase();
    let delimiter = if name.split('.').any(|part| part == "tsv") { b'\t' } else { b',' };
    let (text, wide) = input.text()?;
    if wide {
        sink.note(format!("{}: read as UTF-16", input.path.display()));
    }
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text);
    let heads = reader.headers().map_err(|e| wrong(input, &e))?;
    let heads: Vec<String> = heads.iter().map(|h| h.trim().into()).collect();
    if let Some((i, twice)) = heads.iter().enumerate().find(|(i, head)| heads[..*i].contains(head)) {
        let why = format!("its columns {} and {} are both called '{twice}'", 1 + position(&heads, twice), i + 1);
        return Err(DataError::Format { path: input.path.clone(), why });
    }
    let columns = sink.columns();
    let name = |head: &String| columns.iter().find(|c| c.1 == *head).map_or(head.clone(), |c| c.0.clone());
    let names: Vec<String> = heads.iter().map(name).collect();
    for record in reader.records() {
        let row = match record {
            Ok(record) => {
                let line = record.position().map_or(0, |p| p.line() as usize);
                let cells = heads.iter().zip(&names).zip(&record);
                let object = cells.map(|((head, name), text)| (head.clone(), cell(name, text))).collect();
                Ok(Placed { place: Place::Line(line, None), value: Value::Object(object) })
            }
            // The file itself, rather than a row of it.
            Err(e) if matches!(e.kind(), csv::ErrorKind::Io(_)) => return Err(wrong(input, &e)),
            Err(e) => Err(wrong(input, &e)),
        };
        sink.row(row)?;
    }
    Ok(())
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

fn wrong(input: &Input, error: &csv::Error) -> DataError {
    let line = error.position().map_or(1, |p| p.line() as usize);
    let why = match error.kind() {
        csv::ErrorKind::Io(e) => return input.error(e),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
            "this row has {len} cells, but there are {expected_len} columns\n\
             hint: text that holds a separator or a line break stands in double quotes"
        ),
        csv::ErrorKind::Utf8 { .. } => "a byte there is not UTF-8\nhint: save the file as UTF-8".into(),
        _ => error.to_string(),
    };
    DataError::Row { path: input.path.clone(), place: Place::Line(line, None), why }
}
