//! Rows of text data, with their columns under the names used here.

use super::DataError;
use super::sink::{Place, Placed};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// A row and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub path: Arc<Path>,
    pub place: Place,
    pub object: Map<String, Value>,
}

impl Row {
    /// A row of a file, its columns under the names used here. What is no object is an error.
    pub fn new(path: &Arc<Path>, placed: Placed, columns: &[(String, String)]) -> Result<Row, DataError> {
        let mut row = Row { path: path.clone(), place: placed.place, object: Map::new() };
        match placed.value {
            Value::Object(object) => row.object = object,
            other => return Err(row.error(format!("expected an object, not {}", kind(&other)))),
        }
        let taken: Vec<(&String, Option<Value>)> =
            columns.iter().map(|(name, column)| (name, row.object.shift_remove(column))).collect();
        for (name, value) in taken {
            // A column that is named keeps its name from meaning something else.
            row.object.shift_remove(name);
            row.object.extend(value.map(|v| (name.clone(), v)));
        }
        Ok(row)
    }

    /// An error about this row.
    pub fn error(&self, why: String) -> DataError {
        DataError::Row { path: self.path.to_path_buf(), place: self.place, why }
    }

    /// Roughly how many bytes it takes.
    pub fn size(&self) -> usize {
        self.object.iter().map(|(key, value)| key.len() + size(value)).sum()
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len(),
        Value::Array(list) => list.iter().map(size).sum(),
        Value::Object(o) => o.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => size_of::<Value>(),
    }
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
    ("anchor", &["query", "question", "sentence1", "premise"]),
    ("positive", &["pos", "positive_text", "positive_passage", "answer", "sentence2"]),
    ("negative", &["neg", "negative_text", "negative_passage", "hard_negative"]),
    ("chosen", &["preferred", "better", "accepted"]),
    ("rejected", &["dispreferred", "worse"]),
];

/// Columns that are read, besides those of [`OTHERS`].
const READ: &[&str] = &[
    "conversations",
    "instruction",
    "system",
    "tools",
    "documents",
    "chat_template_kwargs",
    "text1",
    "text2",
    "score",
];

/// Whether a column is one that is read, or that could be meant for one.
pub fn is_known(column: &str) -> bool {
    let names = OTHERS.iter().flat_map(|(name, others)| std::iter::once(name).chain(*others));
    READ.iter().chain(names).any(|name| column.trim().eq_ignore_ascii_case(name))
}

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
