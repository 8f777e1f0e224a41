//! Rows of several texts: an anchor with its positive and negatives, two texts with a score, a prompt with two answers.

use super::examples::Sequence;
use super::made::{Made, Why, next, string};
use super::rows::{self, Row};
use super::tokenizer::Text;
use super::{Label, TextExample};
use serde_json::{Map, Value};

/// Which columns hold the texts of every row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Columns {
    /// `anchor`, `positive`, and those of negatives.
    Anchored(Vec<String>),
    /// `text1`, `text2` and `score`.
    Scored,
    /// `prompt`, `chosen` and `rejected`.
    Preferences,
}

impl Columns {
    /// What the first row's columns say; `None` where it holds one text.
    pub fn of(object: &Map<String, Value>) -> Option<Columns> {
        let has = |names: &[&str]| names.iter().all(|n| object.contains_key(*n));
        if has(&["anchor", "positive"]) {
            let mut negatives: Vec<String> =
                ["negative"].into_iter().filter(|n| has(&[*n])).map(String::from).collect();
            negatives.extend((1..).map(|n| format!("negative_{n}")).take_while(|n| has(&[n.as_str()])));
            return Some(Columns::Anchored(negatives));
        }
        match (has(&["text1", "text2", "score"]), has(&["chosen", "rejected"])) {
            (true, _) => Some(Columns::Scored),
            (_, true) => Some(Columns::Preferences),
            _ => None,
        }
    }

    /// Texts of a row.
    pub fn texts(&self) -> usize {
        match self {
            Columns::Anchored(negatives) => 2 + negatives.len(),
            Columns::Scored | Columns::Preferences => 2,
        }
    }
}

/// The example of a row.
pub fn read(text: &Text, row: &Row, columns: &Columns, most: usize, made: &mut Made) -> Result<(), String> {
    let object = &row.object;
    let (texts, label) = match columns {
        Columns::Preferences => (answers(text, object, most, made)?, None),
        Columns::Scored => (plain(text, object, &["text1", "text2"], most, made)?, Some(score(object)?)),
        Columns::Anchored(negatives) => {
            let names: Vec<&str> =
                ["anchor", "positive"].into_iter().chain(negatives.iter().map(String::as_str)).collect();
            (plain(text, object, &names, most, made)?, None)
        }
    };
    let Some(mut texts) = texts else { return Ok(()) };
    let further = texts.split_off(1);
    let Sequence { ids, type_ids, labels } = texts.remove(0);
    made.examples.push(TextExample { ids, type_ids, labels, label, numbers: vec![], further });
    Ok(())
}

fn given<'a>(object: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    let missing = || format!("there is no '{name}', which other rows have; its keys are {}", rows::keys(object));
    string(object, name)?.ok_or_else(missing)
}

fn score(object: &Map<String, Value>) -> Result<Label, String> {
    let value = &object["score"];
    // Text formats without types hold numbers as text.
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|x| x.is_finite());
    let number = number.ok_or_else(|| format!("'score' is {value}, not a number"))?;
    match (-1.0..=1.0).contains(&number) {
        true => Ok(Label::Number(number as f32)),
        false => Err(format!(
            "'score' is {number}, and cosines go from -1 to 1\nhint: divide scores by their largest, as 0 to 5 by 5"
        )),
    }
}

/// Texts of an encoder, with its special tokens; `None` where one of them is empty.
fn plain(
    text: &Text,
    object: &Map<String, Value>,
    names: &[&str],
    most: usize,
    made: &mut Made,
) -> Result<Option<Vec<Sequence>>, String> {
    let mut out = Vec::new();
    for name in names {
        let words = given(object, name)?;
        let tokens = text.classified(words, None, most)?;
        if tokens.ids.is_empty() {
            made.left_out.push(Why::Empty);
            return Ok(None);
        }
        made.blank |= words.is_empty();
        made.cut += usize::from(tokens.cut);
        out.push(Sequence { ids: tokens.ids, type_ids: tokens.type_ids, labels: vec![] });
    }
    Ok(Some(out))
}

/// A prompt with the preferred answer, and with the rejected one; `None` where nothing of an answer is left.
fn answers(
    text: &Text,
    object: &Map<String, Value>,
    most: usize,
    made: &mut Made,
) -> Result<Option<Vec<Sequence>>, String> {
    made.framed = true;
    let prompt = string(object, "prompt")?.unwrap_or_default();
    let mut out = Vec::new();
    for name in ["chosen", "rejected"] {
        if object.get(name).is_some_and(Value::is_array) {
            return Err(format!(
                "'{name}' is a list of messages, and must be text\nhint: write the answer as text, with its question as 'prompt'"
            ));
        }
        let (mut ids, mut counts) = text.completed(prompt, given(object, name)?)?;
        let cut = ids.len() > most;
        ids.truncate(most);
        counts.truncate(most);
        let labels = next(&ids, &counts);
        if labels.iter().all(|l| *l < 0) {
            made.left_out.push(if cut { Why::CutOff } else { Why::Empty });
            return Ok(None);
        }
        made.cut += usize::from(cut);
        out.push(Sequence { type_ids: vec![0; ids.len()], ids, labels });
    }
    Ok(Some(out))
}
