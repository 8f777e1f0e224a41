//! `x / √(mean(x²) + eps) · gain` over the last axis of `(R, N)`; also gives `1 / √(..)`, `(R)`, for the gradient.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "rms_norm",
    attrs: &[needs("eps", AttrKind::Float)],
    infer: |ins, attrs| match ins {
        [x, gain] if x.is_float() && x.rank() == 2 && attrs.get_float("eps").is_some() => {
            if **gain != Type::f32([x.shape[1]]) {
                return Err(format!("gain must have {} elements", x.shape[1]));
            }
            Ok(vec![(*x).clone(), Type::f32([x.shape[0]])])
        }
        _ => Err("takes a float operand of two axes, gain and eps".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Kernel(|c| {
        let eps = (c.attrs.float("eps") as f32).to_bits();
        crate::ops::engine::rows::dispatch(c, "rms_norm", include_str!("../../../shaders/norm/rms_norm.wgsl"), &[eps])
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let of = |n| Sample::normal(&[&[4, n], &[n]]).with(Attrs::new().with("eps", Attr::Float(1e-6)));
        vec![of(37), of(300)]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let eps = T::of(c.attrs.float("eps"));
    let (x, gain) = (c.ins[0].float(), c.ins[1].float());
    let [y, rstds] = &mut *c.outs else { panic!("infer gives two outputs") };
    let rstds = Shared::new(rstds.float());
    crate::ops::engine::rows::each(y.float(), n, |r, y| {
        let x = &x[r * n..(r + 1) * n];
        parallel::simd(|| {
            let rstd = T::one() / (crate::ops::engine::rows::sum(x, |v| v * v) / T::of(n as f64) + eps).sqrt();
            y.iter_mut().zip(x).zip(gain).for_each(|((y, &x), &g)| *y = x * rstd * g);
            // SAFETY: one task a row.
            unsafe { rstds.put(r, rstd) };
        });
    });
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let Some(g) = c.grads[0] else { return Ok(vec![None, None]) };
    let (x, gain, rstd) = (c.x(0), c.x(1), c.y(1));
    let dx = match c.wants[0] {
        true => Some(c.b.emit("rms_norm_grad", &[x, gain, rstd, g], Attrs::new())?),
        false => None,
    };
    let dgain = match c.wants[1] {
        true => {
            let rows = c.b.shape(rstd)[0];
            let rstd = c.b.reshape(rstd, [rows, 1])?;
            let normal = c.b.mul(x, rstd)?;
            let product = c.b.mul(g, normal)?;
            Some(c.b.reduce_sum(product, &[0], false)?)
        }
        false => None,
    };
    Ok(vec![dx, dgain])
}
