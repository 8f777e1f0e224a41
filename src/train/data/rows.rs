//! Rows of text data, in UTF-8 or UTF-16, with their columns renamed.

use super::DataError;
use super::formats::ReadRows;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::Path;

/// A row and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The line it starts on, from 1.
    pub line: usize,
    /// Its number, from 1, where several rows share a line.
    pub item: Option<usize>,
    pub object: Map<String, Value>,
}

impl Row {
    /// An error about this row.
    pub fn error(&self, path: &Path, why: String) -> DataError {
        let why = match self.item {
            Some(item) => format!("item {item}: {why}"),
            None => why,
        };
        DataError::Line { path: path.to_path_buf(), line: self.line, why }
    }
}

/// Reads the rows of a file of some format, with columns under the names used here.
pub fn read(
    path: &Path,
    bytes: &[u8],
    format: ReadRows,
    columns: &[(String, String)],
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, DataError> {
    let content = decode(path, bytes, notes)?;
    let mut out = Vec::new();
    for (line, item, value) in format(path, &content, columns)? {
        match value {
            Value::Object(object) => out.push(Row { line, item, object }),
            other => {
                let row = Row { line, item, object: Map::new() };
                return Err(row.error(path, format!("expected an object, not {}", kind(&other))));
            }
        }
    }
    rename(path, &mut out, columns)?;
    Ok(out)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The text of a file.
fn decode<'a>(path: &Path, bytes: &'a [u8], notes: &mut Vec<String>) -> Result<Cow<'a, str>, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks(2).map(|c| unit([c[0], *c.get(1).unwrap_or(&0)])).collect();
        String::from_utf16(&units).map_err(|_| bad("it is not valid UTF-16\nhint: save it as UTF-8".into()))
    };
    let text = match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            return Err(bad("it is UTF-32\nhint: save it as UTF-8".into()));
        }
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes)?,
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes)?,
        [a, b, ..] if (*a == 0) != (*b == 0) => {
            return Err(bad("it looks like UTF-16 without a byte-order mark\nhint: save it as UTF-8".into()));
        }
        _ => {
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            return std::str::from_utf8(bytes).map(Cow::from).map_err(|e| DataError::Line {
                path: path.to_path_buf(),
                line: 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count(),
                why: "a byte there is not UTF-8\nhint: save the file as UTF-8".into(),
            });
        }
    };
    notes.push(format!("{}: read as UTF-16", path.display()));
    Ok(Cow::from(text))
}

/// Puts columns under the names used here.
fn rename(path: &Path, rows: &mut [Row], columns: &[(String, String)]) -> Result<(), DataError> {
    for (_, column) in columns {
        if !rows.is_empty() && !rows.iter().any(|r| r.object.contains_key(column)) {
            let why = format!("no row has a column '{column}' (--columns); its columns are {}", keys(&rows[0].object));
            return Err(DataError::Format { path: path.to_path_buf(), why });
        }
    }
    for row in rows {
        let taken: Vec<(&String, Option<Value>)> =
            columns.iter().map(|(name, column)| (name, row.object.shift_remove(column))).collect();
        for (name, value) in taken {
            // A column that is named keeps its name from meaning something else.
            row.object.shift_remove(name);
            row.object.extend(value.map(|v| (name.clone(), v)));
        }
    }
    Ok(())
}

/// The keys of a row, for a message.
pub fn keys(object: &Map<String, Value>) -> String {
    if object.is_empty() {
        return "none".into();
    }
    object.keys().map(|k| format!("'{k}'")).collect::<Vec<_>>().join(", ")
}

/// The other names under which people keep what is asked for here.
const OTHERS: &[(&str, &[&str])] = &[
    (
        "text",
        &[
            "sentence",
            "sentence1",
            "review",
            "content",
            "premise",
            "question1",
            "comment",
            "document",
            "body",
            "tweet",
            "utterance",
            "query",
            "question",
            "input",
            "title",
            "sms",
            "headline",
        ],
    ),
    ("text_pair", &["sentence2", "hypothesis", "question2", "text2", "context", "passage", "answer"]),
    (
        "label",
        &[
            "labels",
            "target",
            "class",
            "category",
            "sentiment",
            "label_id",
            "label_text",
            "intent",
            "gold_label",
            "rating",
            "stars",
            "score",
            "output",
            "y",
        ],
    ),
    ("prompt", &["question", "input", "query", "instruction", "problem", "source"]),
    ("completion", &["answer", "response", "output", "target", "solution", "answers", "reply"]),
    ("messages", &["conversation", "dialog", "dialogue", "chat", "turns", "message"]),
];

/// Which columns of a row could be meant by some names: the words of a hint, empty where there is no guess.
pub fn hint(object: &Map<String, Value>, names: &[&str]) -> String {
    let mut found: Vec<(String, String)> = Vec::new();
    for name in names {
        if object.contains_key(*name) {
            continue;
        }
        let others = OTHERS.iter().find(|o| o.0 == *name).map_or(&[][..], |o| o.1);
        let fits = |key: &String| match *name {
            "messages" => object[key].is_array(),
            "label" => !object[key].is_null() && !object[key].is_object(),
            _ => object[key].is_string(),
        };
        let free = |key: &&String| fits(key) && !found.iter().any(|f| f.1 == **key);
        let same = object.keys().filter(free).find(|k| k.trim().eq_ignore_ascii_case(name));
        let other = || others.iter().find_map(|o| object.keys().filter(free).find(|k| k.eq_ignore_ascii_case(o)));
        if let Some(key) = same.or_else(other) {
            found.push((name.to_string(), key.clone()));
        } else if *name != "text_pair" {
            return String::new();
        }
    }
    if found.is_empty() {
        return String::new();
    }
    let pairs: Vec<String> = found.iter().map(|(name, key)| format!("{name}={key}")).collect();
    format!("--columns {}", pairs.join(","))
}
