//! Sums over the middle axis: `(outer, n, inner)` to `(outer, inner)`.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "reduce_sum",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x] if x.rank() == 3 && x.dtype != DType::Bool => Ok(vec![Type::new(x.dtype, [x.shape[0], x.shape[2]])]),
        _ => Err("takes one number operand of three axes".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        let (shape, g) = (c.b.shape(c.x(0)).clone(), c.g());
        let wide = c.b.reshape(g, [shape[0], 1, shape[2]])?;
        Ok(vec![Some(c.b.broadcast(wide, shape)?)])
    }),
    gpu: Gpu::Kernel(|c| super::kernels::dispatch(c, super::kernels::Kind::Sum)),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: super::kernels::samples,
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    match (c.ins[0], &mut c.outs[0]) {
        (Data::Float(x), DataMut::Float(y)) => {
            super::kernels::run(x, y, &c.types_in[0].shape, T::zero(), |a, b| a + b);
        }
        (Data::Int(x), DataMut::Int(y)) => super::kernels::run(x, y, &c.types_in[0].shape, 0, i32::wrapping_add),
        _ => panic!("infer keeps the type"),
    }
}
