//! The operand repeated to a larger shape, under NumPy's rules.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "broadcast",
    attrs: &[needs("shape", AttrKind::Ints)],
    infer: |ins, attrs| match (ins, attrs.get_ints("shape")) {
        ([x], Some(shape)) => {
            let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
            match Shape::broadcast(&x.shape, &shape) {
                Some(s) if *s == shape[..] && shape.len() <= strided::MAX_AXES => Ok(vec![Type::new(x.dtype, shape)]),
                _ => Err(format!("{} does not broadcast to {}", x.shape, Shape(shape))),
            }
        }
        _ => Err("takes one operand and a shape".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        let (shape, g) = (c.b.shape(c.x(0)).clone(), c.g());
        Ok(vec![Some(c.b.sum_to(g, &shape)?)])
    }),
    gpu: Gpu::Kernel(|c| vec![copy(&c.types_in[0], &c.types_out[0]).dispatch(0, c.traits)]),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let to = |s: &[i64]| Attrs::new().with("shape", Attr::Ints(s.to_vec()));
        vec![Sample::normal(&[&[3, 1]]).with(to(&[2, 3, 4])), Sample::normal(&[&[2, 1, 3]]).with(to(&[2, 5, 3]))]
    },
};

fn copy(x: &Type, y: &Type) -> strided::Copy {
    let src = x.shape.broadcast_strides(&y.shape).into_iter().map(|s| s as isize).collect();
    strided::Copy::gather(&y.shape, 0, src)
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    copy(&c.types_in[0], &c.types_out[0]).run(c.ins[0], &mut c.outs[0]);
}
