//! What a row of text becomes: examples, and what there is to tell about them.

use super::TextExample;
use serde_json::{Map, Value};

/// What one row gave.
#[derive(Default)]
pub struct Made {
    pub examples: Vec<TextExample>,
    /// Texts that were truncated.
    pub cut: usize,
    /// Why something of it is left out.
    pub left_out: Vec<Why>,
    /// Its text is empty, but has tokens all the same.
    pub blank: bool,
    /// It is framed as texts of language models are.
    pub framed: bool,
    pub alpaca: bool,
    /// A conversation that became several examples.
    pub split: bool,
}

/// Why an example has nothing to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    CutOff,
    NoAnswer,
    Single,
    Empty,
}

/// The text under a key.
pub fn string<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(_) => Err(format!("'{key}' must be text")),
    }
}

/// The labels of a sequence: of each position the token after it, where that counts.
pub fn next(ids: &[i32], counts: &[bool]) -> Vec<i32> {
    let label = |t: usize| if counts.get(t + 1) == Some(&true) { ids[t + 1] } else { -100 };
    (0..ids.len()).map(label).collect()
}
