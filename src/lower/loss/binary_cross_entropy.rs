//! The cross-entropy of a sigmoid of each output, with labels from 0 to 1.

use super::{Form, LEAST, Labels, Loss, Predicted, log, uncounted};
use crate::ir::inputs::LABELS;
use crate::ir::{BuildError, Builder, DType, Tensor, Type, Value};

pub const LOSS: Loss = Loss {
    name: "binary-cross-entropy",
    title: "binary cross-entropy",
    labels: Labels::Numbers,
    activations: &["Sigmoid"],
    of_probabilities: Some(log_odds),
    attach,
    predict: sigmoids,
};

fn attach(b: &mut Builder, logits: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let shape = b.shape(logits).clone();
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
    let mut each = b.sub(soft, part)?;
    if let Some(weights) = form.weights {
        // What a yes counts more than once: z (w - 1) log(1 + e⁻ˣ).
        let width = b.shape(weights).elements();
        let wide = b.broadcast(weights, [n / width, width])?;
        let wide = b.reshape(wide, [n])?;
        let one = b.scalar(1.0);
        let more = b.sub(wide, one)?;
        let more = b.mul(more, z)?;
        let missed = b.sub(soft, flat)?;
        let more = b.mul(more, missed)?;
        each = b.add(each, more)?;
    }
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
    Ok((sum, Some(correct)))
}

fn sigmoids(b: &mut Builder, x: Value, _: &Form) -> Result<Predicted, BuildError> {
    Ok(Predicted { answer: b.unary("sigmoid", x)?, probabilities: None })
}

/// `log(p / (1 - p))`
fn log_odds(b: &mut Builder, p: Value) -> Result<Value, BuildError> {
    let least = b.scalar(LEAST);
    let one = b.scalar(1.0);
    let rest = b.sub(one, p)?;
    let (yes, no) = (log(b, p, least)?, log(b, rest, least)?);
    b.sub(yes, no)
}
