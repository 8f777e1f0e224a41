//! The largest element along the middle axis: `(outer, n, inner)` to `(outer, inner)`. Equal largest elements share the
//! gradient evenly.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "reduce_max",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x] if x.rank() == 3 && x.dtype != DType::Bool && x.shape[1] > 0 => {
            Ok(vec![Type::new(x.dtype, [x.shape[0], x.shape[2]])])
        }
        _ => Err("takes one number operand of three axes, the middle one not empty".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Kernel(|c| super::kernels::dispatch(c, super::kernels::Kind::Max)),
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
            let larger = |a, b| if a < b { b } else { a };
            super::kernels::run(x, y, &c.types_in[0].shape, T::neg_infinity(), larger);
        }
        (Data::Int(x), DataMut::Int(y)) => super::kernels::run(x, y, &c.types_in[0].shape, i32::MIN, i32::max),
        _ => panic!("infer keeps the type"),
    }
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (x, y, g) = (c.x(0), c.y(0), c.g());
    let shape = c.b.shape(x).clone();
    let kept = [shape[0], 1, shape[2]];
    let (top, wide) = (c.b.reshape(y, kept)?, c.b.reshape(g, kept)?);
    let hit = c.b.binary("equal", x, top)?;
    let hit = c.b.cast(hit, DType::F32)?;
    let count = c.b.reduce_sum(hit, &[1], true)?;
    let share = c.b.div(wide, count)?;
    Ok(vec![Some(c.b.mul(hit, share)?)])
}
