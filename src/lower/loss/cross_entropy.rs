//! The cross-entropy of a softmax over classes.

use super::{LEAST, Labels, Loss, log};
use crate::ir::inputs::LABELS;
use crate::ir::{BuildError, Builder, DType, Type, Value};

pub const LOSS: Loss = Loss {
    name: "cross-entropy",
    title: "cross-entropy",
    labels: Labels::Classes,
    activations: &["Softmax", "LogSoftmax"],
    of_probabilities: Some(logarithms),
    attach,
};

fn attach(b: &mut Builder, mut logits: Value, class_axis: Option<usize>) -> Result<(Value, Option<Value>), BuildError> {
    let mut shape = b.shape(logits).clone();
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
    Ok((sum, Some(correct)))
}

fn logarithms(b: &mut Builder, p: Value) -> Result<Value, BuildError> {
    let least = b.scalar(LEAST);
    log(b, p, least)
}
