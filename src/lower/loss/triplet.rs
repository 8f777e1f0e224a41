//! Triplet loss: `max(d(a, p) - d(a, n) + margin, 0)` with Euclidean distances. As `TripletLoss` of sentence-transformers computes it.

use super::embeddings::columns;
use super::{Form, Labels, Loss};
use crate::ir::{BuildError, Builder, DType, Value};

pub const LOSS: Loss = Loss {
    name: "triplet",
    title: "triplet",
    labels: Labels::Tuples,
    activations: &[],
    of_probabilities: None,
    attach,
};

/// What PyTorch's `pairwise_distance` adds to every difference.
const EPSILON: f64 = 1e-6;

fn attach(b: &mut Builder, x: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let columns = columns(b, x, form)?;
    let near = distance(b, columns[0], columns[1])?;
    let far = distance(b, columns[0], columns[2])?;
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

/// `‖x - y + ε‖` of each row, `(B)`.
fn distance(b: &mut Builder, x: Value, y: Value) -> Result<Value, BuildError> {
    let difference = b.sub(x, y)?;
    let epsilon = b.scalar(EPSILON);
    let difference = b.add(difference, epsilon)?;
    let square = b.mul(difference, difference)?;
    let sum = b.reduce_sum(square, &[1], false)?;
    b.unary("sqrt", sum)
}
