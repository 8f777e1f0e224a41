//! `1 / x`

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "reciprocal",
    attrs: NO_ATTRS,
    infer: infer_float1,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Elementwise(|_, _| "div_(1.0, $0)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::positive(&[&[3, 5]]), Sample::of(EDGES)],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map1(a, out, |x| T::one() / x);
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (y, g) = (c.y(0), c.g());
    let square = c.b.mul(y, y)?;
    let scaled = c.b.mul(g, square)?;
    Ok(vec![Some(c.b.neg(scaled)?)])
}
