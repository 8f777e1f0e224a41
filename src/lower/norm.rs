//! Normalisation over axes: softmax, layer norm, batch norm and their variants.

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
    let y = c.b.emit("layer_norm", &[flat, gain, bias], attrs)?;
    let y = c.b.reshape(y, shape.clone())?;
    if !c.wants(1) && !c.wants(2) {
        return Ok(vec![y]);
    }
    // Of each row its mean, and one over its deviation.
    let axis = c.axis(c.int("axis", -1), shape.len())?;
    let kept: Vec<usize> = (0..shape.len()).map(|d| if d < axis { shape[d] } else { 1 }).collect();
    let mean = c.b.reduce_sum(flat, &[1], true)?;
    let mean = c.b.scale(mean, 1.0 / n.max(1) as f64)?;
    let apart = c.b.sub(flat, mean)?;
    let inverse = inverse_deviation(c, apart, n, c.float("epsilon", 1e-5))?;
    Ok(vec![y, c.b.reshape(mean, kept.clone())?, c.b.reshape(inverse, kept)?])
}

/// One over the root of the mean square of each row.
fn inverse_deviation(c: &mut Context, rows: Value, n: usize, epsilon: f32) -> Result<Value, Reason> {
    let square = c.b.mul(rows, rows)?;
    let sum = c.b.reduce_sum(square, &[1], true)?;
    let (mean, epsilon) = (c.b.scale(sum, 1.0 / n.max(1) as f64)?, c.b.scalar(epsilon as f64));
    let raised = c.b.add(mean, epsilon)?;
    let root = c.b.unary("sqrt", raised)?;
    Ok(c.b.unary("reciprocal", root)?)
}

fn rms(c: &mut Context, axis: i64, epsilon: f32) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let (flat, n) = rows_from(c, axis)?;
    let gain = row(c, c.opt(1), n, 1.0)?;
    let attrs = Attrs::new().with("eps", Attr::Float(epsilon as f64));
    let y = c.b.emit("rms_norm", &[flat, gain], attrs)?;
    let y = c.b.reshape(y, shape.clone())?;
    if !c.wants(1) {
        return Ok(vec![y]);
    }
    let axis = c.axis(axis, shape.len())?;
    let kept: Vec<usize> = (0..shape.len()).map(|d| if d < axis { shape[d] } else { 1 }).collect();
    let inverse = inverse_deviation(c, flat, n, epsilon)?;
    Ok(vec![y, c.b.reshape(inverse, kept)?])
}

pub fn rms_normalization(c: &mut Context) -> Lowered {
    rms(c, c.int("axis", -1), c.float("epsilon", 1e-5))
}

/// ONNX Runtime's name for the same, in either domain.
pub fn simplified_layer_normalization(c: &mut Context) -> Lowered {
    rms(c, c.int("axis", -1), c.float("epsilon", 1e-5))
}

/// `(B, C, ..)` with each image's channels normalised in `groups`; gains and biases stand for a channel each, or for a group
/// each.
fn grouped(c: &mut Context, groups: usize) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let channels = shape.get(1).copied().unwrap_or(0);
    if groups == 0 || channels % groups != 0 {
        return Err(format!("{channels} channels do not fall into {groups} groups").into());
    }
    let n = shape.elements() / (shape[0] * groups).max(1);
    let flat = c.b.reshape(x, [shape[0] * groups, n])?;
    let (ones, zeros) = (row(c, None, n, 1.0)?, row(c, None, n, 0.0)?);
    let attrs = Attrs::new().with("eps", Attr::Float(c.float("epsilon", 1e-5) as f64));
    let normed = c.b.emit("layer_norm", &[flat, ones, zeros], attrs)?;
    let (gain, bias) = (c.x(1)?, c.x(2)?);
    let each = c.shape(gain).elements();
    if each == 0 || channels % each != 0 {
        return Err(format!("{each} gains for {channels} channels").into());
    }
    let apart = c.b.reshape(normed, [shape[0], each, shape.elements() / (shape[0] * each).max(1)])?;
    let (gain, bias) = (c.b.reshape(gain, [each, 1])?, c.b.reshape(bias, [each, 1])?);
    let y = c.b.mul(apart, gain)?;
    let y = c.b.add(y, bias)?;
    Ok(vec![c.b.reshape(y, shape)?])
}

pub fn instance_normalization(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let channels = c.shape(x).get(1).copied().unwrap_or(0);
    grouped(c, channels)
}

pub fn group_normalization(c: &mut Context) -> Lowered {
    let groups = c.int("num_groups", 0);
    grouped(c, groups.max(0) as usize)
}

/// With the statistics the file holds, in training too: they are frozen like every weight that no adapter is for.
pub fn batch_normalization(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let channels = shape.get(1).copied().unwrap_or(0);
    let eps = c.b.scalar(c.float("epsilon", 1e-5) as f64);
    let (gain, bias, mean, variance) = (c.x(1)?, c.x(2)?, c.x(3)?, c.x(4)?);
    let variance = c.b.add(variance, eps)?;
    let deviation = c.b.unary("sqrt", variance)?;
    let factor = c.b.div(gain, deviation)?;
    let shift = c.b.mul(mean, factor)?;
    let shift = c.b.sub(bias, shift)?;
    let mut wide = vec![1; shape.len().saturating_sub(1)];
    wide[0] = channels;
    let (factor, shift) = (c.b.reshape(factor, wide.clone())?, c.b.reshape(shift, wide)?);
    let y = c.b.mul(x, factor)?;
    Ok(vec![c.b.add(y, shift)?])
}

/// ONNX Runtime's sum of a layer's input and output, normalised; the sum is the fourth output.
fn skip(c: &mut Context, bias: usize, norm: &str, rows: &[(usize, f32)]) -> Lowered {
    let (x, skip) = (c.x(0)?, c.x(1)?);
    let mut sum = c.b.add(x, skip)?;
    if let Some(bias) = c.opt(bias) {
        sum = c.b.add(sum, bias)?;
    }
    if c.node.outputs().iter().skip(1).take(2).any(|o| !o.is_empty()) {
        return Err("its mean and deviation as outputs are not supported".into());
    }
    let shape = c.shape(sum);
    let n = shape.last().copied().unwrap_or(1);
    let mut operands = vec![c.rows(sum)?];
    for &(i, fill) in rows {
        operands.push(row(c, c.opt(i), n, fill)?);
    }
    let attrs = Attrs::new().with("eps", Attr::Float(c.float("epsilon", 1e-5) as f64));
    let y = c.b.emit(norm, &operands, attrs)?;
    let y = c.b.reshape(y, shape)?;
    // Nothing reads the two in between.
    Ok(vec![y, y, y, sum])
}

/// Input, skip, gain, bias of the norm, bias of the sum.
pub fn skip_layer_normalization(c: &mut Context) -> Lowered {
    skip(c, 4, "layer_norm", &[(2, 1.0), (3, 0.0)])
}

/// Input, skip, gain, bias of the sum.
pub fn skip_simplified_layer_normalization(c: &mut Context) -> Lowered {
    skip(c, 3, "rms_norm", &[(2, 1.0)])
}

/// ONNX Runtime's embeddings of BERT: words, positions and segments, summed and normalised. The second output is the
/// number of tokens of each example.
pub fn embed_layer_normalization(c: &mut Context) -> Lowered {
    let ids = c.x(0)?;
    let [b, s] = c.shape(ids)[..] else { return Err("takes token ids of two axes".into()) };
    let words = c.x(2)?;
    let mut sum = c.b.gather(words, ids, 0)?;
    let positions = match c.opt(8) {
        Some(at) => at,
        None => c.b.constant(Tensor::i32([1, s], (0..s as i32).collect())),
    };
    let table = c.x(3)?;
    let more = c.b.gather(table, positions, 0)?;
    sum = c.b.add(sum, more)?;
    if let (Some(segments), Some(table)) = (c.opt(1), c.opt(4)) {
        let more = c.b.gather(table, segments, 0)?;
        sum = c.b.add(sum, more)?;
    }
    let shape = c.shape(sum);
    let n = shape[2];
    let (gain, bias) = (row(c, c.opt(5), n, 1.0)?, row(c, c.opt(6), n, 0.0)?);
    let flat = c.rows(sum)?;
    let attrs = Attrs::new().with("eps", Attr::Float(c.float("epsilon", 1e-12) as f64));
    let y = c.b.emit("layer_norm", &[flat, gain, bias], attrs)?;
    let y = c.b.reshape(y, shape)?;
    let counts = match c.opt(7) {
        Some(mask) => c.b.reduce_sum(mask, &[1], false)?,
        None => c.b.constant(Tensor::i32([b], vec![0; b])),
    };
    Ok(vec![y, counts, sum])
}

/// `x / (bias + alpha / size · Σ x²)^beta`, the sum being over `size` neighbouring channels.
pub fn lrn(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let size = c.int("size", 1).max(1);
    if shape.len() < 2 {
        return Err("needs channels".into());
    }
    let (alpha, beta, bias) = (c.float("alpha", 1e-4), c.float("beta", 0.75), c.float("bias", 1.0));
    let square = c.b.mul(x, x)?;
    let before = (size - 1) / 2;
    let wide = c.section(square, 1, -before, shape[1] + size as usize - 1, 0.0)?;
    let mut sum: Option<Value> = None;
    for k in 0..size as usize {
        let own = c.b.slice(wide, 1, k, shape[1], 1)?;
        sum = Some(match sum {
            Some(sum) => c.b.add(sum, own)?,
            None => own,
        });
    }
    let (mean, bias) = (c.b.scale(sum.ok_or("no channel")?, alpha as f64 / size as f64)?, c.b.scalar(bias as f64));
    let raised = c.b.add(mean, bias)?;
    let below = super::elementwise::power(c, raised, beta as f64)?;
    Ok(vec![c.b.div(x, below)?])
}

/// `(x - mean) / (deviation + 10⁻⁹)` over the given axes.
pub fn mean_variance_normalization(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axes = c.list("axes").unwrap_or_else(|| vec![0, 2, 3]);
    let axes = c.axes(&axes, shape.len())?;
    let n: usize = axes.iter().map(|&d| shape[d]).product();
    let mean = c.b.reduce_sum(x, &axes, true)?;
    let mean = c.b.scale(mean, 1.0 / n.max(1) as f64)?;
    let apart = c.b.sub(x, mean)?;
    let square = c.b.mul(apart, apart)?;
    let sum = c.b.reduce_sum(square, &axes, true)?;
    let variance = c.b.scale(sum, 1.0 / n.max(1) as f64)?;
    let (deviation, least) = (super::reduce::root(c, variance)?, c.b.scalar(1e-9));
    let below = c.b.add(deviation, least)?;
    Ok(vec![c.b.div(apart, below)?])
}
