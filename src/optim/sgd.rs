//! Stochastic gradient descent, with momentum if there is any, as PyTorch computes it.

use super::{Hyper, Operands, Optimizer};
use crate::ir::{BuildError, Builder, Value};

pub const OPTIMIZER: Optimizer =
    Optimizer { name: "sgd", hyper: Hyper::USUAL, takes_momentum: true, moments, scalars, update };

fn moments(h: &Hyper) -> &'static [&'static str] {
    if h.momentum == 0.0 { &[] } else { &["sgd.momentum"] }
}

/// Momentum starts as the first gradient, which `μ · 0 + g` is.
fn scalars(_: &Hyper, lr: f64, _: u64) -> Vec<(&'static str, f64)> {
    vec![("lr", lr)]
}

/// `d := g + decay p`, `u := μ u + d`, `p := p - lr u`
fn update(b: &mut Builder, h: &Hyper, o: &Operands) -> Result<(Value, Vec<Value>), BuildError> {
    let mut d = o.gradients;
    if h.weight_decay != 0.0 {
        let pull = b.scale(o.parameters, h.weight_decay)?;
        d = b.add(d, pull)?;
    }
    let mut new = Vec::new();
    if let [u] = o.moments {
        let old = b.scale(*u, h.momentum)?;
        d = b.add(old, d)?;
        new.push(d);
    }
    let change = b.mul(d, o.scalar("lr"))?;
    Ok((b.sub(o.parameters, change)?, new))
}
