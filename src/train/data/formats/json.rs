//! JSON: an object a line, an array, or objects one after the other.

use super::{Format, Place, Placed, Reader, Sink};
use crate::file_kind::Kind;
use crate::train::data::DataError;
use crate::train::data::input::Input;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::BufRead;

pub const FORMAT: Format = Format {
    extensions: &["jsonl", "json", "ndjson"],
    holds: |kind| matches!(kind, Kind::Json | Kind::Text | Kind::Utf16),
    reader: Reader::Rows(rows),
};

/// Keys that make an object a row, rather than what holds the rows.
const ROW_KEYS: &[&str] = &[
    "messages",
    "conversations",
    "conversation",
    "dialog",
    "dialogue",
    "chat",
    "turns",
    "text",
    "prompt",
    "completion",
    "label",
    "instruction",
];

/// Lines that each hold an object are handed over as they come. Any other file is read whole.
fn rows(input: &Input, sink: &mut dyn Sink) -> Result<(), DataError> {
    let (mut text, wide) = input.text()?;
    if wide {
        sink.note(format!("{}: read as UTF-16", input.path.display()));
    }
    let mut lines = Lines { input, text: &mut *text, number: 0 };
    let Some((line, first)) = lines.filled()? else { return Ok(()) };
    let second = lines.filled()?;
    let object = std::str::from_utf8(&first).ok().and_then(|l| serde_json::from_str::<Value>(l).ok());
    let alone = object.is_some_and(|v| v.is_object() && !(second.is_none() && holds_rows(&v, sink.columns())));
    if !alone {
        // Line breaks stand where they stood, for the numbers of lines.
        let mut content = vec![b'\n'; line - 1];
        content.extend(first);
        if let Some((next, second)) = second {
            content.resize(content.len() + (next - line).saturating_sub(1), b'\n');
            content.extend(second);
        }
        lines.text.read_to_end(&mut content).map_err(|e| input.error(&e))?;
        let content = String::from_utf8(content).map_err(|e| {
            let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            not_utf8(input, 1 + before.iter().filter(|b| **b == b'\n').count())
        })?;
        return whole(input, &content, sink);
    }
    let mut next = second;
    sink.row(parsed(input, line, &first))?;
    while let Some((line, text)) = next {
        sink.row(parsed(input, line, &text))?;
        next = lines.filled()?;
    }
    Ok(())
}

/// Lines with something in them, by number from 1; their line breaks are kept.
struct Lines<'a> {
    input: &'a Input,
    text: &'a mut dyn BufRead,
    number: usize,
}

impl Lines<'_> {
    fn filled(&mut self) -> Result<Option<(usize, Vec<u8>)>, DataError> {
        loop {
            let mut line = Vec::new();
            if self.text.read_until(b'\n', &mut line).map_err(|e| self.input.error(&e))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if !line.trim_ascii().is_empty() {
                return Ok(Some((self.number, line)));
            }
        }
    }
}

fn not_utf8(input: &Input, line: usize) -> DataError {
    let why = "a byte there is not UTF-8\nhint: save the file as UTF-8".into();
    DataError::Row { path: input.path.clone(), place: Place::Line(line, None), why }
}

fn parsed(input: &Input, line: usize, text: &[u8]) -> Result<Placed, DataError> {
    let text = std::str::from_utf8(text).map_err(|_| not_utf8(input, line))?;
    let place = Place::Line(line, None);
    match serde_json::from_str(text.trim_end_matches(['\n', '\r'])) {
        Ok(value) => Ok(Placed { place, value }),
        Err(e) => Err(DataError::Row { path: input.path.clone(), place, why: about(&e, true) }),
    }
}

/// The rows of an array, of an object that holds one, or of objects one after the other.
fn whole(input: &Input, content: &str, sink: &mut dyn Sink) -> Result<(), DataError> {
    let bad =
        |line: usize, why: String| DataError::Row { path: input.path.clone(), place: Place::Line(line, None), why };
    let mut raw: Vec<&RawValue> = Vec::new();
    for value in serde_json::Deserializer::from_str(content).into_iter::<&RawValue>() {
        raw.push(value.map_err(|e| bad(e.line().max(1), about(&e, false)))?);
    }
    let parse = |r: &RawValue| serde_json::from_str::<Value>(r.get());
    if let [one] = raw[..]
        && parse(one).is_ok_and(|v| holds_rows(&v, sink.columns()))
    {
        raw = match one.get().trim_start().starts_with('[') {
            true => serde_json::from_str(one.get()).unwrap_or_default(),
            false => {
                let fields: BTreeMap<String, &RawValue> = serde_json::from_str(one.get()).unwrap_or_default();
                let list = fields.into_values().find(|f| parse(f).is_ok_and(|v| is_list(&v)));
                list.and_then(|f| serde_json::from_str(f.get()).ok()).unwrap_or_default()
            }
        };
    }
    let (mut line, mut at) = (1, 0);
    let mut placed: Vec<(usize, &RawValue)> = Vec::with_capacity(raw.len());
    for value in raw {
        let start = value.get().as_ptr() as usize - content.as_ptr() as usize;
        line += content[at..start].matches('\n').count();
        at = start;
        placed.push((line, value));
    }
    for (i, (line, value)) in placed.iter().enumerate() {
        // Rows that share a line are told apart by their number.
        let shared = i > 0 && placed[i - 1].0 == *line || placed.get(i + 1).is_some_and(|next| next.0 == *line);
        let place = Place::Line(*line, Some(i + 1).filter(|_| shared));
        let row = parse(value).map(|value| Placed { place, value }).map_err(|e| bad(*line, about(&e, false)));
        sink.row(row)?;
    }
    Ok(())
}

/// What a parser says, without the line where that is said anyway.
fn about(e: &serde_json::Error, alone: bool) -> String {
    let text = e.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    match alone {
        true => format!("{what} (column {})", e.column()),
        false => what.to_string(),
    }
}

fn is_list(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(Value::is_object) && !list.is_empty())
}

/// Whether a value is no row, but holds rows: an array, or an object with one list of objects in it.
fn holds_rows(value: &Value, columns: &[(String, String)]) -> bool {
    let row = |o: &Map<String, Value>| {
        ROW_KEYS.iter().any(|k| o.contains_key(*k)) || columns.iter().any(|c| o.contains_key(&c.1))
    };
    match value {
        Value::Array(_) => true,
        Value::Object(o) => !row(o) && o.values().filter(|v| is_list(v)).count() == 1,
        _ => false,
    }
}
