//! The gradient of `unfold`: windows `(B, L, C kh kw)` added up where they overlap, to images `(B, C, H, W)` of extents `size`.

use crate::ops::engine::prelude::*;

use super::unfold::Windows;

pub const PRIMITIVE: Primitive = Primitive {
    name: "fold",
    attrs: &[
        needs("kernel", AttrKind::Ints),
        needs("stride", AttrKind::Ints),
        needs("dilation", AttrKind::Ints),
        needs("pads", AttrKind::Ints),
        needs("size", AttrKind::Ints),
    ],
    infer: |ins, attrs| {
        let ([g], Some(&[h, w])) = (ins, attrs.get_ints("size")) else {
            return Err("takes one operand of windows and the images' extents".into());
        };
        let kernel = attrs.get_ints("kernel").ok_or("needs a kernel")?;
        let per: i64 = kernel.iter().product();
        if g.rank() != 3 || !g.is_float() || per <= 0 || g.shape[2] % per as usize != 0 {
            return Err(format!("{g} is no list of windows"));
        }
        let shape = [g.shape[0], g.shape[2] / per as usize, h as usize, w as usize];
        let windows = Windows::new(&shape, attrs)?;
        match windows.places() == g.shape[1] {
            true => Ok(vec![Type::f32(shape)]),
            false => Err(format!("{} windows for {} places", g.shape[1], windows.places())),
        }
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        let mut attrs = c.node.attrs.clone();
        attrs.0.remove("size");
        let g = c.g();
        Ok(vec![Some(c.b.emit("unfold", &[g], attrs)?)])
    }),
    gpu: Gpu::Kernel(|c| {
        let w = Windows::new(&c.types_out[0].shape, c.attrs).expect("checked by infer");
        w.dispatch("fold", include_str!("../../../shaders/layout/fold.wgsl"), c.types_out[0].elements(), c.traits)
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let of = |(shape, attrs): (Vec<usize>, Attrs)| {
            let w = Windows::new(&shape, &attrs).expect("a sound sample");
            let size = Attr::Ints(vec![shape[2] as i64, shape[3] as i64]);
            Sample::normal(&[&[w.batch, w.places(), w.width()]]).with(attrs.with("size", size))
        };
        super::unfold::samples().into_iter().map(of).collect()
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let w = Windows::new(c.shape_out(0), c.attrs).expect("checked by infer");
    let g = c.ins[0].float();
    crate::ops::engine::rows::each(c.outs[0].float(), w.size[1], |row, out| {
        let (b, channel, h) = (row / (w.channels * w.size[0]), row / w.size[0] % w.channels, row % w.size[0]);
        for (v, y) in out.iter_mut().enumerate() {
            let mut sum = T::zero();
            for kh in 0..w.kernel[0] {
                let Some(oh) = w.place(0, h, kh) else { continue };
                for kw in 0..w.kernel[1] {
                    let Some(ow) = w.place(1, v, kw) else { continue };
                    let k = (channel * w.kernel[0] + kh) * w.kernel[1] + kw;
                    sum += g[(b * w.places() + oh * w.out[1] + ow) * w.width() + k];
                }
            }
            *y = sum;
        }
    });
}
