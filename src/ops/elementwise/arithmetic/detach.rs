//! `x`, through which no gradient flows: what depends on it takes it for a constant.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "detach",
    attrs: NO_ATTRS,
    infer: infer_float1,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, _| "$0".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[3, 5]]), Sample::of(EDGES)],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map1(a, out, |x| x);
}
