//! `x / y`; integers are divided towards zero, and by zero to zero.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "div",
    attrs: NO_ATTRS,
    infer: infer_number2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Elementwise(|_, t| if t[0] == DType::F32 { "div_($0, $1)" } else { "div_i32($0, $1)" }.into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        vec![Sample::positive(&[&[3, 5], &[3, 5]]), Sample::positive(&[&[2, 1, 5], &[3, 1]]), Sample::pairs(EDGES)]
    },
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map2_number(a, out, |x, y| x / y, |x, y| x.checked_div(y).unwrap_or(0));
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (y, z, g) = (c.x(1), c.y(0), c.g());
    let dx = c.b.div(g, y)?;
    let dy = if c.wants[1] {
        let scaled = c.b.mul(dx, z)?;
        c.b.neg(scaled)?
    } else {
        dx
    };
    Ok(vec![c.sum_to(0, dx)?, c.sum_to(1, dy)?])
}
