//! `x y`

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "mul",
    attrs: NO_ATTRS,
    infer: infer_number2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Elementwise(|_, _| "($0 * $1)".into()),
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
    map2_number(a, out, |x, y| x * y, i32::wrapping_mul);
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (x, y, g) = (c.x(0), c.x(1), c.g());
    let dx = if c.wants[0] { c.b.mul(g, y)? } else { g };
    let dy = if c.wants[1] { c.b.mul(g, x)? } else { g };
    Ok(vec![c.sum_to(0, dx)?, c.sum_to(1, dy)?])
}
