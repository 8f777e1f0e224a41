//! Checking a device: every primitive's kernel against the host's, on the primitives' own samples.

use super::Error;
use crate::device::{Device, Run};
use crate::ir::{Builder, DType, Sink, Tensor, Value};
use crate::ops::{self, PRIMITIVES, RULES, draw};
use crate::plan::{self, Layout};

/// What a device made of one primitive.
#[derive(Clone, Debug, serde::Serialize)]
pub struct KernelCheck {
    pub primitive: &'static str,
    pub samples: usize,
    /// The largest difference from the host, relative to the largest element of the output.
    pub worst: f64,
    /// What failed, if anything did.
    pub failure: Option<String>,
}

/// Relative to the largest element: f32 kernels sum in other orders, and adapters' functions differ by a few units in the
/// last place, which sums over a few hundred elements multiply.
pub const KERNEL_TOLERANCE: f64 = 2e-5;

/// Runs every primitive's samples on a device.
pub fn self_check(device: &mut dyn Device) -> Vec<KernelCheck> {
    let check = |p: &'static ops::Primitive| {
        let samples = (p.samples)();
        let (mut worst, mut failure) = (0.0f64, None);
        for sample in &samples {
            match one(device, p, sample) {
                Ok(error) => worst = if error.is_nan() { error } else { worst.max(error) },
                Err(e) => failure = failure.or(Some(e.to_string())),
            }
        }
        if failure.is_none() && (worst.is_nan() || worst > KERNEL_TOLERANCE) {
            failure = Some(format!("differs from the host by {worst:.1e}"));
        }
        KernelCheck { primitive: p.name, samples: samples.len(), worst, failure }
    };
    PRIMITIVES.iter().filter(|p| !matches!(p.gpu, ops::Gpu::Alias)).map(check).collect()
}

fn one(device: &mut dyn Device, p: &ops::Primitive, sample: &ops::Sample) -> Result<f64, Error> {
    let inputs = sample.inputs.iter().enumerate();
    let tensors: Vec<Tensor> = inputs.map(|(i, (ty, fill))| draw(ty, *fill, i as u64 + 1)).collect();
    let mut b = Builder::new(RULES);
    let values: Vec<Value> = tensors.iter().enumerate().map(|(i, t)| b.input(&format!("x{i}"), t.ty())).collect();
    let outs = b.emit_all(p.name, &values, sample.attrs.clone())?;
    for (k, &v) in outs.iter().enumerate() {
        b.output(format!("y{k}"), v, Sink::Fetch);
    }
    let id = device.load(plan::plan(b.graph, &Layout::default(), device.limits())?)?;
    let named = tensors.iter().enumerate().map(|(i, t)| (format!("x{i}"), t.clone())).collect();
    device.submit(vec![Run { plan: id, inputs: named }])?;
    let got = device.collect(true)?.pop().map(|mut f| f.runs.remove(0)).unwrap_or_default();
    let refs: Vec<&Tensor> = tensors.iter().collect();
    let mut worst = 0.0f64;
    let results = ops::results(p.name, outs.len());
    for ((_, have), want) in got.iter().zip(ops::eval(p.name, &refs, &sample.attrs)).take(results) {
        let error = match (have.as_f32(), want.as_f32()) {
            (Some(have), Some(want)) if want.len() == have.len() => {
                let size = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                let far = |(h, w): (&f32, &f32)| if h.is_nan() != w.is_nan() { f32::INFINITY } else { (h - w).abs() };
                have.iter().zip(want).map(far).fold(0.0f32, f32::max) as f64 / size as f64
            }
            _ if want.dtype() != DType::F32 && *have == want => 0.0,
            _ => f64::INFINITY,
        };
        worst = if error.is_nan() { error } else { worst.max(error) };
    }
    Ok(worst)
}
