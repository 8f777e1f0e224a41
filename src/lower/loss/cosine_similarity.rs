//! The squared difference of the cosine of two texts and their score. As `CosineSimilarityLoss` of sentence-transformers computes it.

use super::embeddings::{columns, cosines};
use super::{Form, Labels, Loss, Predicted};
use crate::ir::inputs::LABELS;
use crate::ir::{BuildError, Builder, Type, Value};

pub const LOSS: Loss = Loss {
    name: "cosine-similarity",
    title: "squared error of cosines",
    labels: Labels::Scores,
    activations: &[],
    of_probabilities: None,
    attach,
    predict: similarities,
};

fn attach(b: &mut Builder, x: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let cosines = of_rows(b, x, form)?;
    let shape = b.shape(cosines).clone();
    let scores = b.input(LABELS, Type::f32(shape));
    let difference = b.sub(cosines, scores)?;
    let square = b.mul(difference, difference)?;
    Ok((b.reduce_sum(square, &[0], false)?, None))
}

/// The cosine of the two texts of each row, `(B)`.
fn of_rows(b: &mut Builder, x: Value, form: &Form) -> Result<Value, BuildError> {
    let columns = columns(b, x, form)?;
    cosines(b, columns[0], columns[1])
}

fn similarities(b: &mut Builder, x: Value, form: &Form) -> Result<Predicted, BuildError> {
    Ok(Predicted { answer: of_rows(b, x, form)?, probabilities: None })
}
