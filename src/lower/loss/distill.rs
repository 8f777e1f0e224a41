//! Distillation: `T² KL(softmax(t / T) ‖ softmax(x / T))` with the teacher's logits t, over all rows or positions whose label counts
//! (Hinton et al., arXiv 1503.02531).

use super::cross_entropy::{best, classes};
use super::{Form, Labels, Loss, log_softmax};
use crate::ir::inputs::LABELS;
use crate::ir::{BuildError, Builder, DType, Tensor, Type, Value};

pub const LOSS: Loss = Loss {
    name: "distill",
    title: "distillation (KL divergence from the teacher)",
    labels: Labels::Classes,
    activations: &["Softmax", "LogSoftmax"],
    of_probabilities: None,
    attach,
    predict: classes,
};

fn attach(b: &mut Builder, logits: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let shape = b.shape(logits).clone();
    let count = shape.last().copied().unwrap_or(1);
    let rows = shape.elements() / count.max(1);
    let labels = b.input(LABELS, Type::i32(&shape[..shape.len().saturating_sub(1)]));
    let labels = b.reshape(labels, [rows])?;
    let teacher = form.reference.expect("the program gives the teacher's logits");
    let teacher = b.unary("detach", teacher)?;
    let (x, t) = (b.reshape(logits, [rows, count])?, b.reshape(teacher, [rows, count])?);
    let cold = 1.0 / form.temperature;
    let (scaled, t) = (b.scale(x, cold)?, b.scale(t, cold)?);
    let (log_student, log_teacher) = (log_softmax(b, scaled)?, log_softmax(b, t)?);
    let p = b.unary("exp", log_teacher)?;
    let difference = b.sub(log_teacher, log_student)?;
    let part = b.mul(p, difference)?;
    let each = b.reduce_sum(part, &[1], false)?;
    let zeros = b.constant(Tensor::i32([rows], vec![0; rows]));
    let out = b.binary("less", labels, zeros)?;
    let none = b.scalar(0.0);
    let each = b.select(out, none, each)?;
    let sum = b.reduce_sum(each, &[0], false)?;
    let sum = b.scale(sum, form.temperature * form.temperature)?;
    let best = best(b, x)?;
    let hit = b.binary("equal", best, labels)?;
    let hit = b.cast(hit, DType::F32)?;
    let correct = b.reduce_sum(hit, &[0], false)?;
    Ok((sum, Some(correct)))
}
