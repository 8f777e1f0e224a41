//! Pooling: each window of each channel becomes a row, and each row reduces to one number.

use super::conv::windows;
use super::{Context, Reason};
use crate::ir::{Attr, Tensor, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// The windows of one- or two-dimensional images, `(B * C, places, kernel)`, and the result's shape. What stands outside the
/// image is `fill`.
struct Windows {
    rows: Value,
    shape: Vec<usize>,
    /// How many elements of each window the divisor of a mean counts, `(1, places, 1)`.
    counts: Value,
}

fn gather(c: &mut Context, fill: f32) -> Result<Windows, Reason> {
    let x = c.x(0)?;
    let xs = c.shape(x);
    let axes = xs.len().saturating_sub(2);
    if !(1..=2).contains(&axes) {
        return Err(format!("images {xs}: one or two axes are supported").into());
    }
    let kernel: Vec<usize> = match c.node.attr_ints("kernel_shape") {
        Some(k) if k.len() == axes => k.iter().map(|&k| k.max(1) as usize).collect(),
        _ => return Err("kernel_shape is missing".into()),
    };
    let attrs = windows(c, &kernel, &xs[2..])?;
    let list = |name: &str| attrs.ints(name).to_vec();
    let (kernel, stride, dilation, mut pads) = (list("kernel"), list("stride"), list("dilation"), list("pads"));
    let image = if axes == 1 { [1, xs[2]] } else { [xs[2], xs[3]] };
    let given = pads.clone();
    let mut places = [0usize; 2];
    for d in 0..2 {
        let span = (kernel[d] - 1) * dilation[d] + 1;
        let room = image[d] as i64 + pads[d] + pads[d + 2] - span;
        if room < 0 {
            return Err(format!("a window of {span} does not fit {} places", image[d]).into());
        }
        let mut n = room / stride[d] + 1;
        if c.int("ceil_mode", 0) != 0 && room % stride[d] != 0 && n * stride[d] < image[d] as i64 + pads[d] {
            // One more window, which begins inside the image and ends beyond it.
            n += 1;
            pads[d + 2] = (n - 1) * stride[d] + span - image[d] as i64 - pads[d];
        }
        places[d] = n as usize;
    }
    let batch = xs[0] * xs[1];
    let plain = |c: &mut Context, v: Value, n: usize, fill: f32, pads: &[i64]| -> Result<Value, Reason> {
        let mut v = c.b.reshape(v, [n, 1, image[0], image[1]])?;
        for d in 0..2 {
            let (before, after) = (pads[d] as usize, pads[d + 2] as usize);
            let mut sides = Vec::new();
            for extent in [before, after] {
                let mut shape = c.shape(v);
                shape.0[d + 2] = extent;
                let n = shape.elements();
                sides.push(if extent == 0 { None } else { Some(c.b.constant(Tensor::f32(shape, vec![fill; n]))) });
            }
            let parts: Vec<Value> = [sides[0], Some(v), sides[1]].into_iter().flatten().collect();
            v = c.b.concat(&parts, d + 2)?;
        }
        let inside = attrs.clone().with("pads", Attr::Ints(vec![0; 4]));
        Ok(c.b.emit("unfold", &[v], inside)?)
    };
    let rows = plain(c, x, batch, fill, &pads)?;
    // The elements that a mean divides by: those of the image, and of the padding the node asks for if it says so.
    let include = c.int("count_include_pad", 0) != 0;
    let ones = c.b.constant(Tensor::f32([1, 1, image[0], image[1]], vec![1.0; image[0] * image[1]]));
    if include && pads != given {
        return Err("count_include_pad with ceil_mode is not supported".into());
    }
    let counted = plain(c, ones, 1, if include { 1.0 } else { 0.0 }, &pads)?;
    let counts = c.b.reduce_sum(counted, &[2], true)?;
    let shape = if axes == 1 { vec![xs[0], xs[1], places[1]] } else { vec![xs[0], xs[1], places[0], places[1]] };
    Ok(Windows { rows, shape, counts })
}

/// The largest element of each window.
pub fn max_pool(c: &mut Context) -> Lowered {
    if c.node.outputs().get(1).is_some_and(|o| !o.is_empty()) {
        return Err("indices of the largest elements are not supported".into());
    }
    let w = gather(c, f32::MIN)?;
    let top = c.b.reduce("reduce_max", w.rows, &[2], false)?;
    Ok(vec![c.b.reshape(top, w.shape)?])
}

/// The mean of each window.
pub fn average_pool(c: &mut Context) -> Lowered {
    let w = gather(c, 0.0)?;
    let sum = c.b.reduce_sum(w.rows, &[2], true)?;
    let mean = c.b.div(sum, w.counts)?;
    Ok(vec![c.b.reshape(mean, w.shape)?])
}

/// The largest element of an image.
pub fn global_max_pool(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let axes: Vec<usize> = (2..c.shape(x).len()).collect();
    Ok(vec![c.b.reduce("reduce_max", x, &axes, true)?])
}
