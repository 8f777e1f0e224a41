//! The gradient of `rms_norm` in its operand. With `h = g · gain`: `rstd h - x rstd³ mean(h x)`. A fifth operand is added to it: what
//! comes by the residual around the norm. Its memory may become the result's.

use crate::ops::engine::prelude::*;

/// The operand that is added.
const ADDED: usize = 4;

pub const PRIMITIVE: Primitive = Primitive {
    name: "rms_norm_grad",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x, gain, rstd, g, added @ ..]
            if x.is_float()
                && x.rank() == 2
                && g == x
                && crate::ops::engine::rows::may_be_added(added, x)
                && gain.shape[..] == x.shape[1..]
                && rstd.shape[..] == x.shape[..1] =>
        {
            Ok(vec![(*x).clone()])
        }
        _ => Err("takes operand, gain, rstd and gradient, and one to add".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Kernel(|c| {
        crate::ops::engine::rows::dispatch_adding(
            c,
            4,
            "rms_norm_grad",
            include_str!("../../../shaders/norm/rms_norm_grad.wgsl"),
        )
    }),
    results: Results::All,
    accumulates: |inputs, _| (inputs > ADDED).then_some(ADDED),
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let plain: [&[usize]; 4] = [&[4, 37], &[37], &[4], &[4, 37]];
        let wide: [&[usize]; 4] = [&[4, 300], &[300], &[4], &[4, 300]];
        vec![Sample::normal(&plain), Sample::normal(&[&plain[..], &[&[4, 37]]].concat()), Sample::normal(&wide)]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let (x, gain, rstd, g) = (c.ins[0].float(), c.ins[1].float(), c.ins[2].float(), c.ins[3].float());
    let added = crate::ops::engine::rows::Added::of(c, ADDED);
    crate::ops::engine::rows::each(c.outs[0].float(), n, |r, out| {
        let (x, g, rstd) = (&x[r * n..(r + 1) * n], &g[r * n..(r + 1) * n], rstd[r]);
        parallel::simd(|| {
            let mean = crate::ops::engine::rows::dot_of_three(g, gain, x, |g, w, x| g * w * x) / T::of(n as f64);
            let pull = rstd * rstd * rstd * mean;
            added.fill(r, out);
            for (((o, &g), &w), &x) in out.iter_mut().zip(g).zip(gain).zip(x) {
                *o += rstd * (g * w) - x * pull;
            }
        });
    });
}
