//! Fourier transforms, as products with cosines and sines, and the windows and weights that go with them.

use super::{Context, Reason};
use crate::ir::{Tensor, Value};
use crate::onnx::ElementType;

type Lowered = Result<Vec<Value>, Reason>;

/// Cosines and sines of `2π r k / n` for r below `rows` and k below `columns`.
fn waves(c: &mut Context, rows: usize, columns: usize, n: usize) -> (Value, Value) {
    let angle = |i: usize| {
        let turn = (i / columns) as u64 * (i % columns) as u64 % n as u64;
        std::f64::consts::TAU * turn as f64 / n as f64
    };
    let cos = (0..rows * columns).map(|i| angle(i).cos() as f32).collect();
    let sin = (0..rows * columns).map(|i| angle(i).sin() as f32).collect();
    (c.floats([rows, columns], cos), c.floats([rows, columns], sin))
}

/// A signal `(R, N, parts)` as rows of real and, if there is one, imaginary parts, cut or padded to `n`.
fn parts(c: &mut Context, x: Value, n: usize) -> Result<(Value, Option<Value>), Reason> {
    let [rows, own, parts] = c.shape(x)[..] else { return Err("a signal has a batch, a length and parts".into()) };
    let mut part = |k: usize| -> Result<Value, Reason> {
        let one = c.b.slice(x, 2, k, 1, 1)?;
        let one = c.b.reshape(one, [rows, own])?;
        c.section(one, 1, 0, n, 0.0)
    };
    match parts {
        1 => Ok((part(0)?, None)),
        2 => Ok((part(0)?, Some(part(1)?))),
        _ => Err(format!("numbers of {parts} parts").into()),
    }
}

/// Two parts side by side: `(R, N, 2)`.
fn paired(c: &mut Context, re: Value, im: Value) -> Result<Value, Reason> {
    let [rows, n] = c.shape(re)[..] else { return Err("parts are rows".into()) };
    let (re, im) = (c.b.reshape(re, [rows, n, 1])?, c.b.reshape(im, [rows, n, 1])?);
    Ok(c.b.concat(&[re, im], 2)?)
}

/// The transform of `(R, N, 1 or 2)` over `n` samples, the first `bins` of its results: `(R, bins, 2)`.
fn transformed(c: &mut Context, x: Value, n: usize, bins: usize, inverse: bool) -> Result<Value, Reason> {
    let (re, im) = parts(c, x, n)?;
    let (cos, sin) = waves(c, n, bins, n);
    // Forward (a + ib)(cos - i sin), inverse (a + ib)(cos + i sin) / n.
    let (mut real, mut imaginary) = (c.b.matmul(re, cos, false, false)?, c.b.matmul(re, sin, false, false)?);
    if !inverse {
        imaginary = c.b.neg(imaginary)?;
    }
    if let Some(im) = im {
        let (across, along) = (c.b.matmul(im, sin, false, false)?, c.b.matmul(im, cos, false, false)?);
        real = if inverse { c.b.sub(real, across)? } else { c.b.add(real, across)? };
        imaginary = c.b.add(imaginary, along)?;
    }
    if inverse {
        (real, imaginary) = (c.b.scale(real, 1.0 / n as f64)?, c.b.scale(imaginary, 1.0 / n as f64)?);
    }
    paired(c, real, imaginary)
}

/// The real signal `(R, n, 1)` whose transform begins with `(R, N, 2)` and goes on with its mirror image.
fn real_inverse(c: &mut Context, x: Value, n: usize) -> Result<Value, Reason> {
    let bins = n / 2 + 1;
    let (re, im) = parts(c, x, bins)?;
    let (cos, sin) = waves(c, bins, n, n);
    // Every bin stands for two, but for the first and, of an even length, the last.
    let weight = |k: usize| if k == 0 || 2 * k == n { 1.0 } else { 2.0 } / n as f32;
    let weights = c.floats([1, bins], (0..bins).map(weight).collect());
    let re = c.b.mul(re, weights)?;
    let mut y = c.b.matmul(re, cos, false, false)?;
    if let Some(im) = im {
        let im = c.b.mul(im, weights)?;
        let across = c.b.matmul(im, sin, false, false)?;
        y = c.b.sub(y, across)?;
    }
    let rows = c.shape(y)[0];
    Ok(c.b.reshape(y, [rows, n, 1])?)
}

pub fn dft(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let rank = shape.len();
    let axis = match c.opset() < 20 {
        true => c.int("axis", 1),
        false if c.opt(2).is_some() => c.known_ints(2)?.first().copied().unwrap_or(-2),
        false => -2,
    };
    let axis = c.axis(axis, rank)?;
    if rank < 2 || axis == rank - 1 {
        return Err(format!("axis {axis} of {shape}, whose last holds real and imaginary parts").into());
    }
    let (inverse, onesided) = (c.int("inverse", 0) != 0, c.int("onesided", 0) != 0);
    let n = match c.opt(1) {
        Some(_) => c.known_ints(1)?.first().copied().unwrap_or(0).max(0) as usize,
        None if inverse && onesided => 2 * shape[axis].saturating_sub(1),
        None => shape[axis],
    };
    if n == 0 {
        return Err("a transform of no samples".into());
    }
    // The axis, then the parts, last.
    let perm: Vec<usize> = (0..rank - 1).filter(|&d| d != axis).chain([axis, rank - 1]).collect();
    let moved = c.b.transpose(x, &perm)?;
    let lead: Vec<usize> = perm[..rank - 2].iter().map(|&d| shape[d]).collect();
    let rows = lead.iter().product::<usize>();
    let flat = c.b.reshape(moved, [rows, shape[axis], shape[rank - 1]])?;
    let y = match (inverse, onesided) {
        (true, true) => real_inverse(c, flat, n)?,
        _ => transformed(c, flat, n, if onesided { n / 2 + 1 } else { n }, inverse)?,
    };
    let tail = c.shape(y)[1..].to_vec();
    let y = c.b.reshape(y, [&lead[..], &tail].concat())?;
    let mut back = vec![0; rank];
    perm.iter().enumerate().for_each(|(i, &d)| back[d] = i);
    Ok(vec![c.b.transpose(y, &back)?])
}

/// Transforms of overlapping frames of signals `(B, N, 1 or 2)`: `(B, frames, bins, 2)`.
pub fn stft(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    let [batch, length] = c.shape(x)[..2] else { return Err("takes signals".into()) };
    if c.shape(x).len() == 2 {
        x = c.b.reshape(x, [batch, length, 1])?;
    }
    let parts = c.shape(x)[2];
    let step = c.known_ints(1)?.first().copied().unwrap_or(0).max(0) as usize;
    let window = c.opt(2);
    let frame = match (c.opt(3), window) {
        (Some(_), _) => c.known_ints(3)?.first().copied().unwrap_or(0).max(0) as usize,
        (None, Some(w)) => c.shape(w).elements(),
        (None, None) => length,
    };
    if step == 0 || frame == 0 || frame > length {
        return Err(format!("frames of {frame} at steps of {step} in {length} samples").into());
    }
    let frames = (length - frame) / step + 1;
    let places = (0..frames * frame).map(|i| (i / frame * step + i % frame) as i32).collect();
    let places = c.integers([frames * frame], places);
    let cut = c.b.gather(x, places, 1)?;
    let mut cut = c.b.reshape(cut, [batch, frames, frame, parts])?;
    if let Some(w) = window {
        let size = c.shape(w).elements();
        let w = c.b.reshape(w, [size])?;
        let w = c.section(w, 0, 0, frame, 0.0)?;
        let w = c.b.reshape(w, [frame, 1])?;
        cut = c.b.mul(cut, w)?;
    }
    let bins = if c.int("onesided", 1) != 0 { frame / 2 + 1 } else { frame };
    let flat = c.b.reshape(cut, [batch * frames, frame, parts])?;
    let y = transformed(c, flat, frame, bins, false)?;
    Ok(vec![c.b.reshape(y, [batch, frames, bins, 2])?])
}

/// A window of a known length: `Σ a_k cos(2π k i / N)`, N being the length, or one less if it is symmetric.
fn window(c: &mut Context, factors: &[f64]) -> Lowered {
    let n = c.known_ints(0)?.first().copied().unwrap_or(0).max(0) as usize;
    let to = ElementType::from_number(c.int("output_datatype", 1) as i32);
    if super::dtype(to) != Some(crate::ir::DType::F32) {
        return Err(format!("a window of {to} is not supported").into());
    }
    let period = if c.int("periodic", 1) != 0 { n } else { n.saturating_sub(1) }.max(1) as f64;
    let at = |i: usize| {
        let angle = std::f64::consts::TAU * i as f64 / period;
        factors.iter().enumerate().map(|(k, a)| a * (k as f64 * angle).cos()).sum::<f64>() as f32
    };
    Ok(vec![c.floats([n], (0..n).map(at).collect())])
}

pub fn hann_window(c: &mut Context) -> Lowered {
    window(c, &[0.5, -0.5])
}

pub fn hamming_window(c: &mut Context) -> Lowered {
    window(c, &[25.0 / 46.0, -21.0 / 46.0])
}

pub fn blackman_window(c: &mut Context) -> Lowered {
    window(c, &[0.42, -0.5, 0.08])
}

/// Weights that turn a spectrum into mel bins: triangles between neighbouring centres.
pub fn mel_weight_matrix(c: &mut Context) -> Lowered {
    let whole = |i: usize| -> Result<i64, Reason> { Ok(c.known_ints(i)?.first().copied().unwrap_or(0)) };
    let (bins, length, rate) = (whole(0)?.max(0) as usize, whole(1)?.max(0), whole(2)?);
    let (low, high) = (c.known_float(3)?.unwrap_or(0.0) as f64, c.known_float(4)?.unwrap_or(0.0) as f64);
    let to = ElementType::from_number(c.int("output_datatype", 1) as i32);
    if super::dtype(to) != Some(crate::ir::DType::F32) || rate <= 0 {
        return Err(format!("weights of {to} at a rate of {rate} are not supported").into());
    }
    let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
    let hertz = |mel: f64| 700.0 * (10f64.powf(mel / 2595.0) - 1.0);
    let step = (mel(high) - mel(low)) / (bins + 2) as f64;
    let edge = |i: usize| (((length + 1) as f64 * hertz(i as f64 * step + mel(low))) / rate as f64).floor() as usize;
    let rows = length as usize / 2 + 1;
    let mut weights = vec![0.0f32; rows * bins];
    for i in 0..bins {
        let (left, centre, right) = (edge(i), edge(i + 1), edge(i + 2));
        if right > rows {
            return Err(format!("a mel bin ends at {right} of {rows} frequencies").into());
        }
        match centre - left {
            0 if centre < rows => weights[centre * bins + i] = 1.0,
            0 => {}
            n => (left..=centre.min(rows - 1)).for_each(|j| weights[j * bins + i] = (j - left) as f32 / n as f32),
        }
        if right > centre {
            (centre..right).for_each(|j| weights[j * bins + i] = (right - j) as f32 / (right - centre) as f32);
        }
    }
    Ok(vec![c.b.constant(Tensor::f32([rows, bins], weights))])
}
