//! The windows of images: `(B, C, H, W)` to `(B, L, C kh kw)`, a row for each of the `L` places of a window; zeros beyond the
//! edges. A convolution is this times the kernels.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "unfold",
    attrs: &[
        needs("kernel", AttrKind::Ints),
        needs("stride", AttrKind::Ints),
        needs("dilation", AttrKind::Ints),
        needs("pads", AttrKind::Ints),
    ],
    infer: |ins, attrs| match ins {
        [x] if x.is_float() && x.rank() == 4 => {
            let w = Windows::new(&x.shape, attrs)?;
            Ok(vec![Type::f32([w.batch, w.places(), w.width()])])
        }
        _ => Err("takes one float operand of four axes".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        let shape = c.b.shape(c.x(0)).clone();
        let size = Attr::Ints(vec![shape[2] as i64, shape[3] as i64]);
        let (g, attrs) = (c.g(), c.node.attrs.clone().with("size", size));
        Ok(vec![Some(c.b.emit("fold", &[g], attrs)?)])
    }),
    gpu: Gpu::Kernel(|c| {
        let w = Windows::new(&c.types_in[0].shape, c.attrs).expect("checked by infer");
        w.dispatch("unfold", include_str!("../../../shaders/layout/unfold.wgsl"), c.types_out[0].elements(), c.traits)
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: Some(places),
    work: pointwise_work,
    samples: || samples().into_iter().map(|(shape, attrs)| Sample::normal(&[&shape]).with(attrs)).collect(),
};

/// Places of a window along each axis of images.
fn places(shape: &[usize], attrs: &Attrs) -> Result<[usize; 2], String> {
    Ok(Windows::new(shape, attrs)?.out)
}

/// Image shapes and window attributes for samples.
pub fn samples() -> Vec<(Vec<usize>, Attrs)> {
    let of = |kernel: [i64; 2], stride: [i64; 2], dilation: [i64; 2], pads: [i64; 4]| {
        [
            ("kernel", kernel.to_vec()),
            ("stride", stride.to_vec()),
            ("dilation", dilation.to_vec()),
            ("pads", pads.to_vec()),
        ]
        .into_iter()
        .fold(Attrs::new(), |a, (name, v)| a.with(name, Attr::Ints(v)))
    };
    vec![
        (vec![2, 3, 6, 6], of([2, 2], [2, 2], [1, 1], [0, 0, 0, 0])),
        (vec![1, 2, 5, 4], of([3, 3], [1, 1], [1, 1], [1, 1, 1, 1])),
        (vec![2, 2, 7, 6], of([3, 2], [2, 1], [2, 1], [1, 0, 2, 1])),
    ]
}

/// The places of a window on an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Windows {
    pub batch: usize,
    pub channels: usize,
    pub size: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Before the first row and the first column.
    pub pad: [usize; 2],
    /// Places along each axis.
    pub out: [usize; 2],
}

impl Windows {
    /// For images `(B, C, H, W)`; attributes `kernel`, `stride`, `dilation` and `pads` (top, left, bottom, right).
    pub fn new(shape: &[usize], attrs: &Attrs) -> Result<Windows, String> {
        let ints = |name: &str, n: usize| match attrs.get_ints(name) {
            Some(x) if x.len() == n && x.iter().all(|&v| v >= 0) => Ok(attrs.sizes(name)),
            _ => Err(format!("needs {n} numbers '{name}'")),
        };
        let (kernel, stride) = (ints("kernel", 2)?, ints("stride", 2)?);
        let (dilation, pads) = (ints("dilation", 2)?, ints("pads", 4)?);
        if [&kernel, &stride, &dilation].iter().any(|v| v.contains(&0)) {
            return Err("windows, strides and dilations must be positive".into());
        }
        let mut out = [0; 2];
        for d in 0..2 {
            let padded = shape[2 + d] + pads[d] + pads[d + 2];
            let span = (kernel[d] - 1) * dilation[d] + 1;
            if padded < span {
                return Err(format!("a window of {span} does not fit {padded}"));
            }
            out[d] = (padded - span) / stride[d] + 1;
        }
        Ok(Windows {
            batch: shape[0],
            channels: shape[1],
            size: [shape[2], shape[3]],
            kernel: [kernel[0], kernel[1]],
            stride: [stride[0], stride[1]],
            dilation: [dilation[0], dilation[1]],
            pad: [pads[0], pads[1]],
            out,
        })
    }

    pub fn places(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Elements of a window over all channels.
    pub fn width(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    /// The coordinate along axis `d` that element `k` of the window at place `o` sees, if it is within the image.
    pub fn at(&self, d: usize, o: usize, k: usize) -> Option<usize> {
        (o * self.stride[d] + k * self.dilation[d]).checked_sub(self.pad[d]).filter(|&i| i < self.size[d])
    }

    /// The place along axis `d` whose element `k` sees coordinate `i`.
    pub fn place(&self, d: usize, i: usize, k: usize) -> Option<usize> {
        let distance = (i + self.pad[d]).checked_sub(k * self.dilation[d])?;
        (distance % self.stride[d] == 0).then(|| distance / self.stride[d]).filter(|&o| o < self.out[d])
    }

    pub fn dispatch(&self, name: &'static str, source: &'static str, n: usize, traits: GpuTraits) -> Vec<Dispatch> {
        let (workgroups, width) = grid(n, 256, traits);
        let pairs = [self.size, self.kernel, self.stride, self.dilation, self.pad, self.out];
        let mut params = vec![n as u32, width, self.channels as u32, 0];
        params.extend(pairs.as_flattened().iter().map(|&x| x as u32));
        vec![Dispatch {
            shader: Shader { name, source: source.into() },
            constants: vec![],
            bindings: vec![Binding::Input(0), Binding::Output(0)],
            params,
            workgroups,
        }]
    }
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let w = Windows::new(c.shape_in(0), c.attrs).expect("checked by infer");
    let x = c.ins[0].float();
    let plane = w.size[0] * w.size[1];
    crate::ops::engine::rows::each(c.outs[0].float(), w.width(), |row, out| {
        let (b, place) = (row / w.places(), row % w.places());
        let (oh, ow) = (place / w.out[1], place % w.out[1]);
        for (k, y) in out.iter_mut().enumerate() {
            let (channel, kh, kw) = (k / (w.kernel[0] * w.kernel[1]), k / w.kernel[1] % w.kernel[0], k % w.kernel[1]);
            *y = match (w.at(0, oh, kh), w.at(1, ow, kw)) {
                (Some(h), Some(v)) => x[(b * w.channels + channel) * plane + h * w.size[1] + v],
                _ => T::zero(),
            };
        }
    });
}
