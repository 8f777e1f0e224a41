//! `eˣ / Σ eˣ` over the last axis of `(R, N)`. With `safe`, a row that is -∞ throughout gives zeros, not NaN.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "softmax",
    attrs: &[flag("safe")],
    infer: |ins, _| match ins {
        [x] if x.is_float() && x.rank() == 2 => Ok(vec![(*x).clone()]),
        _ => Err("takes one float operand of two axes".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        let (y, g) = (c.y(0), c.g());
        Ok(vec![Some(c.b.binary("softmax_grad", y, g)?)])
    }),
    gpu: Gpu::Kernel(|c| {
        let safe = c.attrs.flag("safe") as u32;
        crate::ops::engine::rows::dispatch(c, "softmax", include_str!("../../../shaders/norm/softmax.wgsl"), &[safe])
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let safe = || Attrs::new().with("safe", Attr::Bool(true));
        vec![
            Sample::normal(&[&[4, 37]]),
            Sample::normal(&[&[3, 5]]).with(safe()),
            Sample::new(vec![(Type::f32([7, 130]), Fill::Padded)], safe()),
            Sample::new(vec![(Type::f32([5, 37]), Fill::Values(SCORES))], Attrs::new()),
        ]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let safe = c.attrs.flag("safe");
    let x = c.ins[0].float();
    crate::ops::engine::rows::each(c.outs[0].float(), n, |r, y| {
        let x = &x[r * n..(r + 1) * n];
        let top = parallel::simd(|| crate::ops::engine::rows::max(x));
        if safe && top == T::neg_infinity() {
            y.fill(T::zero());
            return;
        }
        parallel::simd_call(Row { x, y, top });
    });
}

/// One row, as a value that [`parallel::simd_call`] compiles for the processor at hand.
struct Row<'a, T> {
    x: &'a [T],
    y: &'a mut [T],
    /// The largest element of x.
    top: T,
}

impl<T: Real> pulp::NullaryFnOnce for Row<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (y, &x) in self.y.iter_mut().zip(self.x) {
            *y = (x - self.top).exp_();
        }
        let total = crate::ops::engine::rows::sum(self.y, |v| v);
        let scale = T::one() / total;
        for y in self.y.iter_mut() {
            *y *= scale;
        }
    }
}
