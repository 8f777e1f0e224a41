//! Bits that either integer has.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "bit_or",
    attrs: NO_ATTRS,
    infer: infer_integer2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, _| "($0 | $1)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let ints = vec![(Type::i32([30, 5]), Fill::Label(60_000)), (Type::i32([5]), Fill::Label(60_000))];
        vec![Sample::new(ints, Attrs::new())]
    },
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map2_integer(a, out, |x, y| x | y);
}
