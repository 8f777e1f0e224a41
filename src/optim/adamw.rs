//! AdamW (Loshchilov and Hutter, arXiv 1711.05101), as PyTorch computes it.

use super::{Hyper, Operands, Optimizer};
use crate::ir::{BuildError, Builder, Value};

pub const OPTIMIZER: Optimizer = Optimizer {
    name: "adamw",
    hyper: Hyper::USUAL,
    takes_momentum: false,
    moments: |_| &["adamw.m", "adamw.v"],
    scalars,
    update,
};

/// With `cᵢ = 1 - βᵢ^step`: `1 - lr · decay`, `lr / c₁` and `1 / √c₂`.
fn scalars(h: &Hyper, lr: f64, step: u64) -> Vec<(&'static str, f64)> {
    let correction = |beta: f64| 1.0 - beta.powf(step as f64);
    vec![
        ("keep", 1.0 - lr * h.weight_decay),
        ("step_size", lr / correction(h.beta1)),
        ("root_scale", 1.0 / correction(h.beta2).sqrt()),
    ]
}

/// `m := β₁ m + (1 - β₁) g`, `v := β₂ v + (1 - β₂) g²`, `p := keep p - step_size m / (√v root_scale + eps)`
fn update(b: &mut Builder, h: &Hyper, o: &Operands) -> Result<(Value, Vec<Value>), BuildError> {
    let (g, m, v) = (o.gradients, o.moments[0], o.moments[1]);
    let m = {
        let (old, new) = (b.scale(m, h.beta1)?, b.scale(g, 1.0 - h.beta1)?);
        b.add(old, new)?
    };
    let v = {
        let square = b.mul(g, g)?;
        let (old, new) = (b.scale(v, h.beta2)?, b.scale(square, 1.0 - h.beta2)?);
        b.add(old, new)?
    };
    let root = b.unary("sqrt", v)?;
    let scaled = b.mul(root, o.scalar("root_scale"))?;
    let eps = b.scalar(h.eps);
    let denominator = b.add(scaled, eps)?;
    let direction = b.div(m, denominator)?;
    let change = b.mul(direction, o.scalar("step_size"))?;
    let kept = b.mul(o.parameters, o.scalar("keep"))?;
    Ok((b.sub(kept, change)?, vec![m, v]))
}
