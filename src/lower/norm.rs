//! Normalisation over axes: softmax, layer norm and their kin.

use super::{Context, Reason};
use crate::ir::{Attr, Attrs, Tensor, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// Runs `f` on `x` as `(R, N)` over the axes from `axis` on (all of them, in old operator sets) or over `axis` alone.
fn over_axis(c: &mut Context, f: impl Fn(&mut Context, Value) -> Result<Value, Reason>) -> Result<Value, Reason> {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let rank = shape.len();
    let old = c.opset() < 13;
    let axis = c.axis(c.int("axis", if old { 1 } else { -1 }), rank)?;
    if old {
        let n: usize = shape[axis..].iter().product();
        let flat = c.b.reshape(x, [shape.elements() / n.max(1), n])?;
        let y = f(c, flat)?;
        return Ok(c.b.reshape(y, shape)?);
    }
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(axis, rank - 1);
    let last = c.b.transpose(x, &perm)?;
    let moved = c.shape(last);
    let flat = c.rows(last)?;
    let y = f(c, flat)?;
    let y = c.b.reshape(y, moved)?;
    Ok(c.b.transpose(y, &perm)?)
}

pub fn softmax(c: &mut Context) -> Lowered {
    Ok(vec![over_axis(c, |c, x| Ok(c.b.unary("softmax", x)?))?])
}

/// `x - max - log Σ e^(x - max)`
pub fn log_softmax(c: &mut Context) -> Lowered {
    Ok(vec![over_axis(c, log_softmax_rows)?])
}

pub fn log_softmax_rows(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let top = c.b.reduce("reduce_max", x, &[1], true)?;
    let shifted = c.b.sub(x, top)?;
    let e = c.b.unary("exp", shifted)?;
    let sum = c.b.reduce_sum(e, &[1], true)?;
    let log = c.b.unary("log", sum)?;
    Ok(c.b.sub(shifted, log)?)
}

/// `x` as `(R, N)` over the axes from `axis` on, and a scale or bias flattened to `(N)`; a missing one is `fill`.
fn rows_from(c: &mut Context, axis: i64) -> Result<(Value, usize), Reason> {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axis = c.axis(axis, shape.len())?;
    let n: usize = shape[axis..].iter().product();
    Ok((c.b.reshape(x, [shape.elements() / n.max(1), n])?, n))
}

fn row(c: &mut Context, v: Option<Value>, n: usize, fill: f32) -> Result<Value, Reason> {
    let Some(v) = v else { return Ok(c.b.constant(Tensor::f32([n], vec![fill; n]))) };
    let wide = match c.shape(v).elements() {
        1 if n != 1 => {
            let one = c.b.reshape(v, [1])?;
            c.b.broadcast(one, [n])?
        }
        _ => v,
    };
    Ok(c.b.reshape(wide, [n])?)
}

pub fn layer_normalization(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let (flat, n) = rows_from(c, c.int("axis", -1))?;
    let (gain, bias) = (row(c, c.opt(1), n, 1.0)?, row(c, c.opt(2), n, 0.0)?);
    let attrs = Attrs::new().with("eps", Attr::Float(c.float("epsilon", 1e-5) as f64));
    if c.node.outputs().iter().skip(1).any(|o| !o.is_empty()) {
        return Err("its mean and deviation as outputs are not supported".into());
    }
    let y = c.b.emit("layer_norm", &[flat, gain, bias], attrs)?;
    Ok(vec![c.b.reshape(y, shape)?])
}

fn rms(c: &mut Context, axis: i64, epsilon: f32) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let (flat, n) = rows_from(c, axis)?;
    let gain = row(c, c.opt(1), n, 1.0)?;
    let attrs = Attrs::new().with("eps", Attr::Float(epsilon as f64));
    if c.node.outputs().iter().skip(1).any(|o| !o.is_empty()) {
        return Err("its deviation as an output is not supported".into());
    }
    let y = c.b.emit("rms_norm", &[flat, gain], attrs)?;
    Ok(vec![c.b.reshape(y, shape)?])
}

pub fn rms_normalization(c: &mut Context) -> Lowered {
    rms(c, c.int("axis", -1), c.float("epsilon", 1e-5))
}

/// ONNX Runtime's name for the same, in either domain.
pub fn simplified_layer_normalization(c: &mut Context) -> Lowered {
    rms(c, c.int("axis", -1), c.float("epsilon", 1e-5))
}
