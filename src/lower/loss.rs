//! Losses: those inside a model, and those that training adds.

use super::norm::log_softmax_rows;
use super::{Context, Reason};
use crate::ir::inputs::{LABELS, LOSS_SCALE};
use crate::ir::{BuildError, Builder, DType, Tensor, Type, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// Which loss training adds to the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Integer labels, one for each row of logits; negative ones do not count.
    CrossEntropy,
    /// Float labels of the output's shape.
    MeanSquare,
    /// Float labels of the output's shape, from 0 to 1: the cross-entropy of a sigmoid of each output.
    BinaryCrossEntropy,
}

/// A float label that does not count.
const UNCOUNTED: f32 = -1.267_650_6e30;

/// Adds `Σ loss · scale` over the rows of `logits`, the run's input `scale` being one over the number of counted labels
/// (or elements). `class_axis` is the axis of the classes where that is not the last; `probabilities` says that the
/// values are what a softmax or sigmoid gave. Returns the sum, and where labels
/// name classes the number of those that the largest logit hits.
pub fn attach(
    b: &mut Builder,
    loss: Loss,
    logits: Value,
    class_axis: Option<usize>,
    probabilities: bool,
) -> Result<(Value, Option<Value>), BuildError> {
    let logits = if probabilities { log_odds(b, loss, logits)? } else { logits };
    let shape = b.shape(logits).clone();
    let scale = b.input(LOSS_SCALE, Type::f32([]));
    let axes: Vec<usize> = (0..shape.len()).collect();
    match loss {
        Loss::MeanSquare => {
            let labels = b.input(LABELS, Type::f32(shape.clone()));
            let out = uncounted(b, labels)?;
            let labels = b.select(out, logits, labels)?;
            let difference = b.sub(logits, labels)?;
            let square = b.mul(difference, difference)?;
            let sum = b.reduce_sum(square, &axes, false)?;
            Ok((b.mul(sum, scale)?, None))
        }
        Loss::BinaryCrossEntropy => {
            let labels = b.input(LABELS, Type::f32(shape.clone()));
            let out = uncounted(b, labels)?;
            let counts = b.unary("not", out)?;
            let counts = b.cast(counts, DType::F32)?;
            let zero = b.scalar(0.0);
            let labels = b.select(out, zero, labels)?;
            // log(1 + eˣ) is the cross-entropy of class 0 under the logits (0, x); less x times the label is the loss.
            let n = shape.elements();
            let (x, z) = (b.reshape(logits, [n, 1])?, b.reshape(labels, [n])?);
            let zeros = b.constant(Tensor::f32([n, 1], vec![0.0; n]));
            let pair = b.concat(&[zeros, x], 1)?;
            let first = b.constant(Tensor::i32([n], vec![0; n]));
            let soft = b.binary("cross_entropy", pair, first)?;
            let flat = b.reshape(x, [n])?;
            let part = b.mul(flat, z)?;
            let each = b.sub(soft, part)?;
            let counts = b.reshape(counts, [n])?;
            let each = b.mul(each, counts)?;
            let sum = b.reduce_sum(each, &[0], false)?;
            let half = b.scalar(0.5);
            let (said, is) = (b.binary("less", zero, flat)?, b.binary("less", half, z)?);
            let differ = b.binary("xor", said, is)?;
            let hit = b.unary("not", differ)?;
            let hit = b.cast(hit, DType::F32)?;
            let hit = b.mul(hit, counts)?;
            let correct = b.reduce_sum(hit, &[0], false)?;
            Ok((b.mul(sum, scale)?, Some(correct)))
        }
        Loss::CrossEntropy => {
            let (mut logits, mut shape) = (logits, shape);
            if let Some(axis) = class_axis.filter(|a| a + 1 < shape.len()) {
                let order: Vec<usize> = (0..shape.len()).filter(|d| *d != axis).chain([axis]).collect();
                logits = b.transpose(logits, &order)?;
                shape = b.shape(logits).clone();
            }
            let classes = shape.last().copied().unwrap_or(1);
            let rows = shape.elements() / classes.max(1);
            let labels = b.input(LABELS, Type::i32(&shape[..shape.len().saturating_sub(1)]));
            let (x, labels) = (b.reshape(logits, [rows, classes])?, b.reshape(labels, [rows])?);
            let each = b.binary("cross_entropy", x, labels)?;
            let sum = b.reduce_sum(each, &[0], false)?;
            let wide = b.reshape(x, [rows, classes, 1])?;
            let best = b.unary("argmax", wide)?;
            let best = b.reshape(best, [rows])?;
            let hit = b.binary("equal", best, labels)?;
            let hit = b.cast(hit, DType::F32)?;
            let correct = b.reduce_sum(hit, &[0], false)?;
            Ok((b.mul(sum, scale)?, Some(correct)))
        }
    }
}

/// Logits of what are probabilities: their logarithms for classes, `log(p / (1 - p))` for yes or no.
fn log_odds(b: &mut Builder, loss: Loss, p: Value) -> Result<Value, BuildError> {
    let least = b.scalar(1e-37);
    let log = |b: &mut Builder, x: Value| -> Result<Value, BuildError> {
        let x = b.binary("max", x, least)?;
        b.unary("log", x)
    };
    match loss {
        Loss::MeanSquare => Ok(p),
        Loss::CrossEntropy => log(b, p),
        Loss::BinaryCrossEntropy => {
            let one = b.scalar(1.0);
            let rest = b.sub(one, p)?;
            let (yes, no) = (log(b, p)?, log(b, rest)?);
            b.sub(yes, no)
        }
    }
}

/// Where float labels do not count.
fn uncounted(b: &mut Builder, labels: Value) -> Result<Value, BuildError> {
    let mark = b.scalar(f64::from(UNCOUNTED));
    b.binary("equal", labels, mark)
}

/// Adds a scalar loss that the model holds, times the run's input `scale`: the micro-batch's share of the step.
pub fn attach_held(b: &mut Builder, loss: Value) -> Result<Value, BuildError> {
    let scale = b.input(LOSS_SCALE, Type::f32([]));
    let flat = b.reshape(loss, [])?;
    b.mul(flat, scale)
}

/// Class scores `(N, C, d1, ..)` as rows `(N d1 .., C)`.
fn class_rows(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let rank = c.shape(x).len();
    if rank < 2 {
        return Err("scores need two axes".into());
    }
    let perm: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let last = c.b.transpose(x, &perm)?;
    c.rows(last)
}

/// Reduces `losses` of each row by the node's `reduction`, weighted by class and leaving out `ignore_index`.
fn reduce(c: &mut Context, log_probability: Value, labels: Value, weight: Option<Value>) -> Result<Value, Reason> {
    let shape = c.shape(labels);
    let [rows, classes] = c.shape(log_probability)[..] else { return Err("scores need two axes".into()) };
    let labels = c.b.reshape(labels, [rows])?;
    let ignore = c.node.attr_int("ignore_index").unwrap_or(-100);
    let ignored = c.b.constant(Tensor::i32([], vec![ignore as i32]));
    let out = c.b.binary("equal", labels, ignored)?;
    let counts = c.b.unary("not", out)?;
    let zero = c.b.constant(Tensor::i32([], vec![0]));
    let class = c.b.select(out, zero, labels)?;
    // A lookup of its own, so that a label beyond the classes is seen as one.
    let all = c.b.constant(Tensor::i32([classes], (0..classes as i32).collect()));
    let class = c.b.gather(all, class, 0)?;
    // Row r's class stands at r C + class of the flattened scores.
    let base = c.b.constant(Tensor::i32([rows], (0..rows).map(|r| (r * classes) as i32).collect()));
    let at = c.b.add(base, class)?;
    let flat = c.b.reshape(log_probability, [rows * classes])?;
    let picked = c.b.gather(flat, at, 0)?;
    let mut share = c.b.cast(counts, DType::F32)?;
    if let Some(weight) = weight {
        let own = c.b.gather(weight, class, 0)?;
        share = c.b.mul(share, own)?;
    }
    let weighted = c.b.mul(picked, share)?;
    let losses = c.b.neg(weighted)?;
    match c.node.attr_str("reduction").as_deref().unwrap_or("mean") {
        "none" => Ok(c.b.reshape(losses, shape)?),
        "sum" => Ok(c.b.reduce_sum(losses, &[0], false)?),
        "mean" => {
            let (sum, total) = (c.b.reduce_sum(losses, &[0], false)?, c.b.reduce_sum(share, &[0], false)?);
            Ok(c.b.div(sum, total)?)
        }
        other => Err(format!("reduction '{other}' is not known").into()),
    }
}

pub fn softmax_cross_entropy_loss(c: &mut Context) -> Lowered {
    let (x, labels) = (c.x(0)?, c.x(1)?);
    let shape = c.shape(x);
    let rows = class_rows(c, x)?;
    let log = log_softmax_rows(c, rows)?;
    let loss = reduce(c, log, labels, c.opt(2))?;
    if c.node.outputs().len() < 2 || c.node.outputs()[1].is_empty() {
        return Ok(vec![loss]);
    }
    let mut wide: Vec<usize> = [shape[0]].into_iter().chain(shape[2..].iter().copied()).collect();
    wide.push(shape[1]);
    let log = c.b.reshape(log, wide)?;
    let rank = shape.len();
    let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    Ok(vec![loss, c.b.transpose(log, &perm)?])
}

pub fn negative_log_likelihood_loss(c: &mut Context) -> Lowered {
    let (x, labels) = (c.x(0)?, c.x(1)?);
    let rows = class_rows(c, x)?;
    Ok(vec![reduce(c, rows, labels, c.opt(2))?])
}
