//! Whether `x` is not a number.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "is_nan",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x] if x.is_float() => Ok(vec![Type::bool(x.shape.clone())]),
        _ => Err("takes one float operand".into()),
    },
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, _| "u32((bitcast<u32>($0) & 0x7fffffffu) > 0x7f800000u)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[7]]), Sample::of(EDGES)],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    out.int().iter_mut().zip(a[0].float()).for_each(|(y, &x)| *y = x.is_nan() as i32);
}
