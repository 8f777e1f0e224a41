//! `x ≠ y` of booleans.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "xor",
    attrs: NO_ATTRS,
    infer: infer_bool2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, _| "($0 ^ $1)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let flags = vec![(Type::bool([3, 5]), Fill::Flag), (Type::bool([3, 1]), Fill::Flag)];
        vec![Sample::new(flags, Attrs::new())]
    },
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    compare(a, out, |_, _| false, |x, y| x ^ y != 0);
}
