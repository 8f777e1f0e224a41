//! Quantised weights. They are frozen; training reads their dequantised values.

use super::{Context, Reason};
use crate::ir::{Type, Value, Weight};
use crate::onnx::Quantised;

type Lowered = Result<Vec<Value>, Reason>;

/// The dequantised weight of the node.
fn weight(c: &mut Context) -> Result<Value, Reason> {
    let stored = Quantised::describe(c.model, c.node).map_err(Reason::Why)?;
    // Codes, scales, zero points and an order of columns: it has read all of them, or refused them.
    c.note_read(0..5);
    let ty = Type::f32(stored.dims.clone());
    let name = stored.name().to_string();
    let revision = c.model.revision(&name);
    // Its codes are read when they are wanted: a plan for another shape needs none of them.
    let (model, node) = (c.model.clone(), c.node.clone());
    let load = move || {
        let stored = Quantised::read(&model, &node).expect("it was read before");
        crate::ir::Tensor::f32(stored.dims.clone(), stored.dequantise())
    };
    Ok(c.b.weight(Weight::new(&name, revision, load), ty))
}

/// `x Wᵀ + bias`, W `[N, K]` in blocks of a few bits.
pub fn mat_mul_n_bits(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let w = weight(c)?;
    let (mut shape, [n, k]) = (c.shape(x), [c.shape(w)[0], c.shape(w)[1]]);
    let rows = shape.elements() / k.max(1);
    let flat = c.b.reshape(x, [rows, k])?;
    let y = c.b.matmul(flat, w, false, true)?;
    let last = shape.len() - 1;
    shape.0[last] = n;
    let mut y = c.b.reshape(y, shape)?;
    if let Some(bias) = c.opt(5) {
        y = c.b.add(y, bias)?;
    }
    Ok(vec![y])
}

/// `(x - zero) × scale`: a weight where the file holds x, arithmetic where x is computed.
pub fn dequantize_linear(c: &mut Context) -> Lowered {
    let Some(x) = c.opt(0) else { return Ok(vec![weight(c)?]) };
    Ok(vec![super::quantise::dequantised(c, x)?])
}

/// Rows of a table that is stored in blocks of a few bits.
pub fn gather_block_quantized(c: &mut Context) -> Lowered {
    let table = weight(c)?;
    let rank = c.shape(table).len();
    let axis = c.axis(c.int("gather_axis", 0), rank)?;
    let indices = c.x(1)?;
    Ok(vec![c.b.gather(table, indices, axis)?])
}
