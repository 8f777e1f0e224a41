//! Pooling: each window of each channel becomes a row, and each row reduces to one number.

use super::elementwise::power;
use super::reduce::root;
use super::windows::Geometry;
use super::{Context, Reason, scatter};
use crate::ir::{DType, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// Windows of a pool on images `(B, C, ..)`, and the result's shape.
fn geometry(c: &mut Context, x: Value) -> Result<(Geometry, Vec<usize>), Reason> {
    let xs = c.shape(x);
    if xs.len() < 3 {
        return Err(format!("images {xs}: they need a batch, channels and at least one axis").into());
    }
    let kernel = c.list("kernel_shape").ok_or("kernel_shape is missing")?;
    let kernel: Vec<usize> = kernel.into_iter().map(|k| k.max(1) as usize).collect();
    let mut g = Geometry::of(c, &kernel, &xs[2..])?;
    if c.int("ceil_mode", 0) != 0 {
        g.round_up();
    }
    let shape = [&xs[..2], &g.out()[..]].concat();
    Ok((g, shape))
}

/// The windows of each channel as rows `(B C places, kernel)`.
fn rows(c: &mut Context, x: Value, g: &Geometry, around: f64, beyond: f64) -> Result<Value, Reason> {
    let xs = c.shape(x);
    let images = c.b.reshape(x, [&[xs[0] * xs[1], 1], &xs[2..]].concat())?;
    let rows = g.rows_filled(c, images, around, beyond)?;
    let taps: usize = g.kernel.iter().product();
    let n = c.shape(rows).elements() / taps.max(1);
    Ok(c.b.reshape(rows, [n, taps])?)
}

/// The largest element of each window, and where it stands.
pub fn max_pool(c: &mut Context) -> Lowered {
    let given = c.x(0)?;
    let (dtype, x) = (c.ty(given).dtype, c.b.cast(given, DType::F32)?);
    let (g, shape) = geometry(c, x)?;
    let rows = rows(c, x, &g, f64::from(f32::MIN), f64::from(f32::MIN))?;
    let top = c.b.reduce("reduce_max", rows, &[1], false)?;
    let top = c.b.cast(top, dtype)?;
    let mut out = vec![c.b.reshape(top, shape.clone())?];
    let by_columns = c.int("storage_order", 0) != 0;
    if c.wants(1) {
        let [n, taps] = c.shape(rows)[..] else { return Err("windows are rows".into()) };
        let apart = c.b.reshape(rows, [n, taps, 1])?;
        let best = c.b.unary("argmax", apart)?;
        let best = c.b.reshape(best, [n])?;
        // Window i of a channel begins at place i · taps of the table.
        let (channels, image) = (shape[0] * shape[1], g.size.iter().product::<usize>());
        let places = n / channels.max(1);
        let table = g.indices(by_columns);
        let table = c.integers([table.len()], table);
        let starts = c.integers([n], (0..n).map(|i| (i % places.max(1) * taps) as i32).collect());
        let at = c.b.add(starts, best)?;
        let inside = c.b.gather(table, at, 0)?;
        let channel = c.integers([n], (0..n).map(|i| (i / places.max(1) * image) as i32).collect());
        let index = c.b.add(inside, channel)?;
        out.push(c.b.reshape(index, shape)?);
    }
    Ok(out)
}

/// How many elements of each window a mean divides by, `(1, places)`.
fn counts(c: &mut Context, g: &Geometry, padding: bool) -> Result<Value, Reason> {
    let n = g.size.iter().product();
    let ones = c.floats([&[1, 1], &g.size[3 - g.axes..]].concat(), vec![1.0; n]);
    let counted = rows(c, ones, g, if padding { 1.0 } else { 0.0 }, 0.0)?;
    Ok(c.b.reduce_sum(counted, &[1], false)?)
}

/// The mean of each window.
pub fn average_pool(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let (g, shape) = geometry(c, x)?;
    let rows = rows(c, x, &g, 0.0, 0.0)?;
    let sum = c.b.reduce_sum(rows, &[1], false)?;
    let counts = counts(c, &g, c.int("count_include_pad", 0) != 0)?;
    let places = c.shape(counts).elements();
    let sum = c.b.reshape(sum, [shape[0] * shape[1], places])?;
    let mean = c.b.div(sum, counts)?;
    Ok(vec![c.b.reshape(mean, shape)?])
}

/// `(Σ |x|^p)^(1/p)` over the last axis.
fn norm(c: &mut Context, x: Value, p: f64) -> Result<Value, Reason> {
    let axis = c.shape(x).len() - 1;
    if p == 2.0 {
        let square = c.b.mul(x, x)?;
        let sum = c.b.reduce_sum(square, &[axis], false)?;
        return root(c, sum);
    }
    let size = c.b.unary("abs", x)?;
    let raised = power(c, size, p)?;
    let sum = c.b.reduce_sum(raised, &[axis], false)?;
    power(c, sum, 1.0 / p)
}

fn exponent(c: &Context) -> f64 {
    // The first operator set had it as a float.
    if c.opset() < 2 { f64::from(c.float("p", 2.0)) } else { c.int("p", 2) as f64 }
}

pub fn lp_pool(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let p = exponent(c);
    let (g, shape) = geometry(c, x)?;
    let rows = rows(c, x, &g, 0.0, 0.0)?;
    let y = norm(c, rows, p)?;
    Ok(vec![c.b.reshape(y, shape)?])
}

pub fn global_lp_pool(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let (p, shape) = (exponent(c), c.shape(x));
    let n = shape[2.min(shape.len())..].iter().product::<usize>();
    let flat = c.b.reshape(x, [shape.elements() / n.max(1), n])?;
    let y = norm(c, flat, p)?;
    Ok(vec![c.b.reshape(y, [&shape[..2], &vec![1; shape.len() - 2][..]].concat())?])
}

/// The largest element of an image.
pub fn global_max_pool(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let axes: Vec<usize> = (2..c.shape(x).len()).collect();
    Ok(vec![c.b.reduce("reduce_max", x, &axes, true)?])
}

/// Elements put back where MaxPool found them.
pub fn max_unpool(c: &mut Context) -> Lowered {
    let (x, places) = (c.x(0)?, c.x(1)?);
    let xs = c.shape(x);
    let kernel = c.list("kernel_shape").ok_or("kernel_shape is missing")?;
    let axes = kernel.len();
    if xs.len() != axes + 2 {
        return Err(format!("images {xs} of {axes} axes").into());
    }
    let lists = super::windows::Lists::of(c, axes)?;
    let natural: Vec<usize> = (0..axes)
        .map(|d| {
            let n = (xs[d + 2] as i64 - 1) * lists.stride[d] as i64 + kernel[d];
            (n - (lists.pads[d] + lists.pads[d + axes]) as i64).max(0) as usize
        })
        .collect();
    let natural = [&xs[..2], &natural[..]].concat();
    let shape = match c.opt(2) {
        Some(_) => c.known_ints(2)?.into_iter().map(|n| n.max(0) as usize).collect(),
        None => natural.clone(),
    };
    // The indices count through the extents that the windows give.
    let total: usize = natural.iter().product();
    let flat = c.b.reshape(x, [xs.elements(), 1])?;
    let places = c.b.reshape(places, [xs.elements()])?;
    let zeros = c.filled(x, [total, 1], 0.0);
    let y = scatter::scatter(c, zeros, places, flat, scatter::Combine::Last)?;
    let mut y = c.b.reshape(y, natural)?;
    for (d, &n) in shape.iter().enumerate() {
        y = c.section(y, d, 0, n, 0.0)?;
    }
    Ok(vec![y])
}
