//! The library as its users have it: what the types promise beyond the example of the crate's page.

use reslora_compile::{
    DataConfig, Error, InjectOptions, MergeRequest, Merged, Model, TrainConfig, TrainRequest, adapters, inject, merge,
    open_device, read, read_data, train, write,
};
use std::path::Path;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/quickstart");

fn config() -> TrainConfig {
    let how = DataConfig { batch_size: 25, device: "cpu".into(), ..DataConfig::default() };
    TrainConfig { how, max_steps: Some(3), ..TrainConfig::default() }
}

fn merged(injected: &Model, config: &TrainConfig, dir: &Path) -> Result<Merged, Error> {
    let data = read_data(format!("{FOLDER}/train.safetensors"), injected, &config.how)?;
    let mut device = open_device(config)?;
    let request = TrainRequest { model: injected, data: &data, eval: None, config, dir };
    let adapter = train(&request, &mut device, &mut ())?.adapter;
    merge(&MergeRequest { data: Some(&data), ..MergeRequest::new(injected, &adapter, config) }, &mut device)
}

/// The bytes of what injecting, training and merging makes, with the injected model in memory and through a file.
#[test]
fn a_model_in_memory_is_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let base = read(format!("{FOLDER}/model.onnx")).unwrap();
    for name in ["block-shortcut", "dora"] {
        let options = InjectOptions { structure: adapters::find(name).unwrap(), ..InjectOptions::default() };
        let in_memory = inject(&base, &options).unwrap().model;
        let path = dir.path().join("injected.onnx");
        write(&in_memory, &path).unwrap();
        let bytes = [in_memory, read(&path).unwrap()].map(|injected| {
            let merged = merged(&injected, &config(), &dir.path().join("run")).unwrap();
            assert!(!merged.above_tolerance && merged.tolerance.is_some(), "{name}: {:?}", merged.differences);
            write(&merged.model, dir.path().join("merged.onnx")).unwrap();
            std::fs::read(dir.path().join("merged.onnx")).unwrap()
        });
        assert!(bytes[0] == bytes[1], "{name}");
        assert_ne!(bytes[0], std::fs::read(format!("{FOLDER}/model.onnx")).unwrap(), "{name}");
    }
}

#[test]
fn what_cannot_be_asked_for_is_told_from_what_fails() {
    let dir = tempfile::tempdir().unwrap();
    let base = read(format!("{FOLDER}/model.onnx")).unwrap();
    let usage = |error: Error, says: &str| {
        assert!(error.is_usage() && error.to_string().contains(says), "'{error}', not '{says}'");
    };
    let rank = InjectOptions { rank: 0, ..InjectOptions::default() };
    usage(inject(&base, &rank).err().unwrap(), "--rank must be at least 1");
    let injected = inject(&base, &InjectOptions::default()).unwrap().model;
    let error = |config: TrainConfig| merged(&injected, &config, &dir.path().join("run")).err().unwrap();
    usage(error(TrainConfig { lr: -1.0, ..config() }), "--lr -1 must be a number that is not negative");
    usage(error(TrainConfig { optimizer: "adam".into(), ..config() }), "--optimizer 'adam' is not known\nhint: adamw");
    usage(error(TrainConfig { eval_every: Some(1), ..config() }), "--eval-every has nothing to evaluate on");
    let how = DataConfig { device: "tpu".into(), ..config().how };
    usage(error(TrainConfig { how, ..config() }), "--device 'tpu': expected auto, gpu, gpu:N or cpu");
    assert!(!merged(&base, &config(), &dir.path().join("run")).err().unwrap().is_usage());
    assert!(!read(dir.path().join("missing.onnx")).err().unwrap().is_usage());
}
