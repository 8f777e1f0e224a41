//! `(x - mean) rstd · gain + bias` over the last axis of `(R, N)`; also gives mean and rstd, `(R)` each, for the gradient.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "layer_norm",
    attrs: &[needs("eps", AttrKind::Float)],
    infer: |ins, attrs| match ins {
        [x, gain, bias] if x.is_float() && x.rank() == 2 && attrs.get_float("eps").is_some() => {
            let row = Type::f32([x.shape[1]]);
            if **gain != row || **bias != row {
                return Err(format!("gain and bias must be {row}"));
            }
            let stat = Type::f32([x.shape[0]]);
            Ok(vec![(*x).clone(), stat.clone(), stat])
        }
        _ => Err("takes a float operand of two axes, gain, bias and eps".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Kernel(|c| {
        let eps = (c.attrs.float("eps") as f32).to_bits();
        crate::ops::engine::rows::dispatch(
            c,
            "layer_norm",
            include_str!("../../../shaders/norm/layer_norm.wgsl"),
            &[eps],
        )
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let of = |n| Sample::normal(&[&[4, n], &[n], &[n]]).with(Attrs::new().with("eps", Attr::Float(1e-5)));
        vec![of(37), of(300)]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let n = c.shape_in(0)[1];
    let eps = T::of(c.attrs.float("eps"));
    let (x, gain, bias) = (c.ins[0].float(), c.ins[1].float(), c.ins[2].float());
    let [y, means, rstds] = &mut *c.outs else { panic!("infer gives three outputs") };
    let (means, rstds) = (Shared::new(means.float()), Shared::new(rstds.float()));
    crate::ops::engine::rows::each(y.float(), n, |r, y| {
        let x = &x[r * n..(r + 1) * n];
        parallel::simd(|| {
            let count = T::of(n as f64);
            let mean = crate::ops::engine::rows::sum(x, |v| v) / count;
            let rstd = T::one() / (crate::ops::engine::rows::sum(x, |v| (v - mean) * (v - mean)) / count + eps).sqrt();
            for (((y, &x), &g), &b) in y.iter_mut().zip(x).zip(gain).zip(bias) {
                *y = (x - mean) * rstd * g + b;
            }
            // SAFETY: one task a row.
            unsafe {
                means.put(r, mean);
                rstds.put(r, rstd);
            }
        });
    });
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let Some(g) = c.grads[0] else { return Ok(vec![None, None, None]) };
    let (x, gain, mean, rstd) = (c.x(0), c.x(1), c.y(1), c.y(2));
    let dx = match c.wants[0] {
        true => Some(c.b.emit("layer_norm_grad", &[x, gain, mean, rstd, g], Attrs::new())?),
        false => None,
    };
    let dgain = match c.wants[1] {
        true => {
            let rows = c.b.shape(mean)[0];
            let (mean, rstd) = (c.b.reshape(mean, [rows, 1])?, c.b.reshape(rstd, [rows, 1])?);
            let centred = c.b.sub(x, mean)?;
            let normal = c.b.mul(centred, rstd)?;
            let product = c.b.mul(g, normal)?;
            Some(c.b.reduce_sum(product, &[0], false)?)
        }
        false => None,
    };
    let dbias = if c.wants[2] { Some(c.b.reduce_sum(g, &[0], false)?) } else { None };
    Ok(vec![dx, dgain, dbias])
}
