//! Adapters at other places than linear nodes: where they are found, and what becomes of tensors that several nodes share.

use crate::build::{A, F32, I64, Net, spread, tensor};
use crate::oracle;
use ndarray::ArrayD;
use reslora_compile::internals::adapter::Adapter;
use reslora_compile::internals::inject::{Options, Selector};
use reslora_compile::internals::merge::{self, Statistics, Strategy};
use reslora_compile::internals::{adapters, onnx, pipeline};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn options(structure: &str) -> Options {
    Options { structure: adapters::find(structure).unwrap(), ..Options::default() }
}

/// Four layers in a row that share one weight of ones.
fn norms(to: &Path) -> Arc<onnx::Model> {
    let mut net = Net::new(17)
        .input("x", F32, &["batch", "4"])
        .output("logits", F32, &["batch", "4"])
        .initializer(tensor("w", &[4], &[1.0; 4]));
    let values = ["x", "p", "q", "r", "logits"];
    for (i, pair) in values.windows(2).enumerate() {
        let name = format!("/net/{}/LayerNormalization", ["a", "b", "c", "d"][i]);
        net = net.node(&name, "LayerNormalization", &[pair[0], "w"], &[pair[1]], &[("axis", A::I(-1))]);
    }
    pipeline::read(&net.write(to)).unwrap()
}

/// Each target gets its own numbers, and a layer that is not adapted keeps the file's.
#[test]
fn layers_that_share_a_weight_part_when_merged() {
    let dir = tempfile::tempdir().unwrap();
    let base = norms(&dir.path().join("n.onnx"));
    let targets = vec![Selector::Path(regex::Regex::new("net.[abc]$").unwrap())];
    let (model, _) = pipeline::inject(&base, &Options { targets, ..options("norm") }).unwrap();
    let of = |x: f32| ArrayD::from_elem(vec![4], x);
    let tensors: BTreeMap<_, _> = ["a", "b", "c"]
        .iter()
        .zip(2u8..)
        .map(|(l, x)| (format!("net.{l}.ln_tuning_layers.weight"), of(f32::from(x))))
        .collect();
    let base_digest = model.metadata("reslora.base").map(String::from);
    let adapter = Adapter { tensors, base: base_digest, ..Adapter::default() };
    let (merged, _) = merge::merge(&model, &adapter, Strategy::EXACT, &Statistics::default()).unwrap();
    let read: Vec<f64> =
        merged.nodes().map(|(_, n)| merged.initializer(n.input(1).unwrap()).unwrap().to_f64().unwrap()[0]).collect();
    assert_eq!(read, [2.0, 3.0, 4.0, 1.0]);
}

#[test]
fn a_target_that_is_no_place_names_the_places() {
    let dir = tempfile::tempdir().unwrap();
    let base = norms(&dir.path().join("n.onnx"));
    let targets = vec![Selector::Path(regex::Regex::new("q_proj").unwrap())];
    let error = pipeline::inject(&base, &Options { targets, ..options("norm") }).unwrap_err().to_string();
    assert!(error.contains("'q_proj'") && error.contains("normalization") && error.contains("net.a"), "{error}");
    let error = pipeline::inject(&base, &options("lor2c")).unwrap_err().to_string();
    assert!(error.contains("no stack of blocks"), "{error}");
}

fn tokenizer() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/inputs/next-token-in-sight/tokenizer.json"))
}

/// The rows start as those of the text's tokens, repeated; nothing but the places before the tokens is new.
#[test]
fn a_prompt_starts_from_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let rows = 4096;
    let table = spread(rows * 2, 5);
    let net = Net::new(17)
        .input("input_ids", I64, &["batch", "sequence"])
        .output("embedded", F32, &["batch", "sequence", "2"])
        .output("logits", F32, &["batch", "sequence", "2"])
        .initializer(tensor("embed.weight", &[rows as i64, 2], &table))
        .node("/embed/Gather", "Gather", &["embed.weight", "input_ids"], &["embedded"], &[])
        .node("/act/Tanh", "Tanh", &["embedded"], &["logits"], &[]);
    let base = pipeline::read(&net.write(&dir.path().join("e.onnx"))).unwrap();
    let settings = [("virtual-tokens", 3.into()), ("prompt-text", "hi".into())];
    let settings = settings.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    let mut options = Options { settings, ..options("prompt") };
    let error = pipeline::setting_tokens(&base, &options, None).unwrap_err().to_string();
    assert!(error.contains("--prompt-text needs a tokenizer"), "{error}");
    options.tokens = pipeline::setting_tokens(&base, &options, Some(&tokenizer())).unwrap();
    assert!(!options.tokens.is_empty());
    let (model, report) = pipeline::inject(&base, &options).unwrap();
    assert_eq!(report.adapter_parameters, 6);
    let held = model.initializer("prompt_embeddings").unwrap().to_f32().unwrap();
    let want: Vec<f32> = options.tokens.iter().cycle().take(3).flat_map(|t| table[2 * t..2 * t + 2].to_vec()).collect();
    assert_eq!(held, want);
    onnx::write(&model, &dir.path().join("p.onnx")).unwrap();
    let model = pipeline::read(&dir.path().join("p.onnx")).unwrap();
    let bare = merge::strip(&model, &report.config).unwrap();
    onnx::write(&bare, &dir.path().join("bare.onnx")).unwrap();
    assert_eq!(std::fs::read(dir.path().join("bare.onnx")).unwrap(), std::fs::read(dir.path().join("e.onnx")).unwrap());
    let inputs = pipeline::synthetic(&base, 1).unwrap();
    let same = pipeline::compare_outputs(&base, None, &model, &[inputs], oracle::cpu().as_mut()).unwrap();
    assert!(same.iter().all(|d| d.relative == 0.0), "{same:?}");
}

/// A frozen pair of another seed computes something else.
#[test]
fn frozen_tensors_must_be_those_that_training_saw() {
    let case = oracle::fixtures().into_iter().find(|c| c.structure() == adapters::lora()).expect("a case of lora");
    let base = pipeline::read(&case.dir.join("model.onnx")).unwrap();
    let injected = |seed| {
        let (model, _) = pipeline::inject(&base, &Options { seed, ..options("vera") }).unwrap();
        Arc::new(model)
    };
    let (first, second) = (injected(0), injected(1));
    let config = merge::config(&first).unwrap();
    let value = |name: &String| {
        let t = first.initializer(name).unwrap();
        ArrayD::from_shape_vec(t.dims.clone(), t.to_f32().unwrap()).unwrap()
    };
    let tensors = config.tensor_names().iter().map(|n| (n.clone(), value(n))).collect();
    let adapter = Adapter { tensors, ..Adapter::default() };
    assert!(pipeline::load(&first, Some(&adapter)).is_ok());
    let error = pipeline::load(&second, Some(&adapter)).err().expect("another pair").to_string();
    assert!(error.contains("vera_A") && error.contains("--adapter"), "{error}");
}

/// What `inspect` says of a structure is what `inject` puts in.
#[test]
fn inspect_counts_what_each_structure_trains() {
    let case = oracle::fixtures().into_iter().find(|c| c.structure() == adapters::lora()).expect("a case of lora");
    let base = pipeline::read(&case.dir.join("model.onnx")).unwrap();
    let found = pipeline::inspect(&base, &Options::default(), 2, 8, oracle::cpu().limits()).unwrap();
    let mut counted = 0;
    for (name, parameters) in found.structures {
        match (parameters, pipeline::inject(&base, &options(name))) {
            (Ok(n), Ok((_, report))) => {
                assert_eq!(n, report.adapter_parameters, "{name}");
                counted += 1;
            }
            (Err(why), Err(_)) => assert!(!why.is_empty(), "{name}"),
            (inspected, _) => panic!("{name}: {inspected:?}, and inject says otherwise"),
        }
    }
    assert!(counted > 15, "{counted}");
}
