//! The gradient of `cross_entropy` in its logits: `g (eˣ / Σ eˣ - [column is label])`; zero in rows without a label.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "cross_entropy_grad",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x, labels, lse, g]
            if x.is_float()
                && x.rank() == 2
                && **labels == Type::i32([x.shape[0]])
                && **lse == Type::f32([x.shape[0]])
                && g == lse =>
        {
            Ok(vec![(*x).clone()])
        }
        _ => Err("takes logits, labels, log-sum-exp and gradient".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Kernel(|c| {
        crate::ops::engine::rows::dispatch(
            c,
            "cross_entropy_grad",
            include_str!("../../../shaders/loss/cross_entropy_grad.wgsl"),
            &[],
        )
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let rows = |dtype, fill| (Type::new(dtype, [6]), fill);
        let of = |n| {
            let (labels, floats) = (rows(DType::I32, Fill::Label(n)), rows(DType::F32, Fill::Normal));
            Sample::new(vec![(Type::f32([6, n]), Fill::Normal), labels, floats.clone(), floats], Attrs::new())
        };
        vec![of(37), of(300)]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let (x, labels) = (c.ins[0].float(), c.ins[1].int());
    let (lse, g) = (c.ins[2].float(), c.ins[3].float());
    crate::ops::engine::rows::each(c.outs[0].float(), n, |r, out| {
        let (x, lse, g) = (&x[r * n..(r + 1) * n], lse[r], g[r]);
        if labels[r] < 0 {
            out.fill(T::zero());
            return;
        }
        parallel::simd(|| out.iter_mut().zip(x).for_each(|(o, &x)| *o = g * (x - lse).exp_()));
        out[(labels[r] as usize).min(n - 1)] -= g;
    });
}
