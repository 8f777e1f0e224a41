//! Convolutions of one to three axes, as one matmul of all image windows with the kernels.

use super::windows::Geometry;
use super::{Context, Reason};
use crate::ir::Value;

type Lowered = Result<Vec<Value>, Reason>;

/// `(B, C, ..)` with kernels `(O, C / groups, ..)` to `(B, O, ..)`.
pub fn conv(c: &mut Context) -> Lowered {
    let (x, w, bias) = (c.x(0)?, c.x(1)?, c.opt(2));
    Ok(vec![convolve(c, x, w, bias)?])
}

/// A convolution by the node's attributes.
pub fn convolve(c: &mut Context, x: Value, w: Value, bias: Option<Value>) -> Result<Value, Reason> {
    let (xs, ws) = (c.shape(x), c.shape(w));
    let axes = ws.len().saturating_sub(2);
    if xs.len() != ws.len() || !(1..=3).contains(&axes) {
        return Err(format!("images {xs} with kernels {ws}: one to three axes are supported").into());
    }
    let groups = c.int("group", 1) as usize;
    let (channels, outs, per) = (xs[1], ws[0], ws[1]);
    if groups == 0 || channels != per * groups || outs % groups != 0 {
        return Err(format!("{channels} channels and {outs} kernels of {per} in {groups} groups").into());
    }
    let g = Geometry::of(c, &ws[2..], &xs[2..])?;
    let width = per * ws[2..].iter().product::<usize>();
    // Rows go by depth, then by channel.
    let kernels = match g.kernel[0] {
        1 => c.b.reshape(w, [outs, width])?,
        depth => {
            let apart = c.b.reshape(w, [outs, per, depth, g.kernel[1] * g.kernel[2]])?;
            let turned = c.b.transpose(apart, &[0, 2, 1, 3])?;
            c.b.reshape(turned, [outs, width])?
        }
    };
    let mut parts = Vec::new();
    for group in 0..groups {
        let own = c.b.slice(x, 1, group * per, per, 1)?;
        let rows = g.rows(c, own)?;
        let places = c.shape(rows).elements() / (xs[0] * width).max(1);
        let flat = c.b.reshape(rows, [xs[0] * places, width])?;
        let weight = c.b.slice(kernels, 0, group * (outs / groups), outs / groups, 1)?;
        let y = c.b.matmul(flat, weight, false, true)?;
        parts.push(c.b.reshape(y, [xs[0], places, outs / groups])?);
    }
    let mut y = c.b.concat(&parts, 2)?;
    if let Some(bias) = bias {
        y = c.b.add(y, bias)?;
    }
    let y = c.b.transpose(y, &[0, 2, 1])?;
    Ok(c.b.reshape(y, [&[xs[0], outs], &g.out()[..]].concat())?)
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
