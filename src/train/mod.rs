//! Training: the step loop, and the contents of a run directory.

pub mod checkpoint;
pub mod data;
pub mod metrics;
pub mod record;
mod report;
mod run;
mod scale;
pub mod schedule;
pub mod scores;
mod session;
pub mod trace;

pub use data::Shapes;
pub use report::{Run as ReportRun, page as report_page, write as write_report};
pub use scale::LossScale;
pub use session::{CompileError, Compiler, Purpose, Session, Totals, Weight};

use crate::adapter::{Adapter, AdapterError};
use crate::device::{DeviceError, PlanId};
use crate::ir::{FloatType, Rules};
use crate::optim::precondition::{self, Precondition};
use crate::optim::{self, Hyper, Optimizer};
use crate::plan::PlanError;
use crate::settings::defaults;
use checkpoint::Checkpoint;
use data::{DataError, Dataset, Order};
use metrics::{EvalMetrics, StepMetrics};
use ndarray::ArrayD;
use run::RunState;
use schedule::Schedule;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How to train.
#[derive(Clone, Debug)]
pub struct Settings {
    pub batch_size: usize,
    /// Micro-batches to an optimiser step.
    pub accumulate: usize,
    pub epochs: usize,
    /// Ends training earlier (or later) than `epochs`.
    pub max_steps: Option<u64>,
    pub optimizer: &'static Optimizer,
    pub hyper: Hyper,
    pub lr: f64,
    pub schedule: Schedule,
    pub warmup_steps: u64,
    /// Zero turns clipping off.
    pub clip_norm: f64,
    pub order: Order,
    /// Steps between evaluations; `None` evaluates at the end of each epoch.
    pub eval_every: Option<u64>,
    pub save_every: Option<u64>,
    /// What evaluations measure besides the loss. The best adapter is the one by the first number among them, else by the loss.
    pub metrics: Vec<scores::Asked>,
    /// Ends training after so many evaluations without gain.
    pub early_stopping: Option<u64>,
    /// The learning rate of output factors over that of the others (LoRA+, arXiv 2402.12354); 1 for one rate.
    pub lora_plus: f64,
    /// What becomes of the gradients of pairs of low-rank factors.
    pub precondition: &'static Precondition,
    /// The type to which products round their operands.
    pub products: FloatType,
}

/// The defaults of a training run.
impl Default for Settings {
    fn default() -> Settings {
        let optimizer = optim::find(defaults::OPTIMIZER).expect("it is in the table");
        Settings {
            batch_size: defaults::BATCH_SIZE,
            accumulate: defaults::ACCUMULATE,
            epochs: defaults::EPOCHS,
            max_steps: None,
            optimizer,
            hyper: optimizer.hyper,
            lr: defaults::LEARNING_RATE,
            schedule: schedule::find(defaults::SCHEDULE).expect("it is in the table"),
            warmup_steps: defaults::WARMUP_STEPS,
            clip_norm: defaults::CLIP_NORM,
            order: Order { shuffle: true, seed: defaults::SEED },
            eval_every: None,
            save_every: None,
            metrics: vec![],
            early_stopping: None,
            lora_plus: defaults::LORA_PLUS,
            precondition: &precondition::NONE,
            products: FloatType::F32,
        }
    }
}

/// What is trained: parameters by name with their shapes and first values, and what goes into the adapter's file.
#[derive(Clone, Debug)]
pub struct Trained {
    pub parameters: BTreeMap<String, ArrayD<f32>>,
    /// Tensors of the adapter that are not trained, and saved with it.
    pub frozen: BTreeMap<String, ArrayD<f32>>,
    pub base: Option<String>,
    pub config: String,
    /// Parameters whose learning rate [`Settings::lora_plus`] raises.
    pub raised: Vec<String>,
    /// Names of low-rank factors A and B, which [`Settings::precondition`] reads.
    pub pairs: Vec<(String, String)>,
    /// The module path of the target that each parameter belongs to, of those that belong to one.
    pub paths: BTreeMap<String, String>,
    /// Module paths of the blocks whose statistics are recorded, in order; empty for structures that need none.
    pub blocks: Vec<String>,
}

/// Follows a run as it goes.
pub trait Observer {
    /// Something the user should know before the first step.
    fn note(&mut self, _text: &str) {}
    /// The run begins: its steps in all, and those that it has done already.
    fn started(&mut self, _total: u64, _done: u64) {}
    /// A step is done.
    fn step(&mut self, _metrics: &StepMetrics) {}
    /// An evaluation is done; `best` says whether its loss is the lowest so far.
    fn evaluated(&mut self, _metrics: &EvalMetrics, _best: bool) {}
    /// Whether to stop after this step, keeping what is there.
    fn stop(&mut self) -> bool {
        false
    }
}

/// Takes no notice.
impl Observer for () {}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps done in all.
    pub steps: u64,
    /// The loss of each step of this call.
    pub losses: Vec<f64>,
    /// Steps of this call that nothing was learnt from, since their gradients were not finite numbers.
    pub skipped: u64,
    /// The evaluations of this call; of a fresh run, the first is that of the base, at step 0.
    pub evaluations: Vec<EvalMetrics>,
    /// What was written to `adapter.safetensors`.
    pub adapter: Adapter,
    /// Whether [`Observer::stop`] ended it.
    pub interrupted: bool,
    /// Whether it ended because evaluations gained nothing any more ([`Settings::early_stopping`]).
    pub stopped_early: bool,
    /// The step whose parameters the adapter holds.
    pub adapter_step: u64,
    /// The plan of the optimiser's step.
    pub update: PlanId,
}

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no memory for the largest batch, which shows before the first step.
    #[error(transparent)]
    NoRoom(DeviceError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Build(#[from] crate::ir::BuildError),
    #[error("{0}")]
    Compile(Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot write {}: {error}{}", path.display(), room(error))]
    Write { path: PathBuf, error: std::io::Error },
    #[error("cannot resume from {}: {why}", path.display())]
    Resume { path: PathBuf, why: String },
    #[error(
        "the run in {} is in use by another process\nhint: wait until it ends, or give another directory with -o", path.display()
    )]
    InUse { path: PathBuf },
    #[error("the loss on {}{} is {loss}{why}", path.display(), when(*step))]
    Evaluation { path: PathBuf, step: Option<u64>, loss: f64, why: String },
    #[error(
        "the model's own loss does not show what it divides by, so the losses of several batches cannot be put together\n\
         hint: take every example in one batch (--batch-size), train without --accumulate, or train on the logits"
    )]
    OwnLoss,
    #[error(
        "no label counts in step {step}: all of them are -100\n\
         hint: leave out examples without labels, or take a larger --batch-size"
    )]
    NothingCounts { step: u64 },
    #[error(
        "node '{node}': index {value}, which the model computes, is outside its table of {rows} rows (row {row} of its batch)\n\
         hint: that example leads the model where it was not made to go; --batch-size 1 without shuffling names it"
    )]
    Index { node: String, rows: i64, value: i32, row: usize },
    #[error("the {what} of step {step} is {value}{why}")]
    NotFinite { what: &'static str, step: u64, value: f64, why: String },
    #[error("{0}")]
    Settings(String),
}

/// A hint where there is no room to write.
fn room(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            "\nhint: free some space, or take a run directory (-o) on another disk"
        }
        PermissionDenied | ReadOnlyFilesystem => "\nhint: take a run directory (-o) that can be written",
        _ => "",
    }
}

/// When an evaluation was made, as words that follow its data.
fn when(step: Option<u64>) -> String {
    match step {
        None => String::new(),
        Some(0) => " before the first step".into(),
        Some(step) => format!(" after step {step}"),
    }
}

/// The last steps whose statistics the adapter's file keeps.
pub const STATISTICS_STEPS: u64 = 100;

/// What a run trains on, how, and where it writes.
pub struct Task<'a> {
    pub trained: &'a Trained,
    pub data: &'a Dataset,
    pub eval: Option<&'a Dataset>,
    pub settings: &'a Settings,
    /// The run directory.
    pub dir: &'a Path,
    pub resume: Option<Checkpoint>,
}

/// Trains; `rules` are those of the primitives that the optimiser's program is built from.
pub fn train(
    session: &mut Session,
    rules: Rules,
    task: Task,
    observer: &mut dyn Observer,
) -> Result<Outcome, TrainError> {
    let Task { trained, data, eval, settings, dir, resume } = task;
    let mut run = RunState::new(session, rules, trained, data, settings, dir, resume)?;
    run.prepare(eval).map_err(|e| match e {
        TrainError::Device(e @ DeviceError::Memory { .. }) => TrainError::NoRoom(e),
        e => e,
    })?;
    observer.started(run.total, run.done);
    if let Some(eval) = eval.filter(|_| run.done == 0) {
        run.evaluate(eval, observer)?;
    }
    let (mut stopped, mut early) = (false, false);
    while run.submitted < run.total && !stopped && !early {
        run.submit_step()?;
        run.drain(observer, false)?;
        stopped = observer.stop();
        let step = run.submitted;
        let mut last = step == run.total || stopped;
        let evaluates = match settings.eval_every {
            Some(n) => step.is_multiple_of(n.max(1)),
            None => step.is_multiple_of(run.steps_per_epoch as u64),
        };
        let saves = settings.save_every.is_some_and(|n| step.is_multiple_of(n.max(1)));
        let traces = last || trace::due(step, run.total);
        if traces || evaluates && eval.is_some() || saves {
            run.drain(observer, true)?;
        }
        if traces {
            run.trace()?;
        }
        if let Some(eval) = eval.filter(|_| evaluates || last && !stopped) {
            run.evaluate(eval, observer)?;
            early = step < run.total && settings.early_stopping.is_some_and(|n| run.idle >= n);
            last |= early;
        }
        if saves || last {
            run.save()?;
        }
    }
    run.finish(eval.is_some(), stopped, early)
}

/// Metrics of an evaluation from its sums.
pub fn evaluation(
    totals: &Totals,
    data: &Dataset,
    step: u64,
    seconds: f64,
    kind: Option<scores::Kind>,
    asked: &[scores::Asked],
) -> EvalMetrics {
    let n = totals.counted.max(1) as f64;
    let loss = totals.mean();
    let language = data.next_token();
    EvalMetrics {
        step,
        eval_loss: loss,
        eval_accuracy: totals.correct.filter(|_| !language).map(|c| c / n),
        eval_perplexity: language.then(|| loss.exp()),
        scores: kind.map(|kind| scores::scores(kind, &totals.answers, loss, asked)).unwrap_or_default(),
        seconds,
    }
}
