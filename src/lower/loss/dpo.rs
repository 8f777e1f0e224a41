//! Direct preference optimisation (arXiv 2305.18290): `-log σ(β ((log π(c) - log ρ(c)) - (log π(r) - log ρ(r))))` with the log-probabilities
//! of the preferred answer c and of the rejected one r under the model π and the reference ρ, summed over the answer's tokens. TRL's
//! `sigmoid` loss.

use super::{Form, Labels, Loss, Predicted};
use crate::ir::inputs::LABELS;
use crate::ir::{BuildError, Builder, DType, Tensor, Type, Value};

pub const LOSS: Loss = Loss {
    name: "dpo",
    title: "direct preference optimisation",
    labels: Labels::Preferences,
    activations: &[],
    of_probabilities: None,
    attach,
    predict: margins,
};

/// How much more log-probability the preferred answer gained over the reference than the rejected one, `(B)`.
fn margin(b: &mut Builder, logits: Value, form: &Form) -> Result<Value, BuildError> {
    let [rows, positions, classes] = b.shape(logits)[..] else { panic!("logits of positions") };
    let labels = b.input(LABELS, Type::i32([rows, positions]));
    let labels = b.reshape(labels, [rows * positions])?;
    let reference = form.reference.expect("the program gives the reference's logits");
    let reference = b.unary("detach", reference)?;
    let mut log = Vec::new();
    for x in [logits, reference] {
        let flat = b.reshape(x, [rows * positions, classes])?;
        let each = b.binary("cross_entropy", flat, labels)?;
        let each = b.reshape(each, [rows, positions])?;
        let sum = b.reduce_sum(each, &[1], false)?;
        log.push(b.neg(sum)?);
    }
    let gained = b.sub(log[0], log[1])?;
    let pairs = rows / 2;
    let chosen = b.slice(gained, 0, 0, pairs, 1)?;
    let rejected = b.slice(gained, 0, pairs, pairs, 1)?;
    b.sub(chosen, rejected)
}

fn margins(b: &mut Builder, logits: Value, form: &Form) -> Result<Predicted, BuildError> {
    Ok(Predicted { answer: margin(b, logits, form)?, probabilities: None })
}

fn attach(b: &mut Builder, logits: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let margin = margin(b, logits, form)?;
    let pairs = b.shape(margin)[0];
    // log(1 + eˣ) is the cross-entropy of class 0 under the logits (0, x), and -log σ(z) is that of x = -z.
    let x = b.scale(margin, -form.beta)?;
    let x = b.reshape(x, [pairs, 1])?;
    let zeros = b.constant(Tensor::f32([pairs, 1], vec![0.0; pairs]));
    let pair = b.concat(&[zeros, x], 1)?;
    let first = b.constant(Tensor::i32([pairs], vec![0; pairs]));
    let each = b.binary("cross_entropy", pair, first)?;
    let sum = b.reduce_sum(each, &[0], false)?;
    let zero = b.scalar(0.0);
    let preferred = b.binary("less", zero, margin)?;
    let preferred = b.cast(preferred, DType::F32)?;
    let correct = b.reduce_sum(preferred, &[0], false)?;
    Ok((sum, Some(correct)))
}
