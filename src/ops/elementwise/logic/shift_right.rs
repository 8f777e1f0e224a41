//! `⌊x / 2^y⌋` of integers; the sign alone from 31 places on, and for negative y.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "shift_right",
    attrs: NO_ATTRS,
    infer: infer_integer2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, _| "($0 >> min(u32($1), 31u))".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let ints = vec![(Type::i32([30, 5]), Fill::Label(60_000)), (Type::i32([5]), Fill::Label(40))];
        vec![Sample::new(ints, Attrs::new())]
    },
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map2_integer(a, out, |x, y| x >> if (0..31).contains(&y) { y } else { 31 });
}
