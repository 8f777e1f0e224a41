//! Rows of text data: JSON lines, a JSON array, or concatenated objects, in UTF-8 or UTF-16.

use super::DataError;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
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

/// Reads the rows of a file, with columns under the names used here.
pub fn read(
    path: &Path,
    bytes: &[u8],
    columns: &[(String, String)],
    notes: &mut Vec<String>,
) -> Result<Vec<Row>, DataError> {
    let content = decode(path, bytes, notes)?;
    let mut out = Vec::new();
    for (line, item, value) in values(path, &content, columns)? {
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

/// The values of a file, with the line that each starts on, and its number where it shares the line.
fn values(
    path: &Path,
    content: &str,
    columns: &[(String, String)],
) -> Result<Vec<(usize, Option<usize>, Value)>, DataError> {
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
    let mut out: Vec<(usize, Option<usize>, Value)> = Vec::with_capacity(raw.len());
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
