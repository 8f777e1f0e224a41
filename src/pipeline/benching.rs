//! Times training steps on synthetic data.

use super::compile;
use super::terms::Terms;
use super::training::{Asked, load};
use super::{Error, ModelCompiler, input_specs};
use crate::adapters;
use crate::adapters::CONFIG_KEY;
use crate::device::{Device, Run};
use crate::ir::{Builder, FloatType, Node, Sink, Tensor, Type};
use crate::lower::loss::{Labels, Loss};
use crate::onnx::{self, Model};
use crate::ops::{self, RULES};
use crate::plan::{self, Layout};
use crate::settings::defaults;
use crate::train::data::{Dataset, Options, Order, Source};
use crate::train::metrics::StepMetrics;
use crate::train::schedule::Schedule;
use crate::train::{self, Observer, Purpose, Settings, Shapes, Trained};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// What to time.
pub struct BenchRequest<'a> {
    pub model: &'a Arc<Model>,
    pub batch: usize,
    pub seq: usize,
    /// Steps that count, after two that do not.
    pub steps: usize,
    pub loss: Option<Loss>,
    pub fuse: bool,
    /// The type to which products round their operands.
    pub products: FloatType,
    pub profile: bool,
}

impl<'a> BenchRequest<'a> {
    /// Times a model as `bench` does where nothing is said.
    pub fn new(model: &'a Arc<Model>) -> BenchRequest<'a> {
        BenchRequest {
            model,
            batch: defaults::BENCH_BATCH,
            seq: defaults::BENCH_POSITIONS,
            steps: defaults::BENCH_STEPS,
            loss: None,
            fuse: true,
            products: FloatType::F32,
            profile: false,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Bench {
    /// Wall time of each step that counted, in milliseconds.
    pub steps_ms: Vec<f64>,
    /// Their median.
    pub step_ms: f64,
    /// Positions of the batch (examples, where there are none).
    pub tokens: usize,
    pub tokens_per_s: f64,
    /// Seconds from the model to a plan that is ready to run: lowering, passes, planning, pipelines, weights on the device.
    pub compile_s: f64,
    /// Of those, what is not the device's: lowering, passes and planning.
    pub plan_s: f64,
    /// Arithmetic of the model in a step: 4 for each weight of a linear node and row it multiplies (forward, and back to the input).
    pub model_gflop: f64,
    pub model_gflops_per_s: f64,
    /// What one large product alone reaches on this device.
    pub ceiling_gflops_per_s: f64,
    /// The one as a fraction of the other.
    pub utilisation: f64,
    /// Bytes of memory that the device has in use.
    pub memory: usize,
    /// The most memory that this process had resident, in bytes, files it maps included; where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss: Option<usize>,
    /// Bytes of the arenas that values of a step share, and the least they could have.
    pub arenas: usize,
    pub arenas_least: usize,
    /// Kernels and copies of one step: forward, backward and the optimiser's.
    pub kernels: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

/// Where the time of one forward and backward pass goes, kernel by kernel.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Profile {
    pub kernels: Vec<KernelTime>,
    /// Every kernel in order, for a trace.
    #[serde(skip)]
    pub spans: Vec<Span>,
}

/// All runs of one kernel together.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct KernelTime {
    pub kernel: String,
    pub count: usize,
    pub ms: f64,
    pub share: f64,
    pub gflops_per_s: f64,
    pub gbytes_per_s: f64,
}

/// One run of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub kernel: String,
    /// The model's node that it came from.
    pub origin: String,
    pub shape: String,
    /// Microseconds from the beginning.
    pub start: f64,
    pub duration: f64,
}

/// Times training steps of an injected model.
pub fn bench(request: &BenchRequest, device: &mut dyn Device) -> Result<Bench, Error> {
    let model = request.model;
    let mut trainee = load(model, None)?;
    if trainee.program.trained.is_empty() {
        let hint = "hint: reslora-compile inject MODEL puts adapters into it";
        return Err(Error::Model(format!("{} has no adapters to train\n{hint}", model.path().display())));
    }
    trainee.program.fuse = request.fuse;
    trainee.program.products = request.products;
    let shapes = compile::shapes_at(&model.inputs(), request.batch, request.seq);
    let data = made_up(model, &shapes, request)?;
    let terms = Terms::default();
    trainee.set_loss(&data, request.batch, Asked { loss: request.loss, output: None, terms: &terms })?;
    let gflop = model_flop(model, &shapes)? * 1e-9;

    // Compiled once here to be timed, and again by the session below, which finds pipelines and weights in place.
    let began = Instant::now();
    let limits = device.limits();
    let sizes = trainee.program.parameters();
    let layout = Layout::new(sizes.iter().map(|(n, s)| (n.as_str(), *s)), limits.value_words);
    for (i, segment) in layout.segments.iter().enumerate() {
        for state in [plan::parameters_state(i), plan::gradients_state(i)] {
            device.reserve(&state, segment.words)?;
        }
    }
    let purpose = Purpose::Train { statistics: !trainee.program.blocks().is_empty() };
    let mut compiler = ModelCompiler { program: trainee.program.clone(), layout, limits, own: HashMap::new() };
    let planned = train::Compiler::compile(&mut compiler, &shapes, purpose).map_err(train::TrainError::Compile)?;
    let plan_s = began.elapsed().as_secs_f64();
    let (arenas, arenas_least) = (planned.arena_bytes(), planned.lower_bound * 4);
    let step = device.load(planned)?;
    let compile_s = began.elapsed().as_secs_f64();

    const WARM: usize = 2;
    let settings = Settings {
        batch_size: request.batch,
        epochs: request.steps + WARM,
        lr: defaults::BENCH_LEARNING_RATE,
        schedule: Schedule::CONSTANT,
        order: Order { shuffle: false, seed: 0 },
        products: request.products,
        ..Settings::default()
    };
    let dir = tempfile::tempdir().map_err(|e| Error::Model(format!("no temporary folder: {e}")))?;
    let config = model.metadata(CONFIG_KEY).unwrap_or_default().to_string();
    let blocks = trainee.program.blocks();
    let trained = Trained {
        parameters: trainee.parameters.clone(),
        frozen: Default::default(),
        base: None,
        config,
        raised: vec![],
        pairs: vec![],
        paths: Default::default(),
        blocks,
    };
    let mut watch = Watch::default();
    let (profile, update) = trainee.session(device, |session| {
        let task = train::Task {
            trained: &trained,
            data: &data,
            eval: None,
            settings: &settings,
            dir: dir.path(),
            resume: None,
        };
        let update = train::train(session, RULES, task, &mut watch)?.update;
        if !request.profile {
            return Ok((None, update));
        }
        let all: Vec<usize> = (0..data.len()).collect();
        let batch = data.batch(session.feed, &all)?;
        let id = session.plan(&batch, purpose)?;
        let (weights, total) = session.weights(std::slice::from_ref(&batch))?;
        let run = session.run(id, &batch, weights[0], total, 0);
        Ok((Some(profile(session.device, &run)?), update))
    })?;
    let kernels = device.launches(step) + device.launches(update);
    let steps_ms: Vec<f64> = watch.seconds.iter().skip(WARM).map(|s| s * 1e3).collect();
    let step_ms = median(&steps_ms);
    let (memory, peak_rss) = (device.memory(), peak_resident());
    let ceiling = ceiling(device)?;
    let speed = gflop / (step_ms * 1e-3);
    Ok(Bench {
        step_ms,
        tokens: watch.tokens,
        tokens_per_s: watch.tokens as f64 / (step_ms * 1e-3),
        steps_ms,
        compile_s,
        plan_s,
        model_gflop: gflop,
        model_gflops_per_s: speed,
        ceiling_gflops_per_s: ceiling,
        utilisation: speed / ceiling,
        memory,
        peak_rss,
        arenas,
        arenas_least,
        kernels,
        profile,
    })
}

/// The most memory that this process had resident so far.
fn peak_resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[derive(Default)]
struct Watch {
    seconds: Vec<f64>,
    tokens: usize,
}

impl Observer for Watch {
    fn step(&mut self, metrics: &StepMetrics) {
        self.seconds.push(metrics.seconds);
        self.tokens = metrics.tokens;
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One batch of inputs and labels that fit the model.
fn made_up(model: &Arc<Model>, shapes: &Shapes, request: &BenchRequest) -> Result<Dataset, Error> {
    let mut tensors: BTreeMap<String, Tensor> = super::comparing::synthetic_at(model, shapes, 0)?.into_iter().collect();
    // Inputs without elements, such as an empty cache, are filled in as in training.
    tensors.retain(|_, t| t.elements() > 0);
    let outputs = model.outputs();
    let own = input_specs(model).iter().any(|s| s.name == crate::ir::inputs::LABELS);
    if let Some(logits) = outputs.iter().find(|o| o.name == "logits").or(outputs.iter().find(|o| o.element.is_float()))
        && !own
    {
        let shape = compile::shape_of(model, shapes, &logits.name)?;
        let classes = shape.last().copied().unwrap_or(1).max(1);
        let labels = match request.loss {
            Some(loss) if loss.labels == Labels::Numbers => {
                let n = shape.iter().product();
                Tensor::f32(shape, vec![0.5; n])
            }
            // An image that is made, rather than classes of one.
            None if shape.len() == 4 => {
                let n = shape.iter().product();
                Tensor::f32(shape, vec![0.5; n])
            }
            _ => {
                let shape = &shape[..shape.len() - 1];
                let n: usize = shape.iter().product();
                Tensor::i32(shape.to_vec(), (0..n).map(|i| (i * 7 % classes) as i32).collect())
            }
        };
        tensors.insert(crate::ir::inputs::LABELS.into(), labels);
    }
    let source = Source::Tensors { tensors, examples: request.batch, images: None };
    Ok(Dataset {
        given: vec![],
        path: PathBuf::from("made up"),
        source,
        digest: String::new(),
        notes: vec![],
        limit: None,
        pad_id: None,
        options: Options::default(),
    })
}

/// 4 for each weight of a linear node and row: forward, and the gradient of its input.
fn model_flop(model: &Arc<Model>, shapes: &Shapes) -> Result<f64, Error> {
    let values = compile::value_shapes_at(model, shapes)?;
    let base = adapters::layers(model);
    let flop = |l: &onnx::Linear| {
        let outputs: usize = values.get(&l.y).map_or(0, |s| s.iter().product());
        4.0 * outputs as f64 * l.in_features as f64
    };
    Ok(base.iter().map(flop).sum())
}

/// GFLOP/s of products of 1,024 x 1,024 matrices, one after the other.
fn ceiling(device: &mut dyn Device) -> Result<f64, Error> {
    const N: usize = 1024;
    const CHAIN: usize = 4;
    let mut b = Builder::new(RULES);
    let (x, w) = (b.input("x", Type::f32([N, N])), b.input("w", Type::f32([N, N])));
    let mut y = x;
    for _ in 0..CHAIN {
        y = b.matmul(y, w, false, false)?;
    }
    let corner = b.slice(y, 0, 0, 1, 1)?;
    b.output("y", corner, Sink::Fetch);
    let plan = plan::plan(b.graph, &Layout::default(), device.limits())?;
    let id = device.load(plan)?;
    let tensor = Tensor::f32([N, N], (0..N * N).map(|i| (i % 97) as f32 * 1e-4).collect());
    let inputs = vec![("x".to_string(), tensor.clone()), ("w".to_string(), tensor)];
    let mut seconds = Vec::new();
    for _ in 0..6 {
        let began = Instant::now();
        device.submit(vec![Run { plan: id, inputs: inputs.clone() }])?;
        device.collect(true)?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    let flop = 2.0 * (CHAIN * N * N * N) as f64;
    Ok(flop * 1e-9 / seconds.into_iter().fold(f64::INFINITY, f64::min))
}

/// Times every kernel of one run.
fn profile(device: &mut dyn Device, run: &Run) -> Result<Profile, Error> {
    // Once to warm up: timestamps of the first passes may hold the driver's own work.
    device.profile(run)?;
    let timings = device.profile(run)?;
    let graph = &device.plan(run.plan).graph;
    let mut by_kernel: BTreeMap<String, (KernelTime, f64, f64)> = BTreeMap::new();
    let mut spans = Vec::new();
    let total: f64 = timings.iter().map(|t| t.seconds).sum();
    // A node that takes several dispatches counts its work once, where it spends the most time.
    let mut longest: HashMap<usize, usize> = HashMap::new();
    for (i, t) in timings.iter().enumerate() {
        for &node in &t.nodes {
            let best = longest.entry(node).or_insert(i);
            if t.seconds > timings[*best].seconds {
                *best = i;
            }
        }
    }
    for (i, t) in timings.iter().enumerate() {
        let types = |vs: &[crate::ir::Value]| -> Vec<Type> { vs.iter().map(|&v| graph.ty(v).clone()).collect() };
        let all: Vec<&Node> = t.nodes.iter().map(|&n| &graph.nodes[n]).collect();
        let mut work = ops::Work::default();
        for (_, n) in t.nodes.iter().zip(&all).filter(|(number, _)| longest.get(number) == Some(&i)) {
            let own = ops::work(&n.op, &n.attrs, &types(&n.inputs), &types(&n.outputs));
            work = ops::Work { flops: work.flops + own.flops, bytes: work.bytes + own.bytes };
        }
        let entry = by_kernel.entry(t.kernel.clone()).or_default();
        entry.0.kernel.clone_from(&t.kernel);
        entry.0.count += 1;
        entry.0.ms += t.seconds * 1e3;
        entry.1 += work.flops;
        entry.2 += work.bytes;
        let shape = |n: &&Node| {
            let all = types(&n.inputs).into_iter().chain(types(&n.outputs));
            all.map(|t| t.to_string()).collect::<Vec<_>>().join(" ")
        };
        spans.push(Span {
            kernel: t.kernel.clone(),
            origin: all.iter().map(|n| n.origin.to_string()).collect::<Vec<_>>().join(", "),
            shape: all.iter().map(shape).collect::<Vec<_>>().join("; "),
            start: t.start * 1e6,
            duration: t.seconds * 1e6,
        });
    }
    let finish = |(mut k, flops, bytes): (KernelTime, f64, f64)| {
        let seconds = (k.ms * 1e-3).max(1e-12);
        k.share = k.ms * 1e-3 / total.max(1e-12);
        (k.gflops_per_s, k.gbytes_per_s) = (flops * 1e-9 / seconds, bytes * 1e-9 / seconds);
        k
    };
    let mut kernels: Vec<KernelTime> = by_kernel.into_values().map(finish).collect();
    kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    Ok(Profile { kernels, spans })
}
