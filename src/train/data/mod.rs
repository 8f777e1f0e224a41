//! Data sets: text through a tokenizer, or tensors as they are; and their batches.

mod batch;
mod chat;
mod classes;
mod labels;
mod python;
mod rows;
mod special;
mod template;
mod tensors;
mod text;
mod tokenizer;

pub use batch::{Batch, Order, buckets};
pub use labels::Label;
pub use tokenizer::{Text, open as open_tokenizer};

use crate::ir::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a model reads: name, element type and declared axes of each graph input.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    pub name: String,
    pub dtype: DType,
    /// `None` where the file gives no shape.
    pub dims: Option<Vec<Axis>>,
}

/// An axis of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    Fixed(usize),
    Named(String),
    Unknown,
}

/// What the labels are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// One class for each example.
    Classify,
    /// The next token at each position.
    LanguageModel,
    /// Whatever the data file's `labels` are.
    Tensors,
}

/// A tokenised example.
#[derive(Clone, Debug, PartialEq)]
pub struct TextExample {
    pub ids: Vec<i32>,
    pub type_ids: Vec<i32>,
    /// One label a position, aligned with the logits (no shift); empty where an example is classified.
    pub labels: Vec<i32>,
    /// The label of the whole example; `None` where each position has one.
    pub label: Option<Label>,
}

/// Examples, along the first axis of every tensor or one after the other.
#[derive(Clone, Debug)]
pub enum Source {
    Text { task: Task, examples: Vec<TextExample>, pad_id: i32 },
    Tensors { tensors: BTreeMap<String, Tensor>, examples: usize },
}

/// A data set.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub path: PathBuf,
    pub source: Source,
    /// SHA-256 of the file, in hexadecimal.
    pub digest: String,
    /// What a user should know, such as how many examples were cut short.
    pub notes: Vec<String>,
}

/// How to read a data file.
#[derive(Clone, Debug)]
pub struct Options {
    /// A `tokenizer.json`, or a folder that holds one. `None` looks in [`Options::beside`].
    pub tokenizer: Option<PathBuf>,
    /// The model's folder, where `tokenizer.json` is looked for if none is given.
    pub beside: Option<PathBuf>,
    /// Tokens kept of each text.
    pub max_length: usize,
    /// A named template of the tokenizer's, or a file.
    pub chat_template: Option<String>,
    /// What the classes are called, in order; empty where that is not known.
    pub label_names: Vec<String>,
    /// Whether special tokens are added to texts.
    pub special_tokens: bool,
    /// Columns of the file under the names used here: `("text", "review")` reads `review` as `text`.
    pub columns: Vec<(String, String)>,
    /// Move the labels of tensors one position to the left: each is the next token.
    pub shift_labels: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            tokenizer: None,
            beside: None,
            max_length: 512,
            chat_template: None,
            label_names: vec![],
            special_tokens: true,
            columns: vec![],
            shift_labels: false,
        }
    }
}

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot open {}: {error}\nhint: check the path", path.display())]
    Open { path: PathBuf, error: std::io::Error },
    #[error("{}: {why}", path.display())]
    Format { path: PathBuf, why: String },
    #[error("{} line {line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: String },
    #[error("{} is text, which needs a tokenizer\nhint: --tokenizer tokenizer.json", path.display())]
    NoTokenizer { path: PathBuf },
    #[error("cannot read the tokenizer {}: {why}\nhint: give a Hugging Face tokenizer.json", path.display())]
    Tokenizer { path: PathBuf, why: String },
    #[error("{} does not fit the model: {why}", path.display())]
    Fit { path: PathBuf, why: String },
}

/// Reads a data set. `.jsonl` is text, `.safetensors` and `.npz` are tensors.
pub fn read(path: &Path, options: &Options) -> Result<Dataset, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::Open { path: path.to_path_buf(), error })?;
    let mut notes = Vec::new();
    let source = match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl" | "json" | "ndjson") => text::read(path, &bytes, options, &mut notes)?,
        Some("safetensors") => tensors::safetensors(path, &bytes)?,
        Some("npz") => tensors::npz(path, &bytes)?,
        _ => {
            let why = "its kind is not known\nhint: .jsonl, .safetensors or .npz".to_string();
            return Err(DataError::Format { path: path.to_path_buf(), why });
        }
    };
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let data = Dataset { path: path.to_path_buf(), source, digest, notes };
    match data.len() {
        0 => Err(DataError::Format { path: path.to_path_buf(), why: "it holds no example".into() }),
        _ => Ok(data),
    }
}

impl Dataset {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match &self.source {
            Source::Text { examples, .. } => examples.len(),
            Source::Tensors { examples, .. } => *examples,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn task(&self) -> Task {
        match &self.source {
            Source::Text { task, .. } => *task,
            Source::Tensors { .. } => Task::Tensors,
        }
    }

    /// The element type of the labels; `None` if the data holds none.
    pub fn label_type(&self) -> Option<DType> {
        match &self.source {
            Source::Text { .. } => Some(DType::I32),
            Source::Tensors { tensors, .. } => tensors.get("labels").map(Tensor::dtype),
        }
    }

    /// The same file with some of its examples.
    pub fn subset(&self, keep: std::ops::Range<usize>) -> Dataset {
        let source = match &self.source {
            Source::Text { task, examples, pad_id } => {
                Source::Text { task: *task, examples: examples[keep].to_vec(), pad_id: *pad_id }
            }
            Source::Tensors { tensors, .. } => {
                let n = keep.len();
                let rows: Vec<usize> = keep.collect();
                let cut = |(name, t): (&String, &Tensor)| (name.clone(), tensors::rows(t, &rows));
                Source::Tensors { tensors: tensors.iter().map(cut).collect(), examples: n }
            }
        };
        Dataset { source, notes: vec![], ..self.clone() }
    }

    /// Checks the elements of integer inputs against the number of rows of the tables they are looked up in.
    pub fn check_indices(&self, bounds: &BTreeMap<String, usize>) -> Result<(), DataError> {
        for (name, &n) in bounds {
            let beyond = |x: &&i32| **x >= n as i32 || **x < -(n as i32);
            let found = match &self.source {
                Source::Text { examples, pad_id, .. } if name == "input_ids" => {
                    let ids = examples.iter().flat_map(|e| &e.ids);
                    ids.chain([pad_id]).find(beyond).copied()
                }
                Source::Text { examples, .. } if name == "token_type_ids" => {
                    examples.iter().flat_map(|e| &e.type_ids).find(beyond).copied()
                }
                Source::Text { .. } => None,
                Source::Tensors { tensors, .. } => {
                    tensors.get(name).and_then(Tensor::as_i32).and_then(|x| x.iter().find(beyond).copied())
                }
            };
            if let Some(x) = found {
                let why = format!(
                    "'{name}' holds {x}, but the table it is looked up in has {n} rows\n\
                     hint: is this the tokenizer the model was trained with?"
                );
                return Err(DataError::Fit { path: self.path.clone(), why });
            }
        }
        Ok(())
    }

    /// Checks every label against the number of classes; says which example is wrong.
    pub fn check_labels(&self, classes: usize) -> Result<(), DataError> {
        let bad = |label: i32| label >= classes as i32 || label < 0 && label != -100;
        let line = match &self.source {
            Source::Text { examples, .. } => {
                let class = |e: &TextExample| match &e.label {
                    Some(Label::Class(c)) => Some(*c),
                    _ => None,
                };
                let all = |e: &TextExample| e.labels.iter().copied().chain(class(e)).find(|l| bad(*l));
                examples.iter().enumerate().find_map(|(i, e)| all(e).map(|l| (i, l)))
            }
            Source::Tensors { tensors, examples } => tensors.get("labels").and_then(|t| {
                let labels = t.as_i32()?;
                let at = labels.iter().position(|l| bad(*l))?;
                Some((at / (labels.len() / (*examples).max(1)).max(1), labels[at]))
            }),
        };
        let Some((example, label)) = line else { return Ok(()) };
        let why = format!(
            "label {label} of example {} is out of range: the model has {classes} classes, 0 to {}\n\
             hint: -100 marks what does not count",
            example + 1,
            classes.saturating_sub(1)
        );
        Err(DataError::Fit { path: self.path.clone(), why })
    }
}
