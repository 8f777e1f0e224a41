//! Dropout: active only in training.

use super::{Context, Reason};
use crate::ir::inputs::SEED;
use crate::ir::{Attr, Attrs, Tensor, Type, Value, build::ints};

pub fn dropout(c: &mut Context) -> Result<Vec<Value>, Reason> {
    let x = c.x(0)?;
    let ratio = match c.node.attr_float("ratio") {
        Some(r) => r,
        None => c.known_float(1)?.unwrap_or(0.5),
    };
    if !(0.0..1.0).contains(&ratio) {
        return Err(format!("ratio {ratio} must be at least 0 and below 1").into());
    }
    let shape = c.shape(x);
    let all = |c: &mut Context| c.b.constant(Tensor::bool(shape.clone(), vec![1; shape.elements()]));
    let masked = c.node.outputs().len() > 1;
    if !c.training || ratio == 0.0 {
        return Ok(if masked { vec![x, all(c)] } else { vec![x] });
    }
    if masked && !c.node.outputs()[1].is_empty() {
        return Err("its mask as an output is not supported in training".into());
    }
    let seed = c.b.input(SEED, Type::i32([]));
    let attrs =
        Attrs::new().with("shape", ints(&shape)).with("p", Attr::Float(ratio as f64)).with("key", Attr::Int(c.key));
    let mask = c.b.emit("dropout_mask", &[seed], attrs)?;
    Ok(vec![c.b.mul(x, mask)?])
}
