//! Windows of images with one to three axes: where they stand, and their elements as rows. Convolutions and pooling read rows;
//! transposed convolutions add rows up.

use super::{Context, Reason};
use crate::ir::{Attr, Attrs, Value};

/// Windows along up to three axes; missing axes come first and have one place. Sizes in elements.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// The axes that the image has.
    pub axes: usize,
    pub size: [usize; 3],
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub dilation: [usize; 3],
    /// Before and after, as the node has them.
    pub before: [usize; 3],
    pub after: [usize; 3],
    /// What the last window of a pool with `ceil_mode` reads beyond that.
    pub beyond: [usize; 3],
}

/// The node's `strides`, `dilations` and `pads` over so many axes.
pub struct Lists {
    pub stride: Vec<usize>,
    pub dilation: Vec<usize>,
    pub pads: Vec<usize>,
}

impl Lists {
    pub fn of(c: &Context, axes: usize) -> Result<Lists, Reason> {
        let list = |name: &str, default: i64, n: usize, least: i64| -> Result<Vec<usize>, Reason> {
            let v = c.list(name).unwrap_or_else(|| vec![default; n]);
            match v.len() == n && v.iter().all(|&x| x >= least) {
                true => Ok(v.into_iter().map(|x| x as usize).collect()),
                false => Err(format!("{name} {v:?} over {axes} axes are not supported").into()),
            }
        };
        Ok(Lists {
            stride: list("strides", 1, axes, 1)?,
            dilation: list("dilations", 1, axes, 1)?,
            pads: list("pads", 0, 2 * axes, 0)?,
        })
    }
}

/// A list over an image's axes as one over three.
pub fn three(v: &[usize], fill: usize) -> [usize; 3] {
    let mut out = [fill; 3];
    out[3 - v.len()..].copy_from_slice(v);
    out
}

impl Geometry {
    /// The windows of a node with `kernel` on an image of `size`.
    pub fn of(c: &Context, kernel: &[usize], size: &[usize]) -> Result<Geometry, Reason> {
        let axes = size.len();
        if !(1..=3).contains(&axes) || kernel.len() != axes || kernel.contains(&0) {
            return Err(format!("windows {kernel:?} on an image {size:?}: one to three axes are supported").into());
        }
        let Lists { stride, dilation, pads } = Lists::of(c, axes)?;
        let mut g = Geometry {
            axes,
            size: three(size, 1),
            kernel: three(kernel, 1),
            stride: three(&stride, 1),
            dilation: three(&dilation, 1),
            before: three(&pads[..axes], 0),
            after: three(&pads[axes..], 0),
            beyond: [0; 3],
        };
        match c.text("auto_pad", "NOTSET").as_str() {
            "NOTSET" => {}
            "VALID" => (g.before, g.after) = ([0; 3], [0; 3]),
            mode @ ("SAME_UPPER" | "SAME_LOWER") => {
                for d in 0..3 {
                    let places = g.size[d].div_ceil(g.stride[d]);
                    let total = ((places.max(1) - 1) * g.stride[d] + g.span(d)).saturating_sub(g.size[d]);
                    let less = total / 2;
                    (g.before[d], g.after[d]) =
                        if mode == "SAME_UPPER" { (less, total - less) } else { (total - less, less) };
                }
            }
            other => return Err(format!("auto_pad '{other}' is not known").into()),
        }
        for d in 0..3 {
            if g.size[d] + g.before[d] + g.after[d] < g.span(d) {
                return Err(format!("a window of {} does not fit {} places", g.span(d), g.size[d]).into());
            }
        }
        Ok(g)
    }

    /// One more window along an axis where the last stride leaves a rest, if it begins inside the image or before it.
    pub fn round_up(&mut self) {
        for d in 0..3 {
            let room = self.size[d] + self.before[d] + self.after[d] - self.span(d);
            let n = room / self.stride[d] + 1;
            if !room.is_multiple_of(self.stride[d]) && n * self.stride[d] < self.size[d] + self.before[d] {
                self.beyond[d] = self.stride[d] - room % self.stride[d];
            }
        }
    }

    /// The extent that a window covers.
    pub fn span(&self, d: usize) -> usize {
        (self.kernel[d] - 1) * self.dilation[d] + 1
    }

    /// The image's extent with what stands around it.
    pub fn padded(&self, d: usize) -> usize {
        self.size[d] + self.before[d] + self.after[d] + self.beyond[d]
    }

    /// Places of a window along each axis.
    pub fn places(&self) -> [usize; 3] {
        [0, 1, 2].map(|d| (self.padded(d) - self.span(d)) / self.stride[d] + 1)
    }

    /// Extents `(.., places)` for the axes that the image has.
    pub fn out(&self) -> Vec<usize> {
        self.places()[3 - self.axes..].to_vec()
    }

    fn plane(&self, padded: bool) -> Attrs {
        let ints = |v: [usize; 3]| Attr::Ints(vec![v[1] as i64, v[2] as i64]);
        let pads = match padded {
            false => vec![0; 4],
            true => [self.before[1], self.before[2], self.after[1] + self.beyond[1], self.after[2] + self.beyond[2]]
                .map(|x| x as i64)
                .to_vec(),
        };
        Attrs::new()
            .with("kernel", ints(self.kernel))
            .with("stride", ints(self.stride))
            .with("dilation", ints(self.dilation))
            .with("pads", Attr::Ints(pads))
    }

    /// The windows of images `(B, C, ..)` as rows `(B D', H' W', kd C kh kw)`. Zeros stand around the image.
    pub fn rows(&self, c: &mut Context, x: Value) -> Result<Value, Reason> {
        let shape = c.shape(x);
        let [b, channels] = [shape[0], shape[1]];
        self.rows_of(c, x, b, channels, true)
    }

    /// The same where what stands around the image is `around`, and what lies beyond that `beyond`.
    pub fn rows_filled(&self, c: &mut Context, x: Value, around: f64, beyond: f64) -> Result<Value, Reason> {
        let shape = c.shape(x);
        let [b, channels] = [shape[0], shape[1]];
        let mut x = c.b.reshape(x, [b, channels, self.size[0], self.size[1], self.size[2]])?;
        for d in 0..3 {
            let kept = self.before[d] + self.size[d] + self.after[d];
            x = c.section(x, d + 2, -(self.before[d] as i64), kept, around)?;
            x = c.section(x, d + 2, 0, kept + self.beyond[d], beyond)?;
        }
        self.rows_of(c, x, b, channels, false)
    }

    fn rows_of(&self, c: &mut Context, x: Value, b: usize, channels: usize, pads: bool) -> Result<Value, Reason> {
        let extent = |d: usize| if pads { self.size[d] } else { self.padded(d) };
        let mut x = c.b.reshape(x, [b, channels, extent(0), extent(1), extent(2)])?;
        if pads {
            x = c.section(x, 2, -(self.before[0] as i64), self.padded(0), 0.0)?;
        }
        let depth = self.places()[0];
        let mut parts = Vec::new();
        for k in 0..self.kernel[0] {
            let slices = c.b.slice(x, 2, k * self.dilation[0], depth, self.stride[0] as i64)?;
            let slices = c.b.transpose(slices, &[0, 2, 1, 3, 4])?;
            let images = c.b.reshape(slices, [b * depth, channels, extent(1), extent(2)])?;
            parts.push(c.b.emit("unfold", &[images], self.plane(pads))?);
        }
        Ok(c.b.concat(&parts, 2)?)
    }

    /// Rows `(B D', H' W', kd C kh kw)` added up where their windows overlap, to images `(B, C, D, H, W)` of the whole extent that
    /// the windows cover.
    pub fn added(&self, c: &mut Context, rows: Value, b: usize) -> Result<Value, Reason> {
        let shape = c.shape(rows);
        let depth = shape[0] / b.max(1);
        let width = shape[2] / self.kernel[0];
        let channels = width / (self.kernel[1] * self.kernel[2]);
        let (h, w) = (self.padded(1), self.padded(2));
        let attrs = self.plane(false).with("size", Attr::Ints(vec![h as i64, w as i64]));
        let mut sum: Option<Value> = None;
        for k in 0..self.kernel[0] {
            let own = c.b.slice(rows, 2, k * width, width, 1)?;
            let images = c.b.emit("fold", &[own], attrs.clone())?;
            let images = c.b.reshape(images, [b, depth, channels, h, w])?;
            let mut images = c.b.transpose(images, &[0, 2, 1, 3, 4])?;
            if self.padded(0) != depth || self.kernel[0] > 1 || self.stride[0] > 1 {
                let reach = (depth - 1) * self.stride[0] + 1;
                if self.stride[0] > 1 {
                    images = c.b.unslice(images, 2, 0, reach, self.stride[0] as i64)?;
                }
                images = c.section(images, 2, -((k * self.dilation[0]) as i64), self.padded(0), 0.0)?;
            }
            sum = Some(match sum {
                Some(sum) => c.b.add(sum, images)?,
                None => images,
            });
        }
        sum.ok_or_else(|| "windows of nothing".into())
    }

    /// For each place and each element of its window, the flat index in an image of what stands there. Outside of it the nearest.
    pub fn indices(&self, by_columns: bool) -> Vec<i32> {
        let places = self.places();
        let mut out = Vec::new();
        let each =
            |n: [usize; 3]| (0..n[0]).flat_map(move |a| (0..n[1]).flat_map(move |b| (0..n[2]).map(move |c| [a, b, c])));
        for place in each(places) {
            for k in each(self.kernel) {
                let at = [0, 1, 2].map(|d| {
                    let i = (place[d] * self.stride[d] + k[d] * self.dilation[d]) as i64 - self.before[d] as i64;
                    i.clamp(0, self.size[d] as i64 - 1) as usize
                });
                let [d, h, w] = self.size;
                out.push(match by_columns {
                    false => (at[0] * h + at[1]) * w + at[2],
                    true => (at[2] * h + at[1]) * d + at[0],
                } as i32);
            }
        }
        out
    }
}
