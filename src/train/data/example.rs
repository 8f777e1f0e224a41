//! One row as examples: what its columns mean, its tokens, and which of them are learnt.

use super::chat::{self, Talk};
use super::made::{Made, Why, next, string};
use super::rows::{self, Row};
use super::sink::Place;
use super::tokenizer::Text;
use super::tuples::{self, Columns};
use super::{Label, Options, TextExample, columns, sequences};
use serde_json::{Map, Value};

/// How rows of a data set become examples.
pub enum Kind {
    Classified(Classes),
    /// With where the first row stands, which has no label.
    Language(Place),
    /// Several texts each.
    Tuples(Columns),
    /// For an encoder, and a decoder that begins with this token.
    Sequences(i32),
}

/// How labels are read.
pub struct Classes {
    /// Where the first row with a label stands.
    pub first: Place,
    /// What the model's classes are called.
    pub names: Vec<String>,
    /// The model's class for each class that the file numbers, where they differ.
    pub by_name: Option<Vec<i32>>,
}

impl Classes {
    fn read(&self, value: &Value) -> Result<Label, String> {
        match (Label::read(value, &self.names)?, &self.by_name) {
            (Label::Class(c), Some(by_name)) if c != -100 && value.is_number() => {
                let class = usize::try_from(c).ok().and_then(|c| by_name.get(c));
                let missing = || format!("label {c} is out of range: the file names {} classes", by_name.len());
                class.copied().map(Label::Class).ok_or_else(missing)
            }
            (label, _) => Ok(label),
        }
    }
}

/// The examples of a row, each with the row's numbers.
pub fn of_row(text: &Text, row: &Row, kind: &Kind, options: &Options) -> Result<Made, String> {
    let (mut made, most) = (Made::default(), options.max_length);
    let numbers = columns::read(&options.inputs, &row.object)?;
    match kind {
        Kind::Classified(classes) => classified(text, row, classes, most, &mut made)?,
        Kind::Tuples(columns) => tuples::read(text, row, columns, most, &mut made)?,
        Kind::Sequences(start) => sequences::read(text, row, *start, most, &mut made)?,
        Kind::Language(first) => {
            let object = &row.object;
            if object.get("label").is_some_and(|l| !l.is_null()) {
                let (unit, n) = first.parts();
                return Err(format!(
                    "some {unit}s have a 'label' and some do not: there is one here, but {unit} {n} has none"
                ));
            }
            if object.contains_key("label") && object.contains_key("text") {
                return Err(
                    "'label' is null, here and in every row\nhint: without that key, the text itself is learnt".into(),
                );
            }
            language(text, row, most, &mut made)?;
        }
    }
    made.examples.iter_mut().for_each(|e| e.numbers.clone_from(&numbers));
    Ok(made)
}

/// What is missing, which keys there are, and what could be meant.
fn missing(what: &str, object: &Map<String, Value>, guesses: &[&[&str]]) -> String {
    let hint = guesses.iter().map(|names| rows::hint(object, names)).find(|h| !h.is_empty());
    let hint = hint.map(|h| format!("\nhint: {h}")).unwrap_or_default();
    format!("{what}; its keys are {}{hint}", rows::keys(object))
}

fn classified(text: &Text, row: &Row, how: &Classes, most: usize, made: &mut Made) -> Result<(), String> {
    let object = &row.object;
    let Some(label) = object.get("label").filter(|l| !l.is_null()) else {
        let what = if object.contains_key("label") { "'label' is null" } else { "there is no 'label'" };
        let (unit, there) = how.first.parts();
        return Err(format!("some {unit}s have a 'label' and some do not: {what} here, but {unit} {there} has one"));
    };
    let main = string(object, "text")?;
    let main = main.ok_or_else(|| missing("there is no 'text'", object, &[&["text", "text_pair"], &["text"]]))?;
    let label = how.read(label)?;
    let tokens = text.classified(main, string(object, "text_pair")?, most)?;
    if tokens.ids.is_empty() {
        made.left_out.push(Why::Empty);
        return Ok(());
    }
    made.blank = main.is_empty();
    made.cut += tokens.cut as usize;
    let (ids, type_ids) = (tokens.ids, tokens.type_ids);
    let label = Some(label);
    made.examples.push(TextExample { ids, type_ids, labels: vec![], label, numbers: vec![], further: vec![] });
    Ok(())
}

fn language(text: &Text, row: &Row, most: usize, made: &mut Made) -> Result<(), String> {
    let object = &row.object;
    if let Some(talk) = Talk::read(object)? {
        return conversation(text, &talk, most, made);
    }
    for key in ["messages", "conversations"] {
        if object.get(key).is_some_and(|v| !v.is_null()) {
            return Err(format!("'{key}' must be a list of messages"));
        }
    }
    if let Some(prompt) = string(object, "prompt")? {
        let completion = string(object, "completion")?;
        let none = || missing("there is a 'prompt' but no 'completion'", object, &[&["completion"]]);
        return completed(text, prompt, completion.ok_or_else(none)?, most, made);
    }
    if let Some(main) = string(object, "text")? {
        if string(object, "text_pair")?.is_some() {
            return Err(missing("there is a 'text_pair' but no 'label'", object, &[&["label"]]));
        }
        if text.is_blank(main) {
            made.left_out.push(Why::Empty);
            return Ok(());
        }
        made.framed = true;
        let tokens = text.language(main, most)?;
        let counts = vec![true; tokens.ids.len()];
        let labels = next(&tokens.ids, &counts);
        let why = if tokens.cut { Why::CutOff } else { Why::Single };
        let (ids, type_ids) = (tokens.ids, tokens.type_ids);
        made.push(
            TextExample { ids, type_ids, labels, label: None, numbers: vec![], further: vec![] },
            tokens.cut,
            why,
        );
        return Ok(());
    }
    if let (Some(instruction), Some(output)) = (string(object, "instruction")?, string(object, "output")?) {
        let input = string(object, "input")?.filter(|i| !i.trim().is_empty());
        if text.templates.is_empty() {
            made.alpaca = true;
            return completed(text, &alpaca(instruction, input), output, most, made);
        }
        let question = input.map_or(instruction.to_string(), |input| format!("{instruction}\n\n{input}"));
        let system = string(object, "system")?.filter(|s| !s.is_empty());
        return conversation(text, &Talk::of(&question, output, system), most, made);
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
    fn push(&mut self, example: TextExample, cut: bool, why: Why) {
        if example.labels.iter().all(|&l| l < 0) {
            self.left_out.push(why);
            return;
        }
        self.cut += cut as usize;
        self.examples.push(example);
    }

    /// Adds a sequence, cut on the right.
    fn sequence(&mut self, mut ids: Vec<i32>, mut counts: Vec<bool>, most: usize, empty: Why) {
        let cut = ids.len() > most;
        let why = if counts.iter().skip(1).any(|c| *c) { Why::CutOff } else { empty };
        ids.truncate(most);
        counts.truncate(most);
        let labels = next(&ids, &counts);
        let type_ids = vec![0; ids.len()];
        self.push(TextExample { ids, type_ids, labels, label: None, numbers: vec![], further: vec![] }, cut, why);
    }
}

fn completed(text: &Text, prompt: &str, completion: &str, most: usize, made: &mut Made) -> Result<(), String> {
    made.framed = true;
    made.blank = completion.is_empty();
    let (ids, counts) = text.completed(prompt, completion)?;
    made.sequence(ids, counts, most, Why::Empty);
    Ok(())
}

fn conversation(text: &Text, talk: &Talk, most: usize, made: &mut Made) -> Result<(), String> {
    let pieces = chat::pieces(text, talk)?;
    made.split = pieces.len() > 1;
    for piece in pieces {
        let (ids, offsets) = text.plain(&piece.text)?;
        let counts = chat::mask(&piece, &offsets);
        made.sequence(ids, counts, most, Why::NoAnswer);
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
