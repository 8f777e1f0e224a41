//! Runs two models on the same inputs; generates synthetic inputs where there is no data.

use super::running::because_unknown;
use super::training::{Trainee, load};
use super::{Error, compile, inferring, input_specs};
use crate::adapter::Adapter;
use crate::device::{Device, Run};
use crate::ir::{DType, Tensor};
use crate::onnx::Model;
use crate::train::data::Batch;
use crate::train::{Purpose, Shapes};
use crate::verify::{self, Difference};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A graph's inputs by name.
pub type Inputs = Vec<(String, Tensor)>;

/// Inputs made up for a model at a sample shape.
pub fn synthetic(model: &Arc<Model>, seed: u64) -> Result<Inputs, Error> {
    synthetic_at(model, &compile::sample_shapes(&model.inputs()), seed)
}

/// Inputs made up for a model: indices within the tables they are looked up in, masks of ones, normal floats.
pub fn synthetic_at(model: &Arc<Model>, shapes: &Shapes, seed: u64) -> Result<Inputs, Error> {
    let program = inferring(model);
    let bounds = compile::index_bounds(&program.forward(shapes, Purpose::Infer)?);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut make = |name: &str, dtype: DType, shape: Vec<usize>| {
        let n = shape.iter().product();
        match dtype {
            DType::F32 => {
                // A sum of twelve uniform draws is near enough to a normal one.
                let normal = |rng: &mut ChaCha8Rng| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
                Tensor::f32(shape, (0..n).map(|_| normal(&mut rng)).collect())
            }
            DType::Bool => Tensor::bool(shape, vec![1; n]),
            DType::I32 => {
                let bound = bounds.get(name).copied().unwrap_or(if name.contains("mask") { 0 } else { 2 });
                let draw = |rng: &mut ChaCha8Rng| if bound == 0 { 1 } else { rng.random_range(0..bound as i32) };
                Tensor::i32(shape, (0..n).map(|_| draw(&mut rng)).collect())
            }
        }
    };
    let specs = input_specs(model);
    Ok(specs.iter().map(|s| (s.name.clone(), make(&s.name, s.dtype, shapes[&s.name].clone()))).collect())
}

/// The float outputs of a model on some inputs.
pub fn infer(trainee: &Trainee, inputs: &[Vec<(String, Tensor)>], device: &mut dyn Device) -> Result<Outputs, Error> {
    let mut all: Outputs = BTreeMap::new();
    trainee.session(device, |session| {
        for batch in inputs {
            let mut batch = Batch::of(batch.clone());
            let plan = match session.plan(&batch, Purpose::Infer) {
                Err(e) if because_unknown(&e) => {
                    let integers = |(_, t): &(String, Tensor)| t.dtype() != DType::F32;
                    (batch.known, batch.inputs) = batch.inputs.into_iter().partition(integers);
                    session.plan(&batch, Purpose::Infer)?
                }
                plan => plan?,
            };
            session.device.submit(vec![Run { plan, inputs: batch.inputs }])?;
            for (name, t) in session.collect(true)?.into_iter().flat_map(|f| f.runs).flatten() {
                all.entry(name).or_default().push(t);
            }
        }
        Ok(())
    })?;
    Ok(all)
}

/// For each output, its value on each batch.
pub type Outputs = BTreeMap<String, Vec<Tensor>>;

/// Runs an injected model with its adapter and a model without on the same inputs, and compares every float output.
pub fn compare_outputs(
    a: &Arc<Model>,
    adapter: Option<&Adapter>,
    b: &Arc<Model>,
    inputs: &[Vec<(String, Tensor)>],
    device: &mut dyn Device,
) -> Result<Vec<Difference>, Error> {
    // Rows that a mask leaves no key are no number in either, and no label counts there.
    let guarded = |model, adapter| -> Result<Trainee, Error> {
        let mut trainee = load(model, adapter)?;
        trainee.program.guard = true;
        Ok(trainee)
    };
    let first = infer(&guarded(a, adapter)?, inputs, device)?;
    let second = infer(&guarded(b, None)?, inputs, device)?;
    let wide = |ts: &Vec<Tensor>| -> Option<Vec<f64>> {
        ts.iter()
            .map(Tensor::as_f32)
            .collect::<Option<Vec<_>>>()
            .map(|v| v.concat().iter().map(|&x| x as f64).collect())
    };
    let both = first.iter().filter_map(|(name, x)| Some((name, wide(x)?, wide(second.get(name)?)?)));
    Ok(both.filter(|(_, x, _)| !x.is_empty()).map(|(name, x, y)| verify::difference(name, &x, &y)).collect())
}
