//! The nearest whole number; halves go to the even one.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "round",
    attrs: NO_ATTRS,
    infer: infer_float1,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, _| "round_($0)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[3, 5]]), Sample::of(EDGES)],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map1(a, out, round_even);
}

fn round_even<T: Real>(x: T) -> T {
    let r = x.round();
    let two = T::of(2.0);
    if (x - x.trunc()).abs() == T::of(0.5) { (x / two).round() * two } else { r }
}
