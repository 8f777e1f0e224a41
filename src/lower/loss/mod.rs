//! Losses: the ones a model holds, and the ones training adds.
//!
//! A new loss is one file that says which labels it takes and how it is computed, and one line in [`LOSSES`].

mod binary_cross_entropy;
mod contrastive;
mod cosine_similarity;
mod cross_entropy;
mod distill;
mod dpo;
mod embeddings;
mod mean_absolute;
mod mean_square;
mod operators;
mod triplet;

pub use operators::{negative_log_likelihood_loss, softmax_cross_entropy_loss};

use crate::ir::inputs::{LABELS, LOSS_SCALE};
use crate::ir::{BuildError, Builder, Type, Value};

/// What a loss takes of a value that holds probabilities: their logarithms, or the like.
pub type OfProbabilities = fn(&mut Builder, Value) -> Result<Value, BuildError>;

/// A loss that training adds to the logits.
#[derive(Clone, Copy)]
pub struct Loss {
    /// On the command line.
    pub name: &'static str,
    /// In a sentence.
    pub title: &'static str,
    pub labels: Labels,
    /// Operators whose result it computes from logits itself, so that it is taken on what goes into a last one of them.
    pub activations: &'static [&'static str],
    /// Logits of probabilities, where it can be taken on what a softmax or sigmoid gave.
    pub of_probabilities: Option<OfProbabilities>,
    pub attach: Attach,
    pub predict: Predict,
}

/// What a model answers, by the value that a loss is taken on.
pub struct Predicted {
    /// One number for each label, or for each row of several texts: a class, the probability of yes, a number, a cosine, the place of an
    /// anchor's own positive from 1, or how much more the preferred answer gained than the rejected one.
    pub answer: Value,
    /// The probabilities of classes, `(rows, classes)`, where each row has one label.
    pub probabilities: Option<Value>,
}

/// What a model answers.
pub type Predict = fn(&mut Builder, Value, &Form) -> Result<Predicted, BuildError>;

/// How a loss is taken. Numbers that a loss does not read are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Form {
    /// The axis of the classes where that is not the last.
    pub class_axis: Option<usize>,
    /// The share of a label that is spread over all classes evenly.
    pub smoothing: f64,
    /// What each class counts, or each yes of an output: a constant, one number for each.
    pub weights: Option<Value>,
    /// Texts of a row: they stand one column after the other along the first axis, each as long as the batch.
    pub texts: usize,
    /// What `contrastive` multiplies cosines by.
    pub scale: f64,
    /// How much closer than the negative the positive must be, for `triplet`.
    pub margin: f64,
    /// How far `dpo` may go from the reference.
    pub beta: f64,
    /// What `distill` divides logits by.
    pub temperature: f64,
    /// The same value of the reference, or of the teacher.
    pub reference: Option<Value>,
}

/// Adds a loss to logits of any shape: the sum over all labels that count, or over all rows of several texts; and where there is a right
/// answer, the number of those that are hit.
pub type Attach = fn(&mut Builder, Value, &Form) -> Result<(Value, Option<Value>), BuildError>;

/// The labels that a loss takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// Integers, one for each row of logits; negative ones do not count.
    Classes,
    /// Floats of the output's shape; those that are [`UNCOUNTED`] do not count.
    Numbers,
    /// None: rows hold an anchor, a positive and maybe negatives.
    Tuples,
    /// A float for each row of two texts.
    Scores,
    /// Integers, one for each position of an answer that is preferred and of one that is not.
    Preferences,
}

/// Every loss.
pub const LOSSES: &[Loss] = &[
    cross_entropy::LOSS,
    mean_square::LOSS,
    mean_absolute::LOSS,
    binary_cross_entropy::LOSS,
    contrastive::LOSS,
    triplet::LOSS,
    cosine_similarity::LOSS,
    distill::LOSS,
    dpo::LOSS,
];

/// A loss by its name, or by the short one that it has.
pub fn find(name: &str) -> Option<Loss> {
    let name = SHORT.iter().find(|s| s.0 == name).map_or(name, |s| s.1);
    LOSSES.iter().find(|l| l.name == name).copied()
}

/// Short names of losses.
pub const SHORT: &[(&str, &str)] = &[("bce", "binary-cross-entropy")];

impl Loss {
    pub const CROSS_ENTROPY: Loss = cross_entropy::LOSS;
    pub const MEAN_SQUARE: Loss = mean_square::LOSS;
    pub const BINARY_CROSS_ENTROPY: Loss = binary_cross_entropy::LOSS;
    pub const CONTRASTIVE: Loss = contrastive::LOSS;
    pub const COSINE_SIMILARITY: Loss = cosine_similarity::LOSS;
    pub const TRIPLET: Loss = triplet::LOSS;
    pub const DISTILL: Loss = distill::LOSS;
    pub const DPO: Loss = dpo::LOSS;

    /// Whether it reads a second model's value: the reference's or the teacher's.
    pub fn reads_reference(&self) -> bool {
        matches!(self.name, "distill" | "dpo")
    }
}

impl PartialEq for Loss {
    fn eq(&self, other: &Loss) -> bool {
        self.name == other.name
    }
}

impl Eq for Loss {}

impl std::fmt::Debug for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A float label that does not count.
pub const UNCOUNTED: f32 = -1.267_650_6e30;

/// Adds `Σ loss · scale` over the rows of `logits`, the run's input `scale` being one over the number of counted labels
/// (or elements). `probabilities` says that the
/// values are what a softmax or sigmoid gave. Returns the sum, and where labels
/// name classes the number of those that the largest logit hits.
pub fn attach(
    b: &mut Builder,
    loss: Loss,
    logits: Value,
    form: &Form,
    probabilities: bool,
) -> Result<(Value, Option<Value>), BuildError> {
    let logits = match loss.of_probabilities.filter(|_| probabilities) {
        Some(log_odds) => log_odds(b, logits)?,
        None => logits,
    };
    let scale = b.input(LOSS_SCALE, Type::f32([]));
    let (sum, correct) = (loss.attach)(b, logits, form)?;
    Ok((b.mul(sum, scale)?, correct))
}

/// Adds what a model answers; `probabilities` is as for [`attach`].
pub fn predict(
    b: &mut Builder,
    loss: Loss,
    logits: Value,
    form: &Form,
    probabilities: bool,
) -> Result<Predicted, BuildError> {
    let logits = match loss.of_probabilities.filter(|_| probabilities) {
        Some(log_odds) => log_odds(b, logits)?,
        None => logits,
    };
    (loss.predict)(b, logits, form)
}

/// Numbers, as they are.
fn numbers(_: &mut Builder, x: Value, _: &Form) -> Result<Predicted, BuildError> {
    Ok(Predicted { answer: x, probabilities: None })
}

/// Adds a scalar loss that the model holds, times the run's input `scale`: the micro-batch's share of the step.
pub fn attach_held(b: &mut Builder, loss: Value) -> Result<Value, BuildError> {
    let scale = b.input(LOSS_SCALE, Type::f32([]));
    let flat = b.reshape(loss, [])?;
    b.mul(flat, scale)
}

/// `x - log Σ eˣ` of each row.
fn log_softmax(b: &mut Builder, x: Value) -> Result<Value, BuildError> {
    let most = b.reduce("reduce_max", x, &[1], true)?;
    let most = b.unary("detach", most)?;
    let below = b.sub(x, most)?;
    let e = b.unary("exp", below)?;
    let sum = b.reduce_sum(e, &[1], true)?;
    let log = b.unary("log", sum)?;
    b.sub(below, log)
}

/// The logarithm of a probability, which may be 0.
fn log(b: &mut Builder, x: Value, least: Value) -> Result<Value, BuildError> {
    let x = b.binary("max", x, least)?;
    b.unary("log", x)
}

/// The smallest probability that has a logarithm here.
const LEAST: f64 = 1e-37;

/// The sum of `size(x - label)` over float labels that count.
fn errors(
    b: &mut Builder,
    x: Value,
    size: impl FnOnce(&mut Builder, Value) -> Result<Value, BuildError>,
) -> Result<(Value, Option<Value>), BuildError> {
    let shape = b.shape(x).clone();
    let axes: Vec<usize> = (0..shape.len()).collect();
    let labels = b.input(LABELS, Type::f32(shape));
    let out = uncounted(b, labels)?;
    let labels = b.select(out, x, labels)?;
    let difference = b.sub(x, labels)?;
    let sizes = size(b, difference)?;
    Ok((b.reduce_sum(sizes, &axes, false)?, None))
}

/// Where float labels do not count.
fn uncounted(b: &mut Builder, labels: Value) -> Result<Value, BuildError> {
    let mark = b.scalar(f64::from(UNCOUNTED));
    b.binary("equal", labels, mark)
}
