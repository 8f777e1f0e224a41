//! Operators that ONNX Runtime's optimisers make of several: products and convolutions with activations, biases with what follows.

use super::conv::convolve;
use super::functions::activation;
use super::{Context, Reason};
use crate::ir::Value;

type Lowered = Result<Vec<Value>, Reason>;

/// The activation of a node, with parameters in one of two forms.
fn activated(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let name = c.text("activation", "");
    let given = c.node.attr_floats("activation_params").map(<[f32]>::to_vec).unwrap_or_default();
    let number = |i: usize, attribute: &str| given.get(i).copied().or_else(|| c.node.attr_float(attribute));
    let (alpha, beta) = (number(0, "activation_alpha"), number(1, "activation_beta"));
    match name.as_str() {
        "" => Ok(x),
        "Clip" => {
            let (low, high) =
                (c.b.scalar(alpha.unwrap_or(f32::MIN) as f64), c.b.scalar(beta.unwrap_or(f32::MAX) as f64));
            let x = c.b.binary("max", x, low)?;
            Ok(c.b.binary("min", x, high)?)
        }
        _ => activation(c, &name, x, alpha, beta),
    }
}

/// `activation(conv(x) + z)`
pub fn fused_conv(c: &mut Context) -> Lowered {
    let (x, w, bias) = (c.x(0)?, c.x(1)?, c.opt(2));
    let mut y = convolve(c, x, w, bias)?;
    if let Some(z) = c.opt(3) {
        y = c.b.add(y, z)?;
    }
    Ok(vec![activated(c, y)?])
}

/// `activation(alpha A' B' + beta C)`
pub fn fused_gemm(c: &mut Context) -> Lowered {
    let y = super::linear::gemm(c)?[0];
    Ok(vec![activated(c, y)?])
}

/// `x` with its last two axes exchanged.
fn turned(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let rank = c.shape(x).len();
    if rank < 2 {
        return Ok(x);
    }
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    Ok(c.b.transpose(x, &perm)?)
}

/// `alpha A' B'`, batches broadcasting.
pub fn fused_mat_mul(c: &mut Context) -> Lowered {
    let (mut a, mut b) = (c.x(0)?, c.x(1)?);
    if c.int("transA", 0) != 0 {
        a = turned(c, a)?;
    }
    if c.int("transB", 0) != 0 {
        b = turned(c, b)?;
    }
    let y = super::linear::product(c.b, a, b)?;
    Ok(vec![c.b.scale(y, c.float("alpha", 1.0) as f64)?])
}

/// GELU of `x w + bias`, by its approximation with tanh.
pub fn gemm_fast_gelu(c: &mut Context) -> Lowered {
    let (x, w) = (c.x(0)?, c.x(1)?);
    let mut y = super::linear::product(c.b, x, w)?;
    if let Some(bias) = c.opt(2) {
        y = c.b.add(y, bias)?;
    }
    Ok(vec![c.b.unary("gelu_tanh", y)?])
}

/// `x + bias + skip`
pub fn bias_add(c: &mut Context) -> Lowered {
    let (x, bias, skip) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let sum = c.b.add(x, bias)?;
    Ok(vec![c.b.add(sum, skip)?])
}

/// The first half of `x + bias` along the last axis, gated by the GELU of the second.
pub fn bias_split_gelu(c: &mut Context) -> Lowered {
    let (x, bias) = (c.x(0)?, c.x(1)?);
    let sum = c.b.add(x, bias)?;
    let axis = c.shape(sum).len() - 1;
    let half = c.shape(sum)[axis] / 2;
    let (value, gate) = (c.b.slice(sum, axis, 0, half, 1)?, c.b.slice(sum, axis, half, half, 1)?);
    let gate = c.b.unary("gelu", gate)?;
    Ok(vec![c.b.mul(value, gate)?])
}

/// `softmax(x + bias)` over the axes from `axis` on.
pub fn bias_softmax(c: &mut Context) -> Lowered {
    let (x, bias) = (c.x(0)?, c.x(1)?);
    let shape = c.shape(x);
    let axis = c.axis(c.int("axis", 1), shape.len())?;
    // Whether a bias broadcasts over the axes just before or over the outermost: its own extents say it, if it has them all.
    c.int("is_inner_broadcast", 1);
    if c.shape(bias).len() != shape.len() {
        return Err(format!("a bias {} for {shape} is not supported", c.shape(bias)).into());
    }
    let sum = c.b.add(x, bias)?;
    let n: usize = shape[axis..].iter().product();
    let flat = c.b.reshape(sum, [shape.elements() / n.max(1), n])?;
    let y = c.b.unary("softmax", flat)?;
    Ok(vec![c.b.reshape(y, shape)?])
}

/// `x` normalised in groups of channels, with gains and biases for each channel, and SiLU where the node has it.
fn grouped(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let (gain, bias) = (c.x(1)?, c.x(2)?);
    let groups = c.int("groups", 0).max(0) as usize;
    let last = c.int("channels_last", 1) != 0;
    let shape = c.shape(x);
    let channel_axis = if last { shape.len() - 1 } else { 1 };
    let channels = shape[channel_axis];
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(format!("{channels} channels do not fall into {groups} groups").into());
    }
    let first = if last { c.last_to(x, 1)? } else { x };
    let moved = c.shape(first);
    let n = shape.elements() / (shape[0] * groups).max(1);
    let flat = c.b.reshape(first, [shape[0] * groups, n])?;
    let (ones, zeros) = (c.floats([n], vec![1.0; n]), c.floats([n], vec![0.0; n]));
    let attrs = crate::ir::Attrs::new().with("eps", crate::ir::Attr::Float(c.float("epsilon", 1e-5) as f64));
    let normed = c.b.emit("layer_norm", &[flat, ones, zeros], attrs)?;
    let apart = c.b.reshape(normed, [shape[0], channels, shape.elements() / (shape[0] * channels).max(1)])?;
    let (gain, bias) = (c.b.reshape(gain, [channels, 1])?, c.b.reshape(bias, [channels, 1])?);
    let y = c.b.mul(apart, gain)?;
    let y = c.b.add(y, bias)?;
    let y = c.b.reshape(y, moved)?;
    let y = if last { c.axis_last(y, 1)? } else { y };
    match c.int("activation", 0) {
        0 => Ok(y),
        1 => {
            let gate = c.b.unary("sigmoid", y)?;
            Ok(c.b.mul(y, gate)?)
        }
        other => Err(format!("activation {other} is not known").into()),
    }
}

pub fn group_norm(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    Ok(vec![grouped(c, x)?])
}

/// The same of `x + skip + bias`, which is the second output. The skip may stand for all places of an image.
pub fn skip_group_norm(c: &mut Context) -> Lowered {
    let (x, mut skip) = (c.x(0)?, c.x(3)?);
    let shape = c.shape(x);
    if let [b, channels] = c.shape(skip)[..] {
        let wide = if c.int("channels_last", 1) != 0 { vec![b, 1, 1, channels] } else { vec![b, channels, 1, 1] };
        skip = c.b.reshape(skip, wide)?;
    }
    let mut sum = c.b.add(x, skip)?;
    if let Some(bias) = c.opt(4) {
        let n = c.shape(bias).elements();
        let wide =
            if c.int("channels_last", 1) != 0 { vec![n] } else { [&[n][..], &vec![1; shape.len() - 2]].concat() };
        let bias = c.b.reshape(bias, wide)?;
        sum = c.b.add(sum, bias)?;
    }
    Ok(vec![grouped(c, sum)?, sum])
}
