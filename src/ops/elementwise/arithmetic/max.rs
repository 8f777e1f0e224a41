//! The larger of `x` and `y`; the first where they are equal.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "max",
    attrs: NO_ATTRS,
    infer: infer_number2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Elementwise(|_, t| if t[0] == DType::F32 { "max_($0, $1)" } else { "max($0, $1)" }.into()),
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
    map2_number(a, out, |x, y| if x < y { y } else { x }, i32::max);
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let g = c.g();
    let other = c.b.binary("less", c.x(0), c.x(1))?;
    let zero = c.b.scalar(0.0);
    let dx = c.b.select(other, zero, g)?;
    let dy = c.b.select(other, g, zero)?;
    Ok(vec![c.sum_to(0, dx)?, c.sum_to(1, dy)?])
}
