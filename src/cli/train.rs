//! `train`

use super::common::{DataArgs, Outcome, Printer, TypeArgs, Usage, stem};
use super::progress::Progress;
use super::resume;
use crate::adapters::BASE_KEY;
use crate::optim::{self, Hyper, OPTIMIZERS};
use crate::pipeline::{self, Error, TrainRequest};
use crate::train::data::{Dataset, Order, Source};
use crate::train::record::{self, Record, Status};
use crate::train::{self, SCHEDULES, Schedule, Settings, metrics};
use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Args {
    /// The model with adapters; --resume takes it, and every flag that is not given, from the run
    pub model: PathBuf,
    /// What to train on: .jsonl, .safetensors or .npz
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// What to measure on as training goes; the best adapter by its loss is kept
    #[arg(long, value_name = "FILE")]
    pub eval: Option<PathBuf>,
    /// The run directory [default: runs/MODEL-N]
    #[arg(short, long, value_name = "RUN_DIR")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub how: DataArgs,
    /// Micro-batches to an optimiser step
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub accumulate: usize,
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub epochs: usize,
    /// Ends after this many optimiser steps, whatever --epochs says
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub max_steps: Option<u64>,
    #[arg(long, default_value = "adamw", value_name = "NAME",
          value_parser = PossibleValuesParser::new(OPTIMIZERS.iter().map(|o| o.name)))]
    pub optimizer: String,
    #[arg(long, default_value_t = 2e-4, value_name = "F", allow_hyphen_values = true)]
    pub lr: f64,
    #[arg(long, default_value = "linear", value_name = "NAME",
          value_parser = PossibleValuesParser::new(SCHEDULES.iter().map(|s| s.1)))]
    pub schedule: String,
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub warmup_steps: u64,
    #[arg(long, default_value_t = 0.01, value_name = "F", allow_hyphen_values = true)]
    pub weight_decay: f64,
    /// The momentum of sgd
    #[arg(long, default_value_t = 0.0, value_name = "F", allow_hyphen_values = true)]
    pub momentum: f64,
    /// The largest norm of the gradient; 0 turns clipping off
    #[arg(long, default_value_t = 1.0, value_name = "F", allow_hyphen_values = true)]
    pub clip_norm: f64,
    /// Take examples in the file's order
    #[arg(long)]
    #[serde(default)]
    pub no_shuffle: bool,
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Steps between evaluations [default: an epoch]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub eval_every: Option<u64>,
    /// Steps between checkpoints [default: at the end alone]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub save_every: Option<u64>,
    /// Go on with the run in the run directory, with its model, data and settings
    #[arg(long)]
    #[serde(default, skip_serializing)]
    pub resume: bool,
    /// Go on although this flag differs from the run's; may be given several times
    #[arg(long, value_name = "FLAG", requires = "resume", allow_hyphen_values = true)]
    #[serde(default, skip_serializing)]
    pub resume_with: Vec<String>,
    /// Start again in a directory that holds a run
    #[arg(long, conflicts_with = "resume")]
    #[serde(default, skip_serializing)]
    pub overwrite: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub types: TypeArgs,
    /// Leave out fusion, for comparison
    #[arg(long)]
    #[serde(default)]
    pub no_fuse: bool,
}

#[derive(Serialize)]
struct Result_ {
    run: PathBuf,
    device: String,
    steps: u64,
    loss: Option<f64>,
    /// The step whose parameters the adapter holds.
    adapter_step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_perplexity: Option<f64>,
    seconds: f64,
    interrupted: bool,
}

impl Args {
    /// What the flags say where none is given.
    pub fn defaults() -> Args {
        let command = <Args as clap::Args>::augment_args(clap::Command::new("train"));
        let matches = command.get_matches_from(["train", "model.onnx", "--data", "data"]);
        clap::FromArgMatches::from_arg_matches(&matches).expect("every other flag has a default")
    }

    pub fn settings(&self) -> Result<Settings> {
        self.how.check()?;
        for (flag, x, hint) in [
            ("--lr", self.lr, "2e-4 is the default"),
            ("--weight-decay", self.weight_decay, "0.01 is the default"),
            ("--momentum", self.momentum, "0 is the default"),
            ("--clip-norm", self.clip_norm, "1 is the default; 0 turns clipping off"),
        ] {
            if !x.is_finite() || x < 0.0 {
                return Err(Usage(format!("{flag} {x} must be a number that is not negative\nhint: {hint}")).into());
            }
        }
        if self.momentum >= 1.0 {
            let why = "must be below 1: what is kept of earlier steps would grow without end";
            return Err(Usage(format!("--momentum {} {why}\nhint: 0.9 is usual", self.momentum)).into());
        }
        for (flag, n, hint) in [
            ("--accumulate", Some(self.accumulate as u64), "1 is the default"),
            ("--epochs", Some(self.epochs as u64), "1 is the default"),
            ("--max-steps", self.max_steps, "leave it out to train for --epochs"),
            ("--eval-every", self.eval_every, "leave it out to evaluate after each epoch"),
            ("--save-every", self.save_every, "leave it out to save at the end alone"),
        ] {
            if n == Some(0) {
                return Err(Usage(format!("{flag} must be at least 1\nhint: {hint}")).into());
            }
        }
        if self.eval_every.is_some() && self.eval.is_none() {
            let hint = "give --eval FILE, or leave --eval-every out";
            return Err(Usage(format!("--eval-every has nothing to evaluate on\nhint: {hint}")).into());
        }
        Ok(Settings {
            batch_size: self.how.batch_size,
            accumulate: self.accumulate,
            epochs: self.epochs,
            max_steps: self.max_steps,
            optimizer: optim::find(&self.optimizer).expect("clap admits known optimisers only"),
            hyper: Hyper { weight_decay: self.weight_decay, momentum: self.momentum, ..Hyper::default() },
            lr: self.lr,
            schedule: Schedule::parse(&self.schedule).expect("clap admits known schedules only"),
            warmup_steps: self.warmup_steps,
            clip_norm: self.clip_norm,
            order: Order { shuffle: !self.no_shuffle, seed: self.seed },
            eval_every: self.eval_every,
            save_every: self.save_every,
            mixed: self.types.mixed(),
        })
    }

    /// Optimiser steps of a run on so many examples.
    pub fn steps(&self, examples: usize) -> u64 {
        let batches = examples.div_ceil(self.how.batch_size.max(1));
        self.max_steps.unwrap_or((self.epochs * batches.div_ceil(self.accumulate.max(1)).max(1)) as u64)
    }

    /// The run directory: the one given, or a fresh one of the model.
    fn directory(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.output {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            return Ok(dir.clone());
        }
        let runs = Path::new("runs");
        std::fs::create_dir_all(runs).context("cannot make runs")?;
        let name = stem(&self.model);
        for dir in (1..).map(|n| runs.join(format!("{name}-{n}"))) {
            match std::fs::create_dir(&dir) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| dir.clone()).with_context(|| format!("cannot make {}", dir.display())),
            }
        }
        unreachable!("there are enough numbers")
    }
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let settings = args.settings()?;
    if args.momentum > 0.0 && args.optimizer == "adamw" {
        printer.note("--momentum is for sgd: adamw has moments of its own");
    }
    // Without -o, --resume was refused where the run's own flags are read.
    let kept = match (&args.output, args.resume) {
        (Some(dir), true) => Some(resume::Kept::open(dir)?),
        (Some(dir), false) if !args.overwrite && record::holds_run(dir) => {
            let text = format!("{} holds a run already", dir.display());
            let hint = "--resume goes on with it, --overwrite starts again in its place, -o names another directory";
            return Err(Usage(format!("{text}\nhint: {hint}")).into());
        }
        _ => None,
    };
    // The flags first: with others, the data might not even be read.
    kept.as_ref().map_or(Ok(()), |kept| kept.check(args, None))?;
    let model = pipeline::read(&args.model)?;
    pipeline::model_notes(&model).iter().for_each(|n| printer.note(n));
    let data = args.how.read(&args.data, &model, printer)?;
    let eval = args.eval.as_ref().map(|path| args.how.read(path, &model, printer)).transpose()?;
    let digests = resume::digests(args, &model, &data, eval.as_ref());
    kept.as_ref().map_or(Ok(()), |kept| kept.check(args, Some((&digests, data.len()))))?;
    let total = args.steps(data.len());
    if args.warmup_steps > total {
        let text = format!("--warmup-steps {} is longer than the run, which has {total} steps", args.warmup_steps);
        return Err(Usage(format!("{text}\nhint: a shorter warm-up, or more --epochs")).into());
    }
    let mut device = args.how.device.open_for(&args.types)?;
    let mut request = TrainRequest {
        model: &model,
        data: &data,
        eval: eval.as_ref(),
        settings: &settings,
        max_length: args.how.max_length,
        loss: args.how.loss(),
        loss_output: args.how.loss_output.as_deref(),
        fuse: !args.no_fuse,
        dir: args.output.as_deref().unwrap_or(Path::new(".")),
        resume: args.resume,
    };
    // Whatever can be wrong with model and data shows before the run directory is touched.
    pipeline::check(&request)?;
    let dir = args.directory()?;
    request.dir = &dir;
    let _lock = match kept {
        Some(kept) => kept.lock,
        None => {
            let lock = record::lock(&dir).map_err(Error::from)?;
            record::clear(&dir).map_err(Error::from)?;
            lock
        }
    };
    let mut record = Record::running(model.metadata(BASE_KEY).map(String::from), digests);
    record::write(&dir, &record).map_err(Error::from)?;
    let resolved = Args { output: Some(dir.clone()), ..args.clone() };
    let config = toml::to_string_pretty(&resolved).context("the configuration does not serialise")?;
    write(&dir.join("config.toml"), &config)?;

    eprintln!("training on {}", device.name());
    let start = std::time::Instant::now();
    let unit = if counts_tokens(&data) { "tokens" } else { "examples" };
    let mut progress = Progress::new(printer.json, unit);
    let outcome = pipeline::train(&request, device.as_mut(), &mut progress);
    progress.finish();
    match &outcome {
        Ok(o) if o.interrupted => record.end(Status::Interrupted, None),
        Ok(_) => record.end(Status::Done, None),
        Err(e) => record.end(Status::Failed, Some(e.to_string())),
    }
    record::write(&dir, &record).map_err(Error::from)?;
    let outcome = outcome?;
    let (steps, evaluations) = metrics::read(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    train::write_report(&dir, &stem(&args.model), &config, unit, &steps, &evaluations)
        .with_context(|| format!("cannot write {}", dir.join("report.html").display()))?;

    let kept = evaluations.iter().rfind(|e| e.step == outcome.adapter_step);
    let result = Result_ {
        run: dir.clone(),
        device: device.name(),
        steps: outcome.steps,
        loss: outcome.losses.last().copied(),
        adapter_step: outcome.adapter_step,
        eval_loss: kept.map(|e| e.eval_loss),
        eval_accuracy: kept.and_then(|e| e.eval_accuracy),
        eval_perplexity: kept.and_then(|e| e.eval_perplexity),
        seconds: start.elapsed().as_secs_f64(),
        interrupted: outcome.interrupted,
    };
    printer.result(&result, || text(&result));
    Ok(if outcome.interrupted { Outcome::Interrupted } else { Outcome::Done })
}

/// Whether a data set's examples are sequences of tokens, so that a step's `tokens` are that.
fn counts_tokens(data: &Dataset) -> bool {
    match &data.source {
        Source::Text { .. } => true,
        Source::Tensors { tensors, .. } => ["attention_mask", "input_ids"].iter().any(|n| tensors.contains_key(*n)),
    }
}

/// Writes a small file whole or not at all.
fn write(path: &Path, text: &str) -> Result<()> {
    let fail = || format!("cannot write {}", path.display());
    let mut file = atomic_write_file::AtomicWriteFile::open(path).with_context(fail)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(fail)?;
    file.commit().with_context(fail)
}

fn text(r: &Result_) -> String {
    let mut out = format!("{} steps in {:.1} s", r.steps, r.seconds);
    if let Some(loss) = r.loss {
        out += &format!(", last loss {loss:.4}");
    }
    if let Some(loss) = r.eval_loss {
        let accuracy = r.eval_accuracy.map(|a| format!(", accuracy {a:.4}"));
        let other = accuracy.or(r.eval_perplexity.map(|p| format!(", perplexity {p:.3}"))).unwrap_or_default();
        out += &format!("\nkept the adapter of step {}: eval loss {loss:.4}{other}", r.adapter_step);
    }
    if r.interrupted {
        out += &format!("\ninterrupted; go on with --resume -o {}", r.run.display());
    }
    out + &format!("\nwrote {}", r.run.join("adapter.safetensors").display())
}

/// The error of a run directory that cannot be used.
pub fn read_config(dir: &Path) -> Result<Args> {
    let path = dir.join("config.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot open {}", path.display()))?;
    toml::from_str(&text).map_err(|e| Error::Usage(format!("{}: {e}", path.display())).into())
}
