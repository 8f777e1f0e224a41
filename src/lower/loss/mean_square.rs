//! Mean squared error: `Σ (x - label)²`.

use super::{Form, Labels, Loss, errors, numbers};
use crate::ir::{BuildError, Builder, Value};

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
    errors(b, x, |b, difference| b.mul(difference, difference))
}
