//! Oracle cases: models, and what training them in PyTorch gave.

use ndarray::ArrayD;
use reslora_compile::internals::adapter::{self, Adapter};
use reslora_compile::internals::adapters::{self, Structure};
use reslora_compile::internals::device::{Cpu, Device};
use reslora_compile::internals::inject::{Options, Selector};
use reslora_compile::internals::merge::Strategy;
use reslora_compile::internals::onnx;
use reslora_compile::internals::optim::{self, Hyper};
use reslora_compile::internals::pipeline::{self, Calibration, MergeRequest, TrainRequest};
use reslora_compile::internals::plan::{DeviceProfile, Limits};
use reslora_compile::internals::train::data::{self, Order};
use reslora_compile::internals::train::schedule::Schedule;
use reslora_compile::internals::train::{Observer, Purpose, Settings};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a check opens the device it runs on.
pub type Open = fn() -> Box<dyn Device>;

pub fn cpu() -> Box<dyn Device> {
    Box::new(Cpu::new(None))
}

/// Smaller than the fixtures' embeddings and output projections, larger than their other weights.
pub const SMALL_WEIGHTS: Option<u64> = Some(64 << 10);

fn cpu_with_shards() -> Box<dyn Device> {
    Box::new(Cpu::new(SMALL_WEIGHTS))
}

pub struct Case {
    pub dir: PathBuf,
    pub json: Value,
    pub expected: Adapter,
}

struct Quiet;
impl Observer for Quiet {}

/// The cases that travel with the source.
pub fn fixtures() -> Vec<Case> {
    cases(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases")))
}

/// Those, and the folder of cases that `RESLORA_CASES` names.
pub fn everything() -> Vec<Case> {
    let mut all = fixtures();
    if let Ok(dir) = std::env::var("RESLORA_CASES") {
        all.extend(cases(Path::new(&dir)));
    }
    all
}

fn cases(dir: &Path) -> Vec<Case> {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("a folder of cases").map(|e| e.unwrap().path()).collect();
    names.sort();
    names.into_iter().filter(|p| p.join("case.json").exists()).map(Case::open).collect()
}

impl Case {
    pub fn open(dir: PathBuf) -> Case {
        let json = std::fs::read_to_string(dir.join("case.json")).expect("case.json");
        let json = serde_json::from_str(&json).expect("JSON");
        let expected = adapter::read(&dir.join("expected.safetensors")).expect("expected.safetensors");
        Case { dir, json, expected }
    }

    pub fn name(&self) -> String {
        self.dir.file_name().unwrap().to_string_lossy().into_owned()
    }

    pub fn number(&self, key: &str) -> f64 {
        self.json[key].as_f64().unwrap_or_else(|| panic!("{key} of {}", self.name()))
    }

    pub fn structure(&self) -> Structure {
        match self.json["residual"].as_str().unwrap() {
            "input" => adapters::find("input-shortcut").unwrap(),
            "block" => adapters::find("block-shortcut").unwrap(),
            "middle" => adapters::find("middle-shortcut").unwrap(),
            other => adapters::find(other).unwrap(),
        }
    }

    /// Whether plain weights cannot compute what it computes.
    pub fn approximate(&self) -> bool {
        self.structure().residual.is_some_and(|r| !r.is_exact())
    }

    pub fn options(&self, adapter: &str) -> Options {
        Options {
            targets: vec![Selector::Path(regex::Regex::new(self.json["target"].as_str().unwrap()).unwrap())],
            structure: self.structure(),
            pre_num: self.number("pre_num") as i64,
            rank: self.number("rank") as usize,
            alpha: self.number("alpha"),
            adapter: Some(adapter::read(&self.dir.join(adapter)).unwrap()),
            ..Options::default()
        }
    }

    /// The model with the adapters of a file of the case.
    pub fn injected(&self, adapter: &str, to: &Path) -> Arc<onnx::Model> {
        let base = pipeline::read(&self.dir.join("model.onnx")).unwrap();
        let (model, report) = pipeline::inject(&base, &self.options(adapter)).unwrap();
        for t in &report.config.targets {
            assert_eq!(
                self.json["chain_prev"][&t.path].as_str(),
                t.prev.as_deref(),
                "{}: chain at {}",
                self.name(),
                t.path
            );
        }
        onnx::write(&model, to).unwrap();
        pipeline::read(to).unwrap()
    }

    pub fn settings(&self) -> Settings {
        Settings {
            batch_size: 2,
            accumulate: self.number("accum") as usize,
            hyper: Hyper { weight_decay: 0.1, ..Hyper::default() },
            lr: self.number("lr"),
            schedule: Schedule::CONSTANT,
            warmup_steps: self.number("warmup") as u64,
            clip_norm: self.number("clip"),
            order: Order { shuffle: false, seed: 0 },
            ..Settings::default()
        }
    }
}

/// `‖a - b‖ / ‖b‖`
pub fn relative(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(x, y)| (*x - *y) as f64));
    difference / norm(&mut b.iter().map(|x| *x as f64)).max(f64::MIN_POSITIVE)
}

pub fn train_case(case: &Case, adapter: &str, settings: &Settings, open: Open) -> (Vec<f64>, Adapter) {
    let dir = tempfile::tempdir().unwrap();
    let model = case.injected(adapter, &dir.path().join("t.onnx"));
    let options = data::Options::default();
    let data = data::read(&case.dir.join("data.safetensors"), &options).unwrap();
    let mut device = open();
    let run = dir.path().join("run");
    let request = TrainRequest::new(&model, &data, settings, &run);
    let outcome =
        pipeline::train(&request, device.as_mut(), &mut Quiet).unwrap_or_else(|e| panic!("{}: {e}", case.name()));
    (outcome.losses, outcome.adapter)
}

/// What a case may be off by. In f32, PyTorch in f32 and in f64 differ by far less. A file in a narrower type holds its
/// constants (an epsilon, √2, 1/√d) and its merged weights rounded to that type; the oracle computes with the constants as they
/// are.
pub struct Tolerances {
    pub forward: f64,
    pub gradient: f64,
    pub training: f64,
    pub merged: f64,
}

impl Case {
    pub fn tolerances(&self) -> Tolerances {
        let exporter = self.json["exporter"].as_str().unwrap();
        match exporter.rsplit('-').next().unwrap() {
            "f16" => Tolerances { forward: 1e-4, gradient: 2e-3, training: 1e-3, merged: 2e-3 },
            "bf16" => Tolerances { forward: 1e-3, gradient: 2e-2, training: 1e-2, merged: 2e-2 },
            // A merged weight goes back into blocks of 16 levels.
            "int4" => Tolerances { forward: 1e-5, gradient: 1e-4, training: 1e-4, merged: 0.2 },
            _ => Tolerances { forward: 1e-5, gradient: 1e-4, training: 1e-4, merged: 1e-3 },
        }
    }
}

fn largest(errors: impl IntoIterator<Item = (f64, String)>) -> (f64, String) {
    errors.into_iter().fold((0.0, String::new()), |a, b| if b.0 > a.0 || b.0.is_nan() { b } else { a })
}

fn within(case: &Case, what: &str, (error, place): (f64, String), tolerance: f64) {
    assert!(error <= tolerance, "{}: {what} off by {error:.1e} at {place}, not {tolerance:.0e}", case.name());
}

/// Relative errors of the probe loss, and of each probe gradient, the largest.
pub fn measure_probe(case: &Case, open: Open) -> (f64, (f64, String)) {
    let settings = Settings {
        optimizer: optim::find("sgd").unwrap(),
        hyper: Hyper { weight_decay: 0.0, ..Hyper::default() },
        lr: 1.0,
        warmup_steps: 0,
        clip_norm: 0.0,
        accumulate: 1,
        max_steps: Some(1),
        ..case.settings()
    };
    let (losses, after) = train_case(case, "probe.safetensors", &settings, open);
    let want = case.number("probe_loss");
    let before = adapter::read(&case.dir.join("probe.safetensors")).unwrap();
    let gradient = |(name, start): (&String, &ArrayD<f32>)| {
        let gradient = start - &after.tensors[name];
        (relative(&gradient, &case.expected.tensors[&format!("probe.grad.{name}")]), name.clone())
    };
    ((losses[0] - want).abs() / want.abs(), largest(before.tensors.iter().map(gradient)))
}

pub fn check_probe(case: &Case, open: Open) {
    let (loss, gradient) = measure_probe(case, open);
    within(case, "probe loss", (loss, "the loss".into()), case.tolerances().forward);
    within(case, "gradient", gradient, case.tolerances().gradient);
}

/// The largest relative error of a training loss, and of a tensor that training ends with.
pub fn measure_training(case: &Case, open: Open) -> ((f64, String), (f64, String)) {
    let (losses, after) = train_case(case, "init.safetensors", &case.settings(), open);
    let want: Vec<f64> = case.json["losses"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(losses.len(), want.len(), "{}", case.name());
    let off = |(step, (got, want)): (usize, (&f64, &f64))| ((got - want).abs() / want.abs(), format!("step {step}"));
    let ends = |(name, value): (&String, &ArrayD<f32>)| {
        (relative(value, &case.expected.tensors[&format!("final.{name}")]), name.clone())
    };
    (largest(losses.iter().zip(&want).enumerate().map(off)), largest(after.tensors.iter().map(ends)))
}

pub fn check_training(case: &Case, open: Open) {
    let (loss, ends) = measure_training(case, open);
    let tolerance = case.tolerances().training;
    within(case, "loss", loss, tolerance);
    within(case, "the adapter it ends with", ends, 20.0 * tolerance);
}

#[test]
fn probe_on_cpu() {
    fixtures().iter().for_each(|c| check_probe(c, cpu));
}

#[test]
fn probe_with_sharded_weights() {
    fixtures().iter().for_each(|c| check_probe(c, cpu_with_shards));
}

#[test]
fn training_on_cpu() {
    fixtures().iter().for_each(|c| check_training(c, cpu));
}

/// Training plans of language models hold no value of as many elements as their logits; those without fusion do.
#[test]
fn logits_never_stand_in_memory() {
    let mut seen = 0;
    for case in fixtures() {
        let dir = tempfile::tempdir().unwrap();
        let model = case.injected("init.safetensors", &dir.path().join("t.onnx"));
        let mut trainee = pipeline::load(&model, None).unwrap();
        let options = data::Options::default();
        let data = data::read(&case.dir.join("data.safetensors"), &options).unwrap();
        let terms = pipeline::Terms::default();
        trainee.set_loss(&data, 2, pipeline::Asked { loss: None, output: None, terms: &terms }).unwrap();
        let batch = data.batch(&trainee.feed, &[0, 1]).unwrap();
        let shapes = batch.inputs.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
        let labels = batch.labels.unwrap().shape().to_vec();
        let purpose = Purpose::Train { statistics: false };
        let count = |fuse: bool| {
            trainee.program.fuse = fuse;
            let limits = cpu().limits();
            let limits = Limits { profile: DeviceProfile { busy_rows: 8, ..limits.profile }, ..limits };
            let graph = trainee.program.graph(&shapes, purpose, limits).unwrap();
            graph.nodes.iter().filter(|n| n.op == "linear_cross_entropy").count()
        };
        let [apart, fused] = [false, true].map(count);
        // A label for each position rather than for each example.
        let language = labels.len() == 2;
        assert_eq!((apart, fused), (0, language as usize), "{}", case.name());
        seen += fused;
    }
    assert!(seen >= 3, "only {seen} language models");
}

/// The largest relative error of merged logits over the strategies that apply, from the oracle's own final adapters. Least-squares has five times the tolerance of the others: it solves with moments summed in f32,
/// where the oracle has them in f64.
pub fn measure_merges(case: &Case, open: Open) -> (f64, String) {
    let mut errors = Vec::new();
    let dir = tempfile::tempdir().unwrap();
    let injected = case.injected("init.safetensors", &dir.path().join("t.onnx"));
    let mut adapter = Adapter::default();
    for (name, value) in &case.expected.tensors {
        if let Some(name) = name.strip_prefix("final.").filter(|n| *n != "logits") {
            adapter.tensors.insert(name.to_string(), value.clone());
        }
    }
    let options = data::Options::default();
    let all = data::read(&case.dir.join("data.safetensors"), &options).unwrap();
    // The oracle calibrates on the first eight micro-batches of two, and looks at the logits of the first.
    let calibration = all.subset(0..16.min(all.len()));
    let probe = all.batch(&crate::cli::feed(&injected), &[0, 1]).unwrap().inputs;
    let mut device = open();
    let config = reslora_compile::internals::merge::config(&injected).unwrap();
    for info in Strategy::all().filter(|s| (s.applies)(&config)) {
        let calibrate = Some(Calibration::new(&calibration, 2, 512));
        let request = MergeRequest {
            strategy: Some(info),
            calibrate,
            ridge: Some(1e-6),
            ..MergeRequest::new(&injected, &adapter)
        };
        let merged = pipeline::merge(&request, device.as_mut()).unwrap();
        let model = Arc::new(merged.model);
        let trainee = pipeline::load(&model, None).unwrap();
        let logits = &pipeline::infer(&trainee, std::slice::from_ref(&probe), device.as_mut()).unwrap()["logits"][0];
        let logits = ArrayD::from_shape_vec(logits.shape(), logits.as_f32().unwrap().to_vec()).unwrap();
        let key = match info.name {
            "input-norm" => "input",
            "weight-norm" => "weight",
            other => other,
        };
        let error = relative(&logits, &case.expected.tensors[&format!("merged.{key}.logits")]);
        let limit = case.tolerances().merged * if info.name == "least-squares" { 5.0 } else { 1.0 };
        assert!(error <= limit, "{}: {} logits off by {error:.1e}, not {limit:.0e}", case.name(), info.name);
        errors.push((error, info.name.to_string()));
        if !case.approximate() {
            let worst = merged.differences.iter().map(|d| d.relative).fold(0.0, f64::max);
            let limit = merged.exact_tolerance;
            assert!(worst <= limit, "{}: exact merge changes outputs by {worst:.1e}", case.name());
        }
    }
    largest(errors)
}

pub fn check_merges(case: &Case, open: Open) {
    measure_merges(case, open);
}

#[test]
fn merges_on_cpu() {
    fixtures().iter().for_each(|c| check_merges(c, cpu));
}

/// A folder of the material that lies beside a development checkout; users' clones have none.
pub fn shared(name: &str) -> Option<PathBuf> {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")).join(name);
    dir.is_dir().then_some(dir)
}
