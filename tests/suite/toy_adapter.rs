//! An adapter of a user's own, `y = (W x + b) ∘ d`, in this one file: injected, trained, merged and taken out again.

use crate::oracle;
use ndarray::{ArrayD, Axis};
use reslora_compile::adapters::{
    self, Block, Config, Emitter, Entry, Fold, Folded, Folding, Form, Place, Spec, Start, Structure, Target, Whole,
};
use reslora_compile::internals::device::Cpu;
use reslora_compile::internals::inject::Options;
use reslora_compile::internals::merge::{self, Strategy};
use reslora_compile::internals::pipeline::{self, MergeRequest, TrainRequest};
use reslora_compile::internals::train::data;
use reslora_compile::internals::{adapter, onnx, train};
use std::path::Path;
use std::sync::Arc;

static ROWS: Entry = Entry {
    name: "toy-rows",
    aliases: &[],
    help: "(W x + b) ∘ d",
    settings: &[],
    rank: false,
    alpha: false,
    dropout: false,
    residual: None,
    residuals: &[],
    images: false,
    reads_roles: false,
    suffixes: &["toy_d"],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Whole(Whole { place: |_, _| Place::Output, emit, folding: |_| Folding::Exact(fold) }),
};

fn tensors(_: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    Ok(vec![Spec::new("toy_d", [target.out_features], Start::Full(1.0))])
}

fn emit(e: &mut Emitter, block: &Block) -> String {
    let d = e.tensor(&block.target.tensor("toy_d"));
    e.node("toy_scaled", "Mul", &[block.y, &d])
}

fn fold(call: &Fold) -> Result<Folded, String> {
    let d = call.values.vector("toy_d").insert_axis(Axis(1));
    let bias = call.bias.map(|b| b * &call.values.vector("toy_d"));
    Ok(Folded { weight: call.weight * &d, bias })
}

fn injected(structure: Structure, to: &Path) -> (Arc<onnx::Model>, oracle::Case) {
    let case = oracle::fixtures().into_iter().find(|c| c.structure() == adapters::lora()).expect("a case of lora");
    let options = Options { structure, adapter: None, ..case.options("init.safetensors") };
    let base = pipeline::read(&case.dir.join("model.onnx")).unwrap();
    let (model, report) = pipeline::inject(&base, &options).unwrap();
    let outputs: usize = report.config.targets.iter().map(|t| t.out_features).sum();
    assert_eq!(report.adapter_parameters, outputs);
    onnx::write(&model, to).unwrap();
    (pipeline::read(to).unwrap(), case)
}

#[test]
fn an_adapter_of_ones_own_is_one_file() {
    let structure = adapters::register(&ROWS);
    let dir = tempfile::tempdir().unwrap();
    let (model, case) = injected(structure, &dir.path().join("toy.onnx"));
    let base = case.dir.join("model.onnx");

    // At its start it changes nothing, and merging gives the base's bytes back.
    let start = adapter::Adapter {
        tensors: merge::config(&model)
            .unwrap()
            .targets
            .iter()
            .map(|t| (t.tensor("toy_d"), ArrayD::from_elem(vec![t.out_features], 1.0)))
            .collect(),
        base: model.metadata("reslora.base").map(String::from),
        ..adapter::Adapter::default()
    };
    let (back, _) = merge::merge(&model, &start, Strategy::EXACT, &merge::Statistics::default()).unwrap();
    onnx::write(&back, &dir.path().join("back.onnx")).unwrap();
    assert_eq!(std::fs::read(dir.path().join("back.onnx")).unwrap(), std::fs::read(&base).unwrap());

    // Trained, it is better; merged, it computes the same.
    let data = data::read(&case.dir.join("data.safetensors"), &data::Options::default()).unwrap();
    let settings = train::Settings { batch_size: 2, lr: 1e-2, epochs: 3, ..pipeline::digits::settings() };
    let request = TrainRequest {
        model: &model,
        data: &data,
        eval: None,
        settings: &settings,
        max_length: 512,
        loss: None,
        loss_output: None,
        label_smoothing: 0.0,
        class_weights: &[],
        terms: pipeline::Terms::default(),
        fuse: true,
        dir: dir.path(),
        resume: false,
    };
    struct Quiet;
    impl train::Observer for Quiet {}
    let mut cpu = Cpu::new(None);
    let outcome = pipeline::train(&request, &mut cpu, &mut Quiet).unwrap();
    let third = outcome.losses.len() / 3;
    let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    assert!(mean(&outcome.losses[2 * third..]) < mean(&outcome.losses[..third]), "{:?}", outcome.losses);
    assert!(outcome.adapter.tensors.values().all(|t| t.iter().any(|d| *d != 1.0)));
    let request = MergeRequest::new(&model, &outcome.adapter);
    let merged = pipeline::merge(&request, &mut cpu).unwrap();
    assert!(merged.differences.iter().all(|d| d.relative < 1e-5), "{:?}", merged.differences);
    assert_eq!(merged.model.nodes().count(), pipeline::read(&base).unwrap().nodes().count());
}
