//! Mean squared error: `Σ (x - label)²`.

use super::{Form, Labels, Loss, numbers, uncounted};
use crate::ir::inputs::LABELS;
use crate::ir::{BuildError, Builder, Type, Value};

pub const LOSS: Loss = Loss {
    name: "mse",
    title: "mean squared error",
    labels: Labels::Numbers,
    activations: &[],
    of_probabilities: None,
    attach,
    predict: numbers,
};

fn attach(b: &mut Builder, x: Value, _: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let shape = b.shape(x).clone();
    let axes: Vec<usize> = (0..shape.len()).collect();
    let labels = b.input(LABELS, Type::f32(shape));
    let out = uncounted(b, labels)?;
    let labels = b.select(out, x, labels)?;
    let difference = b.sub(x, labels)?;
    let square = b.mul(difference, difference)?;
    Ok((b.reduce_sum(square, &axes, false)?, None))
}
