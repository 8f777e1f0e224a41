//! Sums of squares over the middle axis: `(outer, n, inner)` to `(outer, inner)`.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "reduce_sum_square",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x] if x.rank() == 3 && x.is_float() => Ok(vec![Type::f32([x.shape[0], x.shape[2]])]),
        _ => Err("takes one float operand of three axes".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        let (x, g) = (c.x(0), c.g());
        let shape = c.b.shape(x).clone();
        let wide = c.b.reshape(g, [shape[0], 1, shape[2]])?;
        let twice = c.b.scale(x, 2.0)?;
        Ok(vec![Some(c.b.mul(twice, wide)?)])
    }),
    gpu: Gpu::Kernel(|c| super::kernels::dispatch(c, super::kernels::Kind::SumSquare)),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[4, 300, 1]]), Sample::normal(&[&[2, 5, 3]]), Sample::normal(&[&[1, 130, 4]])],
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let (x, shape) = (c.ins[0].float(), &c.types_in[0].shape);
    super::kernels::run_on(x, c.outs[0].float(), shape, T::zero(), |v| v * v, |a, b| a + b);
}
