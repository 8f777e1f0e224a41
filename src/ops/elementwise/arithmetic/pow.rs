//! `xʸ`. On a device a negative base wants a whole exponent.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "pow",
    attrs: NO_ATTRS,
    infer: infer_float2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Elementwise(|_, _| "pow_($0, $1)".into()),
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
    map2(a, out, |x, y| x.powf(y));
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (x, y, z, g) = (c.x(0), c.x(1), c.y(0), c.g());
    let dx = if c.wants[0] {
        let one = c.b.scalar(1.0);
        let less = c.b.sub(y, one)?;
        let lower = c.b.binary("pow", x, less)?;
        let slope = c.b.mul(y, lower)?;
        c.b.mul(g, slope)?
    } else {
        g
    };
    let dy = if c.wants[1] {
        let log = c.b.unary("log", x)?;
        let slope = c.b.mul(z, log)?;
        c.b.mul(g, slope)?
    } else {
        g
    };
    Ok(vec![c.sum_to(0, dx)?, c.sum_to(1, dy)?])
}
