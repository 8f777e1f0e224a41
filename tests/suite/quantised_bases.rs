//! Every adapter on bases whose weights are quantised, from the table: injected, trained, merged or kept as a branch.

use crate::oracle::cpu;
use reslora_compile::internals::adapter::Adapter;
use reslora_compile::internals::adapters::{self, ElementType, Form, GraphInput, Residual, Structure};
use reslora_compile::internals::inject::{Options, Selector};
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::pipeline::{self, Calibration, MergeRequest, TrainRequest};
use reslora_compile::internals::train::data::{self, Dataset, Source};
use reslora_compile::internals::{merge, onnx, train};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn file(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fixtures/starts", name].iter().collect()
}

struct Quiet;
impl train::Observer for Quiet {}

/// Next tokens to learn, and what the structure's graph inputs read.
fn examples(structure: Structure) -> Dataset {
    let read = data::read(&file("data.safetensors"), &data::Options::default()).unwrap();
    let Source::Tensors { mut tensors, examples } = read.source.clone() else { panic!("it holds tensors") };
    tensors.insert("labels".into(), tensors["input_ids"].clone());
    for input in structure.inputs {
        let t = match input.element {
            ElementType::I64 => Tensor::i32([examples], (0..examples).map(|i| (i % 2) as i32).collect()),
            _ => Tensor::f32([examples], (0..examples).map(|i| i as f32 / examples as f32).collect()),
        };
        tensors.insert(input.name.into(), t);
    }
    let column =
        |i: &GraphInput| data::Column { name: i.name.into(), integer: i.element == ElementType::I64, range: i.range };
    let inputs = structure.inputs.iter().map(column).collect();
    let options = data::Options { inputs, ..read.options.clone() };
    Dataset { source: Source::Tensors { tensors, examples }, options, ..read }
}

fn options(structure: Structure, residual: Residual) -> Options {
    let wanted = [("tasks", 2), ("block-size", 4), ("virtual-tokens", 2)];
    let own = |name: &str| structure.settings.iter().any(|s| s.name == name);
    let settings = wanted.into_iter().filter(|(n, _)| own(n)).map(|(n, x)| (n.to_string(), Value::from(x))).collect();
    let targets = match structure.form {
        Form::Elsewhere(_) => vec![],
        Form::Term(_) | Form::Whole(_) => vec![Selector::Path(regex::Regex::new("blocks").unwrap())],
    };
    Options { structure, residual, settings, targets, rank: 2, alpha: 4.0, seed: 3, ..Options::default() }
}

fn injected(base: &str, options: &Options, to: &Path) -> Arc<onnx::Model> {
    let base = pipeline::read(&file(base)).unwrap();
    let (model, _) = pipeline::inject(&base, options).unwrap_or_else(|e| panic!("{}: {e}", options.structure));
    onnx::write(&model, to).unwrap();
    pipeline::read(to).unwrap()
}

fn trained(model: &Arc<onnx::Model>, data: &Dataset, dir: &Path) -> (Vec<f64>, Adapter) {
    let settings = train::Settings { batch_size: 4, lr: 2e-2, max_steps: Some(2), ..pipeline::digits::settings() };
    let request = TrainRequest {
        model,
        data,
        eval: None,
        settings: &settings,
        max_length: 512,
        loss: None,
        loss_output: None,
        label_smoothing: 0.0,
        class_weights: &[],
        terms: pipeline::Terms::default(),
        fuse: true,
        dir,
        resume: false,
    };
    let outcome = pipeline::train(&request, cpu().as_mut(), &mut Quiet).unwrap();
    (outcome.losses, outcome.adapter)
}

/// Whether any trained tensor is other than it started.
fn moved(model: &onnx::Model, adapter: &Adapter) -> bool {
    let config = merge::config(model).unwrap();
    config.trained_names().iter().any(|name| {
        let start = model.initializer(name).unwrap().to_f32().unwrap();
        start.iter().zip(&adapter.tensors[name]).any(|(a, b)| a != b)
    })
}

/// `limit`: the most that a weight's requantisation may lose of it.
fn check(base: &str, limit: f64, structure: Structure, residual: Residual) {
    let name = format!("{structure} {residual} on {base}");
    let dir = tempfile::tempdir().unwrap();
    let options = options(structure, residual);
    let model = injected(base, &options, &dir.path().join("t.onnx"));
    let data = examples(structure);
    let (losses, adapter) = trained(&model, &data, &dir.path().join("run"));
    assert!(losses.len() == 2 && losses.iter().all(|l| l.is_finite()), "{name}: {losses:?}");
    assert!(moved(&model, &adapter), "{name}: nothing was trained");

    let calibrate = Some(Calibration::new(&data, 4, 512));
    let merge = |keep_branch: bool, chosen: Vec<(String, f64)>| {
        let plain = MergeRequest::new(&model, &adapter);
        let request = MergeRequest { keep_branch, chosen, calibrate: calibrate.clone(), ..plain };
        pipeline::merge(&request, cpu().as_mut()).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let worst = |m: &pipeline::Merged| m.differences.iter().map(|d| d.relative).fold(0.0, f64::max);
    let kept = merge(true, vec![]);
    assert_eq!(worst(&kept), 0.0, "{name}: a kept branch loses nothing");

    let chosen = structure.inputs.iter().map(|i| (i.name.to_string(), 1.0)).collect();
    let merged = merge(false, chosen);
    if merged.report.strategy != "exact" {
        return;
    }
    let lost = merged.report.layers.iter().filter_map(|l| l.requantised).fold(0.0, f64::max);
    assert!(lost <= limit, "{name}: requantising lost {lost:.1e}");
    // Errors of weights add up over the layers that read each other.
    let allowed = if lost == 0.0 { 1e-5 } else { 5.0 * limit };
    assert!(worst(&merged) <= allowed, "{name}: merging changed outputs by {:.1e}", worst(&merged));
}

#[test]
fn quantised_bases_take_every_adapter() {
    let mut failed = Vec::new();
    // Fifteen steps of a block of sixteen elements, and 254 of a row.
    for (base, limit) in [("quantised.onnx", 0.15), ("int8.onnx", 0.01)] {
        for structure in adapters::all() {
            for residual in std::iter::once(Residual::None).chain(structure.residuals.iter().copied()) {
                // Those have names of their own.
                if structure == adapters::lora() && residual != Residual::None {
                    continue;
                }
                let ran = std::panic::catch_unwind(|| check(base, limit, structure, residual));
                failed.extend(ran.err().map(|_| format!("{structure} {residual} on {base}")));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}
