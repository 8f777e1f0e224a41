//! `x + y`

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "add",
    attrs: NO_ATTRS,
    infer: infer_number2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Elementwise(|_, _| "($0 + $1)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let ints = vec![(Type::i32([3, 5]), Fill::Index(4)), (Type::i32([5]), Fill::Index(4))];
        vec![Sample::normal(&[&[2, 3, 5], &[3, 1]]), Sample::normal(&[&[4], &[]]), Sample::new(ints, Attrs::new())]
    },
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map2_number(a, out, |x, y| x + y, i32::wrapping_add);
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let g = c.g();
    Ok(vec![c.sum_to(0, g)?, c.sum_to(1, g)?])
}
