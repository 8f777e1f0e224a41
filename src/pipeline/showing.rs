//! A data set as a model sees it: its first examples token by token, its lengths and its labels.

use super::{Error, data_options, read_data};
use crate::onnx::Model;
use crate::settings::DataConfig;
use crate::train::data::{self, Column, Dataset, Examples, Label, Source, Task, Text, TextExample, buckets};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A data set, and some of its examples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    pub examples: usize,
    /// `classification`, `language-model`, `embedding`, `preference` or `tensors`.
    pub task: &'static str,
    /// Of texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lengths: Option<Lengths>,
    /// How many examples have each class: of texts that are classified.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<Class>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorKind>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<Example>,
    /// What was cut, left out and skipped, and what else a user should know.
    pub notes: Vec<String>,
}

/// How many tokens texts have, after truncation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lengths {
    pub shortest: usize,
    pub median: usize,
    pub mean: f64,
    /// Nineteen of twenty texts are no longer.
    pub p95: usize,
    pub longest: usize,
    /// Tokens in all texts.
    pub total: usize,
    /// Texts by the length that a batch of them is padded to.
    pub histogram: Vec<Bucket>,
}

/// Texts of some lengths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// Their largest length.
    pub to: usize,
    pub examples: usize,
}

/// How often a class occurs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Class {
    pub class: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub examples: usize,
}

/// A tensor of a data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorKind {
    pub name: String,
    /// Element type and shape, examples along the first axis.
    pub kind: String,
}

/// A text as token ids.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    pub ids: Vec<i32>,
    /// What each token says.
    pub pieces: Vec<String>,
    /// Whether the loss counts the prediction of each token; empty where the whole text has one label.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learnt: Vec<bool>,
    /// The other texts of its row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<Example>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_name: Option<String>,
    /// What the model's adapter reads of it besides, by graph input.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, f32>,
}

/// Reads a data set for a model and shows the first `n` examples.
pub fn show(how: &DataConfig, given: &[PathBuf], model: &Arc<Model>, n: usize) -> Result<Shown, Error> {
    let data = read_data(how, given, model)?;
    let task = match data.task() {
        Task::Classify => "classification",
        Task::LanguageModel => "language-model",
        Task::Embed { .. } => "embedding",
        Task::Prefer => "preference",
        Task::SequenceToSequence => "sequence-to-sequence",
        Task::Tensors => "tensors",
    };
    let (len, notes) = (data.len(), data.notes.clone());
    let none = Shown { examples: len, task, lengths: None, classes: vec![], tensors: vec![], first: vec![], notes };
    match &data.source {
        Source::Tensors { tensors, images, .. } => {
            let kind =
                |(name, t): (&String, &crate::ir::Tensor)| TensorKind { name: name.clone(), kind: t.ty().to_string() };
            let mut tensors: Vec<TensorKind> = tensors.iter().map(kind).collect();
            if let Some(images) = images {
                // The first ones as the model sees them.
                let t = images.tensor(&(0..len.min(n).max(1)).collect::<Vec<usize>>())?;
                let kind = format!("{} (the first of them, from {} on)", t.ty(), images.file(0).display());
                tensors.insert(0, TensorKind { name: images.input.name.clone(), kind });
            }
            Ok(Shown { tensors, ..none })
        }
        Source::Text { examples, .. } => {
            let options = data_options(how, model)?;
            let text = data::open_tokenizer(&data.path, &options)?;
            let names = data::class_names(&options);
            let first = (0..len.min(n)).map(|e| Ok(example(&*examples.get(e)?, &text, &names, &options.inputs)));
            Ok(Shown {
                lengths: Some(lengths(examples)),
                classes: classes(&data, examples, &names)?,
                first: first.collect::<Result<_, data::SpillError>>().map_err(data::DataError::from)?,
                ..none
            })
        }
    }
}

fn lengths(examples: &Examples) -> Lengths {
    let mut all: Vec<usize> = examples.lengths().collect();
    all.sort_unstable();
    let total = all.iter().sum();
    let mut histogram: BTreeMap<usize, usize> = BTreeMap::new();
    all.iter().for_each(|n| *histogram.entry(buckets(*n)).or_default() += 1);
    let at = |share: f64| all[((all.len() as f64 * share).ceil() as usize).clamp(1, all.len()) - 1];
    Lengths {
        shortest: all[0],
        median: at(0.5),
        mean: total as f64 / all.len() as f64,
        p95: at(0.95),
        longest: all[all.len() - 1],
        total,
        histogram: histogram.into_iter().map(|(to, examples)| Bucket { to, examples }).collect(),
    }
}

fn classes(data: &Dataset, examples: &Examples, names: &[String]) -> Result<Vec<Class>, data::DataError> {
    if data.task() != Task::Classify || examples.summary().unclassed {
        return Ok(vec![]);
    }
    let mut counts: BTreeMap<i32, usize> = BTreeMap::new();
    for e in examples.iter() {
        if let Some(class) = e?.label.as_ref().and_then(Label::class) {
            *counts.entry(class).or_default() += 1;
        }
    }
    let name = |class: i32| usize::try_from(class).ok().and_then(|c| names.get(c)).cloned();
    Ok(counts.into_iter().map(|(class, examples)| Class { class, name: name(class), examples }).collect())
}

/// The n-th text of an example.
fn shown(e: &TextExample, n: usize, text: &Text) -> Example {
    let (ids, _, labels) = e.text(n);
    let learnt = match labels.is_empty() {
        true => vec![],
        // The label of a position is the token after it.
        false => (0..ids.len()).map(|t| t > 0 && labels[t - 1] != -100).collect(),
    };
    let pieces = ids.iter().map(|id| text.piece(*id)).collect();
    let (label, label_name, inputs) = (None, None, BTreeMap::new());
    Example { ids: ids.to_vec(), pieces, learnt, further: vec![], label, label_name, inputs }
}

fn example(e: &TextExample, text: &Text, names: &[String], inputs: &[Column]) -> Example {
    let class = e.label.as_ref().and_then(Label::class).and_then(|c| usize::try_from(c).ok());
    let label = e.label.as_ref().map(|label| match label {
        Label::Class(c) => serde_json::json!(c),
        Label::Number(x) => serde_json::json!(x),
        Label::Many(xs) => serde_json::json!(xs),
    });
    let label_name = class.and_then(|c| names.get(c)).cloned();
    let inputs = inputs.iter().zip(&e.numbers).map(|(c, x)| (c.name.clone(), *x)).collect();
    let further = (1..=e.further.len()).map(|n| shown(e, n, text)).collect();
    Example { label, label_name, inputs, further, ..shown(e, 0, text) }
}
