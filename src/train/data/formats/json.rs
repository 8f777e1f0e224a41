//! JSON: an object a line, an array, or objects one after the other.

use super::{Format, Placed, Reader};
use crate::file_kind::Kind;
use crate::train::data::DataError;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

pub const FORMAT: Format = Format {
    extensions: &["jsonl", "json", "ndjson"],
    holds: |kind| matches!(kind, Kind::Json | Kind::Text | Kind::Utf16),
    reader: Reader::Rows(values),
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

/// The values of a file, with the line that each starts on, and its number where it shares the line.
fn values(path: &Path, content: &str, columns: &[(String, String)]) -> Result<Vec<Placed>, DataError> {
    let bad = |line: usize, why: String| DataError::Line { path: path.to_path_buf(), line, why };
    let filled = || content.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let mut lines = Vec::new();
    let mut wrong = None;
    for (n, line) in filled() {
        match serde_json::from_str::<Value>(line) {
            Ok(value) => lines.push((n + 1, None, value)),
            Err(e) => {
                wrong = Some(bad(n + 1, about(&e, true)));
                break;
            }
        }
    }
    let whole = matches!(&lines[..], [(_, _, v)] if holds_rows(v, columns));
    match wrong {
        None if !whole => return Ok(lines),
        // Lines that stand alone, up to a wrong one.
        Some(wrong) if lines.first().is_some_and(|l| l.2.is_object()) => return Err(wrong),
        _ => {}
    }
    let mut raw: Vec<&RawValue> = Vec::new();
    for value in serde_json::Deserializer::from_str(content).into_iter::<&RawValue>() {
        raw.push(value.map_err(|e| bad(e.line().max(1), about(&e, false)))?);
    }
    let parse = |r: &RawValue| serde_json::from_str::<Value>(r.get());
    if let [one] = raw[..]
        && parse(one).is_ok_and(|v| holds_rows(&v, columns))
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
    let mut out: Vec<Placed> = Vec::with_capacity(raw.len());
    let (mut line, mut at) = (1, 0);
    for value in raw {
        let start = value.get().as_ptr() as usize - content.as_ptr() as usize;
        line += content[at..start].matches('\n').count();
        at = start;
        let parsed = parse(value).map_err(|e| bad(line, about(&e, false)))?;
        out.push((line, None, parsed));
    }
    // Rows that share a line are told apart by their number.
    let shared: Vec<bool> = (0..out.len())
        .map(|i| i > 0 && out[i - 1].0 == out[i].0 || out.get(i + 1).is_some_and(|next| next.0 == out[i].0))
        .collect();
    for (i, shared) in shared.into_iter().enumerate().filter(|s| s.1) {
        out[i].1 = Some(i + 1).filter(|_| shared);
    }
    Ok(out)
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
