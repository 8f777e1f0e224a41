//! A model on a device: compiles a plan for each shape as batches bring it.

use super::TrainError;
use super::data::{Batch, Dataset, Feed, Shapes};
use super::scores::{self, Answer, Kind};
use crate::device::{Device, Fetched, PlanId, Run};
use crate::ir::{Graph, Tensor, inputs, outputs};
use crate::plan::{Layout, Plan};
use std::collections::HashMap;

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Loss and gradients, and the statistics of blocks if asked for.
    Train { statistics: bool },
    /// Loss and hits.
    Evaluate,
    /// The statistics of blocks alone, without dropout.
    Calibrate,
    /// The model's outputs.
    Infer,
}

/// Why something could not be compiled.
pub type CompileError = Box<dyn std::error::Error + Send + Sync>;

/// How a loss that the model holds counts a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weight {
    /// It is a sum over the batch's rows.
    Sum,
    /// It is a mean, and this is what the batch counts in a mean over several: rows, labels, or weights of classes.
    Mean(f64),
    /// The model does not show it.
    Unknown,
}

/// Compiles programs; `pipeline` provides it.
pub trait Compiler {
    /// How the model's own loss counts a batch.
    fn weigh(&mut self, batch: &Batch) -> Result<Weight, CompileError>;
    /// The plan of the model for a shape.
    fn compile(&mut self, shapes: &Shapes, purpose: Purpose) -> Result<Plan, CompileError>;
    /// Runs the passes that a graph without a model (such as an optimiser's) needs.
    fn finish(&mut self, graph: Graph) -> Result<Graph, CompileError>;
}

/// What a model is trained or evaluated through.
pub struct Session<'a> {
    pub device: &'a mut dyn Device,
    pub compiler: &'a mut dyn Compiler,
    pub feed: &'a Feed,
    pub layout: &'a Layout,
    /// The loss is a scalar output of the model's own.
    pub holds_loss: bool,
    /// What the model's answers are; `None` for a loss of its own.
    pub kind: Option<Kind>,
    /// What each class counts in training; empty for all the same.
    pub class_weights: Vec<f32>,
    pub plans: HashMap<(Shapes, Purpose), PlanId>,
}

/// Sums over a data set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    pub loss: f64,
    pub correct: Option<f64>,
    pub counted: usize,
    /// What `loss` is to be divided by.
    pub weight: f64,
    /// The model's own loss is a sum over rows.
    pub sums: bool,
    /// Examples (from 0) whose loss is not a finite number, a few of them; or all of a batch where no single one is to blame.
    pub not_finite: Vec<usize>,
    /// What the model answers, where the program gives it.
    pub answers: Vec<Answer>,
}

/// The most examples that [`Totals::not_finite`] lists.
const NAMED: usize = 8;

impl Session<'_> {
    /// The plan for a batch, compiled if it is the first of its shape.
    pub fn plan(&mut self, batch: &Batch, purpose: Purpose) -> Result<PlanId, TrainError> {
        let shapes = batch.shapes();
        if let Some(&id) = self.plans.get(&(shapes.clone(), purpose)) {
            return Ok(id);
        }
        let plan = self.compiler.compile(&shapes, purpose).map_err(TrainError::Compile)?;
        let id = self.device.load(plan)?;
        self.plans.insert((shapes, purpose), id);
        Ok(id)
    }

    /// How much each of some batches counts in a mean over all of them, and the sum of that: numbers of labels, or what the
    /// model's own loss divides by. A loss that is a sum over rows has weights of 1 and a total of 1.
    pub fn weights(&mut self, batches: &[Batch]) -> Result<(Vec<f64>, f64), TrainError> {
        if !self.holds_loss {
            let weights: Vec<f64> = batches.iter().map(|b| self.counts(b)).collect();
            let total = weights.iter().sum();
            return Ok((weights, total));
        }
        if batches.len() == 1 {
            return Ok((vec![1.0], 1.0));
        }
        let mut weights = Vec::new();
        let mut sums = false;
        for batch in batches {
            match self.compiler.weigh(batch).map_err(TrainError::Compile)? {
                Weight::Sum => {
                    sums = true;
                    weights.push(1.0);
                }
                Weight::Mean(w) => weights.push(w),
                Weight::Unknown => return Err(TrainError::OwnLoss),
            }
        }
        let total = if sums { 1.0 } else { weights.iter().sum() };
        Ok((weights, total))
    }

    /// How much the labels of a batch count, as PyTorch's cross-entropy divides by it: their number, or the weights of their classes.
    fn counts(&self, batch: &Batch) -> f64 {
        match &batch.labels {
            Some(Tensor::I32(labels)) if !self.class_weights.is_empty() => {
                let weight = |l: &i32| usize::try_from(*l).ok().and_then(|l| self.class_weights.get(l));
                labels.iter().filter_map(weight).map(|w| f64::from(*w)).sum()
            }
            _ => batch.counted as f64,
        }
    }

    /// A run of a plan on a batch. `weight` and `total` come from [`Session::weights`].
    pub fn run(&self, plan: PlanId, batch: &Batch, weight: f64, total: f64, seed: i32) -> Run {
        // A loss that is added sums over labels; the model's own is a mean already.
        let scale = if self.holds_loss { weight / total } else { 1.0 / total };
        let mut all: Vec<(String, Tensor)> = batch.inputs.clone();
        if let Some(labels) = &batch.labels
            && !all.iter().any(|(n, _)| n == inputs::LABELS)
        {
            all.push((inputs::LABELS.into(), labels.clone()));
        }
        all.push((inputs::LOSS_SCALE.into(), Tensor::scalar(scale as f32)));
        all.push((inputs::SEED.into(), Tensor::i32([], vec![seed])));
        Run { plan, inputs: all }
    }

    /// What the device has done since the last call. An index that lies outside its table is an error.
    pub fn collect(&mut self, wait: bool) -> Result<Vec<Fetched>, TrainError> {
        let mut all = self.device.collect(wait)?;
        for run in all.iter_mut().flat_map(|f| &mut f.runs) {
            for (name, index) in run.extract_if(.., |(name, _)| name.starts_with(outputs::INDEX)) {
                let mut parts = name[outputs::INDEX.len()..].splitn(2, '/');
                let rows: i64 = parts.next().and_then(|n| n.parse().ok()).unwrap_or(i64::MAX);
                let node = parts.next().unwrap_or_default();
                let outside = |x: &&i32| i64::from(**x) >= rows || i64::from(**x) < -rows;
                let values = index.as_i32().unwrap_or_default();
                if let Some(at) = values.iter().position(|x| outside(&x)) {
                    let first = index.shape().first().copied().unwrap_or(1).max(1);
                    let row = at / (values.len() / first) + 1;
                    return Err(TrainError::Index { node: node.to_string(), rows, value: values[at], row });
                }
            }
        }
        Ok(all)
    }

    /// Makes the plan for the longest batch of a data set, so that memory which cannot be had is an error before anything runs.
    pub fn prepare(&mut self, data: &Dataset, batch_size: usize, purpose: Purpose) -> Result<(), TrainError> {
        let mut rows: Vec<usize> = (0..data.len()).collect();
        rows.sort_by_key(|&row| std::cmp::Reverse(data.length(row)));
        rows.truncate(batch_size.max(1));
        for examples in data.batches(self.feed, &rows, batch_size) {
            let batch = data.batch(self.feed, &examples)?;
            self.plan(&batch, purpose)?;
        }
        Ok(())
    }

    /// Loss and hits over a whole data set.
    pub fn evaluate(&mut self, data: &Dataset, batch_size: usize) -> Result<Totals, TrainError> {
        let mut totals = Totals::default();
        let all: Vec<usize> = (0..data.len()).collect();
        let groups = data.batches(self.feed, &all, batch_size);
        for examples in &groups {
            let one = self.measure(data, examples, groups.len() == 1)?;
            if !one.loss.is_finite() && totals.not_finite.len() < NAMED {
                let mut bad = Vec::new();
                let alone = examples.len() > 1 && !self.holds_loss && data.task().texts() == 1;
                for e in examples.iter().filter(|_| alone) {
                    if !self.measure(data, &[*e], true)?.loss.is_finite() {
                        bad.push(*e);
                    }
                }
                totals.not_finite.extend(if bad.is_empty() { examples.clone() } else { bad });
            }
            totals.loss += one.loss;
            totals.counted += one.counted;
            totals.weight += one.weight;
            totals.sums |= one.sums;
            totals.answers.extend(one.answers);
            if let Some(correct) = one.correct {
                *totals.correct.get_or_insert(0.0) += correct;
            }
        }
        totals.not_finite.truncate(NAMED);
        Ok(totals)
    }

    /// Loss and hits over one batch, which may be the only one.
    fn measure(&mut self, data: &Dataset, examples: &[usize], only: bool) -> Result<Totals, TrainError> {
        let batch = data.batch(self.feed, examples)?;
        let (weight, sums) = match self.holds_loss {
            false => (batch.counted as f64, false),
            true if only => (1.0, false),
            true => match self.compiler.weigh(&batch).map_err(TrainError::Compile)? {
                Weight::Sum => (1.0, true),
                Weight::Mean(w) => (w, false),
                Weight::Unknown => return Err(TrainError::OwnLoss),
            },
        };
        let mut totals = Totals { counted: batch.counted, weight, sums, ..Totals::default() };
        if weight == 0.0 {
            return Ok(totals);
        }
        let plan = self.plan(&batch, Purpose::Evaluate)?;
        let run = self.run(plan, &batch, weight, 1.0, 0);
        self.device.submit(vec![run])?;
        let (mut predicted, mut probabilities) = (None, None);
        for fetched in self.collect(true)? {
            for (name, t) in fetched.runs.into_iter().flatten() {
                match name.as_str() {
                    outputs::PREDICTION => predicted = Some(t.clone()),
                    outputs::PROBABILITIES => probabilities = Some(t.clone()),
                    _ => {}
                }
                let value = t.as_f32().and_then(|x| x.first()).map_or(0.0, |&x| x as f64);
                match name.as_str() {
                    outputs::LOSS => totals.loss += value,
                    outputs::CORRECT => *totals.correct.get_or_insert(0.0) += value,
                    _ => {}
                }
            }
        }
        if let Some(predicted) = predicted {
            totals.answers = scores::answers(examples, &batch, &predicted, probabilities.as_ref());
        }
        Ok(totals)
    }
}

impl Totals {
    /// The mean loss, or the sum where the model's own loss is one.
    pub fn mean(&self) -> f64 {
        if self.sums { self.loss } else { self.loss / self.weight }
    }
}
