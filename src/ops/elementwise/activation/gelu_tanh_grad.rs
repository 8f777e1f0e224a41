//! The gradient of `gelu_tanh`.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "gelu_tanh_grad",
    attrs: NO_ATTRS,
    infer: infer_float2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Never,
    gpu: Gpu::Elementwise(|_, _| "gelu_tanh_grad_($0, $1)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[3, 5], &[3, 5]]), Sample::beside_normal(FINITE)],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map2(a, out, slope);
}

/// With `t = tanh(u(x))`: `g ((1 + t)/2 + x/2 (1 - t²) u'(x))`.
fn slope<T: Real>(x: T, g: T) -> T {
    let t = super::gelu_tanh::inner(x).tanh_();
    let du = T::of(0.797_884_560_802_865_4) * (T::one() + T::of(3.0 * 0.044715) * x * x);
    g * T::of(0.5) * (T::one() + t + x * (T::one() - t * t) * du)
}
