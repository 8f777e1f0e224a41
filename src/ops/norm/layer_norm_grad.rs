//! The gradient of `layer_norm` in its operand. With `n = (x - mean) rstd` and `h = g · gain`:
//! `rstd (h - mean(h) - n mean(h n))`. A sixth operand is added to it: what comes by the residual around the norm. Its memory may
//! become the result's.

use crate::ops::engine::prelude::*;

/// The operand that is added.
const ADDED: usize = 5;

pub const PRIMITIVE: Primitive = Primitive {
    name: "layer_norm_grad",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x, gain, mean, rstd, g, added @ ..]
            if x.is_float()
                && x.rank() == 2
                && g == x
                && crate::ops::engine::rows::may_be_added(added, x)
                && gain.shape[..] == x.shape[1..]
                && mean.shape[..] == x.shape[..1]
                && rstd == mean =>
        {
            Ok(vec![(*x).clone()])
        }
        _ => Err("takes operand, gain, mean, rstd and gradient, and one to add".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Kernel(|c| {
        crate::ops::engine::rows::dispatch_adding(
            c,
            5,
            "layer_norm_grad",
            include_str!("../../../shaders/norm/layer_norm_grad.wgsl"),
        )
    }),
    results: Results::All,
    accumulates: |inputs, _| (inputs > ADDED).then_some(ADDED),
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let plain: [&[usize]; 5] = [&[4, 37], &[37], &[4], &[4], &[4, 37]];
        let wide: [&[usize]; 5] = [&[4, 300], &[300], &[4], &[4], &[4, 300]];
        vec![Sample::normal(&plain), Sample::normal(&[&plain[..], &[&[4, 37]]].concat()), Sample::normal(&wide)]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let (x, gain) = (c.ins[0].float(), c.ins[1].float());
    let (mean, rstd, g) = (c.ins[2].float(), c.ins[3].float(), c.ins[4].float());
    let added = crate::ops::engine::rows::Added::of(c, ADDED);
    crate::ops::engine::rows::each(c.outs[0].float(), n, |r, out| {
        let (x, g) = (&x[r * n..(r + 1) * n], &g[r * n..(r + 1) * n]);
        let (mean, rstd) = (mean[r], rstd[r]);
        parallel::simd(|| {
            let count = T::of(n as f64);
            let h_mean = crate::ops::engine::rows::dot(g, gain) / count;
            let hn_mean =
                rstd * crate::ops::engine::rows::dot_of_three(g, gain, x, |g, w, x| g * w * (x - mean)) / count;
            added.fill(r, out);
            for (((o, &g), &w), &x) in out.iter_mut().zip(g).zip(gain).zip(x) {
                *o += rstd * (g * w - h_mean - (x - mean) * rstd * hn_mean);
            }
        });
    });
}
