//! Merging with the statistics it needs, and checking what came out.

use super::compile::{self, Program};
use super::training::{Trainee, load};
use super::{Error, inferring, input_specs};
use crate::adapter::{Adapter, Norms};
use crate::calibrate::Accumulator;
use crate::device::{Device, Run};
use crate::ir::{DType, Tensor, outputs};
use crate::merge::{self, Report, STRATEGIES, Strategy};
use crate::onnx::{ElementType, Model};
use crate::train::data::Dataset;
use crate::train::{Purpose, Shapes};
use crate::verify::{self, Difference};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Data to gather statistics on.
pub struct Calibration<'a> {
    pub data: &'a Dataset,
    pub batch_size: usize,
    pub max_length: usize,
}

/// What to merge.
pub struct MergeRequest<'a> {
    pub injected: &'a Arc<Model>,
    pub adapter: &'a Adapter,
    /// `None` takes exact where that is possible, else input-norm.
    pub strategy: Option<Strategy>,
    /// Keep the adapters in the file rather than fold them into weights.
    pub keep_branch: bool,
    /// Data given for statistics; without it, what the adapter recorded.
    pub calibrate: Option<Calibration<'a>>,
    /// Data to fall back on for statistics, and for comparing outputs.
    pub fallback: Option<Calibration<'a>>,
}

/// A merged model, and how far it is from what was trained.
pub struct Merged {
    pub model: Model,
    pub report: Report,
    /// The adapter graph against the merged model, output by output.
    pub differences: Vec<Difference>,
    /// What the comparison ran on.
    pub compared_on: String,
    /// The largest relative difference that an exact merge may have, given the weights' element types.
    pub exact_tolerance: f64,
}

/// The most examples that a comparison runs on.
const COMPARED: usize = 32;

/// Merges, then runs the adapter graph and the merged model on the same rows.
pub fn merge(request: &MergeRequest, device: &mut dyn Device) -> Result<Merged, Error> {
    let config = merge::config(request.injected)?;
    let strategy = request.strategy.unwrap_or_else(|| {
        let first = STRATEGIES.iter().find(|s| (s.applies)(config.structure));
        first.expect("every structure has a strategy").strategy
    });
    let mut notes = Vec::new();
    let norms = match !request.keep_branch
        && (strategy.info().needs_norms)(config.structure)
        && (strategy.info().applies)(config.structure)
    {
        true => norms(request, device, &mut notes)?,
        false => BTreeMap::new(),
    };
    let (model, mut report) = match request.keep_branch {
        true => merge::keep_branch(request.injected, request.adapter)?,
        false => merge::merge(request.injected, request.adapter, strategy, &norms)?,
    };
    report.notes.extend(notes);
    let model = Arc::new(model);

    let given = request.calibrate.as_ref().or(request.fallback.as_ref());
    let (inputs, compared_on) = match given {
        Some(c) => held_back(request.injected, c)?,
        None => (vec![synthetic(request.injected, 0)?], "synthetic inputs".to_string()),
    };
    let differences = compare_outputs(request.injected, Some(request.adapter), &model, &inputs, device)?;
    let half = |t: &crate::structure::Target| model.initializer_type(&t.weight).map(|w| w.0);
    let exact_tolerance = config.targets.iter().filter_map(half).fold(1e-4f64, |t, element| {
        // A weight is rounded once to the type the file stores; eight and eleven bits of mantissa allow no better.
        t.max(match element {
            ElementType::F16 => 5e-3,
            ElementType::Bf16 => 4e-2,
            ElementType::F32 | ElementType::F64 => 1e-4,
            // A quantised weight: its error is reported, layer by layer.
            _ => f64::INFINITY,
        })
    });
    let model = Arc::try_unwrap(model).unwrap_or_else(|shared| (*shared).clone());
    Ok(Merged { model, report, differences, compared_on, exact_tolerance })
}

/// Norms of the blocks: from the data given, else as the run recorded them, else from the data to fall back on.
fn norms(
    request: &MergeRequest,
    device: &mut dyn Device,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, Norms>, Error> {
    if let Some(c) = &request.calibrate {
        return calibrate(request.injected, request.adapter, c, device);
    }
    if !request.adapter.statistics.is_empty() {
        notes.push(
            "norms are those recorded over the last steps of training; --calibrate FILE gathers them anew".into(),
        );
        return Ok(request.adapter.statistics.clone());
    }
    match &request.fallback {
        Some(c) => {
            notes.push(format!("norms were gathered on {}", c.data.path.display()));
            calibrate(request.injected, request.adapter, c, device)
        }
        None => Ok(BTreeMap::new()),
    }
}

/// Runs an injected model over a whole data set and sums the norms of its blocks.
pub fn calibrate(
    injected: &Arc<Model>,
    adapter: &Adapter,
    c: &Calibration,
    device: &mut dyn Device,
) -> Result<BTreeMap<String, Norms>, Error> {
    let trainee = load(injected, Some(adapter))?;
    let mut sums = Accumulator::new(&trainee.program.blocks());
    trainee.session(device, c.max_length, |session| {
        let all: Vec<usize> = (0..c.data.len()).collect();
        for examples in all.chunks(c.batch_size.max(1)) {
            let batch = c.data.batch(session.inputs, examples, c.max_length)?;
            let plan = session.plan(&batch, Purpose::Calibrate)?;
            session.device.submit(vec![Run { plan, inputs: batch.inputs }])?;
            for (name, t) in session.device.collect(true)?.into_iter().flat_map(|f| f.runs).flatten() {
                if name == outputs::STATISTICS {
                    sums.add(t.as_f32().unwrap_or_default());
                }
            }
        }
        Ok(())
    })?;
    Ok(sums.finish())
}

/// A graph's inputs by name.
type Inputs = Vec<(String, Tensor)>;

/// Batches of the last examples of a data set, and what to call them.
fn held_back(model: &Arc<Model>, c: &Calibration) -> Result<(Vec<Inputs>, String), Error> {
    let n = c.data.len();
    let count = COMPARED.min(n.div_ceil(10)).max(1);
    let specs = input_specs(model);
    let rows: Vec<usize> = (n - count..n).collect();
    let batches = rows.chunks(c.batch_size.max(1)).map(|r| Ok(c.data.batch(&specs, r, c.max_length)?.inputs));
    let inputs: Result<Vec<_>, Error> = batches.collect();
    Ok((inputs?, format!("the last {count} examples of {}", c.data.path.display())))
}

/// Inputs made up for a model: indices within the tables they are looked up in, masks of ones, normal floats.
pub fn synthetic(model: &Arc<Model>, seed: u64) -> Result<Vec<(String, Tensor)>, Error> {
    let signatures = model.inputs();
    let shapes: Shapes = compile::sample_shapes(&signatures);
    let program = inferring(model);
    let bounds = compile::index_bounds(&program.forward(&shapes, Purpose::Infer)?);
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
    trainee.session(device, usize::MAX, |session| {
        for batch in inputs {
            let run =
                crate::train::data::Batch { inputs: batch.clone(), labels: None, examples: 0, counted: 0, tokens: 0 };
            let plan = session.plan(&run, Purpose::Infer)?;
            session.device.submit(vec![Run { plan, inputs: batch.clone() }])?;
            for (name, t) in session.device.collect(true)?.into_iter().flat_map(|f| f.runs).flatten() {
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
    let first = infer(&load(a, adapter)?, inputs, device)?;
    let second = infer(&Trainee { program: Program { fuse: true, ..inferring(b) }, ..load(b, None)? }, inputs, device)?;
    let wide = |ts: &Vec<Tensor>| -> Option<Vec<f64>> {
        ts.iter()
            .map(Tensor::as_f32)
            .collect::<Option<Vec<_>>>()
            .map(|v| v.concat().iter().map(|&x| x as f64).collect())
    };
    let both = first.iter().filter_map(|(name, x)| Some((name, wide(x)?, wide(second.get(name)?)?)));
    Ok(both.filter(|(_, x, _)| !x.is_empty()).map(|(name, x, y)| verify::difference(name, &x, &y)).collect())
}
