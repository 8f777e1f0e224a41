//! Data sets, text through a tokenizer or tensors as they are, and their batches.

mod batch;
mod chat;
mod class_names;
mod classes;
mod columns;
mod dataset;
mod example;
mod examples;
mod files;
mod formats;
mod images;
mod input;
mod inputs;
mod labels;
mod made;
mod packing;
mod padded;
mod python;
mod rows;
mod sequences;
mod shapes;
mod sink;
mod special;
mod template;
mod tensors;
mod text;
mod tokenizer;
mod tuples;

pub use batch::{Batch, Feed, Order, Padding, buckets};
pub use chat::question;
pub use class_names::of_model as class_names;
pub use columns::Column;
pub use examples::{Examples, SpillError, TextExample};
pub use files::{files, named};
pub use images::{Images, Pixels};
pub use labels::{Label, LabelForm, LabelKind, UNCOUNTED};
pub use shapes::Shapes;
pub use tensors::read as read_tensors;
pub use tokenizer::{Text, open as open_tokenizer};

use crate::file_kind::{self, Kind, Wanted};
use crate::ir::{DType, Tensor};
use crate::settings::defaults;
use formats::{Format, Reader};
use input::Input;
pub use sink::Place;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use text::Collector;

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
    /// Embeddings of several texts that are alike or not, with a score or without.
    Embed { texts: usize, scored: bool },
    /// Of two answers, the better one.
    Prefer,
    /// The next token of a second text, which a decoder writes of the first.
    SequenceToSequence,
    /// Whatever the data file's `labels` are.
    Tensors,
}

impl Task {
    /// Whether the rows of a batch serve each other as negatives.
    pub fn negatives(&self) -> bool {
        matches!(self, Task::Embed { scored: false, .. })
    }

    /// Texts of an example.
    pub fn texts(&self) -> usize {
        match self {
            Task::Embed { texts, .. } => *texts,
            Task::Prefer => 2,
            Task::Classify | Task::LanguageModel | Task::SequenceToSequence | Task::Tensors => 1,
        }
    }
}

/// Examples, along the first axis of every tensor or one after the other.
#[derive(Clone, Debug)]
pub enum Source {
    Text {
        task: Task,
        examples: Examples,
        pad_id: i32,
        /// Whether texts are padded before their first token.
        pad_left: bool,
    },
    Tensors {
        tensors: BTreeMap<String, Tensor>,
        examples: usize,
        /// What is read when a batch needs it.
        images: Option<Images>,
    },
}

/// A data set.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What messages call it: its file, or its files.
    pub path: PathBuf,
    /// The files, folders and patterns that it was read from.
    pub given: Vec<PathBuf>,
    pub source: Source,
    /// SHA-256 of the file, in hexadecimal; of the digests of all files where there are several.
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
    /// Whether the model has an encoder and a decoder, which reads `decoder_input_ids`.
    pub decodes: bool,
    /// The graph input that takes images, of a model that has one.
    pub pixels: Option<Pixels>,
    /// The most rows of text that may be unreadable and are left out.
    pub skip_bad_rows: usize,
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
            decodes: false,
            pixels: None,
            skip_bad_rows: 0,
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
    #[error("{} {place}: {why}", path.display())]
    Row { path: PathBuf, place: Place, why: String },
    #[error("{error}\nhint: more than {most} rows (--skip-bad-rows) cannot be read; this is the next one")]
    BadRows { most: usize, error: Box<DataError> },
    #[error(transparent)]
    Spill(#[from] SpillError),
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

/// Reads a data set from a file, a pattern or a folder, of the format that its name says.
pub fn read(path: &Path, options: &Options) -> Result<Dataset, DataError> {
    read_all(&[path.to_path_buf()], options)
}

/// Reads a data set from files, patterns and folders, one after the other.
pub fn read_all(given: &[PathBuf], options: &Options) -> Result<Dataset, DataError> {
    let path = files::named(given);
    let mut notes = Vec::new();
    let (source, digest) = match given {
        [folder] if images::is_folder(folder) => images::folder(folder, options, &mut notes)?,
        _ => from_files(&path, given, options, &mut notes)?,
    };
    let pad_id = match &source {
        Source::Tensors { tensors, .. } if !tensors.contains_key("attention_mask") => pad_token(&path, options)?,
        _ => None,
    };
    let (given, options) = (given.to_vec(), options.clone());
    let mut data = Dataset { path, given, source, digest, notes, limit: None, pad_id, options };
    data.check_columns()?;
    if data.options.shift_labels {
        data.shift_labels()?;
    } else if data.copies_ids() {
        data.notes.push(format!(
            "{}: 'labels' equal 'input_ids' at every position, and labels are not shifted here: the model is trained to \
             repeat its input\nhint: --shift-labels makes each label the next token",
            data.path.display()
        ));
    }
    match data.len() {
        0 => Err(DataError::Format { path: data.path, why: "it holds no example".into() }),
        _ => Ok(data),
    }
}

/// What files, patterns and folders hold, and the digest of it.
fn from_files(
    path: &Path,
    given: &[PathBuf],
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<(Source, String), DataError> {
    let inputs: Result<Vec<Input>, DataError> = files::expand(given)?.iter().map(|p| Input::open(p)).collect();
    let inputs = inputs?;
    let (source, of_images) = contents(path, &inputs, options, notes)?;
    let digests = inputs.iter().map(Input::digest).chain(of_images.map(Ok));
    let digest = match &digests.collect::<Result<Vec<String>, DataError>>()?[..] {
        [one] => one.clone(),
        all => input::sha256(all.join("\n").as_bytes()),
    };
    Ok((source, digest))
}

/// What files hold, all of them rows or all of them tensors; with the digest of the images that they name.
fn contents(
    path: &Path,
    inputs: &[Input],
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<(Source, Option<String>), DataError> {
    let formats: Result<Vec<Format>, DataError> = inputs.iter().map(format).collect();
    let formats = formats?;
    let of_rows = formats.iter().filter(|f| matches!(f.reader, Reader::Rows(_))).count();
    if of_rows > 0 && of_rows < inputs.len() {
        let why = "some of these files hold text and some tensors\nhint: give files of one kind";
        return Err(DataError::Format { path: path.to_path_buf(), why: why.into() });
    }
    if of_rows == 0 {
        let mut parts = Vec::new();
        for (input, format) in inputs.iter().zip(&formats) {
            let Reader::Tensors(read) = format.reader else { continue };
            let bytes = input.bytes()?;
            let part = read(&input.path, &bytes).and_then(|t| tensors::source(&input.path, t));
            parts.push((input.path.as_path(), part.map_err(|e| or_other(input, format, e))?));
        }
        return Ok((tensors::joined(path, parts)?, None));
    }
    if options.pixels.is_some() {
        let mut rows = images::Table::new(path, options, notes);
        for (input, format) in inputs.iter().zip(&formats) {
            let Reader::Rows(read) = format.reader else { continue };
            rows.begin(&input.path);
            read(input, &mut rows).map_err(|e| or_other(input, format, e))?;
        }
        return rows.finish().map(|(source, digest)| (source, Some(digest)));
    }
    let mut rows = Collector::new(path, options, inputs.len() > 1, notes)?;
    for (input, format) in inputs.iter().zip(&formats) {
        let Reader::Rows(read) = format.reader else { continue };
        rows.begin(&input.path)?;
        read(input, &mut rows).map_err(|e| or_other(input, format, e))?;
    }
    Ok((rows.finish()?, None))
}

fn format(input: &Input) -> Result<Format, DataError> {
    let why = || {
        let kind = file_kind::kind(&input.head()).filter(|k| !matches!(k, Kind::Json | Kind::Text));
        match kind {
            Some(kind) => DataError::Other { path: input.path.clone(), kind },
            None => {
                let why = format!("its kind is not known\nhint: {}", formats_listed());
                DataError::Format { path: input.path.clone(), why }
            }
        }
    };
    formats::named(&input.path).ok_or_else(why)
}

/// A file that is not what its name says is told by what it holds.
fn or_other(input: &Input, format: &Format, error: DataError) -> DataError {
    match (error, file_kind::kind(&input.head())) {
        (DataError::Format { .. }, Some(kind)) if !(format.holds)(&kind) => {
            DataError::Other { path: input.path.clone(), kind }
        }
        (error, _) => error,
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
