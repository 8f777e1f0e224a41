//! Starts that read more than the model (`--init eva`, `--init loftq`), against what the `peft` package gives.

use crate::cli::{cli, done, json, write_tensors};
use ndarray::{Array2, Ix2};
use reslora_compile::internals::adapter::{self, Adapter};
use reslora_compile::internals::adapters::{self, Init, Loftq};
use reslora_compile::internals::device::Cpu;
use reslora_compile::internals::inject::{Options, Selector};
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::pipeline::{self, Calibration, MergeRequest, TrainRequest};
use reslora_compile::internals::train::data;
use reslora_compile::internals::{merge, onnx, train};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn file(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fixtures/starts", name].iter().collect()
}

fn expected() -> Adapter {
    adapter::read(&file("expected.safetensors")).unwrap()
}

fn wanted(tensors: &Adapter, name: &str) -> Array2<f64> {
    let t = tensors.tensors.get(name).unwrap_or_else(|| panic!("no {name}"));
    t.mapv(f64::from).into_dimensionality::<Ix2>().unwrap()
}

fn held(model: &onnx::Model, name: &str) -> Array2<f64> {
    let t = model.initializer(name).unwrap_or_else(|| panic!("no {name}"));
    Array2::from_shape_vec((t.dims[0], t.dims[1]), t.to_f64().unwrap()).unwrap()
}

fn norm(m: &Array2<f64>) -> f64 {
    m.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn near(got: &Array2<f64>, want: &Array2<f64>, limit: f64, what: &str) {
    let error = norm(&(got - want)) / norm(want);
    assert!(error < limit, "{what}: off by {error:.1e}, not {limit:.0e}");
}

fn options(init: Init, targets: &str) -> Options {
    let targets = vec![Selector::Path(regex::Regex::new(targets).unwrap())];
    Options { structure: adapters::lora(), init, targets, rank: 2, alpha: 2.0, ..Options::default() }
}

/// Injected and read again, with the base.
fn injected(base: &str, options: &Options, dir: &Path) -> (Arc<onnx::Model>, Arc<onnx::Model>) {
    let base = pipeline::read(&file(base)).unwrap();
    let (model, _) = pipeline::inject(&base, options).unwrap();
    let to = dir.join("t.onnx");
    onnx::write(&model, &to).unwrap();
    (base, pipeline::read(&to).unwrap())
}

/// Whether two models give the same outputs on the fixture's data.
fn difference(a: &Arc<onnx::Model>, b: &Arc<onnx::Model>) -> f64 {
    let inputs = pipeline::synthetic(a, 2).unwrap();
    let found = pipeline::compare_outputs(a, None, b, &[inputs], &mut Cpu::new(None)).unwrap();
    found.iter().map(|d| d.relative).fold(0.0, f64::max)
}

#[test]
fn eva_gives_the_directions_and_ranks_that_peft_gives() {
    let said: Value = serde_json::from_str(&std::fs::read_to_string(file("expected.json")).unwrap()).unwrap();
    let base = pipeline::read(&file("model.onnx")).unwrap();
    let data = data::read(&file("data.safetensors"), &data::Options::default()).unwrap();
    let plain = Options { rank: 3, alpha: 6.0, ..options(Init::Eva, "blocks") };
    let eva = |rho| {
        // Batches that do not divide the data, which must not matter.
        let c = Calibration::new(&data, 5, 512);
        pipeline::with_directions(&base, &plain, &c, rho, &mut Cpu::new(None)).unwrap()
    };
    let (chosen, note) = eva(said["rho"].as_f64().unwrap());
    assert!(note.contains("ranks from 2 to 4"), "{note}");
    let dir = tempfile::tempdir().unwrap();
    let (base, model) = injected("model.onnx", &chosen, dir.path());
    let config = merge::config(&model).unwrap();
    let ranks = said["eva"].as_object().unwrap();
    assert_eq!(config.targets.len(), ranks.values().filter(|r| r["rank"] != 0).count());
    let tensors = expected();
    for t in &config.targets {
        let want = &ranks[&t.path];
        assert_eq!(config.rank_of(t) as u64, want["rank"].as_u64().unwrap(), "{}", t.path);
        assert_eq!(t.alpha.unwrap_or(config.alpha), want["alpha"].as_f64().unwrap(), "{}", t.path);
        // peft's singular vectors are those of a randomised decomposition in f32.
        let a = held(&model, &t.tensor("lora_A.weight"));
        near(&a, &wanted(&tensors, &format!("eva.{}", t.path)), 1e-3, &t.path);
        assert_eq!(norm(&held(&model, &t.tensor("lora_B.weight"))), 0.0);
    }
    assert_eq!(difference(&base, &model), 0.0);
    // Without redistribution every target has the rank that was asked for.
    let (even, note) = eva(1.0);
    assert!(note.contains("eva gave rank 3 "), "{note}");
    assert!(even.rank_pattern.iter().all(|p| p.1 == 3));
}

fn trained(model: &Arc<onnx::Model>, dir: &Path) -> Adapter {
    let read = data::read(&file("data.safetensors"), &data::Options::default()).unwrap();
    let data::Source::Tensors { mut tensors, examples } = read.source.clone() else { panic!("tensors") };
    tensors.insert("labels".into(), tensors["input_ids"].clone());
    let data = data::Dataset { source: data::Source::Tensors { tensors, examples }, ..read };
    let settings = train::Settings { batch_size: 4, lr: 1e-2, max_steps: Some(3), ..pipeline::digits::settings() };
    struct Quiet;
    impl train::Observer for Quiet {}
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

#[test]
fn loftq_gives_the_parts_that_peft_gives() {
    let tensors = expected();
    for (bits, iterations) in [(4, 1), (4, 3), (8, 1)] {
        let loftq = Loftq { bits, iterations };
        // At alpha 6 the scale is 3, which the factors make up for.
        for alpha in [2.0, 6.0] {
            let dir = tempfile::tempdir().unwrap();
            let chosen = Options { alpha, loftq, ..options(Init::Loftq, "0.up$|1.o$") };
            let (base, model) = injected("model.onnx", &chosen, dir.path());
            let config = merge::config(&model).unwrap();
            let linear = onnx::linear_nodes(&base);
            let mut plain = (*base).clone();
            for t in &config.targets {
                let l = linear.iter().find(|l| l.path == t.path).unwrap();
                let w = l.multiplied(&base).unwrap();
                let of = |part: &str| wanted(&tensors, &format!("loftq.{bits}.{iterations}.{}.{part}", t.path));
                let what = format!("{bits} bits, {iterations} times, {}", t.path);
                // peft computes in f32.
                near(&(&w - &held(&model, &t.tensor("loftq_error"))), &of("Q"), 1e-5, &what);
                let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|s| held(&model, &t.tensor(s)));
                let part = b.dot(&a) * config.scale_of(t);
                near(&part, &of("B").dot(&of("A")), 1e-3, &what);
                let roots = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>();
                assert!((roots(&a) / roots(&b) - 1.0).abs() < 1e-3, "{what}: the roots are shared");
                let whole = of("Q") + of("B").dot(&of("A"));
                assert!(norm(&(&whole - &w)) < norm(&(of("Q") - &w)), "{what}: nearer than Q alone");
                let stored = if l.transposed { whole } else { whole.reversed_axes() };
                let bytes = stored.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
                plain.replace_data(&l.weight, bytes);
            }
            // The model starts with Q and the factors in W's place.
            let same = difference(&Arc::new(plain), &model);
            assert!(same < 1e-5, "{bits} bits, {iterations} times, alpha {alpha}: {same:.1e}");
            let adapter = trained(&model, &dir.path().join("run"));
            let request = MergeRequest::new(&model, &adapter);
            let merged = pipeline::merge(&request, &mut Cpu::new(None)).unwrap();
            assert_eq!(merged.report.strategy, "exact");
            assert!(merged.differences.iter().all(|d| d.relative < 1e-5), "{:?}", merged.differences);
        }
    }
}

/// Where the file holds Q, the factors are those of what it has lost of the original, and nothing is subtracted.
#[test]
fn loftq_of_a_quantised_model_reads_the_original() {
    let tensors = expected();
    let [base, original] = ["quantised.onnx", "model.onnx"].map(|f| pipeline::read(&file(f)).unwrap());
    let plain = options(Init::Loftq, "0.up$|1.o$");
    let chosen = pipeline::with_originals(&base, &plain, &original).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (_, model) = injected("quantised.onnx", &chosen, dir.path());
    for t in &merge::config(&model).unwrap().targets {
        assert!(model.initializer(&t.tensor("loftq_error")).is_none());
        let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|s| held(&model, &t.tensor(s)));
        let of = |part: &str| wanted(&tensors, &format!("quantised.{}.{part}", t.path));
        near(&b.dot(&a), &of("B").dot(&of("A")), 1e-4, &t.path);
    }
    // Nearer to the original than the quantised model is.
    let (before, after) = (difference(&original, &base), difference(&original, &model));
    assert!(after < before, "{after} and {before}");
}

#[test]
fn starts_that_cannot_be_meant_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let [model, quantised, data] =
        ["model.onnx", "quantised.onnx", "data.safetensors"].map(|f| file(f).display().to_string());
    let lora = ["--structure", "lora", "--target", "blocks", "-o", "t.onnx", "--device", "cpu"];
    let one = |x: i32| Tensor::i32([1, 8], vec![x; 8]);
    write_tensors(&d.join("few.safetensors"), &[("input_ids", one(3)), ("attention_mask", one(1))]);
    for (base, more, mention) in [
        (&model, &["--init", "eva"][..], "give --init-data FILE with examples"),
        (&model, &["--init-data", &data], "--init-data means nothing to --init default"),
        (&model, &["--init", "pissa", "--eva-rho", "2"], "--eva-rho means nothing to --init pissa"),
        (&model, &["--init", "eva", "--init-data", &data, "--loftq-bits", "4"], "--loftq-bits means nothing"),
        (&model, &["--init", "eva", "--init-data", &data, "--eva-rho", "0.5"], "--eva-rho 0.5 must be"),
        (&model, &["--init", "eva", "--init-data", "few.safetensors", "--rank", "6"], "too few for 12 directions"),
        (&model, &["--init", "loftq", "--loftq-bits", "3"], "--loftq-bits 3 must be 4 or 8"),
        (&model, &["--init", "loftq", "--loftq-iter", "0"], "--loftq-iter must be at least 1"),
        (&model, &["--init", "loftq", "--init-data", &model], "the targets' are floats"),
        (&quantised, &["--init", "loftq"], "give the model from before it was quantised"),
        (&quantised, &["--init", "loftq", "--init-data", &model, "--loftq-iter", "2"], "quantised, which stays"),
    ] {
        let ran = cli(d, &[&["inject", base], &lora[..], more].concat());
        assert!(ran.code == 1 || ran.code == 2, "{more:?}: {}\n{}", ran.code, ran.err);
        assert!(ran.err.contains(mention), "{more:?}\n{}", ran.err);
    }
    let chained = ["--structure", "block-shortcut", "--target", "blocks", "--init", "loftq", "-o", "t.onnx"];
    let ran = cli(d, &[&["inject", &model], &chained[..]].concat());
    assert!(ran.code != 0 && ran.err.contains("does not go with block-shortcut"), "{}", ran.err);
    assert!(!d.join("t.onnx").exists());
}

/// The start travels with the adapter: what was injected once is injected again without the data.
#[test]
fn starts_are_injected_again_from_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let [model, data] = ["model.onnx", "data.safetensors"].map(|f| file(f).display().to_string());
    let lora = ["--structure", "lora", "--target", "blocks", "--rank", "3", "--device", "cpu"];
    let eva = ["--init", "eva", "--init-data", &data, "--batch-size", "4"];
    for (how, named) in [(&eva[..], "eva"), (&["--init", "loftq", "--loftq-bits", "8"], "loftq")] {
        let report = json(d, &[&["inject", &model], &lora[..], how, &["-o", "t.onnx"]].concat());
        assert!(report["adapter_parameters"].as_u64().unwrap() > 0);
        let first = pipeline::read(&d.join("t.onnx")).unwrap();
        let adapter = trained(&first, &d.join(named));
        adapter::write(&adapter, &d.join("a.safetensors")).unwrap();
        done(d, &["inject", &model, "--adapter", "a.safetensors", "-o", "again.onnx"]);
        let again = pipeline::read(&d.join("again.onnx")).unwrap();
        assert_eq!(merge::config(&first).unwrap(), merge::config(&again).unwrap(), "{named}");
        for (name, t) in &adapter.tensors {
            let stored = again.initializer(name).unwrap().to_f32().unwrap();
            assert_eq!(stored, t.iter().copied().collect::<Vec<_>>(), "{named}: {name}");
        }
    }
}
