//! Lion (Chen et al., arXiv 2302.06675, algorithm 2): every parameter moves by the learning rate, in the direction of the sign.

use super::{Hyper, Operands, Optimizer};
use crate::ir::{BuildError, Builder, Value};

pub const OPTIMIZER: Optimizer = Optimizer {
    name: "lion",
    hyper: Hyper { beta2: 0.99, ..Hyper::USUAL },
    takes_momentum: false,
    moments: |_| &["lion.m"],
    scalars,
    update,
};

fn scalars(h: &Hyper, lr: f64, _: u64) -> Vec<(&'static str, f64)> {
    vec![("keep", 1.0 - lr * h.weight_decay), ("lr", lr)]
}

/// `p := (1 - lr · decay) p - lr sign(β₁ m + (1 - β₁) g)`, `m := β₂ m + (1 - β₂) g`
fn update(b: &mut Builder, h: &Hyper, o: &Operands) -> Result<(Value, Vec<Value>), BuildError> {
    let (g, m) = (o.gradients, o.moments[0]);
    let mut blend = |beta: f64| {
        let (old, new) = (b.scale(m, beta)?, b.scale(g, 1.0 - beta)?);
        b.add(old, new)
    };
    let (direction, momentum) = (blend(h.beta1)?, blend(h.beta2)?);
    let sign = b.unary("sign", direction)?;
    let change = b.mul(sign, o.scalar("lr"))?;
    let kept = b.mul(o.parameters, o.scalar("keep"))?;
    Ok((b.sub(kept, change)?, vec![momentum]))
}
