//! Transposed convolutions, Col2Im and deformable convolutions.

use super::windows::{Geometry, Lists, three};
use super::{Context, Reason, sample};
use crate::ir::Value;

type Lowered = Result<Vec<Value>, Reason>;

/// `(B, C, ..)` with kernels `(C, O / groups, ..)`: each element adds its multiple of a kernel.
pub fn conv_transpose(c: &mut Context) -> Lowered {
    let (x, w, bias) = (c.x(0)?, c.x(1)?, c.opt(2));
    let (xs, ws) = (c.shape(x), c.shape(w));
    let axes = ws.len().saturating_sub(2);
    if xs.len() != ws.len() || !(1..=3).contains(&axes) {
        return Err(format!("images {xs} with kernels {ws}: one to three axes are supported").into());
    }
    let groups = c.int("group", 1).max(1) as usize;
    let (channels, per) = (xs[1], ws[1]);
    if channels != ws[0] || channels % groups != 0 {
        return Err(format!("{channels} channels with kernels {ws} in {groups} groups").into());
    }
    let Lists { stride, dilation, pads } = Lists::of(c, axes)?;
    let extra = c.list("output_padding").unwrap_or_else(|| vec![0; axes]);
    let size = &xs[2..];
    let span = |d: usize| (ws[d + 2] - 1) * dilation[d] + 1;
    let whole: Vec<usize> = (0..axes).map(|d| (size[d] - 1) * stride[d] + span(d)).collect();
    let (mut first, mut out): (Vec<i64>, Vec<i64>) =
        (0..axes).map(|d| (pads[d] as i64, whole[d] as i64 + extra[d] - (pads[d] + pads[d + axes]) as i64)).unzip();
    let mode = c.text("auto_pad", "NOTSET");
    let wanted = match (c.list("output_shape"), mode.as_str()) {
        (Some(shape), _) => Some(shape[shape.len().saturating_sub(axes)..].to_vec()),
        (None, "SAME_UPPER" | "SAME_LOWER") => Some((0..axes).map(|d| (size[d] * stride[d]) as i64).collect()),
        (None, "NOTSET") => None,
        (None, "VALID") => {
            first.fill(0);
            out = (0..axes).map(|d| whole[d] as i64 + extra[d]).collect();
            None
        }
        (None, other) => return Err(format!("auto_pad '{other}' is not known").into()),
    };
    if let Some(wanted) = wanted {
        for d in 0..axes {
            // A longer output than the windows reach ends with zeros.
            let total = (whole[d] as i64 + extra[d] - wanted[d]).max(0);
            first[d] = if mode == "SAME_UPPER" { total / 2 } else { total - total / 2 };
            out[d] = wanted[d];
        }
    }
    if out.iter().any(|&n| n < 1) || extra.len() != axes {
        return Err(format!("an output of {out:?}").into());
    }
    let g = Geometry {
        axes,
        size: three(&whole, 1),
        kernel: three(&ws[2..], 1),
        stride: three(&stride, 1),
        dilation: three(&dilation, 1),
        before: [0; 3],
        after: [0; 3],
        beyond: [0; 3],
    };
    let taps: usize = ws[2..].iter().product();
    let [depth, h, w_] = three(size, 1);
    let apart = c.b.reshape(w, [channels, per, g.kernel[0], g.kernel[1] * g.kernel[2]])?;
    let turned = c.b.transpose(apart, &[0, 2, 1, 3])?;
    let kernels = c.b.reshape(turned, [channels, per * taps])?;
    let apart = c.b.reshape(x, [xs[0], channels, depth * h * w_])?;
    let rows = c.b.transpose(apart, &[0, 2, 1])?;
    let each = channels / groups;
    let mut parts = Vec::new();
    for group in 0..groups {
        let own = c.b.slice(rows, 2, group * each, each, 1)?;
        let flat = c.b.reshape(own, [xs[0] * depth * h * w_, each])?;
        let weight = c.b.slice(kernels, 0, group * each, each, 1)?;
        let y = c.b.matmul(flat, weight, false, false)?;
        let y = c.b.reshape(y, [xs[0] * depth, h * w_, per * taps])?;
        parts.push(g.added(c, y, xs[0])?);
    }
    let mut y = c.b.concat(&parts, 1)?;
    let (first, out) = (pad_front(&first, 0), pad_front(&out, 1));
    for d in 0..3 {
        y = c.section(y, d + 2, first[d], out[d] as usize, 0.0)?;
    }
    let outs = per * groups;
    let y = c
        .b
        .reshape(y, [&[xs[0], outs], &out[3 - axes..].iter().map(|&n| n as usize).collect::<Vec<_>>()[..]].concat())?;
    let Some(bias) = bias else { return Ok(vec![y]) };
    let bias = c.b.reshape(bias, [&[outs][..], &vec![1; axes]].concat())?;
    Ok(vec![c.b.add(y, bias)?])
}

fn pad_front(v: &[i64], fill: i64) -> [i64; 3] {
    let mut out = [fill; 3];
    out[3 - v.len()..].copy_from_slice(v);
    out
}

/// Columns `(B, C · kernel, places)` added up to images `(B, C, ..)`.
pub fn col2im(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let sizes = |v: Vec<i64>| v.into_iter().map(|n| n.max(0) as usize).collect::<Vec<usize>>();
    let (image, kernel) = (sizes(c.known_ints(1)?), sizes(c.known_ints(2)?));
    let g = Geometry::of(c, &kernel, &image)?;
    let [b, width, places] = c.shape(x)[..] else { return Err("takes columns of three axes".into()) };
    let taps: usize = kernel.iter().product();
    let [depth, h, w] = g.places();
    if taps == 0 || width % taps != 0 || places != depth * h * w {
        return Err(format!("{} columns of {width} for {:?} places of {kernel:?}", places, g.out()).into());
    }
    let channels = width / taps;
    let apart = c.b.reshape(x, [b, channels, g.kernel[0], g.kernel[1] * g.kernel[2], places])?;
    let rows = c.b.transpose(apart, &[0, 4, 2, 1, 3])?;
    let rows = c.b.reshape(rows, [b * depth, h * w, width])?;
    let mut y = g.added(c, rows, b)?;
    for d in 0..3 {
        y = c.section(y, d + 2, g.before[d] as i64, g.size[d], 0.0)?;
    }
    Ok(vec![c.b.reshape(y, [&[b, channels], &image[..]].concat())?])
}

/// A convolution whose windows read images at offsets of their own, between pixels by linear interpolation.
pub fn deform_conv(c: &mut Context) -> Lowered {
    let (x, w, offset) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let (xs, ws) = (c.shape(x), c.shape(w));
    let ([b, channels, height, width], [outs, per, kh, kw]) = (&xs[..], &ws[..]) else {
        return Err(format!("images {xs} with kernels {ws}: two axes are supported").into());
    };
    let (b, channels, outs, per, kh, kw) = (*b, *channels, *outs, *per, *kh, *kw);
    let (groups, shifts) = (c.int("group", 1).max(1) as usize, c.int("offset_group", 1).max(1) as usize);
    let g = Geometry::of(c, &[kh, kw], &[*height, *width])?;
    let [_, oh, ow] = g.places();
    let (taps, places) = (kh * kw, oh * ow);
    if channels != per * groups || outs % groups != 0 || channels % shifts != 0 {
        return Err(
            format!("{channels} channels, {outs} kernels of {per}, {groups} groups, {shifts} offset groups").into()
        );
    }
    // (B, shifts, taps, axes, places) to two coordinates (B, shifts, places, taps).
    let apart = c.b.reshape(offset, [b, shifts, taps, 2, places])?;
    let apart = c.b.transpose(apart, &[0, 1, 4, 2, 3])?;
    let base = |d: usize| {
        let at = move |place: usize, tap: usize| match d {
            0 => (place / ow * g.stride[1] + tap / kw * g.dilation[1]) as f32 - g.before[1] as f32,
            _ => (place % ow * g.stride[2] + tap % kw * g.dilation[2]) as f32 - g.before[2] as f32,
        };
        (0..places * taps).map(|i| at(i / taps, i % taps)).collect::<Vec<f32>>()
    };
    let (rows, columns) = (base(0), base(1));
    let mut coordinates = Vec::new();
    for (d, base) in [rows, columns].into_iter().enumerate() {
        let own = c.b.slice(apart, 4, d, 1, 1)?;
        let own = c.b.reshape(own, [b, shifts, places, taps])?;
        let base = c.floats([places, taps], base);
        let at = c.b.add(own, base)?;
        coordinates.push(c.b.reshape(at, [b * shifts, places * taps])?);
    }
    let each = channels / shifts;
    let images = c.b.reshape(x, [b * shifts, each, *height, *width])?;
    let rule = sample::Rule { mode: sample::Mode::Linear, outside: sample::Outside::Zeros, corners: true };
    let mut read = sample::sampled(c, images, &coordinates, &rule)?;
    if let Some(mask) = c.opt(4) {
        let mask = c.b.reshape(mask, [b, shifts, taps, places])?;
        let mask = c.b.transpose(mask, &[0, 1, 3, 2])?;
        let mask = c.b.reshape(mask, [b * shifts, places * taps, 1])?;
        read = c.b.mul(read, mask)?;
    }
    // (B, shifts, places, taps, each) to rows (B, places, channels, taps).
    let read = c.b.reshape(read, [b, shifts, places, taps, each])?;
    let read = c.b.transpose(read, &[0, 2, 1, 4, 3])?;
    let read = c.b.reshape(read, [b * places, channels * taps])?;
    let kernels = c.b.reshape(w, [outs, per * taps])?;
    let mut parts = Vec::new();
    for group in 0..groups {
        let own = c.b.slice(read, 1, group * per * taps, per * taps, 1)?;
        let weight = c.b.slice(kernels, 0, group * (outs / groups), outs / groups, 1)?;
        parts.push(c.b.matmul(own, weight, false, true)?);
    }
    let mut y = c.b.concat(&parts, 1)?;
    if let Some(bias) = c.opt(3) {
        y = c.b.add(y, bias)?;
    }
    let y = c.b.reshape(y, [b, places, outs])?;
    let y = c.b.transpose(y, &[0, 2, 1])?;
    Ok(vec![c.b.reshape(y, [b, outs, oh, ow])?])
}
