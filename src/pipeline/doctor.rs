//! Checks a device: every primitive's kernel against the host's, on the primitive's own samples, and a small model trained on both.

use super::{Error, TrainRequest, digits, inject, read, train};
use crate::adapter::Adapter;
use crate::device::{Cpu, Device, Run};
use crate::ir::{Builder, Sink, Tensor, Value};
use crate::ops::{self, PRIMITIVES, RULES, draw};
use crate::plan::{self, Layout};
use crate::train::{Observer, Settings, data};

/// What a device made of one primitive.
#[derive(Clone, Debug, serde::Serialize)]
pub struct KernelCheck {
    pub primitive: &'static str,
    pub samples: usize,
    /// The largest difference from the host, relative to the largest element of the output, or for large and odd arguments to
    /// each result itself, if that is more than 0.001.
    pub worst: f64,
    /// What failed, if anything did: the sample, the arguments and both values.
    pub failure: Option<String>,
}

/// Relative to the largest element: f32 kernels sum in other orders, and adapters' functions differ by a few units in the
/// last place, which sums over a few hundred elements multiply.
pub const KERNEL_TOLERANCE: f64 = 2e-5;

/// Results below this are compared as if they were as large.
const SMALLEST: f32 = 1e-3;

/// Runs every primitive's samples on a device.
pub fn self_check(device: &mut dyn Device) -> Vec<KernelCheck> {
    let check = |p: &'static ops::Primitive| {
        let samples = (p.samples)();
        let (mut worst, mut failure) = (0.0f64, None);
        for (s, sample) in samples.iter().enumerate() {
            match one(device, p, sample) {
                Ok(difference) => {
                    worst = worst.max(difference.size);
                    if difference.size > KERNEL_TOLERANCE && failure.is_none() {
                        let types: Vec<String> = sample.inputs.iter().map(|(ty, _)| ty.to_string()).collect();
                        failure = Some(format!("sample {} ({}): {}", s + 1, types.join(", "), difference.place));
                    }
                }
                Err(e) => failure = failure.or(Some(format!("sample {}: {e}", s + 1))),
            }
        }
        KernelCheck { primitive: p.name, samples: samples.len(), worst, failure }
    };
    PRIMITIVES.iter().copied().filter(|p| !matches!(p.gpu, ops::Gpu::Alias)).map(check).collect()
}

/// The largest difference of a sample, and where it is.
#[derive(Default)]
struct Difference {
    size: f64,
    place: String,
}

fn one(device: &mut dyn Device, p: &ops::Primitive, sample: &ops::Sample) -> Result<Difference, Error> {
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
    let mut worst = Difference::default();
    let results = ops::results(p.name, outs.len());
    for (k, want) in ops::eval(p.name, &refs, &sample.attrs).iter().take(results).enumerate() {
        let have = got.iter().find(|(name, _)| *name == format!("y{k}")).map(|(_, t)| t);
        let Some(have) = have.filter(|t| t.ty() == want.ty()) else {
            return Ok(Difference { size: f64::INFINITY, place: format!("output {k} is not {}", want.ty()) });
        };
        let whole = want.as_f32().map_or(1.0, |w| w.iter().fold(SMALLEST, |m, x| m.max(x.abs())));
        for i in 0..want.elements() {
            let (size, shown) = match (have.as_f32(), want.as_f32()) {
                (Some(h), Some(w)) => {
                    let scale = if sample.edges() { w[i].abs().max(SMALLEST) } else { whole };
                    (apart(h[i], w[i], scale), format!("{:e} on the device, {:e} on the host", h[i], w[i]))
                }
                _ => {
                    let (h, w) = (have.words()[i], want.words()[i]);
                    let size = if h == w { 0.0 } else { f64::INFINITY };
                    (size, format!("{} on the device, {} on the host", h as i32, w as i32))
                }
            };
            if size > worst.size {
                let place = format!("output {k}, element {i}{}: {shown}", of(want, i, &tensors));
                worst = Difference { size, place };
            }
        }
    }
    Ok(worst)
}

/// How far two floats are apart, relative to a size. What is not finite must be the same.
fn apart(have: f32, want: f32, scale: f32) -> f64 {
    match () {
        _ if have.is_nan() && want.is_nan() || have == want => 0.0,
        _ if have.is_finite() && want.is_finite() => f64::from((have - want).abs()) / f64::from(scale),
        // One step beyond the largest float.
        _ if have.abs().min(want.abs()) > 3.4e38 && have.signum() == want.signum() => 0.0,
        _ => f64::INFINITY,
    }
}

/// The arguments of an element, where the operands broadcast to the output.
fn of(out: &Tensor, i: usize, operands: &[Tensor]) -> String {
    let shape = out.ty().shape;
    let argument = |t: &Tensor| -> Option<String> {
        let from = t.ty().shape;
        if crate::ir::Shape::broadcast(&from, &shape).as_ref() != Some(&shape) {
            return None;
        }
        let strides = from.broadcast_strides(&shape);
        let mut rest = i;
        let mut at = 0;
        for d in (0..shape.len()).rev() {
            at += rest % shape[d] * strides[d];
            rest /= shape[d];
        }
        Some(match t.as_f32() {
            Some(x) => format!("{:e}", x[at]),
            None => (t.words()[at] as i32).to_string(),
        })
    };
    let all: Option<Vec<String>> = operands.iter().map(argument).collect();
    all.map_or(String::new(), |all| format!(", of ({})", all.join(", ")))
}

/// What a device made of a few steps of training, against the host.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TrainingCheck {
    pub steps: u64,
    /// The loss of each step on the host, and on the device.
    pub host: Vec<f64>,
    pub device: Vec<f64>,
    /// The largest difference of a loss, relative to it.
    pub worst_loss: f64,
    /// The largest difference of a trained number, relative to the largest of its tensor.
    pub worst_parameter: f64,
    pub failure: Option<String>,
}

/// What losses and trained numbers may differ by: what AdamW's first steps make of gradients near zero is their sign.
pub const TRAINING_TOLERANCE: (f64, f64) = (1e-5, 1e-2);

/// Trains the model that comes with the program for three steps, on the host and on a device.
pub fn training_check(device: &mut dyn Device) -> Result<TrainingCheck, Error> {
    const STEPS: u64 = 3;
    let fail = |e: std::io::Error| Error::Model(format!("cannot write a temporary file: {e}"));
    let dir = tempfile::tempdir().map_err(fail)?;
    for (name, bytes) in digits::FILES {
        std::fs::write(dir.path().join(name), bytes).map_err(fail)?;
    }
    let data = data::read(&dir.path().join("train.safetensors"), &data::Options::default())?;
    let (injected, _) = inject(&read(&dir.path().join("model.onnx"))?, &crate::inject::Options::default())?;
    let model = std::sync::Arc::new(injected);
    let settings = Settings { max_steps: Some(STEPS), warmup_steps: 0, ..digits::settings() };
    let run = |device: &mut dyn Device, name: &str| -> Result<(Vec<f64>, Adapter), Error> {
        let dir = dir.path().join(name);
        let outcome = train(&TrainRequest::new(&model, &data, &settings, &dir), device, &mut Quiet)?;
        Ok((outcome.losses, outcome.adapter))
    };
    let (host, ours) = run(&mut Cpu::new(None), "host")?;
    let (on_device, theirs) = run(device, "device")?;
    let relative = host.iter().zip(&on_device).map(|(h, d)| ((h - d) / h).abs());
    let worst_loss = relative.fold(0.0, |worst: f64, x| if x.is_nan() { f64::INFINITY } else { worst.max(x) });
    let mut worst_parameter = 0.0f64;
    for (name, want) in &ours.tensors {
        let size = want.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
        let far = want.iter().zip(&theirs.tensors[name]).map(|(w, h)| f64::from((w - h).abs() / size));
        worst_parameter = far.fold(worst_parameter, |worst, x| if x.is_nan() { f64::INFINITY } else { worst.max(x) });
    }
    let sound = worst_loss <= TRAINING_TOLERANCE.0 && worst_parameter <= TRAINING_TOLERANCE.1;
    let failure = (!sound).then(|| {
        format!("after {STEPS} steps losses are {on_device:?}, on the host {host:?}; trained numbers differ by {worst_parameter:.1e}")
    });
    Ok(TrainingCheck { steps: STEPS, host, device: on_device, worst_loss, worst_parameter, failure })
}

/// Follows a run without a word.
struct Quiet;

impl Observer for Quiet {}
