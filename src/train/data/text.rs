//! Data sets of text: one JSON object a line.

use super::tokenizer::{self, Text};
use super::{DataError, Label, Options, Source, Task, TextExample, chat};
use serde_json::Value;
use std::path::Path;

pub fn read(path: &Path, bytes: &[u8], options: &Options, notes: &mut Vec<String>) -> Result<Source, DataError> {
    let tokenizer = options.tokenizer.as_ref().ok_or_else(|| DataError::NoTokenizer { path: path.to_path_buf() })?;
    let text = tokenizer::open(tokenizer)?;
    let content = std::str::from_utf8(bytes)
        .map_err(|e| DataError::Format { path: path.to_path_buf(), why: format!("it is not UTF-8: {e}") })?;
    let (mut task, mut examples, mut cut, mut empty) = (None, Vec::new(), 0, 0);
    for (number, line) in content.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let bad = |why: String| DataError::Line { path: path.to_path_buf(), line: number + 1, why };
        let object: Value = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
        let (kind, mut example) = example(&text, &object, &options.label_names).map_err(bad)?;
        if *task.get_or_insert(kind) != kind {
            return Err(bad("some lines have a 'label' and some do not".into()));
        }
        if example.ids.len() > options.max_length {
            cut += 1;
            truncate(&mut example, options.max_length, kind);
        }
        if kind == Task::LanguageModel && example.labels.iter().all(|&l| l < 0) {
            empty += 1;
            continue;
        }
        examples.push(example);
    }
    if cut > 0 {
        notes.push(format!("{}: {cut} texts were cut at {} tokens (--max-length)", path.display(), options.max_length));
    }
    if empty > 0 {
        notes.push(format!("{}: {empty} texts have nothing left to learn and are left out", path.display()));
    }
    Ok(Source::Text { task: task.unwrap_or(Task::Classify), examples, pad_id: text.pad, pad_left: false })
}

fn example(text: &Text, object: &Value, names: &[String]) -> Result<(Task, TextExample), String> {
    let string = |key: &str| match &object[key] {
        Value::Null => Ok(None),
        Value::String(s) => Ok(Some(s.as_str())),
        _ => Err(format!("'{key}' must be text")),
    };
    if !object["label"].is_null() {
        let label = Label::read(&object["label"], names)?;
        let main = string("text")?.ok_or("there is no 'text'")?;
        let (ids, type_ids) = text.encode(main, string("text_pair")?)?;
        return Ok((Task::Classify, TextExample { ids, type_ids, labels: vec![], label: Some(label) }));
    }
    let pieces: Vec<(String, bool)> = if let Some(messages) = object["messages"].as_array() {
        return Ok((Task::LanguageModel, language(text, &chat::pieces(text, messages)?, false)?));
    } else if let Some(prompt) = string("prompt")? {
        let completion = string("completion")?.ok_or("there is a 'prompt' but no 'completion'")?;
        vec![(prompt.to_string(), false), (completion.to_string(), true)]
    } else if let Some(main) = string("text")? {
        vec![(main.to_string(), true)]
    } else {
        return Err("expected 'text' and 'label', or 'text', or 'prompt' and 'completion', or 'messages'".into());
    };
    Ok((Task::LanguageModel, language(text, &pieces, true)?))
}

/// A sequence from pieces, each tokenised alone, with labels on those that count: the label of a position is the token
/// after it. `framed` puts the beginning-of-sequence token before it and the end-of-sequence token after it, which
/// counts.
fn language(text: &Text, pieces: &[(String, bool)], framed: bool) -> Result<TextExample, String> {
    let (mut ids, mut counts) = (Vec::new(), Vec::new());
    if framed {
        // What the tokenizer's own post-processor puts in front, such as a beginning-of-sequence token.
        let (whole, _) = text.encode("", None)?;
        let front: Vec<i32> = whole.into_iter().filter(|t| Some(*t) == text.bos).take(1).collect();
        ids.extend(if front.is_empty() { text.bos.into_iter().collect() } else { front });
        counts.resize(ids.len(), false);
    }
    for (piece, counted) in pieces {
        ids.extend(text.plain(piece)?);
        counts.resize(ids.len(), *counted);
    }
    if framed && let Some(eos) = text.eos {
        ids.push(eos);
        counts.push(true);
    }
    let mut labels: Vec<i32> = (1..ids.len()).map(|t| if counts[t] { ids[t] } else { -100 }).collect();
    labels.push(-100);
    labels.truncate(ids.len());
    Ok(TextExample { type_ids: vec![0; ids.len()], ids, labels, label: None })
}

/// Keeps `n` tokens. A classified text keeps its last token, which closes the sequence; a sequence of a language model
/// keeps its beginning.
fn truncate(example: &mut TextExample, n: usize, task: Task) {
    if task == Task::Classify && n >= 2 {
        let (id, kind) = (*example.ids.last().unwrap_or(&0), *example.type_ids.last().unwrap_or(&0));
        example.ids.truncate(n - 1);
        example.type_ids.truncate(n - 1);
        example.ids.push(id);
        example.type_ids.push(kind);
        return;
    }
    example.ids.truncate(n);
    example.type_ids.truncate(n);
    if task == Task::LanguageModel {
        example.labels.truncate(n);
        if let Some(last) = example.labels.last_mut() {
            *last = -100;
        }
    }
}
