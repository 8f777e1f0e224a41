//! Convolutions, as one matmul of all image windows with the kernels.

use super::{Context, Reason};
use crate::ir::{Attr, Attrs, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// Kernel, strides, dilations and pads of a node whose images have `axes` axes (one or two), as two-dimensional windows.
pub(super) fn windows(c: &Context, kernel: &[usize], size: &[usize]) -> Result<Attrs, Reason> {
    let axes = kernel.len();
    let ints = |name: &str, default: i64, n: usize| {
        c.node.attr_ints(name).filter(|v| !v.is_empty()).map_or(vec![default; n], <[i64]>::to_vec)
    };
    let (stride, dilation) = (ints("strides", 1, axes), ints("dilations", 1, axes));
    let mut pads = ints("pads", 0, 2 * axes);
    match c.node.attr_str("auto_pad").as_deref().unwrap_or("NOTSET") {
        "NOTSET" => {}
        "VALID" => pads = vec![0; 2 * axes],
        mode @ ("SAME_UPPER" | "SAME_LOWER") => {
            for d in 0..axes {
                let places = (size[d] as i64 + stride[d] - 1) / stride[d];
                let span = (kernel[d] as i64 - 1) * dilation[d] + 1;
                let total = ((places - 1) * stride[d] + span - size[d] as i64).max(0);
                let less = total / 2;
                (pads[d], pads[d + axes]) =
                    if mode == "SAME_UPPER" { (less, total - less) } else { (total - less, less) };
            }
        }
        other => return Err(format!("auto_pad '{other}' is not known").into()),
    }
    if pads.iter().any(|&p| p < 0) {
        return Err("negative pads are not supported".into());
    }
    // A sequence is an image of one row.
    let two = |v: Vec<i64>, fill: i64| if axes == 1 { vec![fill, v[0]] } else { v };
    let pads = if axes == 1 { vec![0, pads[0], 0, pads[1]] } else { pads };
    let kernel = two(kernel.iter().map(|&k| k as i64).collect(), 1);
    let lists = [("kernel", kernel), ("stride", two(stride, 1)), ("dilation", two(dilation, 1)), ("pads", pads)];
    Ok(lists.into_iter().fold(Attrs::new(), |a, (name, v)| a.with(name, Attr::Ints(v))))
}

/// `(B, C, H, W)` with kernels `(O, C / groups, kh, kw)` to `(B, O, H', W')`; one-dimensional likewise.
pub fn conv(c: &mut Context) -> Lowered {
    let (x, w) = (c.x(0)?, c.x(1)?);
    let (xs, ws) = (c.shape(x), c.shape(w));
    let axes = ws.len().saturating_sub(2);
    if xs.len() != ws.len() || !(1..=2).contains(&axes) {
        return Err(format!("images {xs} with kernels {ws}: one or two axes are supported").into());
    }
    let groups = c.int("group", 1) as usize;
    let (channels, outs, per) = (xs[1], ws[0], ws[1]);
    if groups == 0 || channels != per * groups || outs % groups != 0 {
        return Err(format!("{channels} channels and {outs} kernels of {per} in {groups} groups").into());
    }
    let attrs = windows(c, &ws[2..], &xs[2..])?;
    let width = per * ws[2..].iter().product::<usize>();
    let image = |n: usize| if axes == 1 { vec![xs[0], n, 1, xs[2]] } else { vec![xs[0], n, xs[2], xs[3]] };
    let kernels = c.b.reshape(w, [outs, width])?;
    let mut parts = Vec::new();
    for g in 0..groups {
        let own = c.b.slice(x, 1, g * per, per, 1)?;
        let own = c.b.reshape(own, image(per))?;
        let rows = c.b.emit("unfold", &[own], attrs.clone())?;
        let places = c.shape(rows)[1];
        let flat = c.b.reshape(rows, [xs[0] * places, width])?;
        let weight = c.b.slice(kernels, 0, g * (outs / groups), outs / groups, 1)?;
        let y = c.b.matmul(flat, weight, false, true)?;
        parts.push(c.b.reshape(y, [xs[0], places, outs / groups])?);
    }
    let mut y = c.b.concat(&parts, 2)?;
    if let Some(bias) = c.opt(2) {
        y = c.b.add(y, bias)?;
    }
    let y = c.b.transpose(y, &[0, 2, 1])?;
    // The places along each axis, from the windows of one group.
    let windows = crate::ops::windows("unfold", &image(per), &attrs).map_err(Reason::Why)?;
    let shape = if axes == 1 { vec![xs[0], outs, windows[1]] } else { vec![xs[0], outs, windows[0], windows[1]] };
    Ok(vec![c.b.reshape(y, shape)?])
}

/// The mean over all places of an image.
pub fn global_average_pool(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axes: Vec<usize> = (2..shape.len()).collect();
    let n: usize = shape[2.min(shape.len())..].iter().product();
    let sum = c.b.reduce_sum(x, &axes, true)?;
    Ok(vec![c.b.scale(sum, 1.0 / n.max(1) as f64)?])
}
