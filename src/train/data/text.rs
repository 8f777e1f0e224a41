//! Text data sets: rows become token ids and labels.

use super::chat::{self, Talk};
use super::formats::ReadRows;
use super::rows::{self, Row};
use super::tokenizer::{self, Text};
use super::{DataError, Label, Options, Source, Task, TextExample, columns, special};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Reads a data set of text with the tokenizer that the options name.
pub fn read(
    path: &Path,
    bytes: &[u8],
    format: ReadRows,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<Source, DataError> {
    let text = tokenizer::open(path, options)?;
    let rows = rows::read(path, bytes, format, &options.columns, notes)?;
    let (task, examples) = examples(path, &rows, &text, options, notes)?;
    Ok(Source::Text { task, examples, pad_id: text.pad.unwrap_or(0), pad_left: text.pad_left })
}

/// The examples of a data set.
fn examples(
    path: &Path,
    rows: &[Row],
    text: &Text,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<(Task, Vec<TextExample>), DataError> {
    let labelled = rows.iter().find(|r| r.object.get("label").is_some_and(|l| !l.is_null()));
    let mut made = Made::default();
    let task = match labelled {
        Some(first) => {
            let names = class_names(options).map_err(|why| DataError::Format { path: path.to_path_buf(), why })?;
            for row in rows {
                let most = options.max_length;
                made.numbers = columns::read(&options.inputs, &row.object).map_err(|why| row.error(path, why))?;
                classified(text, row, first, &names, most, &mut made).map_err(|why| row.error(path, why))?;
            }
            Task::Classify
        }
        None => {
            for row in rows {
                if row.object.get("label").is_some_and(|_| row.object.contains_key("text")) {
                    let why =
                        "'label' is null, here and in every row\nhint: without that key, the text itself is learnt";
                    return Err(row.error(path, why.into()));
                }
                made.numbers = columns::read(&options.inputs, &row.object).map_err(|why| row.error(path, why))?;
                language(text, row, options.max_length, &mut made).map_err(|why| row.error(path, why))?;
            }
            let unread =
                rows.first().and_then(|r| r.object.contains_key("text").then(|| rows::hint(&r.object, &["label"])));
            if let Some(hint) = unread.filter(|h| ["=labels", "=target", "=class"].iter().any(|end| h.ends_with(end))) {
                notes.push(format!(
                    "{}: no row has a 'label', so each text is learnt token by token; {hint} gives labels",
                    path.display()
                ));
            }
            if let Some(note) = text.note.as_ref().filter(|_| made.framed) {
                notes.push(note.clone());
            }
            if made.split > 0 {
                notes.push(format!(
                    "{}: {} conversations became an example for each answer, as the chat template shows an answer \
                     otherwise once others follow",
                    path.display(),
                    made.split
                ));
            }
            if made.alpaca {
                notes.push(format!(
                    "{}: 'instruction' and 'output' are put into Alpaca's prompt, as there is no chat template",
                    path.display()
                ));
            }
            Task::LanguageModel
        }
    };
    made.report(path, options.max_length, rows.len(), notes)?;
    Ok((task, made.examples))
}

/// What has been made of the rows so far.
#[derive(Default)]
struct Made {
    examples: Vec<TextExample>,
    /// Those of the row that is read.
    numbers: Vec<f32>,
    cut: usize,
    /// Rows of which nothing is left, by the reason.
    left_out: BTreeMap<Why, Vec<usize>>,
    /// Rows whose text is empty, but which have tokens all the same.
    blank: Vec<usize>,
    framed: bool,
    alpaca: bool,
    /// Conversations that became several examples.
    split: usize,
}

/// Why an example has nothing to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    CutOff,
    NoAnswer,
    Single,
    Empty,
}

/// A number of things.
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl Made {
    /// Says what was cut and left out; an error if nothing is left.
    fn report(&self, path: &Path, most: usize, rows: usize, notes: &mut Vec<String>) -> Result<(), DataError> {
        let lines = |lines: &[usize]| {
            let first: Vec<String> = lines.iter().take(5).map(usize::to_string).collect();
            let more = if lines.len() > 5 { ", ..." } else { "" };
            format!("line{} {}{more}", if lines.len() == 1 { "" } else { "s" }, first.join(", "))
        };
        let reason = |(why, at): (&Why, &Vec<usize>)| {
            let (n, s) = (at.len(), if at.len() == 1 { "" } else { "s" });
            let what = match why {
                Why::CutOff => {
                    format!(
                        "{n} prompt{s} fill{} the {most} tokens of --max-length, leaving no room for the answer",
                        if n == 1 { "s" } else { "" }
                    )
                }
                Why::NoAnswer => format!("{n} conversation{s} without an answer of the assistant"),
                Why::Single => format!("{n} text{s} of a single token, which has no next one"),
                Why::Empty => format!("{n} empty text{s}"),
            };
            format!("{what} ({})", lines(at))
        };
        let reasons: Vec<String> = self.left_out.iter().map(reason).collect();
        if self.examples.is_empty() && rows > 0 {
            let hint = match self.left_out.contains_key(&Why::CutOff) {
                true => "\nhint: a larger --max-length, or shorter prompts",
                false => "",
            };
            let why = format!("it holds no example with anything to learn: {}{hint}", reasons.join("; "));
            return Err(DataError::Format { path: path.to_path_buf(), why });
        }
        if self.cut > 0 {
            let texts = counted(self.cut, "text");
            notes.push(format!("{}: truncated {texts} to {most} tokens (--max-length)", path.display()));
        }
        if !self.blank.is_empty() {
            notes.push(format!("{}: {} texts are empty ({})", path.display(), self.blank.len(), lines(&self.blank)));
        }
        if !reasons.is_empty() {
            let n: usize = self.left_out.values().map(Vec::len).sum();
            notes.push(format!(
                "{}: skipped {} with no labelled tokens: {}",
                path.display(),
                counted(n, "example"),
                reasons.join("; ")
            ));
        }
        Ok(())
    }
}

/// What the classes are called: as the options say, or config.json beside the model.
fn class_names(options: &Options) -> Result<Vec<String>, String> {
    if !options.label_names.is_empty() {
        return Ok(options.label_names.clone());
    }
    let Some(folder) = &options.beside else { return Ok(vec![]) };
    // A config.json that cannot be read says nothing about names.
    let config = special::object(&folder.join("config.json")).ok().flatten().unwrap_or_default();
    let Some(by_id) = config.get("id2label").and_then(Value::as_object) else { return Ok(vec![]) };
    let numbered = by_id.iter().filter_map(|(id, name)| Some((id.parse::<usize>().ok()?, name.as_str()?.to_string())));
    let names: BTreeMap<usize, String> = numbered.collect();
    match names.len() == by_id.len() && names.keys().copied().eq(0..names.len()) {
        true => Ok(names.into_values().collect()),
        false => Ok(vec![]),
    }
}

/// The text under a key.
fn string<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(_) => Err(format!("'{key}' must be text")),
    }
}

/// What is missing, which keys there are, and what could be meant.
fn missing(what: &str, object: &Map<String, Value>, guesses: &[&[&str]]) -> String {
    let hint = guesses.iter().map(|names| rows::hint(object, names)).find(|h| !h.is_empty());
    let hint = hint.map(|h| format!("\nhint: {h}")).unwrap_or_default();
    format!("{what}; its keys are {}{hint}", rows::keys(object))
}

fn classified(
    text: &Text,
    row: &Row,
    first: &Row,
    names: &[String],
    most: usize,
    made: &mut Made,
) -> Result<(), String> {
    let object = &row.object;
    let Some(label) = object.get("label").filter(|l| !l.is_null()) else {
        let what = if object.contains_key("label") { "'label' is null" } else { "there is no 'label'" };
        let there = first.line;
        return Err(format!("some lines have a 'label' and some do not: {what} here, but line {there} has one"));
    };
    let main = string(object, "text")?;
    let main = main.ok_or_else(|| missing("there is no 'text'", object, &[&["text", "text_pair"], &["text"]]))?;
    let label = Label::read(label, names)?;
    let tokens = text.classified(main, string(object, "text_pair")?, most)?;
    if tokens.ids.is_empty() {
        made.left_out.entry(Why::Empty).or_default().push(row.line);
        return Ok(());
    }
    if main.is_empty() {
        made.blank.push(row.line);
    }
    made.cut += tokens.cut as usize;
    let (label, numbers) = (Some(label), made.numbers.clone());
    let example = TextExample { ids: tokens.ids, type_ids: tokens.type_ids, labels: vec![], label, numbers };
    made.examples.push(example);
    Ok(())
}

/// The labels of a sequence: of each position the token after it, where that counts.
fn next(ids: &[i32], counts: &[bool]) -> Vec<i32> {
    let label = |t: usize| if counts.get(t + 1) == Some(&true) { ids[t + 1] } else { -100 };
    (0..ids.len()).map(label).collect()
}

fn language(text: &Text, row: &Row, most: usize, made: &mut Made) -> Result<(), String> {
    let object = &row.object;
    if let Some(talk) = Talk::read(object)? {
        return conversation(text, row, &talk, most, made);
    }
    for key in ["messages", "conversations"] {
        if object.get(key).is_some_and(|v| !v.is_null()) {
            return Err(format!("'{key}' must be a list of messages"));
        }
    }
    if let Some(prompt) = string(object, "prompt")? {
        let completion = string(object, "completion")?;
        let none = || missing("there is a 'prompt' but no 'completion'", object, &[&["completion"]]);
        return completed(text, row, prompt, completion.ok_or_else(none)?, most, made);
    }
    if let Some(main) = string(object, "text")? {
        if string(object, "text_pair")?.is_some() {
            return Err(missing("there is a 'text_pair' but no 'label'", object, &[&["label"]]));
        }
        if text.is_blank(main) {
            made.left_out.entry(Why::Empty).or_default().push(row.line);
            return Ok(());
        }
        made.framed = true;
        let tokens = text.language(main, most)?;
        let counts = vec![true; tokens.ids.len()];
        let labels = next(&tokens.ids, &counts);
        let why = if tokens.cut { Why::CutOff } else { Why::Single };
        made.push(
            row,
            TextExample { ids: tokens.ids, type_ids: tokens.type_ids, labels, label: None, numbers: vec![] },
            tokens.cut,
            why,
        );
        return Ok(());
    }
    if let (Some(instruction), Some(output)) = (string(object, "instruction")?, string(object, "output")?) {
        let input = string(object, "input")?.filter(|i| !i.trim().is_empty());
        if text.templates.is_empty() {
            made.alpaca = true;
            return completed(text, row, &alpaca(instruction, input), output, most, made);
        }
        let question = input.map_or(instruction.to_string(), |input| format!("{instruction}\n\n{input}"));
        let system = string(object, "system")?.filter(|s| !s.is_empty());
        return conversation(text, row, &Talk::of(&question, output, system), most, made);
    }
    let what = match object.contains_key("completion") {
        true => "there is a 'completion' but no 'prompt'",
        false => "expected 'text' and 'label', or 'text', or 'prompt' and 'completion', or 'messages'",
    };
    let completion = object.contains_key("completion");
    let guesses: &[&[&str]] = match completion {
        true => &[&["prompt"]],
        false => &[&["messages"], &["text", "text_pair", "label"], &["prompt", "completion"], &["text"]],
    };
    // A question with its answer is a prompt with its completion, unless something looks like a label.
    let pair = rows::hint(object, &["prompt", "completion"]);
    let clear = ["question", "instruction", "input", "problem", "query"].iter().any(|k| object.contains_key(*k));
    match !completion && clear && !pair.is_empty() {
        true => Err(missing(what, object, &[&["messages"], &["prompt", "completion"]])),
        false => Err(missing(what, object, guesses)),
    }
}

impl Made {
    /// Adds an example if there is something to learn from it.
    fn push(&mut self, row: &Row, mut example: TextExample, cut: bool, why: Why) {
        example.numbers = self.numbers.clone();
        if example.labels.iter().all(|&l| l < 0) {
            self.left_out.entry(why).or_default().push(row.line);
            return;
        }
        self.cut += cut as usize;
        self.examples.push(example);
    }

    /// Adds a sequence, cut on the right.
    fn sequence(&mut self, row: &Row, mut ids: Vec<i32>, mut counts: Vec<bool>, most: usize, empty: Why) {
        let cut = ids.len() > most;
        let why = if counts.iter().skip(1).any(|c| *c) { Why::CutOff } else { empty };
        ids.truncate(most);
        counts.truncate(most);
        let labels = next(&ids, &counts);
        let example = TextExample { type_ids: vec![0; ids.len()], ids, labels, label: None, numbers: vec![] };
        self.push(row, example, cut, why);
    }
}

fn completed(
    text: &Text,
    row: &Row,
    prompt: &str,
    completion: &str,
    most: usize,
    made: &mut Made,
) -> Result<(), String> {
    made.framed = true;
    if completion.is_empty() {
        made.blank.push(row.line);
    }
    let (ids, counts) = text.completed(prompt, completion)?;
    made.sequence(row, ids, counts, most, Why::Empty);
    Ok(())
}

fn conversation(text: &Text, row: &Row, talk: &Talk, most: usize, made: &mut Made) -> Result<(), String> {
    let pieces = chat::pieces(text, talk)?;
    made.split += (pieces.len() > 1) as usize;
    for piece in pieces {
        let (ids, offsets) = text.plain(&piece.text)?;
        let counts = chat::mask(&piece, &offsets);
        made.sequence(row, ids, counts, most, Why::NoAnswer);
    }
    Ok(())
}

/// The prompt that Stanford's Alpaca was trained with.
fn alpaca(instruction: &str, input: Option<&str>) -> String {
    match input {
        Some(input) => format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
             response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\
             \n\n### Response:"
        ),
        None => format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\n{instruction}\n\n### Response:"
        ),
    }
}
