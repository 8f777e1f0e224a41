//! Operators whose result's extents depend on elements, which must be known while compiling: Compress and Unique.

use super::{Context, Reason};
use crate::ir::{Tensor, Type, Value};
use std::cmp::Ordering;

type Lowered = Result<Vec<Value>, Reason>;

/// The slices along an axis (the elements, where there is none) at which a known condition holds.
pub fn compress(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    let condition = c.known(1)?;
    let axis = match c.node.attr_int("axis") {
        Some(axis) => c.axis(axis, c.shape(x).len())?,
        None => {
            let n = c.shape(x).elements();
            x = c.b.reshape(x, [n])?;
            0
        }
    };
    let n = c.shape(x)[axis];
    let kept: Vec<i32> =
        condition.words().iter().take(n).enumerate().filter(|(_, w)| **w != 0).map(|(i, _)| i as i32).collect();
    if kept.is_empty() {
        let mut shape = c.shape(x);
        shape.0[axis] = 0;
        return Ok(vec![c.filled(x, shape, 0.0)]);
    }
    let kept = c.integers([kept.len()], kept);
    Ok(vec![c.b.gather(x, kept, axis)?])
}

/// The order of two slices by their elements, NaN last.
fn compared(t: &Tensor, a: &[usize], b: &[usize]) -> Ordering {
    let one = |i: usize, j: usize| match (t.as_f32(), t.as_i32()) {
        (Some(x), _) => x[i].partial_cmp(&x[j]).unwrap_or_else(|| x[i].is_nan().cmp(&x[j].is_nan())),
        (_, Some(x)) => x[i].cmp(&x[j]),
        _ => Ordering::Equal,
    };
    a.iter().zip(b).map(|(&i, &j)| one(i, j)).find(|o| *o != Ordering::Equal).unwrap_or(Ordering::Equal)
}

/// The distinct slices along an axis (the elements, where there is none); where each first stands, which one each slice is, and how
/// often each occurs.
pub fn unique(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    c.known(0)?;
    let axis = match c.node.attr_int("axis") {
        Some(axis) => c.axis(axis, c.shape(x).len())?,
        None => {
            let n = c.shape(x).elements();
            x = c.b.reshape(x, [n])?;
            0
        }
    };
    let t = c.b.constant_of(x).cloned().ok_or("its input must be known while compiling")?;
    let shape = c.shape(x);
    let n = shape[axis];
    let (outer, inner): (usize, usize) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
    let places = |i: usize| -> Vec<usize> {
        (0..outer).flat_map(|o| (0..inner).map(move |k| (o * n + i) * inner + k)).collect()
    };
    let slices: Vec<Vec<usize>> = (0..n).map(places).collect();
    let mut by_value: Vec<usize> = (0..n).collect();
    by_value.sort_by(|&a, &b| compared(&t, &slices[a], &slices[b]));
    // Groups of equal slices, each in order of where it stands.
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for i in by_value {
        match groups.last_mut() {
            Some(g) if compared(&t, &slices[g[0]], &slices[i]) == Ordering::Equal => g.push(i),
            _ => groups.push(vec![i]),
        }
    }
    if c.int("sorted", 1) == 0 {
        groups.sort_by_key(|g| g[0]);
    }
    let mut which = vec![0; n];
    groups.iter().enumerate().for_each(|(k, g)| g.iter().for_each(|&i| which[i] = k as i32));
    let first: Vec<i32> = groups.iter().map(|g| g[0] as i32).collect();
    let count: Vec<i32> = groups.iter().map(|g| g.len() as i32).collect();
    let m = groups.len();
    let first = c.integers([m], first);
    let values = match m {
        0 => c.b.constant(Tensor::zeros(&Type::new(t.dtype(), shape))),
        _ => c.b.gather(x, first, axis)?,
    };
    Ok(vec![values, first, c.integers([n], which), c.integers([m], count)])
}
