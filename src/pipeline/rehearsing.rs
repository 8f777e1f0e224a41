//! What a run will take: its first steps are run and timed, and the rest reckoned from them.

use super::Error;
use super::training::{TrainRequest, prepare, train};
use crate::device::Device;
use crate::train::data::{Dataset, Feed};
use crate::train::metrics::StepMetrics;
use crate::train::{Observer, Settings, Shapes};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Steps that are run.
const STEPS: u64 = 10;
/// Batches of the evaluation that are run.
const EVALUATED: usize = 4;

/// What a run will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rehearsal {
    /// Numbers that are trained.
    pub parameters: usize,
    /// Bytes of device memory: weights, states, arenas and inputs.
    pub memory: usize,
    pub steps: u64,
    /// Different shapes of batches in an epoch: a program is compiled for each.
    pub shapes: usize,
    /// Seconds to load the model and start.
    pub start_seconds: f64,
    /// Seconds to compile the program of one shape.
    pub compile_seconds: f64,
    /// Seconds of a step, the mean over the epoch's.
    pub step_seconds: f64,
    pub evaluations: u64,
    /// Seconds of an evaluation.
    pub eval_seconds: f64,
    /// Seconds of the whole run.
    pub seconds: f64,
}

/// The times of steps.
#[derive(Default)]
struct Times(Vec<f64>);

impl Observer for Times {
    fn step(&mut self, metrics: &StepMetrics) {
        self.0.push(metrics.seconds);
    }
}

/// A step's micro-batches: what each is compiled for, and how many elements it holds.
type Step = Vec<(Shapes, f64)>;

/// Runs the first steps of a run, in a folder that is thrown away, and reckons the rest.
pub fn rehearse(request: &TrainRequest, device: &mut dyn Device) -> Result<Rehearsal, Error> {
    let (trainee, ..) = prepare(request)?;
    let parameters = trainee.parameters.values().map(|p| p.len()).sum();
    let s = request.settings;
    let batches = request.data.len().div_ceil(s.batch_size);
    let per_epoch = batches.div_ceil(s.accumulate).max(1) as u64;
    let total = s.max_steps.unwrap_or(s.epochs as u64 * per_epoch);
    let dir = tempfile::tempdir().map_err(|e| Error::Model(format!("no temporary folder: {e}")))?;
    let settings = Settings { max_steps: Some(total.min(STEPS)), save_every: None, eval_every: None, ..s.clone() };
    let mut times = Times::default();
    let begun = Instant::now();
    let run = TrainRequest { settings: &settings, eval: None, dir: dir.path(), resume: false, ..request.clone() };
    train(&run, device, &mut times)?;
    let wall = begun.elapsed().as_secs_f64();
    let memory = device.memory();

    let steps = epoch(request.data, &trainee.feed, s)?;
    let mut all: BTreeMap<String, ()> = BTreeMap::new();
    // Size and seconds of steps that compiled nothing; programs, size and seconds of the others.
    let mut again: Vec<(f64, f64)> = vec![];
    let mut fresh: Vec<(usize, f64, f64)> = vec![];
    for (i, step) in steps.iter().enumerate() {
        let new = step.iter().filter(|(shapes, _)| all.insert(format!("{shapes:?}"), ()).is_none()).count();
        let size: f64 = step.iter().map(|b| b.1).sum();
        match times.0.get(i) {
            Some(&seconds) if new == 0 => again.push((size, seconds)),
            Some(&seconds) => fresh.push((new, size, seconds)),
            None => {}
        }
    }
    // Seconds of an element, by the steps that compiled nothing; by the quickest where all did.
    let sum = |f: &dyn Fn(&(f64, f64)) -> f64| again.iter().map(f).sum::<f64>();
    let rate = match again.is_empty() {
        false => sum(&|a| a.1) / sum(&|a| a.0),
        true => fresh.iter().map(|f| f.2 / f.1).fold(f64::INFINITY, f64::min),
    };
    let compiled: usize = fresh.iter().map(|f| f.0).sum();
    let compile_seconds = (fresh.iter().map(|f| f.2 - rate * f.1).sum::<f64>() / compiled.max(1) as f64).max(0.0);
    let mean = steps.iter().flatten().map(|b| b.1).sum::<f64>() / steps.len().max(1) as f64;
    let step_seconds = rate * mean;
    let start_seconds = (wall - times.0.iter().sum::<f64>()).max(0.0);

    // The base is measured too.
    let evaluations = request.eval.map_or(0, |_| {
        1 + match s.eval_every {
            Some(n) => total.div_ceil(n.max(1)),
            None => total.div_ceil(per_epoch),
        }
    });
    let eval_seconds = request.eval.map_or(Ok(0.0), |eval| evaluation(request, eval, device))?;
    let seconds = start_seconds
        + compile_seconds * all.len() as f64
        + step_seconds * total as f64
        + eval_seconds * evaluations as f64;
    Ok(Rehearsal {
        parameters,
        memory,
        steps: total,
        shapes: all.len(),
        start_seconds,
        compile_seconds,
        step_seconds,
        evaluations,
        eval_seconds,
        seconds,
    })
}

/// The steps of the first epoch.
fn epoch(data: &Dataset, feed: &Feed, s: &Settings) -> Result<Vec<Step>, Error> {
    let batches = s.order.epoch(0, data.len(), s.batch_size);
    let one = |examples: &Vec<usize>| -> Result<Step, Error> {
        let parts = data.batches(feed, examples, s.batch_size);
        let parts = parts.iter().map(|e| {
            let batch = data.batch(feed, e)?;
            let size = batch.inputs.iter().map(|(_, t)| t.elements()).max().unwrap_or(1);
            Ok((batch.shapes(), size as f64))
        });
        parts.collect()
    };
    let all = batches.iter().map(one).collect::<Result<Vec<Step>, Error>>()?;
    Ok(all.chunks(s.accumulate.max(1)).map(<[Step]>::concat).collect())
}

/// Seconds of an evaluation, from its first batches, once their programs are compiled.
fn evaluation(request: &TrainRequest, eval: &Dataset, device: &mut dyn Device) -> Result<f64, Error> {
    let (mut trainee, ..) = prepare(request)?;
    super::surveying::survey(&mut trainee, &[eval], device)?;
    let size = request.settings.batch_size;
    let rows = eval.len().min(EVALUATED * size);
    let part = eval.subset(0..rows);
    trainee.session(device, |session| {
        session.evaluate(&part, size)?;
        let begun = Instant::now();
        session.evaluate(&part, size)?;
        Ok(begun.elapsed().as_secs_f64() * eval.len() as f64 / rows.max(1) as f64)
    })
}
