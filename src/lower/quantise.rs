//! Operators of quantised models. Their integers are computed as floats, which hold every one of up to 24 bits, so that a gradient
//! passes rounding straight through, and is zero where a value saturates. Sums of products are as exact as floats.

use super::conv::convolve;
use super::linear::product;
use super::{Context, Reason, integer_types};
use crate::ir::{Attrs, DType, Shape, Value};
use crate::onnx::ElementType;

type Lowered = Result<Vec<Value>, Reason>;

/// The least and the greatest number of a quantised type.
fn range(element: ElementType) -> Option<(f64, f64)> {
    Some(match element {
        ElementType::U4 => (0.0, 15.0),
        ElementType::I4 => (-8.0, 7.0),
        ElementType::U8 => (0.0, 255.0),
        ElementType::I8 => (-128.0, 127.0),
        ElementType::U16 => (0.0, 65_535.0),
        ElementType::I16 => (-32_768.0, 32_767.0),
        _ => return None,
    })
}

/// The type of an input, where it is known.
fn element(c: &Context, input: usize) -> Option<ElementType> {
    let name = c.node.input(input).filter(|n| !n.is_empty())?;
    integer_types::of(c.model, name, c.elements)
}

/// A scale or zero point as it broadcasts to `x`: one for all, one for each place of an axis, or one for each block along it.
pub fn spread(c: &mut Context, v: Value, x: &Shape, axis: i64, block: usize) -> Result<Value, Reason> {
    let own = c.shape(v);
    if own.elements() == 1 {
        return Ok(c.b.reshape(v, [])?);
    }
    let axis = c.axis(axis, x.len())?;
    if block == 0 {
        let mut wide = vec![1; x.len()];
        wide[axis] = own.elements();
        if own.len() > 1 || own.elements() != x[axis] {
            return Err(format!("{own} scales along axis {axis} of {x}").into());
        }
        return Ok(c.b.reshape(v, wide)?);
    }
    if own.len() != x.len() || own[axis] * block < x[axis] {
        return Err(format!("{own} scales for blocks of {block} along axis {axis} of {x}").into());
    }
    let (before, after) = (&own[..axis], &own[axis + 1..]);
    let apart = c.b.reshape(v, [before, &[own[axis], 1], after].concat())?;
    let wide = c.b.broadcast(apart, [before, &[own[axis], block], after].concat())?;
    let wide = c.b.reshape(wide, [before, &[own[axis] * block], after].concat())?;
    Ok(c.b.slice(wide, axis, 0, x[axis], 1)?)
}

/// `round(x)` with the slope 1: the difference of x and itself without a gradient is 0, and exactly so within these bounds.
fn rounded(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let (low, high) = (c.b.scalar(-1e9), c.b.scalar(1e9));
    let x = c.b.binary("max", x, low)?;
    let x = c.b.binary("min", x, high)?;
    let (whole, still) = (c.b.unary("round", x)?, c.b.emit("detach", &[x], Attrs::new())?);
    let none = c.b.sub(x, still)?;
    Ok(c.b.add(whole, none)?)
}

/// `round(x) + zero`, within the range of a type.
fn saturated(c: &mut Context, x: Value, zero: Option<Value>, element: ElementType) -> Result<Value, Reason> {
    let (low, high) = range(element).ok_or_else(|| format!("quantising to {element} is not supported"))?;
    let mut y = rounded(c, x)?;
    if let Some(zero) = zero {
        let zero = c.b.cast(zero, DType::F32)?;
        y = c.b.add(y, zero)?;
    }
    let (low, high) = (c.b.scalar(low), c.b.scalar(high));
    let y = c.b.binary("max", y, low)?;
    Ok(c.b.binary("min", y, high)?)
}

/// `x` less its zero point, as floats.
fn centred(c: &mut Context, x: Value, zero: Option<Value>) -> Result<Value, Reason> {
    let x = c.b.cast(x, DType::F32)?;
    let Some(zero) = zero else { return Ok(x) };
    let zero = c.b.cast(zero, DType::F32)?;
    Ok(c.b.sub(x, zero)?)
}

/// `saturate(round(x / scale) + zero)`
pub fn quantize_linear(c: &mut Context) -> Lowered {
    let (x, scale) = (c.x(0)?, c.x(1)?);
    let given = c.int("output_dtype", 0);
    let to = match (element(c, 2), given) {
        (Some(element), _) => element,
        (None, 0) => ElementType::U8,
        (None, n) => ElementType::from_number(n as i32),
    };
    let (shape, axis, block) = (c.shape(x), c.int("axis", 1), c.int("block_size", 0).max(0) as usize);
    let x = c.b.cast(x, DType::F32)?;
    let scale = c.b.cast(scale, DType::F32)?;
    let scale = spread(c, scale, &shape, axis, block)?;
    let x = c.b.div(x, scale)?;
    let zero = match c.opt(2) {
        Some(zero) => Some(spread(c, zero, &shape, axis, block)?),
        None => None,
    };
    if let Some(format) = super::float8::Format::of(to) {
        return Ok(vec![super::float8::rounded(c, x, format, c.int("saturate", 1) != 0)?]);
    }
    Ok(vec![saturated(c, x, zero, to)?])
}

/// `(x - zero) scale` of a computed value.
pub fn dequantised(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let shape = c.shape(x);
    let (axis, block) = (c.int("axis", 1), c.int("block_size", 0).max(0) as usize);
    let scale = c.x(1)?;
    let zero = match c.opt(2) {
        Some(zero) => Some(spread(c, zero, &shape, axis, block)?),
        None => None,
    };
    let x = centred(c, x, zero)?;
    let scale = spread(c, scale, &shape, axis, block)?;
    Ok(c.b.mul(x, scale)?)
}

/// A scale and a zero point of 8 bits for what a value ranges over, zero included, and the value quantised by them. Neither has a
/// gradient of its own.
fn dynamic(c: &mut Context, x: Value) -> Result<[Value; 3], Reason> {
    let rank = c.shape(x).len();
    let axes: Vec<usize> = (0..rank).collect();
    let still = c.b.emit("detach", &[x], Attrs::new())?;
    let (minus, zero, one) = (c.b.neg(still)?, c.b.scalar(0.0), c.b.scalar(1.0));
    let (high, low) = (c.b.reduce("reduce_max", still, &axes, false)?, c.b.reduce("reduce_max", minus, &axes, false)?);
    let (high, below) = (c.b.binary("max", high, zero)?, c.b.binary("max", low, zero)?);
    let span = c.b.add(high, below)?;
    let most = c.b.scalar(255.0);
    let scale = c.b.div(span, most)?;
    let none = c.b.binary("equal", scale, zero)?;
    let scale = c.b.select(none, one, scale)?;
    let point = c.b.div(below, scale)?;
    let point = saturated(c, point, None, ElementType::U8)?;
    let scaled = c.b.div(x, scale)?;
    Ok([saturated(c, scaled, Some(point), ElementType::U8)?, scale, point])
}

pub fn dynamic_quantize_linear(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    Ok(dynamic(c, x)?.to_vec())
}

/// A zero point or scale of the left operand: one, or one for each row.
fn by_row(c: &mut Context, v: Value) -> Result<Value, Reason> {
    match c.shape(v)[..] {
        [n] if n != 1 => Ok(c.b.reshape(v, [n, 1])?),
        [1] => Ok(c.b.reshape(v, [])?),
        _ => Ok(v),
    }
}

/// `(a - zero a)(b - zero b)`
fn integer_product(c: &mut Context, a: (Value, Option<Value>), b: (Value, Option<Value>)) -> Result<Value, Reason> {
    let row = match a.1 {
        Some(zero) => Some(by_row(c, zero)?),
        None => None,
    };
    let (a, b) = (centred(c, a.0, row)?, centred(c, b.0, b.1)?);
    product(c.b, a, b)
}

pub fn mat_mul_integer(c: &mut Context) -> Lowered {
    let (a, b) = ((c.x(0)?, c.opt(2)), (c.x(1)?, c.opt(3)));
    Ok(vec![integer_product(c, a, b)?])
}

pub fn q_linear_mat_mul(c: &mut Context) -> Lowered {
    let to = element(c, 7).or(element(c, 0)).ok_or("the type of its result is not known")?;
    let (a, b) = ((c.x(0)?, c.opt(2)), (c.x(3)?, c.opt(5)));
    let y = integer_product(c, a, b)?;
    let (sa, sb, sy) = (c.x(1)?, c.x(4)?, c.x(6)?);
    let sa = by_row(c, sa)?;
    let scale = c.b.mul(sa, sb)?;
    let scale = c.b.div(scale, sy)?;
    let y = c.b.mul(y, scale)?;
    let zero = c.opt(7);
    Ok(vec![saturated(c, y, zero, to)?])
}

/// A scale or zero point of kernels: one, or one for each.
fn by_kernel(c: &mut Context, v: Value, rank: usize) -> Result<Value, Reason> {
    match c.shape(v).elements() {
        1 => Ok(c.b.reshape(v, [])?),
        n => Ok(c.b.reshape(v, [&[n][..], &vec![1; rank - 1]].concat())?),
    }
}

pub fn conv_integer(c: &mut Context) -> Lowered {
    let (x, w) = (c.x(0)?, c.x(1)?);
    let rank = c.shape(w).len();
    let zero = match c.opt(3) {
        Some(zero) => Some(by_kernel(c, zero, rank)?),
        None => None,
    };
    let (x, w) = (centred(c, x, c.opt(2))?, centred(c, w, zero)?);
    Ok(vec![convolve(c, x, w, None)?])
}

pub fn q_linear_conv(c: &mut Context) -> Lowered {
    let to = element(c, 7).ok_or("the type of its result is not known")?;
    if c.int("channels_last", 0) != 0 {
        return Err("channels at the end are not supported".into());
    }
    let (x, w) = (c.x(0)?, c.x(3)?);
    let rank = c.shape(w).len();
    let zero = c.x(5)?;
    let zero = by_kernel(c, zero, rank)?;
    let (x, w) = (centred(c, x, c.opt(2))?, centred(c, w, Some(zero))?);
    let bias = match c.opt(8) {
        Some(bias) => Some(c.b.cast(bias, DType::F32)?),
        None => None,
    };
    let y = convolve(c, x, w, bias)?;
    let (sx, sw, sy) = (c.x(1)?, c.x(4)?, c.x(6)?);
    let sw = by_kernel(c, sw, rank - 1)?;
    let scale = c.b.mul(sx, sw)?;
    let scale = c.b.div(scale, sy)?;
    let y = c.b.mul(y, scale)?;
    let zero = c.opt(7);
    Ok(vec![saturated(c, y, zero, to)?])
}

/// ONNX Runtime's product of quantised operands, scaled, with a bias.
pub fn mat_mul_integer_to_float(c: &mut Context) -> Lowered {
    let (a, b) = ((c.x(0)?, c.opt(4)), (c.x(1)?, c.opt(5)));
    let y = integer_product(c, a, b)?;
    let (sa, sb, bias) = (c.x(2)?, c.x(3)?, c.opt(6));
    scaled(c, y, sa, sb, bias)
}

/// The same, the left operand being quantised on the way.
pub fn dynamic_quantize_mat_mul(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let [q, scale, zero] = dynamic(c, x)?;
    let b = (c.x(1)?, c.opt(3));
    let y = integer_product(c, (q, Some(zero)), b)?;
    let (sb, bias) = (c.x(2)?, c.opt(4));
    scaled(c, y, scale, sb, bias)
}

fn scaled(c: &mut Context, y: Value, sa: Value, sb: Value, bias: Option<Value>) -> Lowered {
    let sa = by_row(c, sa)?;
    let scale = c.b.mul(sa, sb)?;
    let mut y = c.b.mul(y, scale)?;
    if let Some(bias) = bias {
        y = c.b.add(y, bias)?;
    }
    Ok(vec![y])
}

/// A quantised input: its value at `i`, its scale and zero point after it.
fn input(c: &mut Context, i: usize) -> Result<Value, Reason> {
    let x = c.x(i)?;
    let x = centred(c, x, c.opt(i + 2))?;
    let scale = c.x(i + 1)?;
    Ok(c.b.mul(x, scale)?)
}

/// A result quantised by the scale at `i` and the zero point after it, of whose type it is.
fn output(c: &mut Context, y: Value, i: usize) -> Lowered {
    let to = element(c, i + 1).or(element(c, 0)).ok_or("the type of its result is not known")?;
    let scale = c.x(i)?;
    let y = c.b.div(y, scale)?;
    let zero = c.opt(i + 1);
    Ok(vec![saturated(c, y, zero, to)?])
}

fn q_linear_binary(c: &mut Context, op: &str) -> Lowered {
    let (a, b) = (input(c, 0)?, input(c, 3)?);
    let y = c.b.binary(op, a, b)?;
    output(c, y, 6)
}

pub fn q_linear_add(c: &mut Context) -> Lowered {
    q_linear_binary(c, "add")
}

pub fn q_linear_mul(c: &mut Context) -> Lowered {
    q_linear_binary(c, "mul")
}

pub fn q_linear_sigmoid(c: &mut Context) -> Lowered {
    let x = input(c, 0)?;
    let y = c.b.unary("sigmoid", x)?;
    output(c, y, 3)
}

pub fn q_linear_leaky_relu(c: &mut Context) -> Lowered {
    let x = input(c, 0)?;
    let y = super::elementwise::leaky_relu_of(c, x, c.float("alpha", 0.01))?;
    output(c, y, 3)
}

/// Quantised inputs, each with its own scale, one after the other.
pub fn q_linear_concat(c: &mut Context) -> Lowered {
    let mut parts = Vec::new();
    for i in (2..c.inputs.len()).step_by(3) {
        parts.push(input(c, i)?);
    }
    let rank = c.shape(*parts.first().ok_or("nothing to join")?).len();
    let axis = c.axis(c.int("axis", 0), rank)?;
    let y = c.b.concat(&parts, axis)?;
    output(c, y, 0)
}

/// `alpha A' B' + C` of quantised operands; a float where no scale of the result is given.
pub fn q_gemm(c: &mut Context) -> Lowered {
    let (a, b) = (c.x(0)?, c.x(3)?);
    let (a, b) = (centred(c, a, c.opt(2))?, centred(c, b, c.opt(5))?);
    let (ta, tb) = (c.int("transA", 0) != 0, c.int("transB", 0) != 0);
    let mut y = c.b.matmul(a, b, ta, tb)?;
    // The bias is of the product's scale, before alpha.
    if let Some(bias) = c.opt(6) {
        let bias = c.b.cast(bias, DType::F32)?;
        y = c.b.add(y, bias)?;
    }
    let (sa, sb) = (c.x(1)?, c.x(4)?);
    let scale = c.b.mul(sa, sb)?;
    let scale = c.b.scale(scale, c.float("alpha", 1.0) as f64)?;
    let y = c.b.mul(y, scale)?;
    if c.opt(7).is_none() { Ok(vec![y]) } else { output(c, y, 7) }
}
