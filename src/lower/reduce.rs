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

/// A reduction by name. Over no elements at all it gives `empty`.
fn reduced_or(c: &mut Context, op: &str, x: Value, empty: f64) -> Result<Value, Reason> {
    let (axes, keep) = axes(c, x)?;
    reduce_along(c, op, x, &axes, keep, empty)
}

fn reduce_along(c: &mut Context, op: &str, x: Value, axes: &[usize], keep: bool, empty: f64) -> Result<Value, Reason> {
    let shape = c.shape(x);
    if shape.elements() > 0 {
        return Ok(c.b.reduce(op, x, axes, keep)?);
    }
    let kept = (0..shape.len()).filter(|d| keep || !axes.contains(d));
    let out: Vec<usize> = kept.map(|d| if axes.contains(&d) { 1 } else { shape[d] }).collect();
    Ok(c.filled(x, out, empty))
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

/// Booleans are reduced as integers.
fn on_numbers(c: &mut Context, f: impl Fn(&mut Context, Value) -> Result<Value, Reason>) -> Lowered {
    let x = c.x(0)?;
    if c.ty(x).dtype != DType::Bool {
        return Ok(vec![f(c, x)?]);
    }
    let wide = c.b.cast(x, DType::I32)?;
    let y = f(c, wide)?;
    Ok(vec![c.b.cast(y, DType::Bool)?])
}

/// The smallest number of a value's type as the standard has it: booleans have no less than false.
fn least(c: &Context, x: Value) -> f64 {
    let boolean = c.inputs.first().copied().flatten().is_some_and(|v| c.ty(v).dtype == DType::Bool);
    match (boolean, c.ty(x).dtype) {
        (true, _) => 0.0,
        (_, DType::F32) => f64::NEG_INFINITY,
        _ => f64::from(i32::MIN),
    }
}

pub fn reduce_max(c: &mut Context) -> Lowered {
    on_numbers(c, |c, x| {
        let empty = least(c, x);
        reduced_or(c, "reduce_max", x, empty)
    })
}

fn negated(c: &mut Context, x: Value) -> Result<Value, Reason> {
    if c.ty(x).is_float() {
        return Ok(c.b.neg(x)?);
    }
    let zero = c.b.constant(crate::ir::Tensor::i32([], vec![0]));
    Ok(c.b.sub(zero, x)?)
}

pub fn reduce_min(c: &mut Context) -> Lowered {
    on_numbers(c, |c, x| {
        let empty = match (least(c, x), c.ty(x).dtype) {
            (0.0, _) => -1.0,
            (_, DType::F32) => f64::NEG_INFINITY,
            _ => -f64::from(i32::MAX),
        };
        let minus = negated(c, x)?;
        let top = reduced_or(c, "reduce_max", minus, empty)?;
        negated(c, top)
    })
}

pub fn reduce_sum_square(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let square = c.b.mul(x, x)?;
    Ok(vec![reduced(c, "reduce_sum", square)?])
}

/// `√x` for sums that are not negative, whose slope is 0 where they are 0.
pub fn root(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let (zero, one) = (c.b.scalar(0.0), c.b.scalar(1.0));
    let none = c.b.binary("equal", x, zero)?;
    let safe = c.b.select(none, one, x)?;
    let root = c.b.unary("sqrt", safe)?;
    Ok(c.b.select(none, zero, root)?)
}

pub fn reduce_l2(c: &mut Context) -> Lowered {
    let sum = reduce_sum_square(c)?[0];
    if !c.ty(sum).is_float() {
        let wide = c.b.cast(sum, DType::F32)?;
        let norm = c.b.unary("sqrt", wide)?;
        return Ok(vec![c.b.cast(norm, DType::I32)?]);
    }
    Ok(vec![root(c, sum)?])
}

/// `Σ |x|`
pub fn reduce_l1(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let size = super::elementwise::absolute(c, x)?;
    Ok(vec![reduced(c, "reduce_sum", size)?])
}

/// `log Σ x`
pub fn reduce_log_sum(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let sum = reduced(c, "reduce_sum", x)?;
    Ok(vec![c.b.unary("log", sum)?])
}

/// `log Σ e^x`, as `m + log Σ e^(x - m)` with the largest element m where that is finite.
pub fn reduce_log_sum_exp(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let (axes, keep) = axes(c, x)?;
    if c.shape(x).elements() == 0 {
        let sum = c.b.reduce_sum(x, &axes, keep)?;
        return Ok(vec![c.b.unary("log", sum)?]);
    }
    let top = c.b.reduce("reduce_max", x, &axes, true)?;
    let top = c.b.emit("detach", &[top], Attrs::new())?;
    let (size, zero) = (c.b.unary("abs", top)?, c.b.scalar(0.0));
    let infinite = c.b.constant(crate::ir::Tensor::scalar(f32::INFINITY));
    let infinite = c.b.binary("equal", size, infinite)?;
    let top = c.b.select(infinite, zero, top)?;
    let shifted = c.b.sub(x, top)?;
    let e = c.b.unary("exp", shifted)?;
    let sum = c.b.reduce_sum(e, &axes, true)?;
    let log = c.b.unary("log", sum)?;
    let y = c.b.add(log, top)?;
    let shape = c.shape(y);
    let kept: Vec<usize> = (0..shape.len()).filter(|d| keep || !axes.contains(d)).map(|d| shape[d]).collect();
    Ok(vec![c.b.reshape(y, kept)?])
}

/// A product, by halves: neighbours are multiplied until one factor is left.
pub fn reduce_prod(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    let (axes, keep) = axes(c, x)?;
    for &axis in &axes {
        let mut n = c.shape(x)[axis];
        if n == 0 {
            let mut shape = c.shape(x);
            shape.0[axis] = 1;
            x = c.filled(x, shape, 1.0);
        }
        while n > 1 {
            let half = n / 2;
            let (low, high) = (c.b.slice(x, axis, 0, half, 1)?, c.b.slice(x, axis, half, half, 1)?);
            let product = c.b.mul(low, high)?;
            x = match n % 2 {
                0 => product,
                _ => {
                    let last = c.b.slice(x, axis, n - 1, 1, 1)?;
                    c.b.concat(&[product, last], axis)?
                }
            };
            n = half + n % 2;
        }
    }
    if !keep {
        let shape = c.shape(x);
        let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).map(|d| shape[d]).collect();
        x = c.b.reshape(x, kept)?;
    }
    Ok(vec![x])
}

/// The index of the first largest element along an axis, `(outer, inner)`; of the last one if `last`.
fn argmax(c: &mut Context, x: Value, axis: usize, last: bool) -> Result<Value, Reason> {
    let mut flat = c.around(x, axis)?;
    if last {
        flat = c.reversed(flat, 1)?;
    }
    let index = c.b.unary("argmax", flat)?;
    if !last {
        return Ok(index);
    }
    let end = c.integers([], vec![c.shape(x)[axis] as i32 - 1]);
    Ok(c.b.sub(end, index)?)
}

fn extremum(c: &mut Context, x: Value) -> Lowered {
    let shape = c.shape(x);
    let axis = c.axis(c.int("axis", 0), shape.len())?;
    let last = c.int("select_last_index", 0) != 0;
    let index = argmax(c, x, axis, last)?;
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

/// 1 at the first largest element along an axis (over the axes from it on, in old operator sets), 0 elsewhere.
pub fn hardmax(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let old = c.opset() < 13;
    let axis = c.axis(c.int("axis", if old { 1 } else { -1 }), shape.len())?;
    let flat = match old {
        true => c.b.reshape(x, [shape[..axis].iter().product(), shape[axis..].iter().product(), 1])?,
        false => c.around(x, axis)?,
    };
    let [outer, n, inner] = c.shape(flat)[..] else { return Err("needs axes".into()) };
    let top = c.b.unary("argmax", flat)?;
    let top = c.b.reshape(top, [outer, 1, inner])?;
    let places = c.integers([1, n, 1], (0..n as i32).collect());
    let hit = c.b.binary("equal", top, places)?;
    let y = c.b.cast(hit, DType::F32)?;
    Ok(vec![c.b.reshape(y, shape)?])
}

/// `x / ‖x‖` along an axis; where the norm is 0, so is the result.
pub fn lp_normalization(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let axis = c.axis(c.int("axis", -1), c.shape(x).len())?;
    let norm = match c.int("p", 2) {
        1 => {
            let size = c.b.unary("abs", x)?;
            c.b.reduce_sum(size, &[axis], true)?
        }
        2 => {
            let square = c.b.mul(x, x)?;
            let sum = c.b.reduce_sum(square, &[axis], true)?;
            root(c, sum)?
        }
        p => return Err(format!("p = {p} is not a norm that the standard has").into()),
    };
    let (zero, one) = (c.b.scalar(0.0), c.b.scalar(1.0));
    let none = c.b.binary("equal", norm, zero)?;
    let safe = c.b.select(none, one, norm)?;
    Ok(vec![c.b.div(x, safe)?])
}

/// Running products along an axis, by doubling: each step multiplies by what stands `1, 2, 4, ..` places before.
pub fn cum_prod(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axis = c.axis(c.known_ints(1)?.first().copied().unwrap_or(0), shape.len())?;
    let (n, reverse) = (shape[axis], c.int("reverse", 0) != 0);
    let mut y = if reverse { c.reversed(x, axis)? } else { x };
    if c.int("exclusive", 0) != 0 {
        y = c.section(y, axis, -1, n, 1.0)?;
    }
    let mut step = 1;
    while step < n {
        let before = c.section(y, axis, -(step as i64), n, 1.0)?;
        y = c.b.mul(y, before)?;
        step *= 2;
    }
    Ok(vec![if reverse { c.reversed(y, axis)? } else { y }])
}

pub fn cum_sum(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    if c.ty(x).dtype == DType::Bool {
        x = c.b.cast(x, DType::I32)?;
    }
    let shape = c.shape(x);
    let axis = c.axis(c.known_ints(1)?.first().copied().unwrap_or(0), shape.len())?;
    let flat = c.around(x, axis)?;
    let attrs = Attrs::new()
        .with("exclusive", Attr::Bool(c.int("exclusive", 0) != 0))
        .with("reverse", Attr::Bool(c.int("reverse", 0) != 0));
    let sums = c.b.emit("cumsum", &[flat], attrs)?;
    Ok(vec![c.b.reshape(sums, shape)?])
}
