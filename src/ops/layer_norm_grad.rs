//! The gradient of `layer_norm` in its operand. With `n = (x - mean) rstd` and `h = g · gain`:
//! `rstd (h - mean(h) - n mean(h n))`.

use super::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "layer_norm_grad",
    infer: |ins, _| match ins {
        [x, gain, mean, rstd, g]
            if x.is_float()
                && x.rank() == 2
                && g == x
                && gain.shape[..] == x.shape[1..]
                && mean.shape[..] == x.shape[..1]
                && rstd == mean =>
        {
            Ok(vec![(*x).clone()])
        }
        _ => Err("takes operand, gain, mean, rstd and gradient".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Kernel(|c| {
        super::rows::dispatch(c, "layer_norm_grad", include_str!("../../shaders/layer_norm_grad.wgsl"), &[])
    }),
    samples: || vec![Sample::normal(&[&[4, 37], &[37], &[4], &[4], &[4, 37]])],
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let (x, gain) = (c.ins[0].float(), c.ins[1].float());
    let (mean, rstd, g) = (c.ins[2].float(), c.ins[3].float(), c.ins[4].float());
    super::rows::each(c.outs[0].float(), n, |r, out| {
        let (x, g) = (&x[r * n..(r + 1) * n], &g[r * n..(r + 1) * n]);
        let (mean, rstd) = (mean[r], rstd[r]);
        parallel::simd(|| {
            let count = T::of(n as f64);
            for ((o, &g), &w) in out.iter_mut().zip(g).zip(gain) {
                *o = g * w;
            }
            let h_mean = super::rows::sum(out, |v| v) / count;
            let hn_mean = rstd * super::rows::dot_by(out, x, |h, x| h * (x - mean)) / count;
            for (o, &x) in out.iter_mut().zip(x) {
                *o = rstd * (*o - h_mean - (x - mean) * rstd * hn_mean);
            }
        });
    });
}
