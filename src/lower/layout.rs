//! Operators that move elements.

use super::{Context, Reason};
use crate::ir::{DType, Shape, Tensor, Value};

type Lowered = Result<Vec<Value>, Reason>;

pub fn reshape(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let wanted = c.ints_of("shape", 1)?.ok_or("needs a shape")?;
    let from = c.shape(x);
    let keep_zero = c.int("allowzero", 0) != 0;
    let mut shape = Vec::with_capacity(wanted.len());
    for (d, &n) in wanted.iter().enumerate() {
        shape.push(match n {
            0 if !keep_zero => {
                *from.get(d).ok_or_else(|| format!("axis {d} is copied from a shape of {}", from.len()))?
            }
            n if n >= 0 => n as usize,
            -1 => 0,
            n => return Err(format!("extent {n}").into()),
        });
    }
    if let Some(d) = wanted.iter().position(|&n| n == -1) {
        let rest: usize = shape.iter().enumerate().filter(|(i, _)| *i != d).map(|(_, n)| n).product();
        if rest == 0 || !from.elements().is_multiple_of(rest) {
            return Err(format!("{from} does not fill {wanted:?}").into());
        }
        shape[d] = from.elements() / rest;
    }
    Ok(vec![c.b.reshape(x, shape)?])
}

pub fn transpose(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let rank = c.shape(x).len();
    let perm = match c.node.attr_ints("perm") {
        Some(p) => c.axes(p, rank)?,
        None => (0..rank).rev().collect(),
    };
    Ok(vec![c.b.transpose(x, &perm)?])
}

pub fn squeeze(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axes = match c.ints_of("axes", 1)? {
        Some(axes) => c.axes(&axes, shape.len())?,
        None => (0..shape.len()).filter(|&d| shape[d] == 1).collect(),
    };
    if let Some(d) = axes.iter().find(|&&d| shape[d] != 1) {
        return Err(format!("axis {d} of {shape} is not 1").into());
    }
    let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).map(|d| shape[d]).collect();
    Ok(vec![c.b.reshape(x, kept)?])
}

pub fn unsqueeze(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axes = c.ints_of("axes", 1)?.ok_or("needs axes")?;
    let rank = shape.len() + axes.len();
    let axes = c.axes(&axes, rank)?;
    let mut rest = shape.iter();
    let wide: Vec<usize> =
        (0..rank).map(|d| if axes.contains(&d) { 1 } else { rest.next().copied().unwrap_or(1) }).collect();
    Ok(vec![c.b.reshape(x, wide)?])
}

pub fn flatten(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axis = match c.int("axis", 1) {
        a if a as usize == shape.len() => shape.len(),
        a => c.axis(a, shape.len())?,
    };
    let rows: usize = shape[..axis].iter().product();
    let columns: usize = shape[axis..].iter().product();
    Ok(vec![c.b.reshape(x, [rows, columns])?])
}

pub fn expand(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let wanted: Vec<usize> = c.known_ints(1)?.into_iter().map(|n| n.max(0) as usize).collect();
    let shape = Shape::broadcast(&c.shape(x), &wanted);
    let shape = shape.ok_or_else(|| format!("{} does not broadcast with {wanted:?}", c.shape(x)))?;
    Ok(vec![c.b.broadcast(x, shape)?])
}

pub fn tile(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    let repeats = c.known_ints(1)?;
    let shape = c.shape(x);
    if repeats.len() != shape.len() {
        return Err(format!("{} repeats for {} axes", repeats.len(), shape.len()).into());
    }
    for (d, &n) in repeats.iter().enumerate().filter(|(_, n)| **n != 1) {
        let copies = vec![x; n.max(0) as usize];
        x = c.b.concat(&copies, d)?;
    }
    Ok(vec![x])
}

pub fn concat(c: &mut Context) -> Lowered {
    let xs: Vec<Value> = (0..c.inputs.len()).map(|i| c.x(i)).collect::<Result<_, _>>()?;
    let axis = c.axis(c.int("axis", 0), c.shape(xs[0]).len())?;
    Ok(vec![c.b.concat(&xs, axis)?])
}

pub fn split(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axis = c.axis(c.int("axis", 0), shape.len())?;
    let parts = match c.ints_of("split", 1)? {
        Some(parts) => parts.into_iter().map(|n| n.max(0) as usize).collect(),
        None => {
            let n = c.node.attr_int("num_outputs").map_or(c.node.outputs().len(), |n| n as usize);
            let part = shape[axis].div_ceil(n);
            let mut left = shape[axis];
            let take = |_| {
                let now = part.min(left);
                left -= now;
                now
            };
            (0..n).map(take).collect::<Vec<_>>()
        }
    };
    if parts.iter().sum::<usize>() != shape[axis] {
        return Err(format!("parts {parts:?} of an axis of {}", shape[axis]).into());
    }
    let mut start = 0;
    let mut out = Vec::new();
    for len in parts {
        out.push(c.b.slice(x, axis, start, len, 1)?);
        start += len;
    }
    Ok(out)
}

pub fn slice(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    let rank = c.shape(x).len();
    let starts = c.ints_of("starts", 1)?.ok_or("needs starts")?;
    let ends = c.ints_of("ends", 2)?.ok_or("needs ends")?;
    let axes = c.ints_of("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = if c.opt(4).is_some() { c.known_ints(4)? } else { vec![1; starts.len()] };
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = c.axis(axis, rank)?;
        let n = c.shape(x)[axis] as i64;
        let wrap = |i: i64| if i < 0 { i + n } else { i };
        let steps_to = |distance: i64, step: i64| (distance.max(0) as u64).div_ceil(step.unsigned_abs()) as i64;
        let (first, len) = match step {
            0 => return Err("step 0".into()),
            _ if n == 0 => (0, 0),
            s if s > 0 => {
                let (a, b) = (wrap(start).clamp(0, n), wrap(end).clamp(0, n));
                (a, steps_to(b - a, s))
            }
            s => {
                let (a, b) = (wrap(start).clamp(0, n - 1), wrap(end).clamp(-1, n - 1));
                (a, steps_to(a - b, s))
            }
        };
        // An empty result's start may lie at the end of the axis, which the primitive does not read.
        x = c.b.slice(x, axis, if len == 0 { 0 } else { first as usize }, len as usize, step)?;
    }
    Ok(vec![x])
}

pub fn gather(c: &mut Context) -> Lowered {
    let (x, index) = (c.x(0)?, c.x(1)?);
    let shape = c.shape(x);
    let axis = c.axis(c.int("axis", 0), shape.len())?;
    if let Some(k) = c.b.constant_of(index).and_then(|t| t.as_i32().map(<[i32]>::to_vec)) {
        let n = shape[axis] as i64;
        if let Some(bad) = k.iter().find(|&&i| (i as i64) < -n || i as i64 >= n) {
            return Err(format!("index {bad} of an axis of {n}").into());
        }
        // One row is a slice, which needs no table of indices.
        if let [i] = k[..] {
            let at = if i < 0 { i as i64 + n } else { i as i64 } as usize;
            let row = c.b.slice(x, axis, at, 1, 1)?;
            let out = [&shape[..axis], &c.shape(index)[..], &shape[axis + 1..]].concat();
            return Ok(vec![c.b.reshape(row, out)?]);
        }
    }
    Ok(vec![c.b.gather(x, index, axis)?])
}

/// `y[i, j] = x[index[i, j], j]` for axis 0, and likewise for others: a gather from the flattened tensor.
pub fn gather_elements(c: &mut Context) -> Lowered {
    let (x, index) = (c.x(0)?, c.x(1)?);
    let from = c.shape(x);
    let axis = c.axis(c.int("axis", 0), from.len())?;
    let at = element_places(c, index, &from, axis)?;
    let flat = c.b.reshape(x, [from.elements()])?;
    Ok(vec![c.b.gather(flat, at, 0)?])
}

/// The flat places in a tensor of a shape that indices along an axis name, the other coordinates being those of the index.
pub fn element_places(c: &mut Context, index: Value, from: &Shape, axis: usize) -> Result<Value, Reason> {
    let to = c.shape(index);
    let strides = from.strides();
    if to.len() != from.len() || (0..to.len()).any(|d| d != axis && to[d] > from[d]) {
        return Err(format!("indices {to} do not fit {from}").into());
    }
    let wrapped = named_row(c, index, from[axis])?;
    let stride = c.b.constant(Tensor::i32([], vec![strides[axis] as i32]));
    let along = c.b.mul(wrapped, stride)?;
    let own = to.strides();
    let rest = |i: usize| (0..to.len()).filter(|&d| d != axis).map(|d| i / own[d] % to[d] * strides[d]).sum::<usize>();
    let offsets = (0..to.elements()).map(|i| rest(i) as i32).collect();
    let offsets = c.b.constant(Tensor::i32(to, offsets));
    Ok(c.b.add(along, offsets)?)
}

/// The row among `n` that each index names, counted from the end where it is negative. A lookup of its own, so that an index
/// beyond the `n` rows is seen as one before it becomes part of a flat place.
pub fn named_row(c: &mut Context, index: Value, n: usize) -> Result<Value, Reason> {
    let rows = c.b.constant(Tensor::i32([n], (0..n as i32).collect()));
    Ok(c.b.gather(rows, index, 0)?)
}

pub fn gather_nd(c: &mut Context) -> Lowered {
    let (x, index) = (c.x(0)?, c.x(1)?);
    let (from, at) = (c.shape(x), c.shape(index));
    let batch = c.int("batch_dims", 0) as usize;
    let depth = *at.last().ok_or("indices without axes")?;
    if batch + depth > from.len() || at.len() < batch + 1 || from[..batch] != at[..batch] {
        return Err(format!("indices {at} into {from} with batch_dims {batch}").into());
    }
    let flat = row_places(c, index, &from, batch)?;
    let batches: usize = from[..batch].iter().product();
    let block: usize = from[batch..batch + depth].iter().product();
    let inner = &from[batch + depth..];
    let table = c.b.reshape(x, [&[batches * block], inner].concat())?;
    let rows = c.b.gather(table, flat, 0)?;
    let out = [&at[..at.len() - 1], inner].concat();
    Ok(vec![c.b.reshape(rows, out)?])
}

/// The flat row that each tuple of indices `(.., depth)` names among the first axes of a shape, after `batch` axes that both have.
pub fn row_places(c: &mut Context, index: Value, from: &Shape, batch: usize) -> Result<Value, Reason> {
    let at = c.shape(index);
    let depth = *at.last().ok_or("indices without axes")?;
    let count = at.elements() / depth.max(1);
    let components = c.b.reshape(index, [count, depth])?;
    let mut flat: Option<Value> = None;
    for (k, &extent) in from[batch..batch + depth].iter().enumerate() {
        let component = c.b.slice(components, 1, k, 1, 1)?;
        let component = c.b.reshape(component, [count])?;
        let n = c.b.constant(Tensor::i32([], vec![extent as i32]));
        let wrapped = named_row(c, component, extent)?;
        flat = Some(match flat {
            None => wrapped,
            Some(sum) => {
                let shifted = c.b.mul(sum, n)?;
                c.b.add(shifted, wrapped)?
            }
        });
    }
    let mut flat = flat.ok_or("indices of no components")?;
    let batches: usize = from[..batch].iter().product();
    let block: usize = from[batch..batch + depth].iter().product();
    if batches > 1 {
        let base = (0..count).map(|i| (i / (count / batches) * block) as i32).collect();
        let base = c.b.constant(Tensor::i32([count], base));
        flat = c.b.add(flat, base)?;
    }
    Ok(flat)
}

/// Constant padding: what is cut (negative pads) is cut first.
pub fn pad(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    let mode = c.node.attr_str("mode").map(|m| m.into_owned()).unwrap_or("constant".into());
    let pads = c.ints_of("pads", 1)?.ok_or("needs pads")?;
    let value = c.node.attr_float("value").map_or_else(|| c.known_float(2), |v| Ok(Some(v)))?.unwrap_or(0.0);
    let rank = c.shape(x).len();
    let axes = match c.opt(3) {
        Some(_) => c.axes(&c.known_ints(3)?, rank)?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} axes", pads.len(), axes.len()).into());
    }
    for (k, &d) in axes.iter().enumerate() {
        let (before, after) = (pads[k], pads[k + axes.len()]);
        let n = c.shape(x)[d] as i64;
        let (from, to) = ((-before).max(0), n - (-after).max(0));
        x = c.b.slice(x, d, from as usize, (to - from).max(0) as usize, 1)?;
        let (before, after) = (before.max(0) as usize, after.max(0) as usize);
        if before + after == 0 {
            continue;
        }
        let shape = c.shape(x);
        let index: Option<Vec<i32>> = match mode.as_str() {
            "constant" => None,
            _ => Some(mirrored(&mode, before, shape[d], after).ok_or_else(|| format!("mode '{mode}' is not known"))?),
        };
        x = match index {
            Some(index) => {
                let index = c.b.constant(Tensor::i32([index.len()], index));
                c.b.gather(x, index, d)?
            }
            None if value == 0.0 && c.ty(x).is_float() => c.b.unslice(x, d, before, before + shape[d] + after, 1)?,
            None => {
                let fill = |c: &mut Context, n: usize| {
                    let mut s = shape.clone();
                    s.0[d] = n;
                    let t = match c.ty(x).dtype {
                        DType::F32 => Tensor::f32(s.clone(), vec![value; s.elements()]),
                        DType::I32 => Tensor::i32(s.clone(), vec![value as i32; s.elements()]),
                        DType::Bool => Tensor::bool(s.clone(), vec![(value != 0.0) as u32; s.elements()]),
                    };
                    c.b.constant(t)
                };
                let (left, right) = (fill(c, before), fill(c, after));
                c.b.concat(&[left, x, right], d)?
            }
        };
    }
    Ok(vec![x])
}

fn mirrored(mode: &str, before: usize, n: usize, after: usize) -> Option<Vec<i32>> {
    let range = -(before as i64)..(n + after) as i64;
    let last = n as i64 - 1;
    let at: fn(i64, i64) -> i64 = match mode {
        "edge" => |i, last| i.clamp(0, last),
        "reflect" => |i, last| match last {
            0 => 0,
            _ => last - (i.rem_euclid(2 * last) - last).abs(),
        },
        "wrap" => |i, last| i.rem_euclid(last + 1),
        _ => return None,
    };
    Some(range.map(|i| at(i, last) as i32).collect())
}

pub fn trilu(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let k = if c.opt(1).is_some() { c.known_ints(1)?[0] } else { 0 };
    let upper = c.int("upper", 1) != 0;
    let [rows, columns] = shape[shape.len().saturating_sub(2)..] else { return Err("needs two axes".into()) };
    let keep = |i: usize| {
        let (r, col) = ((i / columns) as i64, (i % columns) as i64);
        if upper { col - r >= k } else { col - r <= k }
    };
    let mask = (0..rows * columns).map(|i| keep(i) as u32).collect();
    let mask = c.b.constant(Tensor::bool([rows, columns], mask));
    if c.ty(x).dtype == DType::Bool {
        return Ok(vec![c.b.binary("and", mask, x)?]);
    }
    let zero = match c.ty(x).dtype {
        DType::F32 => Tensor::scalar(0.0),
        _ => Tensor::i32([], vec![0]),
    };
    let zero = c.b.constant(zero);
    Ok(vec![c.b.select(mask, x, zero)?])
}

pub fn one_hot(c: &mut Context) -> Lowered {
    let (index, values) = (c.x(0)?, c.x(2)?);
    let depth = c.known(1)?;
    let depth = depth.as_i32().map(|d| d[0] as i64).or(depth.as_f32().map(|d| d[0] as i64)).unwrap_or(0);
    let shape = c.shape(index);
    let axis = match c.int("axis", -1) {
        a if a < 0 => (a + 1 + shape.len() as i64) as usize,
        a => a as usize,
    };
    let n = c.b.constant(Tensor::i32([], vec![depth as i32]));
    let index = c.b.cast(index, DType::I32)?;
    let zero = c.b.constant(Tensor::i32([], vec![0]));
    let negative = c.b.binary("less", index, zero)?;
    let from_end = c.b.add(index, n)?;
    // An index that is out of range on either side hits nothing.
    let wrapped = c.b.select(negative, from_end, index)?;
    let wide = [&shape[..axis], &[1], &shape[axis..]].concat();
    let column = c.b.reshape(wrapped, wide.clone())?;
    let mut range_shape = vec![1; wide.len()];
    range_shape[axis] = depth as usize;
    let range = c.b.constant(Tensor::i32(range_shape, (0..depth as i32).collect()));
    let hit = c.b.binary("equal", column, range)?;
    let (off, on) = (c.b.slice(values, 0, 0, 1, 1)?, c.b.slice(values, 0, 1, 1, 1)?);
    let (off, on) = (c.b.reshape(off, [])?, c.b.reshape(on, [])?);
    Ok(vec![c.b.select(hit, on, off)?])
}

/// Channels turned into squares of places: `(B, C, H, W)` to `(B, C / s², H s, W s)`.
pub fn depth_to_space(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let s = c.int("blocksize", 0).max(0) as usize;
    let [b, channels, h, w] = c.shape(x)[..] else { return Err("takes images of two axes".into()) };
    if s == 0 || channels % (s * s) != 0 {
        return Err(format!("{channels} channels in blocks of {s} by {s}").into());
    }
    let n = channels / (s * s);
    let (apart, perm): (_, &[usize]) = match c.node.attr_str("mode").as_deref().unwrap_or("DCR") {
        "DCR" => ([b, s, s, n, h, w], &[0, 3, 4, 1, 5, 2]),
        "CRD" => ([b, n, s, s, h, w], &[0, 1, 4, 2, 5, 3]),
        other => return Err(format!("mode '{other}' is not known").into()),
    };
    let apart = c.b.reshape(x, apart)?;
    let turned = c.b.transpose(apart, perm)?;
    Ok(vec![c.b.reshape(turned, [b, n, h * s, w * s])?])
}

/// Squares of places turned into channels: `(B, C, H, W)` to `(B, C s², H / s, W / s)`.
pub fn space_to_depth(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let s = c.int("blocksize", 0).max(0) as usize;
    let [b, channels, h, w] = c.shape(x)[..] else { return Err("takes images of two axes".into()) };
    if s == 0 || h % s != 0 || w % s != 0 {
        return Err(format!("{h} by {w} places in blocks of {s}").into());
    }
    let (apart, perm): (_, &[usize]) = match c.node.attr_str("mode").as_deref().unwrap_or("DCR") {
        "DCR" => ([b, channels, h / s, s, w / s, s], &[0, 3, 5, 1, 2, 4]),
        "CRD" => ([b, channels, h / s, s, w / s, s], &[0, 1, 3, 5, 2, 4]),
        other => return Err(format!("mode '{other}' is not known").into()),
    };
    let apart = c.b.reshape(x, apart)?;
    let turned = c.b.transpose(apart, perm)?;
    Ok(vec![c.b.reshape(turned, [b, channels * s * s, h / s, w / s])?])
}

/// The middle of each axis, or the whole of it with zeros on both sides.
pub fn center_crop_pad(c: &mut Context) -> Lowered {
    let mut x = c.x(0)?;
    let rank = c.shape(x).len();
    let axes = match c.list("axes") {
        Some(axes) => c.axes(&axes, rank)?,
        None => (0..rank).collect(),
    };
    let sizes = c.known_ints(1)?;
    if sizes.len() != axes.len() {
        return Err(format!("{} extents for {} axes", sizes.len(), axes.len()).into());
    }
    for (&axis, &n) in axes.iter().zip(&sizes) {
        let have = c.shape(x)[axis] as i64;
        let start = if n < have { (have - n) / 2 } else { -((n - have) / 2) };
        x = c.section(x, axis, start, n.max(0) as usize, 0.0)?;
    }
    Ok(vec![x])
}
