//! Parts of losses of sentence embeddings: columns of texts, lengths and cosines.

use super::Form;
use crate::ir::{BuildError, Builder, Value};

/// The smallest length that is divided by, as PyTorch's `normalize` has it.
const SHORTEST: f64 = 1e-12;

/// The embeddings `(B, H)` of each column of texts, from those of all `(texts B, H)`.
pub fn columns(b: &mut Builder, x: Value, form: &Form) -> Result<Vec<Value>, BuildError> {
    let rows = b.shape(x)[0] / form.texts.max(1);
    (0..form.texts).map(|k| b.slice(x, 0, k * rows, rows, 1)).collect()
}

/// Rows divided by their lengths.
pub fn normalised(b: &mut Builder, x: Value) -> Result<Value, BuildError> {
    let square = b.mul(x, x)?;
    let sum = b.reduce_sum(square, &[1], true)?;
    let least = b.scalar(SHORTEST * SHORTEST);
    let sum = b.binary("max", sum, least)?;
    let length = b.unary("sqrt", sum)?;
    b.div(x, length)
}

/// The cosine of each row of one matrix with the same row of another, `(B)`.
pub fn cosines(b: &mut Builder, x: Value, y: Value) -> Result<Value, BuildError> {
    let (x, y) = (normalised(b, x)?, normalised(b, y)?);
    let product = b.mul(x, y)?;
    b.reduce_sum(product, &[1], false)
}
