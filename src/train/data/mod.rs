//! Data sets, text through a tokenizer or tensors as they are, and their batches.

mod batch;
mod chat;
mod classes;
mod columns;
mod formats;
mod labels;
mod python;
mod rows;
mod shapes;
mod special;
mod template;
mod tensors;
mod text;
mod tokenizer;

pub use batch::{Batch, Feed, Order, Padding, buckets};
pub use columns::Column;
pub use labels::{Label, LabelForm, LabelKind};
pub use shapes::Shapes;
pub use tensors::read as read_tensors;
pub use tokenizer::{Text, open as open_tokenizer};

use crate::file_kind::{self, Kind, Wanted};
use crate::ir::{DType, Tensor};
use crate::settings::defaults;
use formats::Reader;
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
    /// One number for each of [`Options::inputs`].
    pub numbers: Vec<f32>,
}

/// Examples, along the first axis of every tensor or one after the other.
#[derive(Clone, Debug)]
pub enum Source {
    Text {
        task: Task,
        examples: Vec<TextExample>,
        pad_id: i32,
        /// Whether texts are padded before their first token.
        pad_left: bool,
    },
    Tensors {
        tensors: BTreeMap<String, Tensor>,
        examples: usize,
    },
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
    /// The most positions that the model takes, where that is known.
    pub limit: Option<usize>,
    /// The padding token of ids in tensors, where the model or its tokenizer names one.
    pub pad_id: Option<i32>,
    /// How it was read.
    pub options: Options,
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
    /// Numbers of examples that the model reads besides.
    pub inputs: Vec<Column>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            tokenizer: None,
            beside: None,
            max_length: defaults::MAX_LENGTH,
            chat_template: None,
            label_names: vec![],
            special_tokens: true,
            columns: vec![],
            shift_labels: false,
            inputs: vec![],
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
    #[error("{} is {kind}\nhint: {}", path.display(), hint(kind))]
    Other { path: PathBuf, kind: Kind },
    #[error("{} line {line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: String },
    #[error("{} is text, which needs a tokenizer\nhint: --tokenizer tokenizer.json", path.display())]
    NoTokenizer { path: PathBuf },
    #[error("cannot read the tokenizer {}: {why}\nhint: give a Hugging Face tokenizer.json", path.display())]
    Tokenizer { path: PathBuf, why: String },
    #[error("{} is no tokenizer but {kind}\nhint: {}", path.display(), kind.hint(Wanted::Tokenizer))]
    OtherTokenizer { path: PathBuf, kind: Kind },
    #[error("{} does not fit the model: {why}", path.display())]
    Fit { path: PathBuf, why: String },
}

/// The formats of data files as a sentence has them: `.a, .b or .c`.
pub fn formats_listed() -> String {
    formats::listed(" or ", |_| true)
}

/// What to do with a file that is no data.
fn hint(kind: &Kind) -> String {
    match kind.hint(Wanted::Data) {
        "" => format!("give {}", formats_listed()),
        hint => hint.into(),
    }
}

/// Reads a data set, of the format that its name says.
pub fn read(path: &Path, options: &Options) -> Result<Dataset, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::Open { path: path.to_path_buf(), error })?;
    if let Some(kind) = file_kind::in_place_of_a_file(&bytes) {
        return Err(DataError::Other { path: path.to_path_buf(), kind });
    }
    let mut notes = Vec::new();
    let format = formats::named(path);
    let source = match format.map(|f| f.reader) {
        Some(Reader::Rows(rows)) => text::read(path, &bytes, rows, options, &mut notes),
        Some(Reader::Tensors(tensors)) => tensors(path, &bytes).and_then(|t| tensors::source(path, t)),
        None => {
            let why = format!("its kind is not known\nhint: {}", formats_listed());
            Err(DataError::Format { path: path.to_path_buf(), why })
        }
    };
    // A file that is not what its name says is told by what it holds.
    let source = source.map_err(|error| match (error, file_kind::kind(&bytes)) {
        (DataError::Format { .. }, Some(kind)) if !format.is_some_and(|f| (f.holds)(&kind)) => {
            DataError::Other { path: path.to_path_buf(), kind }
        }
        (error, _) => error,
    })?;
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let pad_id = match &source {
        Source::Tensors { tensors, .. } if !tensors.contains_key("attention_mask") => pad_token(path, options)?,
        _ => None,
    };
    let mut data =
        Dataset { path: path.to_path_buf(), source, digest, notes, limit: None, pad_id, options: options.clone() };
    data.check_columns()?;
    if options.shift_labels {
        data.shift_labels()?;
    } else if data.copies_ids() {
        data.notes.push(format!(
            "{}: 'labels' equal 'input_ids' at every position, and labels are not shifted here: the model is trained to \
             repeat its input\nhint: --shift-labels makes each label the next token",
            path.display()
        ));
    }
    match data.len() {
        0 => Err(DataError::Format { path: path.to_path_buf(), why: "it holds no example".into() }),
        _ => Ok(data),
    }
}

/// The padding token's id, as the tokenizer given, or the config.json or tokenizer beside the model names it.
fn pad_token(data: &Path, options: &Options) -> Result<Option<i32>, DataError> {
    if options.tokenizer.is_some() {
        return Ok(tokenizer::open(data, options)?.pad);
    }
    let Some(folder) = &options.beside else { return Ok(None) };
    let config = std::fs::read(folder.join("config.json")).ok();
    let config: Option<serde_json::Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let named = config.and_then(|c| c["pad_token_id"].as_i64()).and_then(|id| i32::try_from(id).ok());
    Ok(named.or_else(|| tokenizer::open(data, options).ok()?.pad))
}

impl Dataset {
    /// Moves the labels of tensors one position to the left.
    fn shift_labels(&mut self) -> Result<(), DataError> {
        let misfit = |why: &str| DataError::Fit { path: self.path.clone(), why: why.into() };
        match &mut self.source {
            Source::Text { .. } => {
                self.notes.push("--shift-labels has no effect on text, whose labels are the next token already".into());
            }
            Source::Tensors { tensors, .. } => {
                let labels = tensors.get("labels").and_then(labels::shifted);
                let labels = labels.ok_or_else(|| misfit("--shift-labels needs integer 'labels' with positions"))?;
                tensors.insert("labels".into(), labels);
            }
        }
        Ok(())
    }

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

    /// Whether the data holds labels.
    pub fn has_labels(&self) -> bool {
        match &self.source {
            Source::Text { .. } => true,
            Source::Tensors { tensors, .. } => tensors.contains_key("labels"),
        }
    }

    /// Tokens of the longest text; `None` for tensors, which are used as they are.
    pub fn longest(&self) -> Option<usize> {
        match &self.source {
            Source::Text { examples, .. } => examples.iter().map(|e| e.ids.len()).max(),
            Source::Tensors { .. } => None,
        }
    }

    /// Tokens of a text; 0 for tensors, whose rows are all of one length.
    pub fn length(&self, example: usize) -> usize {
        match &self.source {
            Source::Text { examples, .. } => examples[example].ids.len(),
            Source::Tensors { .. } => 0,
        }
    }

    /// The smallest and largest element that the data has for an integer input, padding included; `None` if it has none.
    pub fn integers(&self, input: &str) -> Option<(i64, i64)> {
        let wide = |low: i32, high: i32| (i64::from(low), i64::from(high));
        match &self.source {
            Source::Text { examples, pad_id, .. } => {
                let all: Box<dyn Iterator<Item = i32>> = match input {
                    "input_ids" => Box::new(examples.iter().flat_map(|e| e.ids.iter().copied()).chain([*pad_id])),
                    "token_type_ids" => Box::new(examples.iter().flat_map(|e| e.type_ids.iter().copied()).chain([0])),
                    _ => {
                        let i = self.options.inputs.iter().position(|c| c.name == input && c.integer)?;
                        Box::new(examples.iter().map(move |e| e.numbers[i] as i32))
                    }
                };
                all.fold(None, |r: Option<(i32, i32)>, x| Some(r.map_or((x, x), |(a, b)| (a.min(x), b.max(x)))))
                    .map(|(a, b)| wide(a, b))
            }
            Source::Tensors { tensors, .. } => {
                let x = tensors.get(input)?.as_i32()?;
                Some(wide(*x.iter().min()?, *x.iter().max()?))
            }
        }
    }

    /// A tensor of the data.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match &self.source {
            Source::Text { .. } => None,
            Source::Tensors { tensors, .. } => tensors.get(name),
        }
    }

    /// The integers of one example in a tensor.
    pub fn row(&self, tensor: &str, example: usize) -> &[i32] {
        let Source::Tensors { tensors, .. } = &self.source else { return &[] };
        let Some(t) = tensors.get(tensor) else { return &[] };
        let width: usize = t.shape().iter().skip(1).product();
        t.as_i32().and_then(|x| x.get(example * width..(example + 1) * width)).unwrap_or(&[])
    }

    /// The most positions that a batch may have.
    pub fn positions(&self) -> usize {
        match &self.source {
            Source::Text { .. } => buckets(self.longest().unwrap_or(1)).min(self.limit.unwrap_or(usize::MAX)),
            Source::Tensors { tensors, .. } => {
                tensors.get("input_ids").and_then(|t| t.shape().get(1).copied()).unwrap_or(1)
            }
        }
    }

    /// The same file with texts cut at another length.
    pub fn cut_at(&self, max_length: usize) -> Result<Dataset, DataError> {
        let options = Options { max_length, ..self.options.clone() };
        Ok(Dataset { limit: self.limit, ..read(&self.path, &options)? })
    }

    /// The same file with some of its examples.
    pub fn subset(&self, keep: std::ops::Range<usize>) -> Dataset {
        let source = match &self.source {
            Source::Text { task, examples, pad_id, pad_left } => {
                Source::Text { task: *task, examples: examples[keep].to_vec(), pad_id: *pad_id, pad_left: *pad_left }
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
}
