//! Image resizing, one axis at a time: nearest neighbour picks rows, linear interpolation mixes two.

use super::{Context, Reason};
use crate::ir::{Tensor, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// How coordinates of the result become coordinates of the input, and those become rows.
struct Mode {
    coordinates: String,
    nearest: String,
    linear: bool,
}

impl Mode {
    /// Where row `i` of `to` lies among `from` rows.
    fn place(&self, i: usize, from: usize, to: usize, scale: f64) -> Result<f64, Reason> {
        let x = i as f64;
        Ok(match self.coordinates.as_str() {
            "asymmetric" => x / scale,
            // By the exact length that the scale gives, as the standard has it, which need not be a whole number.
            "align_corners" if to > 1 => x * (from as f64 - 1.0) / (from as f64 * scale - 1.0),
            "align_corners" => 0.0,
            "pytorch_half_pixel" if to <= 1 => 0.0,
            "half_pixel" | "pytorch_half_pixel" => (x + 0.5) / scale - 0.5,
            other => return Err(format!("coordinates '{other}' are not supported").into()),
        })
    }

    fn round(&self, x: f64) -> Result<f64, Reason> {
        Ok(match self.nearest.as_str() {
            "floor" => x.floor(),
            "ceil" => x.ceil(),
            "round_prefer_floor" => (x - 0.5).ceil(),
            "round_prefer_ceil" => (x + 0.5).floor(),
            other => return Err(format!("nearest_mode '{other}' is not known").into()),
        })
    }
}

pub fn resize(c: &mut Context) -> Lowered {
    let text = |name: &str, default: &str| c.node.attr_str(name).map_or(default.to_string(), |s| s.into_owned());
    // Before operator set 11 there was one way.
    let old = c.opset() < 11;
    let mode = text("mode", "nearest");
    let rule = Mode {
        coordinates: if old { "asymmetric".into() } else { text("coordinate_transformation_mode", "half_pixel") },
        nearest: if old { "floor".into() } else { text("nearest_mode", "round_prefer_floor") },
        linear: mode == "linear",
    };
    if !matches!(mode.as_str(), "nearest" | "linear") || c.int("antialias", 0) != 0 {
        return Err(format!("mode '{mode}' (antialias {}) is not supported", c.int("antialias", 0)).into());
    }
    if text("keep_aspect_ratio_policy", "stretch") != "stretch" {
        return Err("keeping the aspect ratio is not supported".into());
    }
    let mut x = c.x(0)?;
    let rank = c.shape(x).len();
    let axes: Vec<usize> = match c.node.attr_ints("axes") {
        Some(axes) => c.axes(axes, rank)?,
        None => (0..rank).collect(),
    };
    let scales = if old { 1 } else { 2 };
    let sizes = if c.opt(3).is_some() { Some(c.known_ints(3)?) } else { None };
    let scales: Vec<f64> = match &sizes {
        Some(_) => vec![],
        None => c.known(scales)?.as_f32().ok_or("scales must be floats")?.iter().map(|&s| s as f64).collect(),
    };
    if sizes.as_ref().map_or(scales.len(), Vec::len) != axes.len() {
        return Err(format!("{} axes need a size or a scale each", axes.len()).into());
    }
    for (k, &axis) in axes.iter().enumerate() {
        let from = c.shape(x)[axis];
        let (to, scale) = match &sizes {
            Some(sizes) => (sizes[k].max(0) as usize, sizes[k] as f64 / from as f64),
            None => ((from as f64 * scales[k]).floor() as usize, scales[k]),
        };
        if (to, scale) != (from, 1.0) {
            x = along(c, x, axis, to, scale, &rule)?;
        }
    }
    Ok(vec![x])
}

fn along(c: &mut Context, x: Value, axis: usize, to: usize, scale: f64, rule: &Mode) -> Result<Value, Reason> {
    let shape = c.shape(x);
    let from = shape[axis];
    let places: Vec<f64> = (0..to).map(|i| rule.place(i, from, to, scale)).collect::<Result<_, _>>()?;
    let last = from as f64 - 1.0;
    let pick = |c: &mut Context, rows: Vec<i32>| {
        let rows = c.b.constant(Tensor::i32([to], rows));
        c.b.gather(x, rows, axis)
    };
    if !rule.linear {
        let rows = places.iter().map(|&p| Ok(rule.round(p)?.clamp(0.0, last) as i32));
        let rows = rows.collect::<Result<_, Reason>>()?;
        return Ok(pick(c, rows)?);
    }
    let places: Vec<f64> = places.into_iter().map(|p| p.clamp(0.0, last)).collect();
    let below: Vec<i32> = places.iter().map(|p| p.floor() as i32).collect();
    let above: Vec<i32> = places.iter().map(|p| (p.floor() + 1.0).min(last) as i32).collect();
    let part: Vec<f32> = places.iter().map(|p| (p - p.floor()) as f32).collect();
    let mut wide = vec![1; shape.len()];
    wide[axis] = to;
    let rest = c.b.constant(Tensor::f32(wide.clone(), part.iter().map(|p| 1.0 - p).collect()));
    let part = c.b.constant(Tensor::f32(wide, part));
    let (below, above) = (pick(c, below)?, pick(c, above)?);
    let (below, above) = (c.b.mul(below, rest)?, c.b.mul(above, part)?);
    Ok(c.b.add(below, above)?)
}
