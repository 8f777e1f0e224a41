//! The gradient of `gelu`: `g (Φ(x) + x φ(x))`, φ the standard normal density.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "gelu_grad",
    attrs: NO_ATTRS,
    infer: infer_float2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Never,
    gpu: Gpu::Elementwise(|_, _| {
        "($1 * (0.5 * (1.0 + erf_($0 * 0.70710678)) + $0 * 0.39894228 * exp_(-0.5 * $0 * $0)))".into()
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[3, 5], &[3, 5]]), Sample::beside_normal(FINITE)],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map2(a, out, |x, g| {
        let (cdf, pdf) = x.normal_();
        g * (cdf + x * pdf)
    });
}
