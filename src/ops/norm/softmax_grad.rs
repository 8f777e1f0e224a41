//! The gradient of `softmax` from its result: `y (g - Σ g y)` over the last axis of `(R, N)`.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "softmax_grad",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [y, g] if y.is_float() && y.rank() == 2 && y == g => Ok(vec![(*y).clone()]),
        _ => Err("takes two float operands of two axes, alike".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Kernel(|c| {
        crate::ops::engine::rows::dispatch(
            c,
            "softmax_grad",
            include_str!("../../../shaders/norm/softmax_grad.wgsl"),
            &[],
        )
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[4, 37], &[4, 37]]), Sample::normal(&[&[4, 300], &[4, 300]])],
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let (y, g) = (c.ins[0].float(), c.ins[1].float());
    crate::ops::engine::rows::each(c.outs[0].float(), n, |r, out| {
        let (y, g) = (&y[r * n..(r + 1) * n], &g[r * n..(r + 1) * n]);
        parallel::simd(|| {
            let dot = crate::ops::engine::rows::dot(y, g);
            out.iter_mut().zip(y).zip(g).for_each(|((o, &y), &g)| *o = y * (g - dot));
        });
    });
}
