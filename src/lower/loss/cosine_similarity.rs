//! The squared difference of the cosine of two texts and their score. As `CosineSimilarityLoss` of sentence-transformers computes it.

use super::embeddings::{columns, cosines};
use super::{Form, Labels, Loss};
use crate::ir::inputs::LABELS;
use crate::ir::{BuildError, Builder, Type, Value};

pub const LOSS: Loss = Loss {
    name: "cosine-similarity",
    title: "squared error of cosines",
    labels: Labels::Scores,
    activations: &[],
    of_probabilities: None,
    attach,
};

fn attach(b: &mut Builder, x: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let columns = columns(b, x, form)?;
    let cosines = cosines(b, columns[0], columns[1])?;
    let shape = b.shape(cosines).clone();
    let scores = b.input(LABELS, Type::f32(shape));
    let difference = b.sub(cosines, scores)?;
    let square = b.mul(difference, difference)?;
    Ok((b.reduce_sum(square, &[0], false)?, None))
}
