//! Images read between their pixels: GridSample, and AffineGrid, which makes its grids.

use super::{Context, Reason};
use crate::ir::{DType, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// How a value between pixels follows from them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// What stands outside of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outside {
    Zeros,
    /// The nearest pixel.
    Border,
    /// The image, mirrored.
    Reflection,
}

pub struct Rule {
    pub mode: Mode,
    pub outside: Outside,
    /// Whether the image ends at the middle of its outermost pixels, not at their far edges.
    pub corners: bool,
}

/// `x` mirrored at both ends of an image of `n` pixels, as often as it takes.
fn reflected(c: &mut Context, x: Value, n: usize, corners: bool) -> Result<Value, Reason> {
    let (low, range) = if corners { (0.0, n as f64 - 1.0) } else { (-0.5, n as f64) };
    if range == 0.0 {
        return Ok(c.b.scale(x, 0.0)?);
    }
    let (low, range, period) = (c.b.scalar(low), c.b.scalar(range), c.b.scalar(2.0 * range));
    let from = c.b.sub(x, low)?;
    let from = c.b.unary("abs", from)?;
    let from = c.b.binary("modulo", from, period)?;
    let past = c.b.sub(from, range)?;
    let past = c.b.unary("abs", past)?;
    let back = c.b.sub(range, past)?;
    Ok(c.b.add(back, low)?)
}

fn clamped(c: &mut Context, x: Value, low: f64, high: f64) -> Result<Value, Reason> {
    let (low, high) = (c.b.scalar(low), c.b.scalar(high));
    let x = c.b.binary("max", x, low)?;
    Ok(c.b.binary("min", x, high)?)
}

/// Keys' cubic convolution with a = -0.75: the weights of the four pixels around a place `t` after the second.
fn cubic_weights(c: &mut Context, t: Value) -> Result<Vec<Value>, Reason> {
    let one = c.b.scalar(1.0);
    let rest = c.b.sub(one, t)?;
    let (before, after) = (c.b.add(t, one)?, c.b.add(rest, one)?);
    let horner = |c: &mut Context, x: Value, factors: [f64; 4]| -> Result<Value, Reason> {
        let mut sum = c.b.scalar(factors[0]);
        for &f in &factors[1..] {
            let f = c.b.scalar(f);
            sum = c.b.mul(x, sum)?;
            sum = c.b.add(sum, f)?;
        }
        Ok(sum)
    };
    const A: f64 = -0.75;
    let (outer, inner) = ([A, -5.0 * A, 8.0 * A, -4.0 * A], [A + 2.0, -(A + 3.0), 0.0, 1.0]);
    Ok(vec![horner(c, before, outer)?, horner(c, t, inner)?, horner(c, rest, inner)?, horner(c, after, outer)?])
}

/// Along one axis: for each tap its pixel, from 0 to n - 1, and its weight.
fn taps(c: &mut Context, x: Value, n: usize, rule: &Rule) -> Result<Vec<(Value, Option<Value>)>, Reason> {
    let mut x = if rule.mode == Mode::Nearest { c.b.unary("round", x)? } else { x };
    let (low, high) = if rule.corners { (0.0, n as f64 - 1.0) } else { (-0.5, n as f64 - 0.5) };
    match rule.outside {
        Outside::Zeros => {}
        Outside::Border => {
            let inside = clamped(c, x, 0.0, n as f64 - 1.0)?;
            let (low, high) = (c.b.scalar(low), c.b.scalar(high));
            let (under, over) = (c.b.binary("less", x, low)?, c.b.binary("less", high, x)?);
            let out = c.b.binary("or", under, over)?;
            x = c.b.select(out, inside, x)?;
        }
        Outside::Reflection => x = reflected(c, x, n, rule.corners)?,
    }
    // Far outside every tap is, wherever it stands.
    let bounded = clamped(c, x, -4.0, n as f64 + 4.0)?;
    let floor = c.b.unary("floor", bounded)?;
    let part = c.b.sub(bounded, floor)?;
    let (first, weights) = match rule.mode {
        Mode::Nearest => (0, vec![None]),
        Mode::Linear => {
            let one = c.b.scalar(1.0);
            (0, vec![Some(c.b.sub(one, part)?), Some(part)])
        }
        Mode::Cubic => (-1, cubic_weights(c, part)?.into_iter().map(Some).collect()),
    };
    let floor = if rule.mode == Mode::Nearest { c.b.unary("round", bounded)? } else { floor };
    let mut out = Vec::new();
    for (k, mut weight) in weights.into_iter().enumerate() {
        let shift = c.b.scalar((first + k as i64) as f64);
        let mut at = c.b.add(floor, shift)?;
        match rule.outside {
            Outside::Zeros => {
                let (zero, last) = (c.b.scalar(0.0), c.b.scalar(n as f64 - 1.0));
                let (after, before) = (c.b.binary("less_equal", zero, at)?, c.b.binary("less_equal", at, last)?);
                let inside = c.b.binary("and", after, before)?;
                let inside = c.b.cast(inside, DType::F32)?;
                weight = Some(match weight {
                    Some(w) => c.b.mul(w, inside)?,
                    None => inside,
                });
            }
            Outside::Border => {}
            Outside::Reflection => at = reflected(c, at, n, rule.corners)?,
        }
        let at = c.b.cast(at, DType::I32)?;
        let (zero, last) = (c.integers([], vec![0]), c.integers([], vec![n as i32 - 1]));
        let at = c.b.binary("max", at, zero)?;
        out.push((c.b.binary("min", at, last)?, weight));
    }
    Ok(out)
}

/// Images `(N, C, ..)` at coordinates in pixels, `(N, P)` for each axis: `(N, P, C)`.
pub fn sampled(c: &mut Context, x: Value, coordinates: &[Value], rule: &Rule) -> Result<Value, Reason> {
    let xs = c.shape(x);
    let (n, channels, size) = (xs[0], xs[1], xs[2..].to_vec());
    let pixels: usize = size.iter().product();
    let flat = c.b.reshape(x, [n, channels, pixels])?;
    let rows = c.b.transpose(flat, &[0, 2, 1])?;
    let rows = c.b.reshape(rows, [n * pixels, channels])?;
    let places = c.shape(coordinates[0])[1];
    let base = c.integers([n, 1], (0..n).map(|i| (i * pixels) as i32).collect());
    // Every combination of one tap of each axis.
    let mut all: Vec<(Value, Option<Value>)> = vec![(base, None)];
    let mut stride = pixels;
    for (d, &extent) in size.iter().enumerate() {
        stride /= extent.max(1);
        let own = taps(c, coordinates[d], extent, rule)?;
        let step = c.integers([], vec![stride as i32]);
        let mut next = Vec::new();
        for &(at, weight) in &all {
            for &(pixel, factor) in &own {
                let moved = c.b.mul(pixel, step)?;
                let at = c.b.add(at, moved)?;
                let weight = match (weight, factor) {
                    (Some(a), Some(b)) => Some(c.b.mul(a, b)?),
                    (a, b) => a.or(b),
                };
                next.push((at, weight));
            }
        }
        all = next;
    }
    let mut sum: Option<Value> = None;
    for (at, weight) in all {
        let at = c.b.reshape(at, [n * places])?;
        let mut own = c.b.gather(rows, at, 0)?;
        if let Some(weight) = weight {
            let weight = c.b.reshape(weight, [n * places, 1])?;
            own = c.b.mul(own, weight)?;
        }
        sum = Some(match sum {
            Some(sum) => c.b.add(sum, own)?,
            None => own,
        });
    }
    Ok(c.b.reshape(sum.ok_or("an image without axes")?, [n, places, channels])?)
}

/// Images at the places of a grid, whose coordinates run from -1 to 1 and name the last axis first.
pub fn grid_sample(c: &mut Context) -> Lowered {
    let (x, grid) = (c.x(0)?, c.x(1)?);
    let (xs, gs) = (c.shape(x), c.shape(grid));
    let axes = xs.len().saturating_sub(2);
    if !(1..=3).contains(&axes) || gs.last() != Some(&axes) || gs.len() != axes + 2 || gs[0] != xs[0] {
        return Err(format!("images {xs} with a grid {gs}: one to three axes are supported").into());
    }
    let rule = Rule {
        mode: match c.text("mode", "linear").as_str() {
            "nearest" => Mode::Nearest,
            "linear" | "bilinear" => Mode::Linear,
            "cubic" | "bicubic" => Mode::Cubic,
            other => return Err(format!("mode '{other}' is not known").into()),
        },
        outside: match c.text("padding_mode", "zeros").as_str() {
            "zeros" => Outside::Zeros,
            "border" => Outside::Border,
            "reflection" => Outside::Reflection,
            other => return Err(format!("padding_mode '{other}' is not known").into()),
        },
        corners: c.int("align_corners", 0) != 0,
    };
    let places: usize = gs[1..axes + 1].iter().product();
    let out = [&xs[..2], &gs[1..axes + 1]].concat();
    if out.contains(&0) {
        return Ok(vec![c.filled(x, out, 0.0)]);
    }
    let mut coordinates = Vec::new();
    for d in 0..axes {
        let own = c.b.slice(grid, axes + 1, axes - 1 - d, 1, 1)?;
        let own = c.b.reshape(own, [xs[0], places])?;
        let n = xs[d + 2] as f64;
        // ((g + 1) / 2) (n - 1), or ((g + 1) n - 1) / 2.
        let (factor, shift) =
            if rule.corners { (0.5 * (n - 1.0), 0.5 * (n - 1.0)) } else { (0.5 * n, 0.5 * (n - 1.0)) };
        let (scaled, shift) = (c.b.scale(own, factor)?, c.b.scalar(shift));
        coordinates.push(c.b.add(scaled, shift)?);
    }
    let y = sampled(c, x, &coordinates, &rule)?;
    let y = c.b.transpose(y, &[0, 2, 1])?;
    Ok(vec![c.b.reshape(y, out)?])
}

/// Grids of images of a known size, moved by affine maps `(N, axes, axes + 1)`.
pub fn affine_grid(c: &mut Context) -> Lowered {
    let theta = c.x(0)?;
    let size: Vec<usize> = c.known_ints(1)?.into_iter().map(|n| n.max(0) as usize).collect();
    let axes = size.len().saturating_sub(2);
    let corners = c.int("align_corners", 0) != 0;
    let n = size.first().copied().unwrap_or(0);
    if !(2..=3).contains(&axes) || c.shape(theta)[..] != [n, axes, axes + 1] {
        return Err(format!("maps {} for images {size:?}", c.shape(theta)).into());
    }
    let image = &size[2..];
    let places: usize = image.iter().product();
    let at = |i: usize, extent: usize| match (corners, extent) {
        (true, 1) => 0.0,
        (true, _) => -1.0 + 2.0 * i as f64 / (extent as f64 - 1.0),
        (false, _) => (2.0 * i as f64 + 1.0) / extent as f64 - 1.0,
    };
    // The last axis first, then a 1 for the shift.
    let mut base = Vec::with_capacity(places * (axes + 1));
    for p in 0..places {
        let mut rest = p;
        for &extent in image.iter().rev() {
            base.push(at(rest % extent, extent) as f32);
            rest /= extent;
        }
        base.push(1.0);
    }
    let base = c.floats([1, places, axes + 1], base);
    let base = c.b.broadcast(base, [n, places, axes + 1])?;
    let grid = c.b.matmul(base, theta, false, true)?;
    Ok(vec![c.b.reshape(grid, [&[n], image, &[axes]].concat())?])
}
