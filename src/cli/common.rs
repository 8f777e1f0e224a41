//! What subcommands share: printing, exit codes, data flags, and finding a model's files.

use crate::ir::FloatType;
use crate::lower::loss::{LOSSES, SHORT};
use crate::onnx::Model;
use crate::pipeline::{self, DeviceChoice, Error, Numbers};
use crate::settings::{ConfigError, DataConfig, defaults};
use crate::train::data::{self, Dataset};
use crate::train::scores::Scores;
use clap::builder::{PossibleValue, PossibleValuesParser};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// How a subcommand ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed,
    AboveTolerance,
    Interrupted,
}

/// Prints a result as text or as one JSON object. What is said on the way goes to standard error.
pub struct Printer {
    pub json: bool,
}

impl Printer {
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        let out = match self.json {
            true => serde_json::to_string_pretty(value).expect("results serialise"),
            false => text(),
        };
        // A reader that has gone away is no error of ours.
        let _ = writeln!(std::io::stdout(), "{}", out.trim_end());
    }

    pub fn note(&self, text: impl AsRef<str>) {
        eprintln!("note: {}", text.as_ref());
    }
}

/// Reports an error: its causes on one line, hints on their own.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(if is_usage(error) { 2 } else { 1 })
}

/// Whether the caller asked for something that cannot be, rather than something failing.
fn is_usage(error: &anyhow::Error) -> bool {
    if error.downcast_ref::<Usage>().is_some() {
        return true;
    }
    error.downcast_ref::<ConfigError>().is_some_and(ConfigError::is_usage)
        || error.downcast_ref::<Error>().is_some_and(Error::is_usage)
}

/// A wrong flag.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Flags that say how data is read and where things run.
#[derive(clap::Args, Clone, Debug)]
pub struct DataArgs {
    /// A Hugging Face tokenizer.json, or a folder that holds one, for text [default: beside the model]
    #[arg(long, value_name = "FILE|DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Tokens kept of each text
    #[arg(long, default_value_t = defaults::MAX_LENGTH, value_name = "N")]
    pub max_length: usize,
    /// Examples to a micro-batch
    #[arg(long, default_value_t = defaults::BATCH_SIZE, value_name = "N")]
    pub batch_size: usize,
    #[command(flatten)]
    pub device: DeviceArg,
    #[command(flatten)]
    pub loss: LossArg,
    /// A scalar output of the model that is its loss
    #[arg(long, value_name = "NAME")]
    pub loss_output: Option<String>,
    /// For `messages`: the name of one of the tokenizer's chat templates, or a file with a template
    #[arg(long, value_name = "NAME|FILE")]
    pub chat_template: Option<String>,
    /// What the classes are called, in order [default: id2label of the config.json beside the model]
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    pub label_names: Vec<String>,
    /// Move the labels of .safetensors and .npz one position to the left, so that each is the next token
    #[arg(long)]
    pub shift_labels: bool,
    /// Columns of text files under other names: text=review,label=stars
    #[arg(long, value_name = "NAME=COLUMN,...", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Add no special tokens (beginning and end of sequence) to texts
    #[arg(long)]
    pub no_special_tokens: bool,
    /// Leave out rows of text that cannot be read, up to this many
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub skip_bad_rows: usize,
}

/// What `--data`, `--eval` and `--calibrate` say of the paths that they take.
pub fn data_help(what: &str) -> String {
    let formats = data::formats_listed();
    format!("{what}: {formats}, one or several, a quoted pattern, or a folder that save_to_disk wrote")
}

#[derive(clap::Args, Clone, Debug)]
pub struct LossArg {
    /// What to train on, or measure
    #[arg(id = "loss", long = "loss", default_value = defaults::LOSS, value_name = "LOSS",
          value_parser = losses())]
    pub name: String,
}

/// The names of losses, each with the short one that it has.
fn losses() -> PossibleValuesParser {
    let short = |name: &str| SHORT.iter().find(|s| s.1 == name).map(|s| s.0);
    let all = std::iter::once(defaults::LOSS).chain(LOSSES.iter().map(|l| l.name));
    PossibleValuesParser::new(all.map(|name| PossibleValue::new(name).aliases(short(name))).collect::<Vec<_>>())
}

/// Numbers of losses, and the second model that some of them read.
#[derive(clap::Args, Clone, Debug)]
pub struct LossTerms {
    /// For contrastive: what cosines are multiplied by
    #[arg(long, default_value_t = defaults::SCALE, value_name = "F", allow_hyphen_values = true)]
    pub scale: f64,
    /// For triplet: how much closer than the negative the positive must be
    #[arg(long, default_value_t = defaults::MARGIN, value_name = "F", allow_hyphen_values = true)]
    pub margin: f64,
    /// For dpo: how much the distance from the reference counts
    #[arg(long, default_value_t = defaults::BETA, value_name = "F", allow_hyphen_values = true)]
    pub beta: f64,
    /// For distill: what logits are divided by
    #[arg(long, default_value_t = defaults::TEMPERATURE, value_name = "F", allow_hyphen_values = true)]
    pub temperature: f64,
    /// For distill the teacher, for dpo the reference: an ONNX file, or base for the model without its adapters [default: base]
    #[arg(long, value_name = "MODEL|base")]
    pub teacher: Option<String>,
}

impl LossTerms {
    /// A configuration with these.
    pub fn complete(&self, how: DataConfig) -> DataConfig {
        let LossTerms { scale, margin, beta, temperature, teacher } = self.clone();
        DataConfig { scale, margin, beta, temperature, teacher, ..how }
    }
}

/// The names of a table, as what a flag may say.
pub fn names(names: impl Iterator<Item = &'static str>) -> PossibleValuesParser {
    PossibleValuesParser::new(names.collect::<Vec<_>>())
}

#[derive(clap::Args, Clone, Debug)]
pub struct DeviceArg {
    /// Where to run: auto, gpu, gpu:N or cpu
    #[arg(long, default_value = defaults::DEVICE, value_name = "DEVICE")]
    pub device: String,
    /// Write the text of every program that is compiled below this folder, after each pass
    #[arg(long, value_name = "DIR")]
    pub dump_ir: Option<PathBuf>,
}

impl DeviceArg {
    pub fn choice(&self) -> anyhow::Result<DeviceChoice> {
        self.device.parse().map_err(|why| {
            Usage(format!("--device '{}': {why}\nhint: `reslora-compile devices` lists them", self.device)).into()
        })
    }

    pub fn open(&self) -> anyhow::Result<Box<dyn crate::device::Device>> {
        self.open_with(Numbers::default())
    }

    /// A device that stores weights as `types` says.
    pub fn open_for(&self, types: &TypeArgs) -> anyhow::Result<Box<dyn crate::device::Device>> {
        self.open_with(types.numbers())
    }

    fn open_with(&self, numbers: Numbers) -> anyhow::Result<Box<dyn crate::device::Device>> {
        self.dump_ir.as_deref().map_or(Ok(()), pipeline::dump_ir)?;
        Ok(pipeline::open_device(self.choice()?, numbers)?)
    }
}

/// Flags that say in which types a device computes, and keeps weights.
#[derive(clap::Args, Clone, Debug)]
pub struct TypeArgs {
    /// Arithmetic: f32; mixed, where products take operands of 16 bits (f16 on GPUs, bf16 on processors that have units for it) and add
    /// up in f32; or auto, which is mixed where train finds it faster on this processor and as exact, else f32
    #[arg(long, default_value = defaults::PRECISION, value_name = "TYPE", value_parser = ["auto", "f32", "mixed"])]
    pub precision: String,
    /// Storage of frozen weights that products and lookups alone read; bf16 on the cpu
    #[arg(long, default_value = defaults::WEIGHTS, value_name = "TYPE", value_parser = ["f32", "f16", "bf16"])]
    pub weights: String,
}

impl TypeArgs {
    /// The type in which products multiply on a device, where nothing is measured; says why, if that is worth it.
    pub fn products(&self, device: &dyn crate::device::Device, printer: &Printer) -> FloatType {
        let choice = pipeline::precision::named(&self.precision, device);
        choice.why.iter().for_each(|why| printer.note(why));
        choice.products
    }

    fn numbers(&self) -> Numbers {
        Numbers::named(&self.precision, &self.weights)
    }
}

impl DataArgs {
    pub fn config(&self) -> DataConfig {
        DataConfig {
            tokenizer: self.tokenizer.clone(),
            max_length: self.max_length,
            batch_size: self.batch_size,
            device: self.device.device.clone(),
            loss: self.loss.name.clone(),
            loss_output: self.loss_output.clone(),
            chat_template: self.chat_template.clone(),
            label_names: self.label_names.clone(),
            shift_labels: self.shift_labels,
            columns: self.columns.clone(),
            no_special_tokens: self.no_special_tokens,
            skip_bad_rows: self.skip_bad_rows,
            ..DataConfig::default()
        }
    }
}

/// Reads a data set for a model, and says what there is to know of it.
pub fn read_data(
    how: &DataConfig,
    given: &[PathBuf],
    model: &Arc<Model>,
    printer: &Printer,
) -> anyhow::Result<Dataset> {
    let data = pipeline::read_data(how, given, model)?;
    data.notes.iter().for_each(|n| printer.note(n));
    Ok(data)
}

/// A file name without `.onnx`, and without `.reslora`.
pub fn stem(model: &Path) -> String {
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".onnx").unwrap_or(&name);
    name.strip_suffix(".reslora").unwrap_or(name).to_string()
}

/// A file beside `model` called `{stem}.{what}.onnx`.
pub fn beside(model: &Path, what: &str) -> PathBuf {
    model.with_file_name(format!("{}.{what}.onnx", stem(model)))
}

/// Metrics in a line, each after a comma.
pub fn scores(scores: &Scores) -> String {
    let all = scores.values.iter().filter(|(name, _)| !["accuracy", "perplexity"].contains(&name.as_str()));
    all.map(|(name, x)| format!(", {name} {x:.4}")).collect()
}

/// A number with groups of three digits.
pub fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

/// A table without rules: columns padded, the header underlined by position alone.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut t = comfy_table::Table::new();
    t.load_preset(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        t.add_row(row);
    }
    t.lines().map(|l| l.trim_end().to_string()).collect::<Vec<_>>().join("\n")
}
