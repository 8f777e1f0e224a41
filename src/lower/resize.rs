//! Image resizing, one axis at a time. Each row of the result mixes rows of the input by weights that the extents decide.

use super::{Context, Reason};
use crate::ir::{DType, Tensor, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// How a row of the result follows from the rows around it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    Nearest,
    Linear,
    /// Keys' cubic convolution, with its coefficient.
    Cubic(f64),
}

struct Rule {
    coordinates: String,
    nearest: String,
    kernel: Kernel,
    /// Whether a kernel widens where the result is smaller.
    antialias: bool,
    /// Whether rows outside of the input weigh nothing, rather than being the nearest row.
    exclude_outside: bool,
    /// What stands outside of the region that is resized.
    extrapolation: f64,
}

/// One axis: extents, the exact scale, and the region that is resized.
struct Axis {
    from: usize,
    to: usize,
    scale: f64,
    region: Option<(f64, f64)>,
}

impl Rule {
    /// Where row `i` of the result lies among the input's rows.
    fn place(&self, i: usize, axis: &Axis) -> Result<f64, Reason> {
        let (x, from) = (i as f64, axis.from as f64);
        // The exact length that the scale gives, which need not be a whole number.
        let length = from * axis.scale;
        Ok(match self.coordinates.as_str() {
            "asymmetric" => x / axis.scale,
            "align_corners" if length == 1.0 => 0.0,
            "align_corners" => x * (from - 1.0) / (length - 1.0),
            "pytorch_half_pixel" if length == 1.0 => -0.5,
            "half_pixel" | "pytorch_half_pixel" => (x + 0.5) / axis.scale - 0.5,
            "half_pixel_symmetric" => {
                let centre = from / 2.0;
                centre * (1.0 - axis.to as f64 / length) + (x + 0.5) / axis.scale - 0.5
            }
            "tf_half_pixel_for_nn" => (x + 0.5) / axis.scale,
            "tf_crop_and_resize" => {
                let (start, end) = axis.region.ok_or("its region (roi) is missing")?;
                let within = match length {
                    1.0 => (end - start) * (from - 1.0) / 2.0,
                    _ => x * (end - start) * (from - 1.0) / (length - 1.0),
                };
                within + start * (from - 1.0)
            }
            other => return Err(format!("coordinates '{other}' are not known").into()),
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

    /// The weight of a row at a distance.
    fn weight(&self, distance: f64) -> f64 {
        let x = distance.abs();
        match self.kernel {
            Kernel::Nearest => 1.0,
            Kernel::Linear => (1.0 - x).max(0.0),
            Kernel::Cubic(a) if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Kernel::Cubic(a) if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
            Kernel::Cubic(_) => 0.0,
        }
    }

    /// The rows that row `i` of the result mixes, and their weights; `None` where it lies outside of the region.
    fn taps(&self, i: usize, axis: &Axis) -> Result<Option<Vec<(usize, f64)>>, Reason> {
        let x = self.place(i, axis)?;
        let last = axis.from as f64 - 1.0;
        if self.coordinates == "tf_crop_and_resize" && !(0.0..=last).contains(&x) {
            return Ok(None);
        }
        if self.kernel == Kernel::Nearest {
            return Ok(Some(vec![(self.round(x)?.clamp(0.0, last) as usize, 1.0)]));
        }
        let shrink = if self.antialias { axis.scale.min(1.0) } else { 1.0 };
        let reach = if matches!(self.kernel, Kernel::Cubic(_)) { 2.0 } else { 1.0 } / shrink;
        let (first, end) = ((x - reach).floor() as i64, (x + reach).ceil() as i64);
        let mut taps: Vec<(i64, f64)> = (first..=end).map(|k| (k, self.weight((k as f64 - x) * shrink))).collect();
        if self.exclude_outside {
            taps.retain(|(k, _)| (0..axis.from as i64).contains(k));
        }
        let total: f64 = taps.iter().map(|t| t.1).sum();
        if total != 0.0 {
            taps.iter_mut().for_each(|t| t.1 /= total);
        }
        let mut rows: Vec<(usize, f64)> = Vec::new();
        for (k, w) in taps.into_iter().filter(|t| t.1 != 0.0) {
            let k = k.clamp(0, last as i64) as usize;
            match rows.iter_mut().find(|r| r.0 == k) {
                Some(row) => row.1 += w,
                None => rows.push((k, w)),
            }
        }
        Ok(Some(rows))
    }
}

fn rule(c: &Context) -> Result<Rule, Reason> {
    // Before operator set 11 there was one way.
    let old = c.opset() < 11;
    let kernel = match c.text("mode", "nearest").as_str() {
        "nearest" => Kernel::Nearest,
        "linear" | "bilinear" | "trilinear" => Kernel::Linear,
        "cubic" => Kernel::Cubic(c.float("cubic_coeff_a", -0.75) as f64),
        other => return Err(format!("mode '{other}' is not known").into()),
    };
    Ok(Rule {
        coordinates: if old { "asymmetric".into() } else { c.text("coordinate_transformation_mode", "half_pixel") },
        nearest: if old { "floor".into() } else { c.text("nearest_mode", "round_prefer_floor") },
        kernel,
        antialias: c.int("antialias", 0) != 0,
        exclude_outside: c.int("exclude_outside", 0) != 0,
        extrapolation: c.float("extrapolation_value", 0.0) as f64,
    })
}

pub fn resize(c: &mut Context) -> Lowered {
    let rule = rule(c)?;
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axes: Vec<usize> = match c.node.attr_ints("axes") {
        Some(axes) => c.axes(axes, shape.len())?,
        None => (0..shape.len()).collect(),
    };
    let scales = if c.opset() < 11 { 1 } else { 2 };
    let sizes = if c.opt(3).is_some() { Some(c.known_ints(3)?) } else { None };
    let scales: Vec<f64> = match &sizes {
        Some(_) => vec![],
        None => c.known(scales)?.as_f32().ok_or("scales must be floats")?.iter().map(|&s| s as f64).collect(),
    };
    if sizes.as_ref().map_or(scales.len(), Vec::len) != axes.len() {
        return Err(format!("{} axes need a size or a scale each", axes.len()).into());
    }
    let regions: Option<Vec<f64>> = match (rule.coordinates.as_str(), c.opt(1)) {
        ("tf_crop_and_resize", Some(_)) => {
            let region = c.known(1)?;
            let region =
                region.as_f32().filter(|r| r.len() == 2 * axes.len()).ok_or("roi needs two floats for each axis")?;
            Some(region.iter().map(|&r| r as f64).collect())
        }
        _ => None,
    };
    let policy = c.text("keep_aspect_ratio_policy", "stretch");
    let ratio = |k: usize, sizes: &[i64]| sizes[k] as f64 / shape[axes[k]] as f64;
    let kept = match (policy.as_str(), &sizes) {
        ("stretch", _) | (_, None) => None,
        ("not_larger", Some(s)) => (0..axes.len()).map(|k| ratio(k, s)).reduce(f64::min),
        ("not_smaller", Some(s)) => (0..axes.len()).map(|k| ratio(k, s)).reduce(f64::max),
        (other, _) => return Err(format!("keep_aspect_ratio_policy '{other}' is not known").into()),
    };
    let mut plan = Vec::new();
    for (k, &d) in axes.iter().enumerate() {
        let from = shape[d];
        let (to, scale) = match (&sizes, kept) {
            (Some(_), Some(scale)) => ((scale * from as f64 + 0.5) as usize, scale),
            (Some(sizes), None) => (sizes[k].max(0) as usize, ratio(k, sizes)),
            (None, _) => ((from as f64 * scales[k]).floor() as usize, scales[k]),
        };
        let region = regions.as_ref().map(|r| (r[k], r[k + axes.len()]));
        plan.push((d, Axis { from, to, scale, region }));
    }
    resized(c, x, &plan, &rule)
}

/// Resize of operator set 9 and before: scales alone, as an input or an attribute.
pub fn upsample(c: &mut Context) -> Lowered {
    let rule = Rule { coordinates: "asymmetric".into(), nearest: "floor".into(), ..rule(c)? };
    let x = c.x(0)?;
    let shape = c.shape(x);
    let scales: Vec<f64> = match c.node.attr_floats("scales") {
        Some(s) => s.iter().map(|&s| s as f64).collect(),
        None => c.known(1)?.as_f32().ok_or("scales must be floats")?.iter().map(|&s| s as f64).collect(),
    };
    if scales.len() != shape.len() {
        return Err(format!("{} scales for {shape}", scales.len()).into());
    }
    let axis = |d: usize| Axis {
        from: shape[d],
        to: (shape[d] as f64 * scales[d]).floor() as usize,
        scale: scales[d],
        region: None,
    };
    let plan: Vec<(usize, Axis)> = (0..shape.len()).map(|d| (d, axis(d))).collect();
    resized(c, x, &plan, &rule)
}

/// Integers are resized as floats; their results are rounded as the standard's are.
fn resized(c: &mut Context, x: Value, plan: &[(usize, Axis)], rule: &Rule) -> Lowered {
    let dtype = c.ty(x).dtype;
    let float = rule.kernel == Kernel::Nearest || dtype == DType::F32;
    let mut y = if float { x } else { c.b.cast(x, DType::F32)? };
    for (d, axis) in plan {
        let whole = axis.region.is_none_or(|r| r == (0.0, 1.0));
        if axis.to == axis.from && axis.scale == 1.0 && whole {
            continue;
        }
        if axis.to == 0 || axis.from == 0 {
            let mut shape = c.shape(y);
            shape.0[*d] = axis.to;
            y = c.filled(y, shape, 0.0);
            continue;
        }
        y = along(c, y, *d, axis, rule)?;
    }
    Ok(vec![if float { y } else { c.b.cast(y, dtype)? }])
}

/// The most rows that are picked one by one; more are mixed by a matmul.
const MAX_PICKS: usize = 4;

fn along(c: &mut Context, x: Value, d: usize, axis: &Axis, rule: &Rule) -> Result<Value, Reason> {
    let (from, to) = (axis.from, axis.to);
    let taps: Vec<Option<Vec<(usize, f64)>>> = (0..to).map(|i| rule.taps(i, axis)).collect::<Result<_, _>>()?;
    let most = taps.iter().flatten().map(Vec::len).max().unwrap_or(1).max(1);
    let rank = c.shape(x).len();
    let mut wide = vec![1; rank];
    wide[d] = to;
    let mut y = if rule.kernel == Kernel::Nearest {
        let rows = taps.iter().map(|t| t.as_ref().map_or(0, |t| t[0].0) as i32).collect();
        let rows = c.integers([to], rows);
        c.b.gather(x, rows, d)?
    } else if most <= MAX_PICKS {
        let mut sum: Option<Value> = None;
        for k in 0..most {
            let tap = |t: &Option<Vec<(usize, f64)>>| t.as_ref().and_then(|t| t.get(k).copied()).unwrap_or((0, 0.0));
            let rows = c.integers([to], taps.iter().map(|t| tap(t).0 as i32).collect());
            let weights = c.floats(wide.clone(), taps.iter().map(|t| tap(t).1 as f32).collect());
            let own = c.b.gather(x, rows, d)?;
            let own = c.b.mul(own, weights)?;
            sum = Some(match sum {
                Some(sum) => c.b.add(sum, own)?,
                None => own,
            });
        }
        sum.ok_or("nothing to mix")?
    } else {
        let mut weights = vec![0.0; from * to];
        for (i, taps) in taps.iter().enumerate() {
            taps.iter().flatten().for_each(|&(row, w)| weights[i * from + row] = w as f32);
        }
        let weights = c.floats([to, from], weights);
        let last = c.axis_last(x, d)?;
        let mut shape = c.shape(last);
        let flat = c.b.reshape(last, [shape.elements() / from, from])?;
        let mixed = c.b.matmul(flat, weights, false, true)?;
        shape.0[rank - 1] = to;
        let mixed = c.b.reshape(mixed, shape)?;
        c.last_to(mixed, d)?
    };
    if taps.iter().any(Option::is_none) {
        let inside = c.b.constant(Tensor::bool(wide, taps.iter().map(|t| u32::from(t.is_some())).collect()));
        let outside = c.number(y, rule.extrapolation);
        y = c.b.select(inside, y, outside)?;
    }
    Ok(y)
}
