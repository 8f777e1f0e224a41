//! A device with a model on it: plans compiled for each shape as batches bring them.

use super::TrainError;
use super::data::{Batch, Dataset, Feed};
use crate::device::{Device, PlanId, Run};
use crate::ir::{Graph, Tensor, inputs, outputs};
use crate::plan::{Layout, Plan};
use std::collections::{BTreeMap, HashMap};

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

/// The shape of every graph input that is not empty.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Why something could not be compiled.
pub type CompileError = Box<dyn std::error::Error + Send + Sync>;

/// Compiles programs; `pipeline` provides it.
pub trait Compiler {
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
    pub plans: HashMap<(Shapes, Purpose), PlanId>,
}

/// Sums over a data set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    pub loss: f64,
    pub correct: Option<f64>,
    pub counted: usize,
    /// Examples (from 0) whose loss is not a finite number, a few of them; or all of a batch where no single one is to blame.
    pub not_finite: Vec<usize>,
}

/// The most examples that [`Totals::not_finite`] lists.
const NAMED: usize = 8;

impl Session<'_> {
    /// The plan for a batch, compiled if it is the first of its shape.
    pub fn plan(&mut self, batch: &Batch, purpose: Purpose) -> Result<PlanId, TrainError> {
        let shapes: Shapes = batch.inputs.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
        if let Some(&id) = self.plans.get(&(shapes.clone(), purpose)) {
            return Ok(id);
        }
        let plan = self.compiler.compile(&shapes, purpose).map_err(TrainError::Compile)?;
        let id = self.device.load(plan)?;
        self.plans.insert((shapes, purpose), id);
        Ok(id)
    }

    /// A run of a plan on a batch. `total` is the number of labels that the loss is a mean over.
    pub fn run(&self, plan: PlanId, batch: &Batch, total: f64, seed: i32) -> Run {
        // A loss of the model's own is a mean already: it counts by the batch's share of the labels.
        let scale = if self.holds_loss { batch.counted as f64 / total } else { 1.0 / total };
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

    /// Loss and hits over a whole data set.
    pub fn evaluate(&mut self, data: &Dataset, batch_size: usize) -> Result<Totals, TrainError> {
        let mut totals = Totals::default();
        let all: Vec<usize> = (0..data.len()).collect();
        for examples in data.batches(self.feed, &all, batch_size) {
            let one = self.measure(data, &examples)?;
            if !one.loss.is_finite() && totals.not_finite.len() < NAMED {
                let mut bad = Vec::new();
                for e in examples.iter().take(if examples.len() > 1 { examples.len() } else { 0 }) {
                    if !self.measure(data, &[*e])?.loss.is_finite() {
                        bad.push(*e);
                    }
                }
                totals.not_finite.extend(if bad.is_empty() { examples.clone() } else { bad });
            }
            totals.loss += one.loss;
            totals.counted += one.counted;
            if let Some(correct) = one.correct {
                *totals.correct.get_or_insert(0.0) += correct;
            }
        }
        totals.not_finite.truncate(NAMED);
        Ok(totals)
    }

    /// Loss and hits over one batch.
    fn measure(&mut self, data: &Dataset, examples: &[usize]) -> Result<Totals, TrainError> {
        let batch = data.batch(self.feed, examples)?;
        let plan = self.plan(&batch, Purpose::Evaluate)?;
        let run = self.run(plan, &batch, 1.0, 0);
        self.device.submit(vec![run])?;
        let mut totals = Totals { counted: batch.counted, ..Totals::default() };
        for fetched in self.device.collect(true)? {
            for (name, t) in fetched.runs.into_iter().flatten() {
                let value = t.as_f32().and_then(|x| x.first()).map_or(0.0, |&x| x as f64);
                match name.as_str() {
                    outputs::LOSS => totals.loss += value,
                    outputs::CORRECT => *totals.correct.get_or_insert(0.0) += value,
                    _ => {}
                }
            }
        }
        Ok(totals)
    }
}
