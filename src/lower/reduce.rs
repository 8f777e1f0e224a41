//! Reductions, cumulative sums, and argmax and argmin.

use super::{Context, Reason};
use crate::ir::{Attr, Attrs, DType, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// The axes to reduce, and whether they stay.
fn axes(c: &mut Context, x: Value) -> Result<(Vec<usize>, bool), Reason> {
    let rank = c.shape(x).len();
    let keep = c.int("keepdims", 1) != 0;
    let given = c.ints_of("axes", 1)?.filter(|a| !a.is_empty());
    let axes = match given {
        Some(axes) => c.axes(&axes, rank)?,
        None if c.int("noop_with_empty_axes", 0) != 0 => vec![],
        None => (0..rank).collect(),
    };
    Ok((axes, keep))
}

fn reduced(c: &mut Context, op: &str, x: Value) -> Result<Value, Reason> {
    let (axes, keep) = axes(c, x)?;
    Ok(c.b.reduce(op, x, &axes, keep)?)
}

pub fn reduce_sum(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    Ok(vec![reduced(c, "reduce_sum", x)?])
}

pub fn reduce_mean(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let (axes, keep) = axes(c, x)?;
    let n: usize = axes.iter().map(|&a| c.shape(x)[a]).product();
    let sum = c.b.reduce_sum(x, &axes, keep)?;
    Ok(vec![c.b.scale(sum, 1.0 / n as f64)?])
}

pub fn reduce_max(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    Ok(vec![reduced(c, "reduce_max", x)?])
}

fn negated(c: &mut Context, x: Value) -> Result<Value, Reason> {
    if c.ty(x).is_float() {
        return Ok(c.b.neg(x)?);
    }
    let zero = c.b.constant(crate::ir::Tensor::i32([], vec![0]));
    Ok(c.b.sub(zero, x)?)
}

pub fn reduce_min(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let minus = negated(c, x)?;
    let top = reduced(c, "reduce_max", minus)?;
    Ok(vec![negated(c, top)?])
}

pub fn reduce_sum_square(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let square = c.b.mul(x, x)?;
    Ok(vec![reduced(c, "reduce_sum", square)?])
}

pub fn reduce_l2(c: &mut Context) -> Lowered {
    let sum = reduce_sum_square(c)?[0];
    Ok(vec![c.b.unary("sqrt", sum)?])
}

/// A product along short axes, such as those of shapes.
pub fn reduce_prod(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    let (axes, keep) = axes(c, x)?;
    for &axis in &axes {
        let n = c.shape(x)[axis];
        if n > 64 {
            return Err(format!("a product of {n} factors").into());
        }
        let mut product = c.b.slice(x, axis, 0, 1, 1)?;
        for i in 1..n {
            let factor = c.b.slice(x, axis, i, 1, 1)?;
            product = c.b.mul(product, factor)?;
        }
        x = product;
    }
    if !keep {
        let shape = c.shape(x);
        let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).map(|d| shape[d]).collect();
        x = c.b.reshape(x, kept)?;
    }
    Ok(vec![x])
}

fn extremum(c: &mut Context, x: Value) -> Lowered {
    let shape = c.shape(x);
    let axis = c.axis(c.int("axis", 0), shape.len())?;
    if c.int("select_last_index", 0) != 0 {
        return Err("select_last_index is not supported".into());
    }
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let flat = c.b.reshape(x, [outer, shape[axis], inner])?;
    let index = c.b.unary("argmax", flat)?;
    let mut out = shape.0;
    match c.int("keepdims", 1) != 0 {
        true => out[axis] = 1,
        false => {
            out.remove(axis);
        }
    }
    Ok(vec![c.b.reshape(index, out)?])
}

pub fn arg_max(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    extremum(c, x)
}

pub fn arg_min(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let minus = negated(c, x)?;
    extremum(c, minus)
}

pub fn cum_sum(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    if c.ty(x).dtype == DType::Bool {
        x = c.b.cast(x, DType::I32)?;
    }
    let shape = c.shape(x);
    let axis = c.axis(c.known_ints(1)?.first().copied().unwrap_or(0), shape.len())?;
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let flat = c.b.reshape(x, [outer, shape[axis], inner])?;
    let attrs = Attrs::new()
        .with("exclusive", Attr::Bool(c.int("exclusive", 0) != 0))
        .with("reverse", Attr::Bool(c.int("reverse", 0) != 0));
    let sums = c.b.emit("cumsum", &[flat], attrs)?;
    Ok(vec![c.b.reshape(sums, shape)?])
}
