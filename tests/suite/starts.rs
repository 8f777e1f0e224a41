//! How factors start (`--init`), and biases that are trained besides (`--bias`).

use crate::oracle;
use ndarray::{Array2, Ix2};
use reslora_compile::internals::adapters::{self, Init};
use reslora_compile::internals::device::Cpu;
use reslora_compile::internals::inject::{Biases, Options};
use reslora_compile::internals::pipeline::{self, MergeRequest, TrainRequest};
use reslora_compile::internals::train::data;
use reslora_compile::internals::{merge, onnx, train};
use std::path::Path;
use std::sync::Arc;

struct Quiet;
impl train::Observer for Quiet {}

fn case() -> oracle::Case {
    oracle::fixtures().into_iter().find(|c| c.structure() == adapters::lora()).expect("a case of lora")
}

fn injected(case: &oracle::Case, options: &Options, to: &Path) -> (Arc<onnx::Model>, Arc<onnx::Model>) {
    let base = pipeline::read(&case.dir.join("model.onnx")).unwrap();
    let (model, _) = pipeline::inject(&base, options).unwrap();
    onnx::write(&model, to).unwrap();
    (base, pipeline::read(to).unwrap())
}

fn trained(case: &oracle::Case, model: &Arc<onnx::Model>, dir: &Path) -> reslora_compile::internals::adapter::Adapter {
    let data = data::read(&case.dir.join("data.safetensors"), &data::Options::default()).unwrap();
    let settings = train::Settings { batch_size: 2, lr: 1e-2, max_steps: Some(4), ..pipeline::digits::settings() };
    let request = TrainRequest {
        model,
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
        dir,
        resume: false,
    };
    pipeline::train(&request, &mut Cpu::new(None), &mut Quiet).unwrap().adapter
}

fn merged(model: &Arc<onnx::Model>, adapter: &reslora_compile::internals::adapter::Adapter) -> pipeline::Merged {
    let request = MergeRequest::new(model, adapter);
    pipeline::merge(&request, &mut Cpu::new(None)).unwrap()
}

/// The factors of the first target as injected.
fn check_start(model: &onnx::Model, init: Init) {
    let target = &merge::config(model).unwrap().targets[0];
    let matrix = |suffix: &str| -> Array2<f64> {
        let t = model.initializer(&target.tensor(suffix)).unwrap();
        Array2::from_shape_vec((t.dims[0], t.dims[1]), t.to_f64().unwrap()).unwrap()
    };
    let (a, b) = (matrix("lora_A.weight"), matrix("lora_B.weight"));
    let deviation = |m: &Array2<f64>| (m.iter().map(|x| x * x).sum::<f64>() / m.len() as f64).sqrt();
    match init {
        Init::Default => unreachable!("the others are tested"),
        Init::Gaussian => {
            let rank = a.nrows() as f64;
            assert!((deviation(&a) * rank - 1.0).abs() < 0.25, "{}", deviation(&a));
            assert!(deviation(&b) == 0.0);
        }
        Init::Orthogonal => {
            assert!(deviation(&a) > 0.01 && deviation(&b) > 0.01, "{} {}", deviation(&a), deviation(&b));
            assert!(deviation(&b.dot(&a)) < 1e-6 * deviation(&a), "{}", deviation(&b.dot(&a)));
        }
        Init::Pissa | Init::Olora => assert!(deviation(&b) > 0.0),
        Init::Eva | Init::Loftq => unreachable!("they have tests of their own"),
    }
}

/// Whatever the factors start as, nothing changes at first, and what training adds merges exactly.
#[test]
fn every_start_leaves_the_model_as_it_was() {
    let case = case();
    for init in [Init::Gaussian, Init::Orthogonal, Init::Pissa, Init::Olora] {
        for structure in ["lora", "block-shortcut"] {
            let dir = tempfile::tempdir().unwrap();
            let options = Options {
                structure: adapters::find(structure).unwrap(),
                init,
                rank: 4,
                adapter: None,
                ..case.options("init.safetensors")
            };
            let (base, model) = injected(&case, &options, &dir.path().join("t.onnx"));
            let inputs = pipeline::synthetic(&base, 2).unwrap();
            let same = pipeline::compare_outputs(&base, None, &model, &[inputs], &mut Cpu::new(None)).unwrap();
            assert!(same.iter().all(|d| d.relative < 1e-5), "{init} {structure}: {same:?}");
            check_start(&model, init);
            let adapter = trained(&case, &model, &dir.path().join("run"));
            let config = merge::config(&model).unwrap();
            let target = &config.targets[0];
            let matrix = |suffix: &str| -> Array2<f64> {
                let t = adapter.tensors[&target.tensor(suffix)].clone().into_dimensionality::<Ix2>().unwrap();
                t.mapv(f64::from)
            };
            let norm = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>().sqrt();
            if let Init::Pissa | Init::Olora = init {
                // What was taken out of W: the rest has nothing left along its columns.
                // olora's factors are not divided by s.
                let scale = if init == Init::Pissa { config.scale_of(target) } else { 1.0 };
                let part = matrix("lora_B0.weight").dot(&matrix("lora_A0.weight")) * scale;
                let linear = onnx::linear_nodes(&base);
                let weight = linear.iter().find(|l| l.path == target.path).unwrap().multiplied(&base).unwrap();
                let rest = matrix("lora_B0.weight").t().dot(&(&weight - &part));
                assert!(norm(&rest) < 1e-4 * norm(&weight), "{init}: {}", norm(&rest));
                assert!(norm(&part) > 0.1 * norm(&weight), "{init}");
                let moved = matrix("lora_B.weight") - matrix("lora_B0.weight");
                assert!(norm(&moved) > 0.0, "{init}");
            }
            let merged = merged(&model, &adapter);
            assert!(merged.report.layers.iter().all(|l| l.relative_change > 0.0), "{init} {structure}");
            assert!(merged.differences.iter().all(|d| d.relative < 1e-4), "{init} {structure}");
        }
    }
}

#[test]
fn biases_are_trained_where_asked_for() {
    let case = case();
    let dir = tempfile::tempdir().unwrap();
    let names = |bias| {
        let options = Options { bias, adapter: None, ..case.options("init.safetensors") };
        let base = pipeline::read(&case.dir.join("model.onnx")).unwrap();
        pipeline::inject(&base, &options).unwrap().1.config.also_train
    };
    assert!(names(Biases::None).is_empty());
    let (targets, all) = (names(Biases::Targets), names(Biases::All));
    assert!(!targets.is_empty() && targets.len() < all.len(), "{targets:?} {all:?}");
    assert!(targets.iter().all(|n| all.contains(n)));
    let options = Options { bias: Biases::All, adapter: None, ..case.options("init.safetensors") };
    let (base, model) = injected(&case, &options, &dir.path().join("t.onnx"));
    let adapter = trained(&case, &model, &dir.path().join("run"));
    let merged = merged(&model, &adapter);
    assert!(merged.differences.iter().all(|d| d.relative < 1e-4));
    for name in &all {
        let [a, b] = [&*base, &merged.model].map(|m| m.initializer(name).unwrap().to_f64().unwrap());
        assert_ne!(a, b, "{name} was not trained");
    }
}
