//! [`RunConfig`]: everything that a training run is, as its config.toml holds it.

use super::defaults as default;
use super::{ConfigError, nearest};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A training run. Each key has the name of the flag that sets it; keys that a file lacks are the defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RunConfig {
    /// Of the file's form: [`RunConfig::VERSION`].
    pub version: u32,
    pub model: PathBuf,
    /// Files, patterns and folders to train on.
    #[serde(with = "super::paths")]
    pub data: Vec<PathBuf>,
    /// What to evaluate on; empty for nothing.
    #[serde(with = "super::paths")]
    pub eval: Vec<PathBuf>,
    /// The share of the rows of `data` to evaluate on instead of training on them, between 0 and 1.
    pub eval_split: Option<f64>,
    /// The run directory.
    pub output: Option<PathBuf>,
    #[serde(flatten)]
    pub train: TrainConfig,
}

/// How to train. The defaults are those of `train`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct TrainConfig {
    /// How data is read, and where training runs.
    #[serde(flatten)]
    pub how: DataConfig,
    /// Micro-batches to an optimiser step.
    pub accumulate: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Ends training after so many optimiser steps, whatever `epochs` says.
    pub max_steps: Option<u64>,
    /// `adamw`, `sgd` or `lion`.
    pub optimizer: String,
    /// The peak learning rate.
    pub lr: f64,
    /// The name of a learning-rate schedule: `constant`, `linear`, `cosine` or `inverse-sqrt`.
    pub schedule: String,
    /// Steps over which the learning rate rises to its peak.
    pub warmup_steps: u64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The momentum of optimisers that take one: from 0 to below 1.
    pub momentum: f64,
    /// The learning rate of output factors (B) over that of the others.
    pub lora_plus: f64,
    /// `none`, or `riemannian`: what becomes of the gradients of low-rank factors before the optimiser.
    pub precondition: String,
    /// The share of a label that is spread over all classes evenly.
    pub label_smoothing: f64,
    /// What each class counts, or each yes of an output; empty for all the same.
    pub class_weights: Vec<f64>,
    /// Several texts of a language model to a row, as many as `max_length` tokens hold.
    pub pack: bool,
    /// Zero turns clipping off.
    pub clip_norm: f64,
    /// Take examples in the file's order.
    pub no_shuffle: bool,
    /// What the order of examples and dropout are drawn from.
    pub seed: u64,
    /// Steps between evaluations; `None` for an epoch.
    pub eval_every: Option<u64>,
    /// Steps between checkpoints; `None` saves at the end alone.
    pub save_every: Option<u64>,
    /// What evaluations measure besides the loss; the best adapter is the one by the first number among them.
    pub metric: Vec<String>,
    /// Ends training after so many evaluations without gain.
    pub early_stopping: Option<u64>,
    /// `auto`, `f32` or `mixed`.
    pub precision: String,
    /// `f32`, `f16` or `bf16`.
    pub weights: String,
    /// Leave out fusion, for comparison.
    pub no_fuse: bool,
}

/// How data is read and run, for a model: what training, evaluation and merging share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct DataConfig {
    /// A tokenizer.json, or a folder that holds one; `None` looks beside the model.
    pub tokenizer: Option<PathBuf>,
    /// Tokens kept of each text.
    pub max_length: usize,
    /// Examples to a micro-batch.
    pub batch_size: usize,
    /// `auto`, `gpu`, `gpu:N` or `cpu`.
    pub device: String,
    /// `auto`, or the name of a loss.
    pub loss: String,
    /// A scalar output of the model that is its loss.
    pub loss_output: Option<String>,
    /// What `contrastive` multiplies cosines by.
    pub scale: f64,
    /// The margin of `triplet`.
    pub margin: f64,
    /// How far `dpo` may go from the reference.
    pub beta: f64,
    /// What `distill` divides logits by.
    pub temperature: f64,
    /// The teacher of `distill`, or the reference of `dpo`: an ONNX file; `base`, or `None`, for the model without adapters.
    pub teacher: Option<String>,
    /// The name of one of the tokenizer's chat templates, or a file with a template.
    pub chat_template: Option<String>,
    /// What the classes are called, in order.
    pub label_names: Vec<String>,
    /// Move the labels of tensors one position to the left.
    pub shift_labels: bool,
    /// `NAME=COLUMN`: columns of text files under other names.
    pub columns: Vec<String>,
    /// Add no special tokens to texts.
    pub no_special_tokens: bool,
    /// The most rows of text that may be unreadable and are left out.
    pub skip_bad_rows: usize,
}

impl Default for RunConfig {
    fn default() -> RunConfig {
        RunConfig {
            version: RunConfig::VERSION,
            model: PathBuf::new(),
            data: vec![],
            eval: vec![],
            eval_split: None,
            output: None,
            train: TrainConfig::default(),
        }
    }
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            how: DataConfig::default(),
            accumulate: default::ACCUMULATE,
            epochs: default::EPOCHS,
            max_steps: None,
            optimizer: default::OPTIMIZER.into(),
            lr: default::LEARNING_RATE,
            schedule: default::SCHEDULE.into(),
            warmup_steps: default::WARMUP_STEPS,
            weight_decay: default::WEIGHT_DECAY,
            momentum: default::MOMENTUM,
            lora_plus: default::LORA_PLUS,
            precondition: default::PRECONDITION.into(),
            label_smoothing: 0.0,
            class_weights: vec![],
            pack: false,
            clip_norm: default::CLIP_NORM,
            no_shuffle: false,
            seed: default::SEED,
            eval_every: None,
            save_every: None,
            metric: vec![],
            early_stopping: None,
            precision: default::PRECISION.into(),
            weights: default::WEIGHTS.into(),
            no_fuse: false,
        }
    }
}

impl Default for DataConfig {
    fn default() -> DataConfig {
        DataConfig {
            tokenizer: None,
            max_length: default::MAX_LENGTH,
            batch_size: default::BATCH_SIZE,
            device: default::DEVICE.into(),
            loss: default::LOSS.into(),
            loss_output: None,
            scale: default::SCALE,
            margin: default::MARGIN,
            beta: default::BETA,
            temperature: default::TEMPERATURE,
            teacher: None,
            chat_template: None,
            label_names: vec![],
            shift_labels: false,
            columns: vec![],
            no_special_tokens: false,
            skip_bad_rows: 0,
        }
    }
}

impl RunConfig {
    /// The form of the file that this program writes, and the latest that it reads. Files without the key are of the first.
    pub const VERSION: u32 = 1;

    /// Every key that a file may hold.
    pub fn keys() -> Vec<String> {
        let all = serde_json::to_value(RunConfig::default()).expect("plain values");
        all.as_object().expect("a struct").keys().cloned().collect()
    }

    /// The file in a run directory.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("config.toml")
    }

    /// Reads the configuration of the run in a directory.
    pub fn read(dir: &Path) -> Result<RunConfig, ConfigError> {
        let path = RunConfig::path(dir);
        let text = std::fs::read_to_string(&path).map_err(|error| ConfigError::Open { path: path.clone(), error })?;
        RunConfig::parse(&path, &text)
    }

    /// Reads a configuration; `path` is for messages. An unknown key, a key of another type and a later version are errors.
    pub fn parse(path: &Path, text: &str) -> Result<RunConfig, ConfigError> {
        let wrong = |why: String| ConfigError::File { path: path.to_path_buf(), why };
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string()))?;
        let version = table.get("version").and_then(toml::Value::as_integer).unwrap_or(1);
        if version > i64::from(RunConfig::VERSION) {
            let why = format!("it is of version {version}, and this program knows {} alone", RunConfig::VERSION);
            return Err(wrong(format!("{why}\nhint: use the program that wrote it, or a later one")));
        }
        let known = RunConfig::keys();
        let names: Vec<&str> = known.iter().map(String::as_str).collect();
        if let Some(key) = table.keys().find(|key| !known.contains(key)) {
            return Err(ConfigError::unknown(path, key, nearest(key, &names)));
        }
        if let Some(key) = ["model", "data"].into_iter().find(|key| !table.contains_key(*key)) {
            return Err(wrong(format!("it names no '{key}'")));
        }
        // Errors in flattened structs do not name the key, so it is found by reading each alone.
        let alone = |(key, value): (&String, &toml::Value)| toml::Table::from_iter([(key.clone(), value.clone())]);
        let read = |table: toml::Table| table.try_into::<RunConfig>();
        read(table.clone()).map_err(|e| match table.iter().find(|entry| read(alone(*entry)).is_err()) {
            Some((key, _)) => wrong(format!("'{key}': {}", e.message())),
            None => wrong(e.to_string()),
        })
    }

    /// The text of the file.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("plain values")
    }

    /// Refuses numbers that no run can have.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self.eval_split {
            Some(share) if !(share > 0.0 && share < 1.0) => {
                let hint = "0.05 holds back one row of twenty";
                return Err(ConfigError::Value(format!("--eval-split {share} must lie between 0 and 1\nhint: {hint}")));
            }
            Some(_) if !self.eval.is_empty() => {
                let why = "--eval and --eval-split both say what to evaluate on";
                return Err(ConfigError::Value(format!("{why}\nhint: give one of them")));
            }
            _ => {}
        }
        self.train.check(!self.eval.is_empty() || self.eval_split.is_some())
    }
}

impl TrainConfig {
    /// Optimiser steps of a run on so many examples.
    pub(crate) fn steps(&self, examples: usize) -> u64 {
        let batches = examples.div_ceil(self.how.batch_size.max(1));
        self.max_steps.unwrap_or((self.epochs * batches.div_ceil(self.accumulate.max(1)).max(1)) as u64)
    }

    /// Refuses numbers that no run can have; `evaluates` says whether there is data to evaluate on.
    pub(crate) fn check(&self, evaluates: bool) -> Result<(), ConfigError> {
        self.check_numbers()?;
        if self.eval_every.is_some() && !evaluates {
            let hint = "give --eval FILE or --eval-split, or leave --eval-every out";
            return Err(ConfigError::Value(format!("--eval-every has nothing to evaluate on\nhint: {hint}")));
        }
        for (flag, given) in
            [("--metric", !self.metric.is_empty()), ("--early-stopping", self.early_stopping.is_some())]
        {
            if given && !evaluates {
                let hint = format!("give --eval FILE or --eval-split, or leave {flag} out");
                return Err(ConfigError::Value(format!("{flag} has nothing to evaluate on\nhint: {hint}")));
            }
        }
        Ok(())
    }

    /// Refuses numbers that no run can have.
    pub(crate) fn check_numbers(&self) -> Result<(), ConfigError> {
        self.how.check()?;
        let (lr, decay) = (format!("{:e} is the default", default::LEARNING_RATE), is_default(default::WEIGHT_DECAY));
        for (flag, x, hint) in [
            ("--lr", self.lr, lr),
            ("--weight-decay", self.weight_decay, decay),
            ("--momentum", self.momentum, is_default(default::MOMENTUM)),
            ("--lora-plus", self.lora_plus, is_default(default::LORA_PLUS)),
            ("--label-smoothing", self.label_smoothing, "0.1 is usual; 0 turns it off".into()),
            ("--clip-norm", self.clip_norm, format!("{}; 0 turns clipping off", is_default(default::CLIP_NORM))),
        ] {
            if !x.is_finite() || x < 0.0 {
                return Err(ConfigError::Value(format!(
                    "{flag} {x} must be a number that is not negative\nhint: {hint}"
                )));
            }
        }
        if self.label_smoothing >= 1.0 {
            let why = "must be below 1, or nothing of the labels is left";
            return Err(ConfigError::Value(format!(
                "--label-smoothing {} {why}\nhint: 0.1 is usual",
                self.label_smoothing
            )));
        }
        if let Some(w) = self.class_weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
            let hint = "hint: --class-weights 1,4 counts class 1 four times";
            return Err(ConfigError::Value(format!(
                "--class-weights {w} must be a number that is not negative\n{hint}"
            )));
        }
        if self.momentum >= 1.0 {
            let why = "must be below 1, or updates grow without bound";
            return Err(ConfigError::Value(format!("--momentum {} {why}\nhint: 0.9 is usual", self.momentum)));
        }
        for (flag, n, hint) in [
            ("--accumulate", Some(self.accumulate as u64), is_default(default::ACCUMULATE)),
            ("--epochs", Some(self.epochs as u64), is_default(default::EPOCHS)),
            ("--max-steps", self.max_steps, "leave it out to train for --epochs".into()),
            ("--eval-every", self.eval_every, "leave it out to evaluate after each epoch".into()),
            ("--save-every", self.save_every, "leave it out to save at the end alone".into()),
            ("--early-stopping", self.early_stopping, "leave it out to train to the end".into()),
        ] {
            if n == Some(0) {
                return Err(ConfigError::Value(format!("{flag} must be at least 1\nhint: {hint}")));
            }
        }
        Ok(())
    }
}

impl DataConfig {
    /// Refuses numbers that no batch can have.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (flag, x, usual) in [
            ("--scale", self.scale, default::SCALE),
            ("--margin", self.margin, default::MARGIN),
            ("--beta", self.beta, default::BETA),
            ("--temperature", self.temperature, default::TEMPERATURE),
        ] {
            if !(x.is_finite() && x > 0.0) {
                return Err(ConfigError::Value(format!(
                    "{flag} {x} must be a positive number\nhint: {}",
                    is_default(usual)
                )));
            }
        }
        match (self.batch_size, self.max_length) {
            (0, _) => {
                let hint = is_default(default::BATCH_SIZE);
                Err(ConfigError::Value(format!("--batch-size must be at least 1\nhint: {hint}")))
            }
            (_, 0) => Err(ConfigError::Value("--max-length must be at least 1".into())),
            _ => Ok(()),
        }
    }

    /// Columns of text files by the names used here.
    pub(crate) fn renamed(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let one = |c: &String| match c.split_once('=') {
            Some((name, column)) if !name.is_empty() && !column.is_empty() => Ok((name.into(), column.into())),
            _ => Err(ConfigError::Value(format!(
                "--columns '{c}' is not NAME=COLUMN\nhint: --columns text=review,label=stars"
            ))),
        };
        self.columns.iter().map(one).collect()
    }
}

fn is_default(x: impl std::fmt::Display) -> String {
    format!("{x} is the default")
}

#[cfg(test)]
mod tests {
    use super::RunConfig;
    use std::path::Path;

    fn parse(text: &str) -> Result<RunConfig, String> {
        RunConfig::parse(Path::new("config.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_configuration_is_read_as_it_was_written() {
        let mut config = RunConfig { model: "m.onnx".into(), data: vec!["d.jsonl".into()], ..RunConfig::default() };
        assert_eq!(parse(&config.to_toml()), Ok(config.clone()));
        config.train.how.columns = vec!["text=review".into()];
        config.train.how.loss_output = Some("loss".into());
        (config.train.eval_every, config.train.lr, config.eval_split) = (Some(3), 1e-3, Some(0.25));
        assert_eq!(parse(&config.to_toml()), Ok(config.clone()));
        (config.eval, config.data) = (vec!["e.jsonl".into()], vec!["a.csv".into(), "b-*.csv".into()]);
        assert_eq!(parse(&config.to_toml()), Ok(config));
    }

    #[test]
    fn an_earlier_file_lacks_keys() {
        let config = parse("model = \"m\"\ndata = \"d\"\nbatch-size = 4").unwrap();
        assert_eq!((config.version, config.train.how.batch_size), (1, 4));
        assert_eq!(config.train.lr, RunConfig::default().train.lr);
    }

    #[test]
    fn what_a_file_may_not_hold() {
        let check = |text: &str, says: &str| {
            let error = parse(&format!("model = \"m\"\ndata = \"d\"\n{text}")).unwrap_err();
            assert!(error.contains(says), "'{text}' says '{error}', not '{says}'");
        };
        check("batch-sizes = 4", "config.toml: 'batch-sizes' is no setting\nhint: is it 'batch-size'?");
        check("lr = \"fast\"", "config.toml: 'lr': invalid type: string \"fast\", expected f64");
        check("batch-size = \"many\"", "config.toml: 'batch-size': invalid type: string \"many\", expected usize");
        check("version = 2", "it is of version 2, and this program knows 1 alone");
        assert_eq!(parse("model = \"m\"").unwrap_err(), "config.toml: it names no 'data'");
    }
}
