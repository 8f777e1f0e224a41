//! `x = y`

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "equal",
    attrs: NO_ATTRS,
    infer: infer_compare,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, _| "u32($0 == $1)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let ints = vec![(Type::i32([3, 5]), Fill::Index(4)), (Type::i32([5]), Fill::Index(4))];
        vec![
            Sample::normal(&[&[2, 3, 5], &[3, 1]]),
            Sample::normal(&[&[4], &[]]),
            Sample::new(ints, Attrs::new()),
            Sample::pairs(FINITE),
        ]
    },
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    compare(a, out, |x, y| x == y, |x, y| x == y);
}
