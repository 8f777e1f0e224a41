//! `train`

use super::common::{DataArgs, Outcome, Printer, TypeArgs, Usage, stem};
use super::progress::Progress;
use crate::optim::{self, Hyper, OPTIMIZERS};
use crate::pipeline::{self, Error, TrainRequest};
use crate::train::data::Order;
use crate::train::{self, SCHEDULES, Schedule, Settings, metrics};
use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Args {
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
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
    #[arg(long, default_value = "adamw", value_name = "NAME",
          value_parser = PossibleValuesParser::new(OPTIMIZERS.iter().map(|o| o.name)))]
    pub optimizer: String,
    #[arg(long, default_value_t = 2e-4, value_name = "F")]
    pub lr: f64,
    #[arg(long, default_value = "linear", value_name = "NAME",
          value_parser = PossibleValuesParser::new(SCHEDULES.iter().map(|s| s.1)))]
    pub schedule: String,
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub warmup_steps: u64,
    #[arg(long, default_value_t = 0.01, value_name = "F")]
    pub weight_decay: f64,
    /// The momentum of sgd
    #[arg(long, default_value_t = 0.0, value_name = "F")]
    pub momentum: f64,
    /// The largest norm of the gradient; 0 turns clipping off
    #[arg(long, default_value_t = 1.0, value_name = "F")]
    pub clip_norm: f64,
    /// Take examples in the file's order
    #[arg(long)]
    #[serde(default)]
    pub no_shuffle: bool,
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Steps between evaluations [default: an epoch]
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u64>,
    /// Steps between checkpoints [default: at the end alone]
    #[arg(long, value_name = "N")]
    pub save_every: Option<u64>,
    /// Go on with the run in the run directory
    #[arg(long)]
    #[serde(default, skip_serializing)]
    pub resume: bool,
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
        let positive = |flag: &str, x: f64| match x.is_finite() && x >= 0.0 {
            true => Ok(()),
            false => Err(Usage(format!("{flag} {x} must be a number that is not negative"))),
        };
        positive("--lr", self.lr)?;
        positive("--weight-decay", self.weight_decay)?;
        positive("--momentum", self.momentum)?;
        positive("--clip-norm", self.clip_norm)?;
        for (flag, n) in [("--accumulate", self.accumulate), ("--epochs", self.epochs)] {
            if n == 0 {
                return Err(Usage(format!("{flag} must be at least 1")).into());
            }
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

    /// The run directory: the one given, or the next free one of the model.
    fn directory(&self) -> PathBuf {
        if let Some(dir) = &self.output {
            return dir.clone();
        }
        let name = stem(&self.model);
        let free = (1..).map(|n| Path::new("runs").join(format!("{name}-{n}"))).find(|p| !p.exists());
        free.expect("there are enough numbers")
    }
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let settings = args.settings()?;
    let model = pipeline::read(&args.model)?;
    let data = args.how.read(&args.data, &model, printer)?;
    let eval = args.eval.as_ref().map(|path| args.how.read(path, &model, printer)).transpose()?;
    let mut device = args.how.device.open_for(&args.types)?;
    if args.resume && args.output.is_none() {
        return Err(Usage("--resume needs -o RUN_DIR, the run to go on with".into()).into());
    }
    let dir = args.directory();
    let request = TrainRequest {
        model: &model,
        data: &data,
        eval: eval.as_ref(),
        settings: &settings,
        max_length: args.how.max_length,
        loss: args.how.loss(),
        loss_output: args.how.loss_output.as_deref(),
        fuse: !args.no_fuse,
        dir: &dir,
        resume: args.resume,
    };
    // Whatever can be wrong with model and data shows before the run directory is touched.
    pipeline::check(&request)?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let resolved = Args { output: Some(dir.clone()), ..args.clone() };
    let config = toml::to_string_pretty(&resolved).context("the configuration does not serialise")?;
    write(&dir.join("config.toml"), &config)?;

    eprintln!("training on {}", device.name());
    let start = std::time::Instant::now();
    let mut progress = Progress::new(printer.json);
    let outcome = pipeline::train(&request, device.as_mut(), &mut progress);
    progress.finish();
    let outcome = outcome?;
    let (steps, evaluations) = metrics::read(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    train::write_report(&dir, &stem(&args.model), &config, &steps, &evaluations)
        .with_context(|| format!("cannot write {}", dir.join("report.html").display()))?;

    let kept = evaluations.iter().rfind(|e| e.step == outcome.adapter_step);
    let result = Result_ {
        run: dir,
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
