//! `train`

use super::common::{
    DataArgs, LossTerms, Outcome, Printer, TypeArgs, Usage, data_help, grouped, names, read_data, scores, stem,
};
use super::progress::{Log, Progress};
use super::resume;
use crate::adapters::BASE_KEY;
use crate::optim::OPTIMIZERS;
use crate::optim::precondition::PRECONDITIONS;
use crate::pipeline::{self, Error, Rehearsal, TrainRequest, precision};
use crate::settings::{RunConfig, TrainConfig, defaults};
use crate::train::checkpoint;
use crate::train::record::{self, Record, Status};
use crate::train::schedule::SCHEDULES;
use crate::train::scores::Scores;
use crate::train::{self, Settings, metrics};
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(override_usage = "reslora-compile train MODEL --data FILE... [OPTIONS]")]
pub struct Args {
    /// The model with adapters; --resume takes it, and every flag that is not given, from the run
    pub model: PathBuf,
    #[arg(long, value_name = "FILE", required = true, num_args = 1.., help = data_help("What to train on"))]
    pub data: Vec<PathBuf>,
    /// What to measure on as training goes; the best adapter by its loss is kept
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub eval: Vec<PathBuf>,
    /// Hold back this share of the training rows, drawn with --seed, and measure on them
    #[arg(long, value_name = "F", allow_hyphen_values = true)]
    pub eval_split: Option<f64>,
    /// The run directory [default: runs/MODEL-N]
    #[arg(short, long, value_name = "RUN_DIR")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub how: DataArgs,
    #[command(flatten)]
    pub terms: LossTerms,
    /// Micro-batches to an optimiser step
    #[arg(long, default_value_t = defaults::ACCUMULATE, value_name = "N")]
    pub accumulate: usize,
    #[arg(long, default_value_t = defaults::EPOCHS, value_name = "N")]
    pub epochs: usize,
    /// Ends after this many optimiser steps, whatever --epochs says
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub max_steps: Option<u64>,
    #[arg(long, default_value = defaults::OPTIMIZER, value_name = "NAME",
          value_parser = names(OPTIMIZERS.iter().map(|o| o.name)))]
    pub optimizer: String,
    #[arg(long, default_value_t = defaults::LEARNING_RATE, value_name = "F", allow_hyphen_values = true)]
    pub lr: f64,
    #[arg(long, default_value = defaults::SCHEDULE, value_name = "NAME",
          value_parser = names(SCHEDULES.iter().map(|s| s.name)))]
    pub schedule: String,
    #[arg(long, default_value_t = defaults::WARMUP_STEPS, value_name = "N")]
    pub warmup_steps: u64,
    #[arg(long, default_value_t = defaults::WEIGHT_DECAY, value_name = "F", allow_hyphen_values = true)]
    pub weight_decay: f64,
    #[arg(long, default_value_t = defaults::MOMENTUM, value_name = "F", allow_hyphen_values = true,
          help = format!("The momentum of {}", with_momentum()))]
    pub momentum: f64,
    /// The learning rate of output factors (LoRA's B) over that of the others
    #[arg(long, default_value_t = defaults::LORA_PLUS, value_name = "RATIO", allow_hyphen_values = true)]
    pub lora_plus: f64,
    /// What becomes of the gradients of LoRA's factors before the optimiser: riemannian divides each by the other factor's Gram
    /// matrix (arXiv 2402.02347)
    #[arg(long, default_value = defaults::PRECONDITION, value_name = "NAME",
          value_parser = names(PRECONDITIONS.iter().map(|p| p.name)))]
    pub precondition: String,
    /// The share of a label that is spread over all classes evenly, in training alone
    #[arg(long, default_value_t = 0.0, value_name = "F", allow_hyphen_values = true)]
    pub label_smoothing: f64,
    /// What each class counts, in training alone: one number for each, as of PyTorch's cross-entropy; of yes-or-no outputs, what a yes
    /// counts (pos_weight)
    #[arg(long, value_name = "F,...", value_delimiter = ',', allow_hyphen_values = true)]
    pub class_weights: Vec<f64>,
    /// Put several short texts into each row of --max-length tokens; each attends to itself alone
    #[arg(long)]
    pub pack: bool,
    /// The largest norm of the gradient; 0 turns clipping off
    #[arg(long, default_value_t = defaults::CLIP_NORM, value_name = "F", allow_hyphen_values = true)]
    pub clip_norm: f64,
    /// Take examples in the file's order
    #[arg(long)]
    pub no_shuffle: bool,
    #[arg(long, default_value_t = defaults::SEED, value_name = "N")]
    pub seed: u64,
    /// Steps between evaluations [default: an epoch]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub eval_every: Option<u64>,
    /// Steps between checkpoints [default: at the end alone]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub save_every: Option<u64>,
    /// What evaluations measure besides the loss: accuracy, f1, confusion-matrix, matthews, spearman, perplexity, exact-match, recall@K;
    /// the best adapter is kept by the first number among them
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub metric: Vec<String>,
    /// End after this many evaluations without gain of the metric, or of the loss
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub early_stopping: Option<u64>,
    /// Go on with the run in the run directory, with its model, data and settings
    #[arg(long)]
    pub resume: bool,
    /// Go on although this flag differs from the run's; may be given several times
    #[arg(long, value_name = "FLAG", requires = "resume", allow_hyphen_values = true)]
    pub resume_with: Vec<String>,
    /// Start again in a directory that holds a run
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    #[command(flatten)]
    pub types: TypeArgs,
    /// Leave out fusion, for comparison
    #[arg(long)]
    pub no_fuse: bool,
    /// How the run is followed on standard error [default: text; with --json, nothing]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log_format: Option<Log>,
    /// Run the first steps alone and throw them away: says what the run would take in memory and time
    #[arg(long, conflicts_with = "resume")]
    pub dry_run: bool,
}

#[derive(Serialize)]
struct Result_ {
    run: PathBuf,
    device: String,
    /// The type in which products multiply: f32, f16 or bf16.
    products: &'static str,
    steps: u64,
    /// Steps that nothing was learnt from.
    #[serde(skip_serializing_if = "is_zero")]
    skipped: u64,
    loss: Option<f64>,
    /// The step whose parameters the adapter holds.
    adapter_step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_perplexity: Option<f64>,
    /// The metrics of the adapter that was kept.
    #[serde(flatten)]
    scores: Scores,
    /// The loss of the base on the same data.
    #[serde(skip_serializing_if = "Option::is_none")]
    base_eval_loss: Option<f64>,
    stopped_early: bool,
    seconds: f64,
    interrupted: bool,
}

impl Args {
    /// The run that the flags say.
    fn config(&self) -> RunConfig {
        RunConfig {
            version: RunConfig::VERSION,
            model: self.model.clone(),
            data: self.data.clone(),
            eval: self.eval.clone(),
            eval_split: self.eval_split,
            output: self.output.clone(),
            train: self.train_config(),
        }
    }

    /// How to train.
    fn train_config(&self) -> TrainConfig {
        TrainConfig {
            how: self.terms.complete(self.how.config()),
            accumulate: self.accumulate,
            epochs: self.epochs,
            max_steps: self.max_steps,
            optimizer: self.optimizer.clone(),
            lr: self.lr,
            schedule: self.schedule.clone(),
            warmup_steps: self.warmup_steps,
            weight_decay: self.weight_decay,
            momentum: self.momentum,
            lora_plus: self.lora_plus,
            precondition: self.precondition.clone(),
            label_smoothing: self.label_smoothing,
            class_weights: self.class_weights.clone(),
            pack: self.pack,
            clip_norm: self.clip_norm,
            no_shuffle: self.no_shuffle,
            seed: self.seed,
            eval_every: self.eval_every,
            save_every: self.save_every,
            metric: self.metric.clone(),
            early_stopping: self.early_stopping,
            precision: self.types.precision.clone(),
            weights: self.types.weights.clone(),
            no_fuse: self.no_fuse,
        }
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

/// The optimisers that take a momentum.
fn with_momentum() -> String {
    let takes = OPTIMIZERS.iter().filter(|o| o.takes_momentum).map(|o| o.name);
    takes.collect::<Vec<_>>().join(", ")
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let config = args.config();
    config.check()?;
    let settings = pipeline::settings(&config.train)?;
    if config.train.momentum > 0.0 && !settings.optimizer.takes_momentum {
        let (takes, own) = (with_momentum(), settings.optimizer.name);
        printer.note(format!("--momentum is for {takes}: {own} has moments of its own"));
    }
    // Without -o, --resume was refused where the run's own flags are read.
    let kept = match (&args.output, args.resume) {
        (Some(dir), true) => Some(resume::Kept::open(dir)?),
        (Some(dir), false) if !args.overwrite && record::holds_run(dir) => {
            let text = format!("{} already holds a run", dir.display());
            let hint = "--resume goes on with it, --overwrite starts again in its place, -o names another directory";
            return Err(Usage(format!("{text}\nhint: {hint}")).into());
        }
        _ => None,
    };
    // The flags first: with others, the data might not even be read.
    kept.as_ref().map_or(Ok(()), |kept| kept.check(&config, &args.resume_with, None))?;
    let model = pipeline::read(&args.model)?;
    pipeline::model_notes(&model).iter().for_each(|n| printer.note(n));
    let data = read_data(&config.train.how, &args.data, &model, printer)?;
    let (data, eval) = match (args.eval_split, args.eval.is_empty()) {
        (Some(share), _) => {
            let (data, eval) = data.split(share, config.train.seed).map_err(Error::from)?;
            printer.note(format!("{} examples to train on, {} held back to measure on", data.len(), eval.len()));
            (data, Some(eval))
        }
        (None, true) => (data, None),
        (None, false) => (data, Some(read_data(&config.train.how, &args.eval, &model, printer)?)),
    };
    let data = match config.train.pack {
        true => data.packed(config.train.how.max_length).map_err(Error::from)?,
        false => data,
    };
    if config.train.pack {
        data.notes.last().into_iter().for_each(|n| printer.note(n));
    }
    let digests = resume::digests(&config, &model, &data, eval.as_ref());
    kept.as_ref().map_or(Ok(()), |kept| kept.check(&config, &args.resume_with, Some((&digests, data.len()))))?;
    let total = config.train.steps(data.len());
    if args.warmup_steps > total {
        let text = format!("--warmup-steps {} is longer than the run, which has {total} steps", args.warmup_steps);
        return Err(Usage(format!("{text}\nhint: a shorter warm-up, or more --epochs")).into());
    }
    let mut device = args.how.device.open_for(&args.types)?;
    let dir = args.output.as_deref().unwrap_or(Path::new("."));
    let mut request = TrainRequest {
        eval: eval.as_ref(),
        resume: args.resume,
        ..TrainRequest::configured(&config.train, &settings, &model, &data, dir)?
    };
    // Whatever can be wrong with model and data shows before the run directory is touched.
    pipeline::check(&request)?;
    let recorded = kept.as_ref().filter(|_| !args.resume_with.iter().any(|f| f.ends_with("precision")));
    let choice = match recorded.and_then(|kept| kept.products()) {
        Some(products) => precision::recorded(products, device.as_ref())?,
        None => precision::chosen(&config.train.precision, &request, device.as_ref())?,
    };
    choice.why.iter().for_each(|why| printer.note(why));
    let settings = Settings { products: choice.products, ..settings.clone() };
    if args.dry_run {
        request.settings = &settings;
        let rehearsal = pipeline::rehearse(&request, device.as_mut())?;
        printer.result(&rehearsal, || reckoned(&rehearsal, &device.name()));
        return Ok(Outcome::Done);
    }
    let dir = args.directory()?;
    (request.dir, request.settings) = (&dir, &settings);
    let _lock = match kept {
        Some(kept) => kept.lock,
        None => {
            let lock = record::lock(&dir).map_err(Error::from)?;
            record::clear(&dir).map_err(Error::from)?;
            lock
        }
    };
    let unit = data.unit();
    let base = model.metadata(BASE_KEY).map(String::from);
    let mut record = Record { unit: Some(unit.into()), ..Record::running(base, digests) };
    record::write(&dir, &record).map_err(Error::from)?;
    let resolved = RunConfig { output: Some(dir.clone()), ..config.clone() }.to_toml();
    super::output::write(&RunConfig::path(&dir), &resolved)?;

    eprintln!("training on {}", device.name());
    let start = std::time::Instant::now();
    let log = args.log_format.unwrap_or(Log::beside(printer.json));
    let mut progress = Progress::new(log, unit);
    let outcome = pipeline::train(&request, device.as_mut(), &mut progress);
    progress.finish();
    match &outcome {
        Ok(o) if o.interrupted => record.end(Status::Interrupted, None),
        Ok(_) => record.end(Status::Done, None),
        Err(e) => record.end(Status::Failed, Some(e.to_string())),
    }
    // A disk that is full has a place for neither; the first error is the one to show.
    let recorded = record::write(&dir, &record).map_err(Error::from);
    let outcome = outcome.inspect_err(|_| say_what_is_kept(&dir, printer))?;
    recorded?;
    let (_, evaluations) = metrics::read(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    train::write_report(&dir, &stem(&args.model))
        .with_context(|| format!("cannot write {}", dir.join("report.html").display()))?;

    let kept = evaluations.iter().rfind(|e| e.step == outcome.adapter_step);
    let result = Result_ {
        run: dir.clone(),
        device: device.name(),
        products: choice.products.name(),
        steps: outcome.steps,
        skipped: outcome.skipped,
        loss: outcome.losses.last().copied(),
        adapter_step: outcome.adapter_step,
        eval_loss: kept.map(|e| e.eval_loss),
        eval_accuracy: kept.and_then(|e| e.eval_accuracy),
        eval_perplexity: kept.and_then(|e| e.eval_perplexity),
        scores: kept.map(|e| e.scores.clone()).unwrap_or_default(),
        base_eval_loss: evaluations.iter().find(|e| e.step == 0).map(|e| e.eval_loss),
        stopped_early: outcome.stopped_early,
        seconds: start.elapsed().as_secs_f64(),
        interrupted: outcome.interrupted,
    };
    printer.result(&result, || text(&result));
    Ok(if outcome.interrupted { Outcome::Interrupted } else { Outcome::Done })
}

/// Says where a run that failed can go on from.
fn say_what_is_kept(dir: &Path, printer: &Printer) {
    if let Ok(kept) = checkpoint::read(&dir.join("last")) {
        let (step, dir) = (kept.progress.step, dir.display());
        printer.note(format!("step {step} is saved; `reslora-compile train --resume -o {dir}` goes on from it"));
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What a run would take.
fn reckoned(r: &Rehearsal, device: &str) -> String {
    let long = |seconds: f64| match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    };
    let evaluations = match r.evaluations {
        0 => String::new(),
        n => format!("\n{n} evaluations of {}", long(r.eval_seconds)),
    };
    let (parameters, memory) = (grouped(r.parameters), r.memory as f64 / f64::from(1 << 20));
    format!(
        "{parameters} parameters are trained, with {memory:.0} MiB on {device}\n\
         {} steps of {}; programs for {} shapes, {} each to compile; {} to start{evaluations}\n\
         the run takes about {}; nothing was written (--dry-run)",
        r.steps,
        long(r.step_seconds),
        r.shapes,
        long(r.compile_seconds),
        long(r.start_seconds),
        long(r.seconds)
    )
}

fn text(r: &Result_) -> String {
    let mut out = format!("{} steps in {:.1} s", r.steps, r.seconds);
    if let Some(loss) = r.loss {
        out += &format!(", last loss {loss:.4}");
    }
    if r.skipped > 0 {
        let (n, s) = (r.skipped, if r.skipped == 1 { "" } else { "s" });
        out += &format!("\n{n} step{s} skipped, whose gradients were not finite numbers: metrics.jsonl names the rows");
    }
    if let Some(loss) = r.eval_loss {
        let accuracy = r.eval_accuracy.map(|a| format!(", accuracy {a:.4}"));
        let other = accuracy.or(r.eval_perplexity.map(|p| format!(", perplexity {p:.3}"))).unwrap_or_default();
        let more = scores(&r.scores);
        out += &format!("\nkept the adapter from step {}: eval loss {loss:.4}{other}{more}", r.adapter_step);
        if let Some(base) = r.base_eval_loss {
            out += &format!("; the base's was {base:.4}");
        }
    }
    if r.stopped_early {
        out += "\nended early: the last evaluations gained nothing (--early-stopping)";
    }
    if r.interrupted {
        out += &format!("\ninterrupted; continue with: train --resume -o {}", r.run.display());
    }
    out + &format!("\nwrote {}", r.run.join("adapter.safetensors").display())
}
