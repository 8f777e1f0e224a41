//! The paper's experiment: structures side by side, each from several seeds, on the same data with the same budget, with plain LoRA at
//! several alphas as the control.

use super::training::{TrainRequest, train};
use super::{Error, inject};
use crate::adapters;
use crate::device::Device;
use crate::inject::Options;
use crate::onnx::Model;
use crate::settings::{RunConfig, TrainConfig};
use crate::train::data::Dataset;
use crate::train::metrics::EvalMetrics;
use crate::train::record::{self, Record, Status};
use crate::train::{Observer, Settings};
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is compared.
#[derive(Clone, Debug)]
pub struct Variant {
    pub name: String,
    pub options: Options,
    /// Plain LoRA, which the others are held against.
    pub control: bool,
}

/// Every variant: plain LoRA at each alpha, and the other structures at the options' own.
pub fn variants(structures: &[adapters::Structure], alphas: &[f64], options: &Options) -> Vec<Variant> {
    let lora = adapters::lora();
    let with_lora = structures.contains(&lora).then_some(lora);
    let mut out = Vec::new();
    for &alpha in with_lora.iter().flat_map(|_| alphas) {
        let options = Options { structure: lora, alpha, ..options.clone() };
        out.push(Variant { name: format!("lora alpha {alpha}"), options, control: true });
    }
    for &structure in structures.iter().filter(|s| **s != lora) {
        let options = Options { structure, ..options.clone() };
        out.push(Variant { name: structure.to_string(), options, control: false });
    }
    out
}

/// The experiment.
pub struct ExperimentRequest<'a> {
    pub base: &'a Arc<Model>,
    pub variants: &'a [Variant],
    pub seeds: &'a [u64],
    pub data: &'a Dataset,
    pub eval: &'a Dataset,
    pub config: &'a TrainConfig,
    /// A run directory for each run is made in it.
    pub dir: &'a Path,
}

/// One run of it.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    pub variant: usize,
    pub seed: u64,
    pub run: PathBuf,
    pub parameters: usize,
    /// Steps and the loss of each evaluation, the one before training first.
    pub evaluations: Vec<(u64, f64)>,
    pub accuracy: Option<f64>,
    pub perplexity: Option<f64>,
    /// Of a step, the median.
    pub step_seconds: f64,
}

/// A mean over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    pub mean: f64,
    /// Half of the confidence interval of 95 % (Student's t); `None` for a single seed.
    pub half: Option<f64>,
}

impl Mean {
    /// Of some numbers; `None` where there are none.
    pub fn of(xs: &[f64]) -> Option<Mean> {
        let n = xs.len() as f64;
        let mean = xs.iter().sum::<f64>() / n;
        let half = (xs.len() > 1).then(|| {
            let deviation = (xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
            let t = StudentsT::new(0.0, 1.0, n - 1.0).expect("at least one degree of freedom");
            t.inverse_cdf(0.975) * deviation / n.sqrt()
        });
        (!xs.is_empty()).then_some(Mean { mean, half })
    }
}

/// What the runs of one variant gave.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub control: bool,
    pub parameters: usize,
    /// The evaluation loss at the end.
    pub loss: Mean,
    /// That loss less the best control's with the same seed; `None` for that control itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Mean>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Mean>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Mean>,
    /// Steps to the target loss, of the runs that reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_to_target: Option<Mean>,
    /// How many runs reach it.
    pub reached: usize,
    /// Seconds of a step, the median over all runs.
    pub step_seconds: f64,
    /// The mean evaluation loss at each step, with its interval.
    pub curve: Vec<(u64, Mean)>,
}

/// What an experiment gave.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The loss that the best control has at the end, on the mean over seeds; the lowest variant's where there is no control.
    pub target_loss: f64,
    pub target_of: String,
    /// The loss before training.
    pub base_loss: Option<f64>,
    pub seeds: Vec<u64>,
    pub rows: Vec<Row>,
    pub trials: Vec<Trial>,
}

/// Runs the experiment; `each` makes the observer of a run and is told which it is.
pub fn experiment<O: Observer>(
    request: &ExperimentRequest,
    device: &mut dyn Device,
    each: &mut dyn FnMut(&Variant, u64) -> O,
) -> Result<Comparison, Error> {
    let mut trials = Vec::new();
    // Seed by seed, so that what changes as a machine warms up meets every variant alike.
    for &seed in request.seeds {
        for (i, variant) in request.variants.iter().enumerate() {
            trials.push(trial(request, i, seed, device, &mut each(variant, seed))?);
        }
    }
    trials.sort_by_key(|t| (t.variant, t.seed));
    Ok(summary(request, trials))
}

/// A run from a base model: injected, trained and measured, all in a run directory of its own.
pub(super) struct Run<'a> {
    pub base: &'a Arc<Model>,
    pub options: Options,
    pub data: &'a Dataset,
    pub eval: &'a Dataset,
    /// Its seed is the run's.
    pub config: TrainConfig,
    pub dir: PathBuf,
}

/// What a run gave.
pub(super) struct Ran {
    pub parameters: usize,
    pub evaluations: Vec<EvalMetrics>,
    /// Of each step.
    pub seconds: Vec<f64>,
}

impl Run<'_> {
    pub(super) fn run(self, device: &mut dyn Device, observer: &mut dyn Observer) -> Result<Ran, Error> {
        let Run { base, options, data, eval, config, dir } = self;
        let (model, report) = inject(base, &Options { seed: config.seed, ..options })?;
        let fail = |error| crate::train::TrainError::Write { path: dir.clone(), error };
        std::fs::create_dir_all(&dir).map_err(fail)?;
        record::clear(&dir)?;
        let model = Arc::new(model);
        let settings = super::settings(&config)?;
        let request =
            TrainRequest { eval: Some(eval), ..TrainRequest::configured(&config, &settings, &model, data, &dir)? };
        let products = super::precision::chosen(&config.precision, &request, device)?.products;
        let settings = Settings { products, ..settings.clone() };
        let request = TrainRequest { settings: &settings, ..request };
        let whole = RunConfig {
            model: base.path().to_path_buf(),
            data: vec![data.path.clone()],
            eval: vec![eval.path.clone()],
            output: Some(dir.clone()),
            train: config.clone(),
            ..RunConfig::default()
        };
        std::fs::write(RunConfig::path(&dir), whole.to_toml()).map_err(fail)?;
        let started = Record::running(model.metadata(adapters::BASE_KEY).map(String::from), Default::default());
        let mut record = Record { unit: Some(data.unit().into()), ..started };
        let mut watched = Watched { inner: observer, seconds: vec![], evaluations: vec![] };
        let outcome = train(&request, device, &mut watched);
        let Watched { seconds, evaluations, .. } = watched;
        let status = if outcome.is_ok() { Status::Done } else { Status::Failed };
        record.end(status, outcome.as_ref().err().map(Error::to_string));
        record::write(&dir, &record)?;
        outcome?;
        let parameters = report.adapter_parameters + report.also_trained_parameters;
        Ok(Ran { parameters, evaluations, seconds })
    }
}

fn trial(
    request: &ExperimentRequest,
    number: usize,
    seed: u64,
    device: &mut dyn Device,
    observer: &mut dyn Observer,
) -> Result<Trial, Error> {
    let variant = &request.variants[number];
    let dir = request.dir.join(format!("{}-seed-{seed}", variant.name.replace(' ', "-")));
    let config = TrainConfig { seed, ..request.config.clone() };
    let &ExperimentRequest { base, data, eval, .. } = request;
    let run = Run { base, options: variant.options.clone(), data, eval, config, dir: dir.clone() };
    let Ran { parameters, evaluations, mut seconds } = run.run(device, observer)?;
    seconds.sort_by(f64::total_cmp);
    let last = evaluations.last();
    Ok(Trial {
        variant: number,
        seed,
        run: dir,
        parameters,
        accuracy: last.and_then(|e| e.eval_accuracy),
        perplexity: last.and_then(|e| e.eval_perplexity),
        evaluations: evaluations.iter().map(|e| (e.step, e.eval_loss)).collect(),
        step_seconds: seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN),
    })
}

/// Passes on what a run says, and keeps its times and evaluations.
struct Watched<'a> {
    inner: &'a mut dyn Observer,
    seconds: Vec<f64>,
    evaluations: Vec<EvalMetrics>,
}

impl Observer for Watched<'_> {
    fn note(&mut self, text: &str) {
        self.inner.note(text);
    }

    fn started(&mut self, total: u64, done: u64) {
        self.inner.started(total, done);
    }

    fn step(&mut self, metrics: &crate::train::metrics::StepMetrics) {
        self.seconds.push(metrics.seconds);
        self.inner.step(metrics);
    }

    fn evaluated(&mut self, metrics: &EvalMetrics, best: bool) {
        self.evaluations.push(metrics.clone());
        self.inner.evaluated(metrics, best);
    }

    fn stop(&mut self) -> bool {
        self.inner.stop()
    }
}

/// Means over seeds, and steps to the loss that the best control ends with.
fn summary(request: &ExperimentRequest, trials: Vec<Trial>) -> Comparison {
    let of = |v: usize| trials.iter().filter(move |t| t.variant == v);
    let end = |t: &Trial| t.evaluations.last().map_or(f64::NAN, |e| e.1);
    let ends = |v: usize| of(v).map(end).collect::<Vec<f64>>();
    let mean = |v: usize| Mean::of(&ends(v)).map_or(f64::INFINITY, |m| m.mean);
    let all = || 0..request.variants.len();
    let lowest = |vs: &mut dyn Iterator<Item = usize>| vs.min_by(|a, b| mean(*a).total_cmp(&mean(*b)));
    let control = lowest(&mut all().filter(|v| request.variants[*v].control));
    let target_of = control.or_else(|| lowest(&mut all())).unwrap_or(0);
    let target_loss = mean(target_of);
    let row = |v: usize| {
        let variant = &request.variants[v];
        let numbers = |f: &dyn Fn(&Trial) -> Option<f64>| Mean::of(&of(v).filter_map(f).collect::<Vec<_>>());
        let reached: Vec<f64> = of(v).filter_map(|t| crossing(&t.evaluations, target_loss)).collect();
        let differences: Vec<f64> = ends(v).iter().zip(ends(target_of)).map(|(a, b)| a - b).collect();
        let mut seconds: Vec<f64> = of(v).map(|t| t.step_seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let steps: Vec<u64> = of(v).next().into_iter().flat_map(|t| t.evaluations.iter().map(|e| e.0)).collect();
        let at = |i: usize| of(v).filter_map(|t| Some(t.evaluations.get(i)?.1)).collect::<Vec<f64>>();
        Row {
            name: variant.name.clone(),
            control: variant.control,
            parameters: of(v).next().map_or(0, |t| t.parameters),
            loss: Mean::of(&ends(v)).unwrap_or(Mean { mean: f64::NAN, half: None }),
            difference: Mean::of(&differences).filter(|_| v != target_of),
            accuracy: numbers(&|t| t.accuracy),
            perplexity: numbers(&|t| t.perplexity),
            steps_to_target: Mean::of(&reached),
            reached: reached.len(),
            step_seconds: seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN),
            curve: steps.iter().enumerate().filter_map(|(i, &s)| Some((s, Mean::of(&at(i))?))).collect(),
        }
    };
    let base_loss = trials.first().and_then(|t| t.evaluations.first()).filter(|e| e.0 == 0).map(|e| e.1);
    Comparison {
        target_loss,
        target_of: request.variants[target_of].name.clone(),
        base_loss,
        seeds: request.seeds.to_vec(),
        rows: all().map(row).collect(),
        trials,
    }
}

/// Where a curve first comes down to a loss: between two evaluations, on the line between them.
fn crossing(curve: &[(u64, f64)], loss: f64) -> Option<f64> {
    let at = curve.iter().position(|p| p.1 <= loss)?;
    let (step, value) = curve[at];
    let Some((before, above)) = at.checked_sub(1).map(|i| curve[i]) else { return Some(step as f64) };
    Some(before as f64 + (step - before) as f64 * (above - loss) / (above - value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_students() {
        // scipy.stats.t.interval(0.95, 2, mean, sem) of 1, 2, 4.
        let m = Mean::of(&[1.0, 2.0, 4.0]).unwrap();
        assert!((m.mean - 7.0 / 3.0).abs() < 1e-12);
        assert!((m.half.unwrap() - 3.794_583_3).abs() < 1e-5, "{m:?}");
        assert_eq!(Mean::of(&[3.0]), Some(Mean { mean: 3.0, half: None }));
        assert_eq!(Mean::of(&[]), None);
    }

    #[test]
    fn a_curve_reaches_a_loss_between_evaluations() {
        let curve = [(0, 2.0), (10, 1.0), (20, 0.5)];
        assert_eq!(crossing(&curve, 0.75), Some(15.0));
        assert_eq!(crossing(&curve, 2.5), Some(0.0));
        assert_eq!(crossing(&curve, 0.4), None);
    }
}
