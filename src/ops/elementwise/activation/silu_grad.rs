//! The gradient of `silu`: `g σ(x) (1 + x (1 - σ(x)))`.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "silu_grad",
    attrs: NO_ATTRS,
    infer: infer_float2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Never,
    gpu: Gpu::Elementwise(|_, _| "silu_grad_($0, $1)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[3, 5], &[3, 5]]), Sample::beside_normal(FINITE)],
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map2(a, out, |x, g| {
        let s = x.sigmoid_();
        g * s * (T::one() + x * (T::one() - s))
    });
}
