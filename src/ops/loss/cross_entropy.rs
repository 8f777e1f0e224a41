//! The loss of each row of logits `(R, V)` under its label `(R)`: `log Σ eˣ - x[label]`; zero where the label is negative.
//! Also gives `log Σ eˣ`, `(R)`, for the gradient.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "cross_entropy",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x, labels] if x.is_float() && x.rank() == 2 && **labels == Type::i32([x.shape[0]]) => {
            let row = Type::f32([x.shape[0]]);
            Ok(vec![row.clone(), row])
        }
        _ => Err("takes logits of two axes and an integer label for each row".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        let Some(g) = c.grads[0] else { return Ok(vec![None, None]) };
        let (x, labels, lse) = (c.x(0), c.x(1), c.y(1));
        Ok(vec![Some(c.b.emit("cross_entropy_grad", &[x, labels, lse, g], Attrs::new())?), None])
    }),
    gpu: Gpu::Kernel(|c| {
        crate::ops::engine::rows::dispatch(
            c,
            "cross_entropy",
            include_str!("../../../shaders/loss/cross_entropy.wgsl"),
            &[],
        )
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let of = |n, fill| Sample::new(vec![(Type::f32([6, n]), fill), (Type::i32([6]), Fill::Label(n))], Attrs::new());
        vec![of(37, Fill::Normal), of(300, Fill::Normal), of(37, Fill::Values(SCORES))]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let (x, labels) = (c.ins[0].float(), c.ins[1].int());
    let [loss, lse] = &mut *c.outs else { panic!("infer gives two outputs") };
    let lse = Shared::new(lse.float());
    crate::ops::engine::rows::each_grain(loss.float(), 1, n, |r, loss| {
        let x = &x[r * n..(r + 1) * n];
        let top = x.iter().fold(T::neg_infinity(), |m, &v| if v > m { v } else { m });
        let total = parallel::simd(|| crate::ops::engine::rows::sum(x, |v| (v - top).exp_()));
        let log = top + total.ln();
        // SAFETY: one task a row.
        unsafe { lse.put(r, log) };
        loss[0] = match labels[r] {
            label if label >= 0 => log - x[(label as usize).min(n - 1)],
            _ => T::zero(),
        };
    });
}
