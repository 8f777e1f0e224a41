//! Adapters other than ResLoRA's, against PyTorch: cases that the `peft` package and reference implementations made.

use crate::oracle::{Open, cpu, relative};
use ndarray::ArrayD;
use reslora_compile::internals::adapter::{self, Adapter};
use reslora_compile::internals::adapters::{self, Residual};
use reslora_compile::internals::inject::{Options, Selector};
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::onnx::{self, Model};
use reslora_compile::internals::optim::{self, Hyper};
use reslora_compile::internals::pipeline::{self, Calibration, MergeRequest, TrainRequest};
use reslora_compile::internals::train::data::{self, Dataset, Order};
use reslora_compile::internals::train::schedule::Schedule;
use reslora_compile::internals::train::{Observer, Settings};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct Case {
    dir: PathBuf,
    json: Value,
    expected: Adapter,
}

/// The cases that travel with the source, and those in the folder that `RESLORA_STRUCTURE_CASES` names.
fn cases() -> Vec<Case> {
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/structures"));
    let more = std::env::var("RESLORA_STRUCTURE_CASES").ok().map(PathBuf::from);
    let mut dirs: Vec<PathBuf> = [own].into_iter().chain(more).flat_map(folders).collect();
    dirs.sort();
    let open = |dir: PathBuf| {
        let json = serde_json::from_str(&std::fs::read_to_string(dir.join("case.json")).unwrap()).unwrap();
        let expected = adapter::read(&dir.join("expected.safetensors")).unwrap();
        Case { dir, json, expected }
    };
    dirs.into_iter().map(open).collect()
}

fn folders(dir: PathBuf) -> Vec<PathBuf> {
    let all = std::fs::read_dir(&dir).expect("a folder of cases").map(|e| e.unwrap().path());
    all.filter(|p| p.join("case.json").exists()).collect()
}

/// Regular expressions with their numbers.
fn pattern(rules: Option<&Value>) -> Vec<(regex::Regex, f64)> {
    let rules = rules.and_then(Value::as_object).into_iter().flatten();
    rules.map(|(re, n)| (regex::Regex::new(re).unwrap(), n.as_f64().unwrap())).collect()
}

struct Quiet;
impl Observer for Quiet {}

impl Case {
    fn name(&self) -> String {
        self.dir.file_name().unwrap().to_string_lossy().into_owned()
    }

    fn config(&self) -> &Map<String, Value> {
        self.json["config"].as_object().unwrap()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.json.get(key).or_else(|| self.config().get(key)).and_then(Value::as_f64)
    }

    fn options(&self, adapter: &str) -> Options {
        let config = self.config();
        let structure = adapters::find(config["structure"].as_str().unwrap()).unwrap();
        let residual = match config.get("residual").and_then(Value::as_str) {
            None | Some("none") => Residual::None,
            Some(name) => Residual::parse(&format!("{name}-shortcut")).unwrap(),
        };
        let settings: BTreeMap<String, Value> = config
            .iter()
            .map(|(k, v)| (k.replace('_', "-"), v.clone()))
            .filter(|(k, _)| structure.settings.iter().any(|s| s.name == k))
            .collect();
        let target = self.json["target"].as_str().filter(|t| !t.is_empty());
        Options {
            targets: target.map(|t| Selector::Path(regex::Regex::new(t).unwrap())).into_iter().collect(),
            structure,
            residual,
            settings,
            pre_num: self.number("pre_num").map_or(-1, |n| n as i64),
            rank: self.number("rank").map_or(8, |n| n as usize),
            alpha: self.number("alpha").unwrap_or(16.0),
            rank_pattern: pattern(config.get("rank_pattern")).into_iter().map(|(re, n)| (re, n as usize)).collect(),
            alpha_pattern: pattern(config.get("alpha_pattern")),
            freeze_a: config.get("freeze_a").and_then(Value::as_bool).unwrap_or(false),
            rslora: config.get("rslora").and_then(Value::as_bool).unwrap_or(false),
            adapter: Some(adapter::read(&self.dir.join(adapter)).unwrap()),
            ..Options::default()
        }
    }

    fn injected(&self, adapter: &str, to: &Path) -> Arc<Model> {
        let base = pipeline::read(&self.dir.join("model.onnx")).unwrap();
        let (model, _) =
            pipeline::inject(&base, &self.options(adapter)).unwrap_or_else(|e| panic!("{}: {e}", self.name()));
        onnx::write(&model, to).unwrap();
        pipeline::read(to).unwrap()
    }

    fn data(&self) -> Dataset {
        data::read(&self.dir.join("data.safetensors"), &data::Options::default()).unwrap()
    }

    fn settings(&self) -> Settings {
        Settings {
            batch_size: 2,
            accumulate: 1,
            epochs: 1,
            max_steps: self.number("steps").map(|n| n as u64),
            optimizer: optim::find("adamw").unwrap(),
            hyper: Hyper { weight_decay: self.number("decay").unwrap(), ..Hyper::default() },
            lr: self.number("lr").unwrap(),
            schedule: Schedule::CONSTANT,
            warmup_steps: 0,
            clip_norm: 0.0,
            order: Order { shuffle: false, seed: 0 },
            lora_plus: self.number("lora_plus").unwrap_or(1.0),
            precondition: optim::precondition::find(
                self.config().get("precondition").and_then(Value::as_str).unwrap_or("none"),
            )
            .unwrap(),
            ..Settings::default()
        }
    }

    fn train(&self, adapter: &str, settings: &Settings, open: Open) -> (Vec<f64>, Adapter) {
        let dir = tempfile::tempdir().unwrap();
        let model = self.injected(adapter, &dir.path().join("t.onnx"));
        let request = TrainRequest {
            model: &model,
            data: &self.data(),
            eval: None,
            settings,
            max_length: 512,
            loss: None,
            loss_output: None,
            label_smoothing: 0.0,
            class_weights: &[],
            terms: pipeline::Terms::default(),
            fuse: true,
            dir: &dir.path().join("run"),
            resume: false,
        };
        let outcome = pipeline::train(&request, open().as_mut(), &mut Quiet);
        let outcome = outcome.unwrap_or_else(|e| panic!("{}: {e}", self.name()));
        (outcome.losses, outcome.adapter)
    }

    fn trained(&self) -> Vec<String> {
        self.json["trained"].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_string()).collect()
    }
}

fn check(case: &Case, open: Open) {
    let name = case.name();
    let within = |what: &str, error: f64, limit: f64| {
        assert!(error <= limit, "{name}: {what} off by {error:.1e}, not {limit:.0e}");
    };
    // One step of SGD at rate 1 gives the gradient.
    let sgd = Settings {
        optimizer: optim::find("sgd").unwrap(),
        hyper: Hyper { weight_decay: 0.0, ..Hyper::default() },
        lr: 1.0,
        lora_plus: 1.0,
        precondition: &optim::precondition::NONE,
        max_steps: Some(1),
        ..case.settings()
    };
    let (losses, after) = case.train("probe.safetensors", &sgd, open);
    let want = case.number("probe_loss").unwrap();
    within("probe loss", (losses[0] - want).abs() / want, 1e-5);
    let before = adapter::read(&case.dir.join("probe.safetensors")).unwrap();
    // What is not trained is saved too: the adapter is whole.
    assert!(before.tensors.keys().all(|n| after.tensors.contains_key(n)), "{name}: {:?}", after.tensors.keys());
    for tensor in case.trained() {
        let gradient = &before.tensors[&tensor] - &after.tensors[&tensor];
        let error = relative(&gradient, &case.expected.tensors[&format!("probe.grad.{tensor}")]);
        within(&format!("gradient of {tensor}"), error, 5e-4);
    }
    // An inverse of BᵀB + 1e-6, with B as it leaves zero, multiplies what rounding leaves of the gradients, and AdamW takes little more
    // than their signs: processors that sum in another order end a few 1e-3 apart.
    let settings = case.settings();
    let off = if settings.precondition.apply.is_some() { 5e-3 } else { 2e-4 };
    let (losses, _) = case.train("init.safetensors", &settings, open);
    for (step, (got, want)) in losses.iter().zip(case.json["losses"].as_array().unwrap()).enumerate() {
        let want = want.as_f64().unwrap();
        within(&format!("loss of step {step}"), (got - want).abs() / want, off);
    }
    check_merge(case, open);
}

/// Merges the adapter that PyTorch ended with, and compares logits of the first batch.
fn check_merge(case: &Case, open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let model = case.injected("init.safetensors", &dir.path().join("t.onnx"));
    let start = adapter::read(&case.dir.join("init.safetensors")).unwrap();
    let ends = start.tensors.iter().map(|(n, t)| {
        let end = case.expected.tensors.get(&format!("final.{n}")).unwrap_or(t);
        (n.clone(), end.clone())
    });
    let adapter = Adapter { tensors: ends.collect(), ..Adapter::default() };
    if case.config()["structure"] == "prompt" {
        check_prompt(case, &model, &adapter, open);
    }
    let args: Vec<Value> = case.json["merged"]["args"].as_array().cloned().unwrap_or_default();
    let chosen = args.chunks(2).map(|c| (c[0].as_str().unwrap()[2..].to_string(), c[1].as_f64().unwrap())).collect();
    let data = case.data();
    let mut device = open();
    let request = MergeRequest {
        // What the reference keeps as a branch, and a residual path would be approximated for.
        keep_branch: case.json["merged"].is_null(),
        chosen,
        calibrate: Some(Calibration::new(&data, 2, 512)),
        ..MergeRequest::new(&model, &adapter)
    };
    let merged = pipeline::merge(&request, device.as_mut()).unwrap_or_else(|e| panic!("{}: {e}", case.name()));
    let folded = case.json["merged"].is_object();
    assert_eq!(folded, merged.report.strategy != "branch", "{}: {}", case.name(), merged.report.strategy);
    let worst = merged.differences.iter().map(|d| d.relative).fold(0.0, f64::max);
    let exact = matches!(merged.report.strategy.as_str(), "exact" | "branch");
    assert!(!exact || worst <= 1e-4, "{}: merging changes outputs by {worst:.1e}", case.name());
    let wanted = if folded { "merged.logits" } else { "final.logits" };
    let to = dir.path().join("merged.onnx");
    onnx::write(&merged.model, &to).unwrap();
    let model = pipeline::read(&to).unwrap();
    let trainee = pipeline::load(&model, None).unwrap();
    let batch = data.batch(&trainee.feed, &[0, 1]).unwrap();
    let logits = &pipeline::infer(&trainee, &[batch.inputs], device.as_mut()).unwrap()["logits"][0];
    let logits = ArrayD::from_shape_vec(logits.shape(), logits.as_f32().unwrap().to_vec()).unwrap();
    let error = relative(&logits, &case.expected.tensors[wanted]);
    assert!(error <= 1e-3, "{}: {wanted} off by {error:.1e}", case.name());
}

/// A prompt's rows go into the table, and its tokens before every sequence: the merged file then gives what the live adapter gave.
fn check_prompt(case: &Case, model: &Arc<Model>, adapter: &Adapter, open: Open) {
    let data = case.data();
    let mut device = open();
    let request =
        MergeRequest { calibrate: Some(Calibration::new(&data, 2, 512)), ..MergeRequest::new(model, adapter) };
    let merged = pipeline::merge(&request, device.as_mut()).unwrap_or_else(|e| panic!("{}: {e}", case.name()));
    let worst = merged.differences.iter().map(|d| d.relative).fold(0.0, f64::max);
    assert!(worst <= 1e-4, "{}: merging changes outputs by {worst:.1e}", case.name());
    let ids: Vec<i32> =
        merged.model.metadata("reslora.prompt_ids").unwrap().split(',').map(|id| id.parse().unwrap()).collect();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("merged.onnx");
    onnx::write(&merged.model, &to).unwrap();
    let merged = pipeline::load(&pipeline::read(&to).unwrap(), None).unwrap();
    let batch = data.batch(&merged.feed, &[0, 1]).unwrap();
    let longer = |(name, t): (String, Tensor)| {
        let rest = t.as_i32().expect("tokens and masks are integers");
        let width = t.shape()[1];
        let front = |k: usize| if name == "input_ids" { ids[k] } else { 1 };
        let rows = rest.chunks(width).flat_map(|row| (0..ids.len()).map(front).chain(row.iter().copied()));
        let all = ArrayD::from_shape_vec(vec![2, ids.len() + width], rows.collect()).unwrap();
        (name, Tensor::I32(all))
    };
    let inputs = batch.inputs.into_iter().map(longer).collect();
    let logits = &pipeline::infer(&merged, &[inputs], device.as_mut()).unwrap()["logits"][0];
    let logits = ArrayD::from_shape_vec(logits.shape(), logits.as_f32().unwrap().to_vec()).unwrap();
    let want = &case.expected.tensors["final.logits"];
    let logits = match want.ndim() {
        3 => logits.slice_axis(ndarray::Axis(1), ndarray::Slice::from(ids.len()..)).to_owned(),
        _ => logits,
    };
    let error = relative(&logits, want);
    assert!(error <= 1e-3, "{}: merged logits off by {error:.1e}", case.name());
}

fn check_all(open: Open) {
    let checked = |case: &Case| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(case, open))).is_ok();
    let cases = cases();
    let failed: Vec<String> = cases.iter().filter(|c| !checked(c)).map(Case::name).collect();
    assert!(failed.is_empty(), "{} of {} cases fail: {failed:?}", failed.len(), cases.len());
}

#[test]
fn structures_on_cpu() {
    check_all(cpu);
}

#[test]
fn structures_on_gpu() {
    if crate::gpu::available() {
        check_all(crate::gpu::gpu);
    }
}
