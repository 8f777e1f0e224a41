//! Elementwise operators.

use super::context::dtype;
use super::{Context, Reason, integer_types};
use crate::ir::{Attrs, DType, Value};
use crate::onnx::{DETACH_KEY, ElementType};

type Lowered = Result<Vec<Value>, Reason>;

fn unary(c: &mut Context, op: &str) -> Lowered {
    let x = c.x(0)?;
    Ok(vec![c.b.unary(op, x)?])
}

fn binary(c: &mut Context, op: &str) -> Lowered {
    let (x, y) = (c.x(0)?, c.x(1)?);
    Ok(vec![c.b.binary(op, x, y)?])
}

/// Operators that are one primitive.
macro_rules! one_primitive {
    ($($name:ident = $kind:ident $op:literal;)*) => {
        $(pub fn $name(c: &mut Context) -> Lowered { $kind(c, $op) })*
    };
}

one_primitive! {
    add = binary "add";
    and = binary "and";
    ceil = unary "ceil";
    cos = unary "cos";
    equal = binary "equal";
    erf = unary "erf";
    exp = unary "exp";
    floor = unary "floor";
    is_nan = unary "is_nan";
    less = binary "less";
    less_or_equal = binary "less_equal";
    log = unary "log";
    not = unary "not";
    or = binary "or";
    reciprocal = unary "reciprocal";
    round = unary "round";
    sigmoid = unary "sigmoid";
    sin = unary "sin";
    sqrt = unary "sqrt";
    sub = binary "sub";
    tanh = unary "tanh";
    xor = binary "xor";
}

pub fn identity(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    // An adapter's own mark: other runtimes, which compute no gradient, pass it by.
    if c.node.metadata(DETACH_KEY).is_some() {
        return Ok(vec![c.b.emit("detach", &[x], Attrs::new())?]);
    }
    Ok(vec![x])
}

pub fn mul(c: &mut Context) -> Lowered {
    let (x, y) = (c.x(0)?, c.x(1)?);
    Ok(vec![c.b.mul(x, y)?])
}

/// Division by one known number is a product.
pub fn div(c: &mut Context) -> Lowered {
    let (x, y) = (c.x(0)?, c.x(1)?);
    Ok(vec![c.b.div(x, y)?])
}

fn on_floats(c: &mut Context, x: Value, f: impl Fn(&mut Context, Value) -> Result<Value, Reason>) -> Lowered {
    if c.ty(x).is_float() {
        return Ok(vec![f(c, x)?]);
    }
    let wide = c.b.cast(x, DType::F32)?;
    let y = f(c, wide)?;
    Ok(vec![c.b.cast(y, DType::I32)?])
}

pub fn neg(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    if c.ty(x).is_float() {
        return unary(c, "neg");
    }
    let zero = c.b.constant(crate::ir::Tensor::i32([], vec![0]));
    Ok(vec![c.b.sub(zero, x)?])
}

pub fn abs(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    Ok(vec![absolute(c, x)?])
}

/// `|x|` of floats or integers.
pub fn absolute(c: &mut Context, x: Value) -> Result<Value, Reason> {
    Ok(on_floats(c, x, |c, x| Ok(c.b.unary("abs", x)?))?[0])
}

pub fn sign(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    on_floats(c, x, |c, x| Ok(c.b.unary("sign", x)?))
}

pub fn greater(c: &mut Context) -> Lowered {
    let (x, y) = (c.x(0)?, c.x(1)?);
    Ok(vec![c.b.binary("less", y, x)?])
}

pub fn greater_or_equal(c: &mut Context) -> Lowered {
    let (x, y) = (c.x(0)?, c.x(1)?);
    Ok(vec![c.b.binary("less_equal", y, x)?])
}

pub fn where_(c: &mut Context) -> Lowered {
    let (condition, x, y) = (c.x(0)?, c.x(1)?, c.x(2)?);
    if c.ty(x).dtype == DType::Bool {
        // x if c else y, on booleans.
        let no = c.b.unary("not", condition)?;
        let yes = c.b.binary("and", condition, x)?;
        let no = c.b.binary("and", no, y)?;
        return Ok(vec![c.b.binary("or", yes, no)?]);
    }
    Ok(vec![c.b.select(condition, x, y)?])
}

fn cast_to(c: &mut Context, x: Value, to: ElementType) -> Lowered {
    if let Some(format) = super::float8::Format::of(to) {
        return Ok(vec![super::float8::rounded(c, x, format, c.int("saturate", 1) != 0)?]);
    }
    let narrow = integer_types::narrow(to);
    let to = dtype(to).ok_or_else(|| format!("{to} is not supported"))?;
    if let (Some(range), DType::I32) = (narrow, c.ty(x).dtype) {
        return Ok(vec![integer_types::wrap(c.b, x, range)?]);
    }
    Ok(vec![c.b.cast(x, to)?])
}

pub fn cast(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let to = c.node.attr_int("to").ok_or("needs the attribute 'to'")?;
    cast_to(c, x, ElementType::from_number(to as i32))
}

pub fn cast_like(c: &mut Context) -> Lowered {
    let (x, like) = (c.x(0)?, c.x(1)?);
    let name = c.node.input(1).unwrap_or_default();
    if let Some(to) = integer_types::of(c.model, name, c.elements) {
        return cast_to(c, x, to);
    }
    let to = c.ty(like).dtype;
    Ok(vec![c.b.cast(x, to)?])
}

/// A known whole exponent becomes products, which are right for negative bases and have a gradient at zero.
pub fn pow(c: &mut Context) -> Lowered {
    let (x, mut y) = (c.x(0)?, c.x(1)?);
    if !c.ty(x).is_float() {
        let (wide, exponent) = (c.b.cast(x, DType::F32)?, c.b.cast(y, DType::F32)?);
        let z = c.b.binary("pow", wide, exponent)?;
        let rounded = c.b.unary("round", z)?;
        return Ok(vec![c.b.cast(rounded, DType::I32)?]);
    }
    y = c.b.cast(y, DType::F32)?;
    let exponent =
        if c.shape(y).elements() == 1 && c.shape(y).len() <= c.shape(x).len() { c.b.graph.splat(y) } else { None };
    let z = match exponent {
        Some(p) => power(c, x, f64::from(p))?,
        None => c.b.binary("pow", x, y)?,
    };
    Ok(vec![z])
}

/// `x` to a known power.
pub fn power(c: &mut Context, x: Value, exponent: f64) -> Result<Value, Reason> {
    Ok(match Some(exponent) {
        Some(1.0) => x,
        Some(2.0) => c.b.mul(x, x)?,
        Some(3.0) => {
            let square = c.b.mul(x, x)?;
            c.b.mul(x, square)?
        }
        Some(4.0) => {
            let square = c.b.mul(x, x)?;
            c.b.mul(square, square)?
        }
        Some(0.5) => c.b.unary("sqrt", x)?,
        Some(-1.0) => c.b.unary("reciprocal", x)?,
        Some(-0.5) => {
            let root = c.b.unary("sqrt", x)?;
            c.b.unary("reciprocal", root)?
        }
        _ => {
            let exponent = c.b.scalar(exponent);
            c.b.binary("pow", x, exponent)?
        }
    })
}

/// The remainder with the sign of the divisor (integers), or under `fmod` with that of the dividend.
pub fn modulo(c: &mut Context) -> Lowered {
    let (x, y) = (c.x(0)?, c.x(1)?);
    match (c.ty(x).dtype, c.int("fmod", 0) != 0) {
        (DType::F32, false) => floored(c, x, y),
        (DType::F32, true) | (_, false) => binary(c, "modulo"),
        (_, true) => {
            let whole = c.b.div(x, y)?;
            let part = c.b.mul(whole, y)?;
            Ok(vec![c.b.sub(x, part)?])
        }
    }
}

/// The remainder of floats with the sign of the divisor: that with the dividend's sign, and the divisor where the signs differ.
fn floored(c: &mut Context, x: Value, y: Value) -> Lowered {
    let rest = c.b.binary("modulo", x, y)?;
    let zero = c.b.scalar(0.0);
    let (under, divisor) = (c.b.binary("less", rest, zero)?, c.b.binary("less", y, zero)?);
    let apart = c.b.binary("xor", under, divisor)?;
    let none = c.b.binary("equal", rest, zero)?;
    let some = c.b.unary("not", none)?;
    let apart = c.b.binary("and", apart, some)?;
    let raised = c.b.add(rest, y)?;
    Ok(vec![c.b.select(apart, raised, rest)?])
}

/// Folds any number of inputs.
fn fold(c: &mut Context, op: &str) -> Result<Value, Reason> {
    let mut sum = c.x(0)?;
    for i in 1..c.inputs.len() {
        let x = c.x(i)?;
        sum = c.b.binary(op, sum, x)?;
    }
    Ok(sum)
}

pub fn max(c: &mut Context) -> Lowered {
    Ok(vec![fold(c, "max")?])
}

pub fn min(c: &mut Context) -> Lowered {
    Ok(vec![fold(c, "min")?])
}

pub fn sum(c: &mut Context) -> Lowered {
    Ok(vec![fold(c, "add")?])
}

pub fn mean(c: &mut Context) -> Lowered {
    let (sum, n) = (fold(c, "add")?, c.inputs.len());
    Ok(vec![c.b.scale(sum, 1.0 / n as f64)?])
}

pub fn relu(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let zero = c.number(x, 0.0);
    Ok(vec![c.b.binary("max", x, zero)?])
}

pub fn clip(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    let bound = |c: &mut Context, name: &str, i: usize| match c.node.attr_float(name) {
        Some(v) => Some(c.b.scalar(v as f64)),
        None => c.opt(i),
    };
    if let Some(low) = bound(c, "min", 1) {
        x = c.b.binary("max", x, low)?;
    }
    if let Some(high) = bound(c, "max", 2) {
        x = c.b.binary("min", x, high)?;
    }
    Ok(vec![x])
}

pub fn leaky_relu(c: &mut Context) -> Lowered {
    let (x, slope) = (c.x(0)?, c.float("alpha", 0.01));
    Ok(vec![leaky_relu_of(c, x, slope)?])
}

/// `x` where positive, else `slope x`
pub fn leaky_relu_of(c: &mut Context, x: Value, slope: f32) -> Result<Value, Reason> {
    let zero = c.b.scalar(0.0);
    let (negative, scaled) = (c.b.binary("less", x, zero)?, c.b.scale(x, slope as f64)?);
    Ok(c.b.select(negative, scaled, x)?)
}

pub fn elu(c: &mut Context) -> Lowered {
    let (x, alpha) = (c.x(0)?, c.float("alpha", 1.0));
    Ok(vec![elu_of(c, x, alpha)?])
}

/// `x` where positive, else `alpha (eˣ - 1)`
pub fn elu_of(c: &mut Context, x: Value, alpha: f32) -> Result<Value, Reason> {
    let (zero, one) = (c.b.scalar(0.0), c.b.scalar(1.0));
    let negative = c.b.binary("less", x, zero)?;
    // Where the result is not taken, e^x must not overflow, or its gradient would be infinite times zero.
    let low = c.b.binary("min", x, zero)?;
    let e = c.b.unary("exp", low)?;
    let shifted = c.b.sub(e, one)?;
    let scaled = c.b.scale(shifted, alpha as f64)?;
    Ok(c.b.select(negative, scaled, x)?)
}

pub fn softplus(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    Ok(vec![softplus_of(c, x)?])
}

/// `log(1 + eˣ)`, as `max(x, 0) + log(1 + e^-|x|)`
pub fn softplus_of(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let (zero, one) = (c.b.scalar(0.0), c.b.scalar(1.0));
    let top = c.b.binary("max", x, zero)?;
    let size = c.b.unary("abs", x)?;
    let minus = c.b.neg(size)?;
    let e = c.b.unary("exp", minus)?;
    let inner = c.b.add(one, e)?;
    let log = c.b.unary("log", inner)?;
    Ok(c.b.add(top, log)?)
}

pub fn hard_sigmoid_of(c: &mut Context, x: Value, alpha: f32, beta: f32) -> Result<Value, Reason> {
    let (zero, one, shift) = (c.b.scalar(0.0), c.b.scalar(1.0), c.b.scalar(beta as f64));
    let scaled = c.b.scale(x, alpha as f64)?;
    let line = c.b.add(scaled, shift)?;
    let low = c.b.binary("max", line, zero)?;
    Ok(c.b.binary("min", low, one)?)
}

pub fn hard_sigmoid(c: &mut Context) -> Lowered {
    let (x, alpha, beta) = (c.x(0)?, c.float("alpha", 0.2), c.float("beta", 0.5));
    Ok(vec![hard_sigmoid_of(c, x, alpha, beta)?])
}

pub fn hard_swish(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let gate = hard_sigmoid_of(c, x, 1.0 / 6.0, 0.5)?;
    Ok(vec![c.b.mul(x, gate)?])
}

pub fn gelu(c: &mut Context) -> Lowered {
    match c.node.attr_str("approximate").as_deref() {
        None | Some("none") => unary(c, "gelu"),
        Some("tanh") => unary(c, "gelu_tanh"),
        Some(other) => Err(format!("approximate = '{other}' is not known").into()),
    }
}

/// GELU of the sum with a bias, which may be left out.
fn biased(c: &mut Context, op: &str) -> Lowered {
    let mut x = c.x(0)?;
    if let Some(bias) = c.opt(1) {
        x = c.b.add(x, bias)?;
    }
    Ok(vec![c.b.unary(op, x)?])
}

pub fn bias_gelu(c: &mut Context) -> Lowered {
    biased(c, "gelu")
}

pub fn fast_gelu(c: &mut Context) -> Lowered {
    biased(c, "gelu_tanh")
}

/// `x σ(α x)`
pub fn quick_gelu(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let scaled = c.b.scale(x, c.float("alpha", 1.702) as f64)?;
    let gate = c.b.unary("sigmoid", scaled)?;
    Ok(vec![c.b.mul(x, gate)?])
}

pub fn is_inf(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let (up, down) = (c.int("detect_positive", 1) != 0, c.int("detect_negative", 1) != 0);
    let constant = |c: &mut Context, v: f32| c.b.constant(crate::ir::Tensor::scalar(v));
    let (inf, minus) = (constant(c, f32::INFINITY), constant(c, f32::NEG_INFINITY));
    let (is_up, is_down) = (c.b.binary("equal", x, inf)?, c.b.binary("equal", x, minus)?);
    Ok(vec![match (up, down) {
        (true, true) => c.b.binary("or", is_up, is_down)?,
        (true, false) => is_up,
        (false, true) => is_down,
        (false, false) => c.b.binary("xor", is_up, is_up)?,
    }])
}
