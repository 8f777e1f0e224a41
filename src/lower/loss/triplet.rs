//! Triplet loss: `max(d(a, p) - d(a, n) + margin, 0)` with Euclidean distances. As `TripletLoss` of sentence-transformers computes it.

use super::embeddings::columns;
use super::{Form, Labels, Loss, Predicted};
use crate::ir::{BuildError, Builder, DType, Value};

pub const LOSS: Loss = Loss {
    name: "triplet",
    title: "triplet",
    labels: Labels::Tuples,
    activations: &[],
    of_probabilities: None,
    attach,
    predict: ranks,
};

/// What PyTorch's `pairwise_distance` adds to every difference.
const EPSILON: f64 = 1e-6;

fn attach(b: &mut Builder, x: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let (near, far) = distances(b, x, form)?;
    let more = b.sub(near, far)?;
    let (margin, zero) = (b.scalar(form.margin), b.scalar(0.0));
    let above = b.add(more, margin)?;
    let each = b.binary("max", above, zero)?;
    let sum = b.reduce_sum(each, &[0], false)?;
    let closer = b.binary("less", near, far)?;
    let closer = b.cast(closer, DType::F32)?;
    let correct = b.reduce_sum(closer, &[0], false)?;
    Ok((sum, Some(correct)))
}

/// Of each anchor to its positive and to its negative, `(B)`.
fn distances(b: &mut Builder, x: Value, form: &Form) -> Result<(Value, Value), BuildError> {
    let columns = columns(b, x, form)?;
    Ok((distance(b, columns[0], columns[1])?, distance(b, columns[0], columns[2])?))
}

/// 1 where the positive is closer than the negative, else 2.
fn ranks(b: &mut Builder, x: Value, form: &Form) -> Result<Predicted, BuildError> {
    let (near, far) = distances(b, x, form)?;
    let closer = b.binary("less", near, far)?;
    let (one, two) = (b.scalar(1.0), b.scalar(2.0));
    Ok(Predicted { answer: b.select(closer, one, two)?, probabilities: None })
}

/// `‖x - y + ε‖` of each row, `(B)`.
fn distance(b: &mut Builder, x: Value, y: Value) -> Result<Value, BuildError> {
    let difference = b.sub(x, y)?;
    let epsilon = b.scalar(EPSILON);
    let difference = b.add(difference, epsilon)?;
    let square = b.mul(difference, difference)?;
    let sum = b.reduce_sum(square, &[1], false)?;
    b.unary("sqrt", sum)
}
