//! The gradient of `rms_norm` in its operand. With `h = g · gain`: `rstd h - x rstd³ mean(h x)`.

use super::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "rms_norm_grad",
    infer: |ins, _| match ins {
        [x, gain, rstd, g]
            if x.is_float()
                && x.rank() == 2
                && g == x
                && gain.shape[..] == x.shape[1..]
                && rstd.shape[..] == x.shape[..1] =>
        {
            Ok(vec![(*x).clone()])
        }
        _ => Err("takes operand, gain, rstd and gradient".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Kernel(|c| {
        super::rows::dispatch(c, "rms_norm_grad", include_str!("../../shaders/rms_norm_grad.wgsl"), &[])
    }),
    samples: || vec![Sample::normal(&[&[4, 37], &[37], &[4], &[4, 37]])],
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let (x, gain, rstd, g) = (c.ins[0].float(), c.ins[1].float(), c.ins[2].float(), c.ins[3].float());
    super::rows::each(c.outs[0].float(), n, |r, out| {
        let (x, g, rstd) = (&x[r * n..(r + 1) * n], &g[r * n..(r + 1) * n], rstd[r]);
        parallel::simd(|| {
            out.iter_mut().zip(g).zip(gain).for_each(|((o, &g), &w)| *o = g * w);
            let mean = super::rows::dot(out, x) / T::of(n as f64);
            let pull = rstd * rstd * rstd * mean;
            out.iter_mut().zip(x).for_each(|(o, &x)| *o = rstd * *o - x * pull);
        });
    });
}
