//! The cross-entropy of a softmax over classes.

use super::{Form, LEAST, Labels, Loss, Predicted, log};
use crate::ir::inputs::LABELS;
use crate::ir::{BuildError, Builder, DType, Tensor, Type, Value};

pub const LOSS: Loss = Loss {
    name: "cross-entropy",
    title: "cross-entropy",
    labels: Labels::Classes,
    activations: &["Softmax", "LogSoftmax"],
    of_probabilities: Some(logarithms),
    attach,
    predict: classes,
};

fn attach(b: &mut Builder, logits: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let logits = classes_last(b, logits, form)?;
    let shape = b.shape(logits).clone();
    let classes = shape.last().copied().unwrap_or(1);
    let rows = shape.elements() / classes.max(1);
    let labels = b.input(LABELS, Type::i32(&shape[..shape.len().saturating_sub(1)]));
    let (x, labels) = (b.reshape(logits, [rows, classes])?, b.reshape(labels, [rows])?);
    let mut each = b.binary("cross_entropy", x, labels)?;
    if form.smoothing > 0.0 {
        let more = spread(b, x, labels)?;
        let more = b.scale(more, form.smoothing)?;
        each = b.add(each, more)?;
    }
    if let Some(weights) = form.weights {
        let (label, _) = counted(b, labels, rows)?;
        let share = b.gather(weights, label, 0)?;
        each = b.mul(each, share)?;
    }
    let sum = b.reduce_sum(each, &[0], false)?;
    let best = best(b, x)?;
    let hit = b.binary("equal", best, labels)?;
    let hit = b.cast(hit, DType::F32)?;
    let correct = b.reduce_sum(hit, &[0], false)?;
    Ok((sum, Some(correct)))
}

/// Logits with the axis of classes last.
fn classes_last(b: &mut Builder, logits: Value, form: &Form) -> Result<Value, BuildError> {
    let rank = b.shape(logits).len();
    let Some(axis) = form.class_axis.filter(|a| a + 1 < rank) else { return Ok(logits) };
    let order: Vec<usize> = (0..rank).filter(|d| *d != axis).chain([axis]).collect();
    b.transpose(logits, &order)
}

/// The class of the largest logit of each row.
pub(super) fn best(b: &mut Builder, x: Value) -> Result<Value, BuildError> {
    let [rows, classes] = b.shape(x)[..] else { panic!("rows of logits") };
    let wide = b.reshape(x, [rows, classes, 1])?;
    let best = b.unary("argmax", wide)?;
    b.reshape(best, [rows])
}

/// Classes, and their probabilities where each row has one label.
pub(super) fn classes(b: &mut Builder, logits: Value, form: &Form) -> Result<Predicted, BuildError> {
    let logits = classes_last(b, logits, form)?;
    let shape = b.shape(logits).clone();
    let classes = shape.last().copied().unwrap_or(1);
    let rows = shape.elements() / classes.max(1);
    let x = b.reshape(logits, [rows, classes])?;
    let probabilities = match shape.len() {
        2 => {
            let log = super::log_softmax(b, x)?;
            Some(b.unary("exp", log)?)
        }
        _ => None,
    };
    Ok(Predicted { answer: best(b, x)?, probabilities })
}

/// How much the mean cross-entropy over all classes exceeds the label's: `x[label] - mean x`; zero where the label does not count.
fn spread(b: &mut Builder, x: Value, labels: Value) -> Result<Value, BuildError> {
    let [rows, classes] = b.shape(x)[..] else { panic!("rows of logits") };
    let (label, counts) = counted(b, labels, rows)?;
    let starts = b.constant(Tensor::i32([rows], (0..rows).map(|r| (r * classes) as i32).collect()));
    let at = b.add(starts, label)?;
    let flat = b.reshape(x, [rows * classes])?;
    let own = b.gather(flat, at, 0)?;
    let sum = b.reduce_sum(x, &[1], false)?;
    let mean = b.scale(sum, 1.0 / classes as f64)?;
    let more = b.sub(own, mean)?;
    b.mul(more, counts)
}

/// Labels, class 0 where they do not count, and 1 where they do, else 0.
fn counted(b: &mut Builder, labels: Value, rows: usize) -> Result<(Value, Value), BuildError> {
    let zeros = b.constant(Tensor::i32([rows], vec![0; rows]));
    let out = b.binary("less", labels, zeros)?;
    let label = b.select(out, zeros, labels)?;
    let counts = b.unary("not", out)?;
    Ok((label, b.cast(counts, DType::F32)?))
}

fn logarithms(b: &mut Builder, p: Value) -> Result<Value, BuildError> {
    let least = b.scalar(LEAST);
    log(b, p, least)
}
