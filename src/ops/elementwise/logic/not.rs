//! `¬x`

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "not",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x] if x.dtype == DType::Bool => Ok(vec![(*x).clone()]),
        _ => Err("takes one boolean operand".into()),
    },
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, _| "($0 ^ 1u)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::new(vec![(Type::bool([7]), Fill::Flag)], Attrs::new())],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    out.int().iter_mut().zip(a[0].int()).for_each(|(y, &x)| *y = x ^ 1);
}
