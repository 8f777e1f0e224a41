//! `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "gelu_tanh",
    attrs: NO_ATTRS,
    infer: infer_float1,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Elementwise(|_, _| "gelu_tanh_($0)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[3, 5]]), Sample::of(FINITE)],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map1(a, out, gelu_tanh);
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (x, g) = (c.x(0), c.g());
    Ok(vec![Some(c.b.binary("gelu_tanh_grad", x, g)?)])
}

fn gelu_tanh<T: Real>(x: T) -> T {
    T::of(0.5) * x * (T::one() + inner(x).tanh_())
}

/// `√(2/π) (x + 0.044715 x³)`
#[inline(always)]
pub fn inner<T: Real>(x: T) -> T {
    T::of(0.797_884_560_802_865_4) * (x + T::of(0.044715) * x * x * x)
}
