//! Trigonometry, hyperbolic functions, activations and operators on bits.

use super::elementwise::{elu_of, leaky_relu_of, softplus_of};
use super::{Context, Reason, integer_types};
use crate::ir::{DType, Tensor, Value};
use crate::onnx::{ElementType, TensorView, encode_floats, encode_integers};
use std::borrow::Cow;

type Lowered = Result<Vec<Value>, Reason>;

/// `x (a0 + a1 x² + a2 x⁴ + ..)`: a series in odd powers.
fn odd_series(c: &mut Context, x: Value, factors: &[f64]) -> Result<Value, Reason> {
    let square = c.b.mul(x, x)?;
    let mut sum = c.b.scalar(factors[factors.len() - 1]);
    for &a in factors[..factors.len() - 1].iter().rev() {
        let a = c.b.scalar(a);
        sum = c.b.mul(square, sum)?;
        sum = c.b.add(sum, a)?;
    }
    Ok(c.b.mul(x, sum)?)
}

/// A series where `|x| < limit`, `far` elsewhere. Both see an operand that their own side allows, so that neither's slope is NaN
/// where the other is taken.
fn near_zero(
    c: &mut Context,
    x: Value,
    limit: f64,
    factors: &[f64],
    far: impl Fn(&mut Context, Value) -> Result<Value, Reason>,
) -> Result<Value, Reason> {
    let (size, bound, zero) = (c.b.unary("abs", x)?, c.b.scalar(limit), c.b.scalar(0.0));
    let near = c.b.binary("less", size, bound)?;
    let (small, large) = (c.b.select(near, x, zero)?, c.b.select(near, bound, x)?);
    let (series, far) = (odd_series(c, small, factors)?, far(c, large)?);
    Ok(c.b.select(near, series, far)?)
}

pub fn tan(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let (sin, cos) = (c.b.unary("sin", x)?, c.b.unary("cos", x)?);
    Ok(vec![c.b.div(sin, cos)?])
}

pub fn atan(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    Ok(vec![c.b.unary("atan", x)?])
}

/// `√((1 - x)(1 + x))` and the two factors.
fn across(c: &mut Context, x: Value) -> Result<(Value, Value, Value), Reason> {
    let one = c.b.scalar(1.0);
    let (below, above) = (c.b.sub(one, x)?, c.b.add(one, x)?);
    let product = c.b.mul(below, above)?;
    Ok((c.b.unary("sqrt", product)?, below, above))
}

/// `atan(x / √(1 - x²))`
pub fn asin(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let (root, _, _) = across(c, x)?;
    let slope = c.b.div(x, root)?;
    Ok(vec![c.b.unary("atan", slope)?])
}

/// `2 atan(√((1 - x) / (1 + x)))`
pub fn acos(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let (_, below, above) = across(c, x)?;
    let ratio = c.b.div(below, above)?;
    let root = c.b.unary("sqrt", ratio)?;
    let half = c.b.unary("atan", root)?;
    Ok(vec![c.b.scale(half, 2.0)?])
}

/// `eˣ` and `e⁻ˣ`.
fn exponentials(c: &mut Context, x: Value) -> Result<(Value, Value), Reason> {
    let minus = c.b.neg(x)?;
    Ok((c.b.unary("exp", x)?, c.b.unary("exp", minus)?))
}

pub fn sinh(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let y = near_zero(c, x, 0.5, &[1.0, 1.0 / 6.0, 1.0 / 120.0, 1.0 / 5040.0, 1.0 / 362_880.0], |c, x| {
        let (up, down) = exponentials(c, x)?;
        let twice = c.b.sub(up, down)?;
        Ok(c.b.scale(twice, 0.5)?)
    })?;
    Ok(vec![y])
}

pub fn cosh(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let (up, down) = exponentials(c, x)?;
    let twice = c.b.add(up, down)?;
    Ok(vec![c.b.scale(twice, 0.5)?])
}

/// `sign(x) log(|x| + √(x² + 1))`; beyond 10⁸ the root is `|x|`.
fn asinh_of(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let series = [1.0, -1.0 / 6.0, 3.0 / 40.0, -15.0 / 336.0, 105.0 / 3456.0];
    near_zero(c, x, 0.2, &series, |c, x| {
        let (size, sign, limit) = (c.b.unary("abs", x)?, c.b.unary("sign", x)?, c.b.scalar(1e8));
        let large = c.b.binary("less", limit, size)?;
        let (bounded, one) = (c.b.binary("min", size, limit)?, c.b.scalar(1.0));
        let square = c.b.mul(bounded, bounded)?;
        let raised = c.b.add(square, one)?;
        let root = c.b.unary("sqrt", raised)?;
        let sum = c.b.add(bounded, root)?;
        let log = c.b.unary("log", sum)?;
        let (far, two) = (c.b.unary("log", size)?, c.b.scalar(std::f64::consts::LN_2));
        let far = c.b.add(far, two)?;
        let y = c.b.select(large, far, log)?;
        Ok(c.b.mul(sign, y)?)
    })
}

pub fn asinh(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    Ok(vec![asinh_of(c, x)?])
}

/// `asinh √(x² - 1)`
pub fn acosh(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let one = c.b.scalar(1.0);
    let (below, above) = (c.b.sub(x, one)?, c.b.add(x, one)?);
    let (below, above) = (c.b.unary("sqrt", below)?, c.b.unary("sqrt", above)?);
    let root = c.b.mul(below, above)?;
    Ok(vec![asinh_of(c, root)?])
}

/// `log((1 + x) / (1 - x)) / 2`
pub fn atanh(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let series = [1.0, 1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0];
    let y = near_zero(c, x, 0.2, &series, |c, x| {
        let one = c.b.scalar(1.0);
        let (above, below) = (c.b.add(one, x)?, c.b.sub(one, x)?);
        let ratio = c.b.div(above, below)?;
        let log = c.b.unary("log", ratio)?;
        Ok(c.b.scale(log, 0.5)?)
    })?;
    Ok(vec![y])
}

/// `gamma x` where positive, else `gamma alpha (eˣ - 1)`
pub fn selu(c: &mut Context) -> Lowered {
    // In the first operator set they had fewer digits.
    let (alpha, gamma) = match c.opset() < 6 {
        true => (1.6732, 1.0507),
        false => (1.673_263_2, 1.050_701),
    };
    let (x, alpha, gamma) = (c.x(0)?, c.float("alpha", alpha), c.float("gamma", gamma));
    let y = elu_of(c, x, alpha)?;
    Ok(vec![c.b.scale(y, gamma as f64)?])
}

/// `max(0, x) + min(0, alpha (e^(x / alpha) - 1))`
pub fn celu(c: &mut Context) -> Lowered {
    let (x, alpha) = (c.x(0)?, c.float("alpha", 1.0));
    let scaled = c.b.scale(x, 1.0 / alpha as f64)?;
    let y = elu_of(c, scaled, 1.0)?;
    Ok(vec![c.b.scale(y, alpha as f64)?])
}

/// `x` where it exceeds alpha, else 0.
fn thresholded(c: &mut Context, x: Value, alpha: f32) -> Result<Value, Reason> {
    let (alpha, zero) = (c.b.scalar(alpha as f64), c.b.scalar(0.0));
    let over = c.b.binary("less", alpha, x)?;
    Ok(c.b.select(over, x, zero)?)
}

pub fn thresholded_relu(c: &mut Context) -> Lowered {
    let (x, alpha) = (c.x(0)?, c.float("alpha", 1.0));
    Ok(vec![thresholded(c, x, alpha)?])
}

/// `x + bias` below `-lambd`, `x - bias` above `lambd`, 0 between them. Integers are shrunk as floats.
pub fn shrink(c: &mut Context) -> Lowered {
    let (given, bias, lambd) = (c.x(0)?, c.float("bias", 0.0) as f64, c.float("lambd", 0.5) as f64);
    let x = c.b.cast(given, DType::F32)?;
    let (bias, high, low, zero) = (c.b.scalar(bias), c.b.scalar(lambd), c.b.scalar(-lambd), c.b.scalar(0.0));
    let (under, over) = (c.b.binary("less", x, low)?, c.b.binary("less", high, x)?);
    let (raised, lowered) = (c.b.add(x, bias)?, c.b.sub(x, bias)?);
    let y = c.b.select(over, lowered, zero)?;
    let y = c.b.select(under, raised, y)?;
    let to = c.ty(given).dtype;
    Ok(vec![c.b.cast(y, to)?])
}

/// `x / (1 + |x|)`
fn softsign_of(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let (size, one) = (c.b.unary("abs", x)?, c.b.scalar(1.0));
    let below = c.b.add(one, size)?;
    Ok(c.b.div(x, below)?)
}

pub fn softsign(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    Ok(vec![softsign_of(c, x)?])
}

/// `x tanh(log(1 + eˣ))`
pub fn mish(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let soft = softplus_of(c, x)?;
    let gate = c.b.unary("tanh", soft)?;
    Ok(vec![c.b.mul(x, gate)?])
}

/// `x` where positive, else `slope x`, the slope broadcasting to x.
pub fn p_relu(c: &mut Context) -> Lowered {
    let (x, mut slope) = (c.x(0)?, c.x(1)?);
    // Before operator set 7 a slope stands for a channel.
    let (xs, ss) = (c.shape(x), c.shape(slope));
    if c.opset() < 7 && ss.len() == 1 && xs.len() > 2 && ss[0] == xs[1] {
        let mut wide = vec![1; xs.len() - 1];
        wide[0] = ss[0];
        slope = c.b.reshape(slope, wide)?;
    }
    let zero = c.number(x, 0.0);
    let (negative, scaled) = (c.b.binary("less", x, zero)?, c.b.mul(x, slope)?);
    Ok(vec![c.b.select(negative, scaled, x)?])
}

/// `x σ(alpha x)`
fn swish_of(c: &mut Context, x: Value, alpha: f32) -> Result<Value, Reason> {
    let scaled = c.b.scale(x, alpha as f64)?;
    let gate = c.b.unary("sigmoid", scaled)?;
    Ok(c.b.mul(x, gate)?)
}

pub fn swish(c: &mut Context) -> Lowered {
    let (x, alpha) = (c.x(0)?, c.float("alpha", 1.0));
    Ok(vec![swish_of(c, x, alpha)?])
}

/// `a σ(alpha a) b`
pub fn swi_glu(c: &mut Context) -> Lowered {
    let (a, b, alpha) = (c.x(0)?, c.x(1)?, c.float("alpha", 1.0));
    if c.shape(a) != c.shape(b) {
        return Err(format!("its operands are {} and {}, which must be equal", c.ty(a), c.ty(b)).into());
    }
    let gate = swish_of(c, a, alpha)?;
    Ok(vec![c.b.mul(gate, b)?])
}

/// An activation of a recurrent cell by its name in ONNX.
pub fn activation(
    c: &mut Context,
    name: &str,
    x: Value,
    alpha: Option<f32>,
    beta: Option<f32>,
) -> Result<Value, Reason> {
    Ok(match name.to_ascii_lowercase().as_str() {
        "relu" => {
            let zero = c.b.scalar(0.0);
            c.b.binary("max", x, zero)?
        }
        "tanh" => c.b.unary("tanh", x)?,
        "sigmoid" => c.b.unary("sigmoid", x)?,
        "affine" => {
            let (scaled, shift) = (c.b.scale(x, alpha.unwrap_or(1.0) as f64)?, c.b.scalar(beta.unwrap_or(0.0) as f64));
            c.b.add(scaled, shift)?
        }
        "leakyrelu" => leaky_relu_of(c, x, alpha.unwrap_or(0.01))?,
        "thresholdedrelu" => thresholded(c, x, alpha.unwrap_or(1.0))?,
        "scaledtanh" => {
            let bent = c.b.scale(x, beta.unwrap_or(1.0) as f64)?;
            let bent = c.b.unary("tanh", bent)?;
            c.b.scale(bent, alpha.unwrap_or(1.0) as f64)?
        }
        "hardsigmoid" => super::elementwise::hard_sigmoid_of(c, x, alpha.unwrap_or(0.2), beta.unwrap_or(0.5))?,
        "elu" => elu_of(c, x, alpha.unwrap_or(1.0))?,
        "softsign" => softsign_of(c, x)?,
        "softplus" => softplus_of(c, x)?,
        _ => return Err(format!("activation '{name}' is not known").into()),
    })
}

fn bits(c: &mut Context, op: &str) -> Lowered {
    let (x, y) = (c.x(0)?, c.x(1)?);
    Ok(vec![c.b.binary(op, x, y)?])
}

pub fn bitwise_and(c: &mut Context) -> Lowered {
    bits(c, "bit_and")
}

pub fn bitwise_or(c: &mut Context) -> Lowered {
    bits(c, "bit_or")
}

pub fn bitwise_xor(c: &mut Context) -> Lowered {
    bits(c, "bit_xor")
}

/// `-1 - x`, which unsigned types wrap.
pub fn bitwise_not(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let ones = c.integers([], vec![-1]);
    Ok(vec![c.b.sub(ones, x)?])
}

pub fn bit_shift(c: &mut Context) -> Lowered {
    match c.text("direction", "").as_str() {
        "LEFT" => bits(c, "shift_left"),
        "RIGHT" => bits(c, "shift_right"),
        other => Err(format!("direction '{other}' is not known").into()),
    }
}

/// The same bits as another type of the same width, of a value known while compiling.
pub fn bit_cast(c: &mut Context) -> Lowered {
    let x = c.known(0)?;
    let to = ElementType::from_number(c.node.attr_int("to").ok_or("needs the attribute 'to'")? as i32);
    let name = c.node.input(0).unwrap_or_default();
    let from = integer_types::of(c.model, name, c.elements).ok_or("the type of its input is not known")?;
    let wide = |e: ElementType| e.bits().is_none_or(|b| b > 32);
    if wide(from) || from.bits() != to.bits() || to.bits().is_none() {
        return Err(format!("{from} as {to}: types of up to 32 bits and of the same width are supported").into());
    }
    let cannot = || Reason::from(format!("its input is not {from}"));
    let bytes = match x.as_f32() {
        Some(x) => encode_floats(from, &x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()).ok_or_else(cannot)?,
        None => {
            let x: Vec<i64> = x.as_i32().unwrap_or_default().iter().map(|&x| i64::from(x)).collect();
            encode_integers(from, &x).map_err(|_| cannot())?
        }
    };
    let view = TensorView { name: "", element: to, dims: x.shape().to_vec(), bytes: Cow::Owned(bytes) };
    let fits = view.to_i64().is_none_or(|x| to == ElementType::Bool || x.iter().all(|&x| i32::try_from(x).is_ok()));
    if !fits {
        return Err(format!("a number of its result of {to} does not fit 32 signed bits").into());
    }
    Ok(vec![c.b.constant(super::load(&view)?)])
}

/// Ones on a diagonal of a matrix like the input, zeros elsewhere.
pub fn eye_like(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let [rows, columns] = c.shape(x)[..] else { return Err("takes a matrix".into()) };
    let dtype = match c.node.attr_int("dtype") {
        Some(n) => {
            let element = ElementType::from_number(n as i32);
            super::dtype(element).ok_or_else(|| format!("{element} is not supported"))?
        }
        None => c.ty(x).dtype,
    };
    let k = c.int("k", 0);
    let one = |i: usize| (i % columns) as i64 - (i / columns) as i64 == k;
    let values: Vec<u32> = (0..rows * columns).map(|i| u32::from(one(i))).collect();
    let eye = match dtype {
        DType::F32 => Tensor::f32([rows, columns], values.iter().map(|&x| x as f32).collect()),
        DType::I32 => Tensor::i32([rows, columns], values.iter().map(|&x| x as i32).collect()),
        DType::Bool => Tensor::bool([rows, columns], values),
    };
    Ok(vec![c.b.constant(eye)])
}

/// The most rows of a matrix whose determinant is taken.
const MAX_ROWS: usize = 32;

/// Determinants of `(.., N, N)` without division (Bird, A simple division-free algorithm for computing determinants, 2011), so that
/// singular matrices have gradients too.
pub fn det(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let [lead @ .., n, m] = &shape[..] else { return Err("takes matrices".into()) };
    let (n, batch) = (*n, lead.iter().product::<usize>());
    if n != *m || n == 0 || n > MAX_ROWS {
        return Err(format!("{shape}: square matrices of 1 to {MAX_ROWS} rows are supported").into());
    }
    let a = c.b.reshape(x, [batch, n, n])?;
    let at = |f: &dyn Fn(usize, usize) -> bool| (0..n * n).map(|i| f(i / n, i % n) as u32 as f32).collect::<Vec<f32>>();
    let upper = c.floats([n, n], at(&|r, col| col > r));
    let diagonal = c.floats([n, n], at(&|r, col| col == r));
    let mut f = a;
    for _ in 1..n {
        let above = c.b.mul(f, upper)?;
        let own = c.b.mul(f, diagonal)?;
        let own = c.b.reduce_sum(own, &[2], false)?;
        // The diagonal becomes minus the sum of those further down.
        let sums = c.b.matmul(own, upper, false, true)?;
        let sums = c.b.reshape(sums, [batch, n, 1])?;
        let own = c.b.mul(sums, diagonal)?;
        let mixed = c.b.sub(above, own)?;
        f = c.b.matmul(mixed, a, false, false)?;
    }
    let first = c.b.slice(f, 1, 0, 1, 1)?;
    let first = c.b.slice(first, 2, 0, 1, 1)?;
    let sign = if n.is_multiple_of(2) { -1.0 } else { 1.0 };
    let y = c.b.scale(first, sign)?;
    Ok(vec![c.b.reshape(y, lead.to_vec())?])
}
