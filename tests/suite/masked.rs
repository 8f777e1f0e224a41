//! Rows that a mask leaves no key, as left padding has under a causal mask: no label counts there, so loss and gradient are those of
//! the same rows padded on the right, where no row is masked whole. Losses are ONNX Runtime's.

use crate::cli::{cli, done, metrics, write_tensors};
use crate::gpu::available;
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::pipeline;
use reslora_compile::internals::train::data::read_tensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/inputs/masked-rows")
}

fn expected() -> serde_json::Map<String, Value> {
    serde_json::from_slice(&std::fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn near(got: f64, want: f64) -> bool {
    (got - want).abs() <= 1e-5 * want.abs()
}

/// What a model reads of the rows padded on one side, as a file in `dir`.
fn data(dir: &Path, model: &Path, side: &str) -> String {
    let all = read_tensors(&fixtures().join(format!("{side}.npz"))).unwrap();
    let inputs = pipeline::input_specs(&pipeline::read(model).unwrap());
    let reads = |name: &str| name == "labels" || inputs.iter().any(|i| i.name == name);
    let kept: Vec<(&str, Tensor)> =
        all.iter().filter(|(n, _)| reads(n)).map(|(n, t)| (n.as_str(), t.clone())).collect();
    let path = dir.join(format!("{side}.safetensors"));
    write_tensors(&path, &kept);
    path.display().to_string()
}

fn injected(dir: &Path, name: &str) -> String {
    let model = fixtures().join(format!("{name}.onnx")).display().to_string();
    let out = format!("{name}.onnx");
    done(dir, &["inject", &model, "--target", "[qkv]_proj", "--rank", "2", "-o", &out]);
    out
}

/// Loss and norm of the gradient of the first step.
fn step(dir: &Path, model: &str, side: &str, how: &[&str]) -> (f64, f64) {
    let run = format!("{side}-{}", how.join("")).replace([':', '-'], "");
    let (data, fixed) = (data(dir, &dir.join(model), side), ["--max-steps", "1", "--no-shuffle", "-o", &run]);
    done(dir, &[&["train", model, "--data", &data], &fixed[..], how].concat());
    let first = metrics(&dir.join(&run)).swap_remove(0);
    std::fs::remove_dir_all(dir.join(&run)).unwrap();
    let number = |key: &str| first[key].as_f64().unwrap_or_else(|| panic!("{model} {side} {how:?}: {first}"));
    (number("loss"), number("grad_norm"))
}

fn check_training(names: &[String], hows: &[&[&str]]) {
    let dir = tempfile::tempdir().unwrap();
    let expected = expected();
    for name in names {
        let model = injected(dir.path(), name);
        let want = expected[name]["right"].as_f64().expect("no row is masked whole");
        for how in hows {
            let (left, right) = (step(dir.path(), &model, "left", how), step(dir.path(), &model, "right", how));
            assert!(near(right.0, want), "{name} {how:?}, padded on the right: {}, not {want}", right.0);
            assert!(near(left.0, want), "{name} {how:?}, padded on the left: {}, not {want}", left.0);
            assert!(right.1 > 0.01, "{name} {how:?}: hardly a gradient, {}", right.1);
            assert!((left.1 - right.1).abs() <= 1e-4 * right.1, "{name} {how:?}: {} and {}", left.1, right.1);
        }
    }
}

#[test]
fn padding_on_the_left_trains_as_on_the_right() {
    let names: Vec<String> = expected().keys().cloned().collect();
    assert!(names.len() >= 19, "models are missing");
    check_training(&names, &[&["--device", "cpu"]]);
    let names = ["where", "add", "two_layers", "parts", "attention"];
    check_training(&names.map(String::from), &[&["--device", "cpu", "--no-fuse"]]);
}

#[test]
fn padding_on_the_left_trains_as_on_the_right_on_a_gpu() {
    if available() {
        let names = ["where", "bias_input", "parts", "two_layers_add", "lowest_two_layers", "attention"];
        check_training(&names.map(String::from), &[&["--device", "gpu"]]);
    }
}

/// What is evaluated is what the file says, and so what ONNX Runtime computes: NaN too, where a second layer reads the first one's.
#[test]
fn evaluation_is_what_onnx_runtime_computes() {
    let dir = tempfile::tempdir().unwrap();
    for (name, losses) in expected() {
        let model = fixtures().join(format!("{name}.onnx")).display().to_string();
        for (side, want) in losses.as_object().unwrap() {
            let data = data(dir.path(), Path::new(&model), side);
            let ran = cli(dir.path(), &["eval", &model, "--data", &data, "--device", "cpu", "--json"]);
            let got = serde_json::from_str::<Value>(&ran.out).ok().and_then(|v| v["loss"].as_f64());
            let right = match (got, want.as_f64()) {
                (Some(got), Some(want)) => near(got, want),
                (None, None) => true,
                _ => false,
            };
            assert!(right, "{name} {side}: {got:?}, not {want}\n{}", ran.err);
        }
    }
}

/// Statistics for a merge leave masked rows out, whose softmax must not be NaN then.
#[test]
fn merges_gather_statistics_of_padded_rows() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let model = fixtures().join("two_layers.onnx").display().to_string();
    let how = ["--target", "[qo]_proj", "--rank", "2", "--structure", "input-shortcut", "-o", "m.onnx"];
    done(d, &[&["inject", &model], &how[..]].concat());
    let mut changes = Vec::new();
    for side in ["left", "right"] {
        let data = data(d, &d.join("m.onnx"), side);
        let run = ["--max-steps", "3", "--no-shuffle", "--lr", "0.01", "--device", "cpu", "-o", side];
        done(d, &[&["train", "m.onnx", "--data", &data], &run[..]].concat());
        for strategy in ["input-norm", "least-squares"] {
            let out = format!("{side}-{strategy}.onnx");
            let how = ["--strategy", strategy, "--calibrate", &data, "--device", "cpu", "-o", &out, "--json"];
            let report = done(d, &[&["merge", "m.onnx", "--adapter", side], &how[..]].concat());
            let report: Value = serde_json::from_str(&report.out).unwrap();
            let layers = report["layers"].as_array().unwrap();
            let change = layers.iter().map(|l| l["relative_change"].as_f64().expect("a number")).sum::<f64>();
            changes.push((strategy, change));
        }
    }
    for (left, right) in changes[..2].iter().zip(&changes[2..]) {
        assert!((left.1 - right.1).abs() <= 1e-3 * right.1, "{left:?} {right:?}");
    }
}
