//! The sign of `x`: -1, 0 or 1; constant almost everywhere.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "sign",
    attrs: NO_ATTRS,
    infer: infer_float1,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, _| "sign_($0)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[3, 5]]), Sample::of(EDGES)],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map1(a, out, |x| {
        if x > T::zero() {
            T::one()
        } else if x < T::zero() {
            -T::one()
        } else {
            T::zero()
        }
    });
}
