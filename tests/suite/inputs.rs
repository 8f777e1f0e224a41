//! What goes in is what was meant: labels in the forms people give them, padding, lengths, and data that measures nothing.
//! Right numbers come from ONNX Runtime, through the scripts beside the fixtures.

use crate::cli::{cli, json, metrics};
use serde_json::Value;
use std::path::{Path, PathBuf};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/inputs").join(name)
}

/// A file of a fixture, as an argument.
pub fn at(folder: &str, file: &str) -> String {
    fixture(folder).join(file).display().to_string()
}

pub fn expected(folder: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(folder).join("expected.json")).unwrap()).unwrap()
}

pub fn near(got: &Value, want: f64, what: &str) {
    let got = got.as_f64().unwrap_or(f64::NAN);
    assert!((got - want).abs() <= 1e-4 * want.abs(), "{what} is {got}, right is {want}");
}

/// The command fails with exit code 1 or 2 and says every one of `words`.
pub fn refused(dir: &Path, args: &[&str], words: &[&str]) {
    let ran = cli(dir, args);
    assert!(matches!(ran.code, 1 | 2), "{args:?}: exit code {}\n{}{}", ran.code, ran.out, ran.err);
    for word in words {
        assert!(ran.err.contains(word), "{args:?} does not say '{word}':\n{}", ran.err);
    }
}

fn here() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn labels_are_taken_in_the_form_they_have() {
    let (dir, want) = (here(), expected("labels"));
    for (model, data, key) in [
        ("one", "one_binary", "one_binary"),
        ("one", "one_numbers", "one_numbers"),
        ("many", "many_several", "many_several"),
        ("many", "many_classes", "many_classes"),
        ("sigmoid", "many_several", "sigmoid"),
        ("log_softmax", "many_classes", "log_softmax"),
        ("pixels", "pixels", "pixels"),
        ("tokens", "copied", "copied"),
    ] {
        for size in ["2", "9"] {
            let (model, data) = (at("labels", &format!("{model}.onnx")), at("labels", &format!("{data}.npz")));
            let got = json(dir.path(), &["eval", &model, "--data", &data, "--batch-size", size, "--device", "cpu"]);
            near(&got["loss"], want[key].as_f64().unwrap(), &format!("{key} in batches of {size}: the loss"));
            if let Some(accuracy) = want[&format!("{key}_accuracy")].as_f64() {
                near(&got["accuracy"], accuracy, &format!("{key}: the accuracy"));
            }
        }
    }
}

#[test]
fn every_form_of_labels_trains() {
    let dir = here();
    for (model, data) in [
        ("one", "one_binary"),
        ("one", "one_numbers"),
        ("many", "many_several"),
        ("pixels", "pixels"),
        ("sigmoid", "many_several"),
    ] {
        let (file, data) = (at("labels", &format!("{model}.onnx")), at("labels", &format!("{data}.npz")));
        let (injected, run) = (format!("{model}.reslora.onnx"), format!("{model}-{}", data.len()));
        json(dir.path(), &["inject", &file, "--rank", "1", "-o", &injected, "--target", "."]);
        let how = ["--max-steps", "30", "--lr", "0.05", "--device", "cpu", "-o", &run, "--batch-size", "9"];
        json(dir.path(), &[&["train", &injected, "--data", &data][..], &how].concat());
        let steps = metrics(&dir.path().join(&run));
        let loss = |i: usize| steps[i]["loss"].as_f64().unwrap();
        assert!(loss(29) < 0.95 * loss(0), "{model} on {data}: from {} to {}", loss(0), loss(29));
    }
}

#[test]
fn labels_that_could_mean_two_things_are_asked_about() {
    let dir = here();
    let (model, data) = (at("labels", "many.onnx"), at("labels", "many_one_hot.npz"));
    refused(dir.path(), &["eval", &model, "--data", &data], &["one-hot", "--loss mse", "hint"]);
    let asked = json(dir.path(), &["eval", &model, "--data", &data, "--loss", "mse", "--device", "cpu"]);
    assert!(asked["loss"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_is_not_a_number_is_named_by_row() {
    let dir = here();
    let (model, data) = (at("labels", "many.onnx"), at("labels", "not_a_number.npz"));
    refused(dir.path(), &["eval", &model, "--data", &data], &["NaN", "example 5"]);
    json(dir.path(), &["inject", &model, "--rank", "1", "-o", "m.onnx", "--target", "fc"]);
    let good = at("labels", "many_classes.npz");
    let train = ["train", "m.onnx", "--data", &good, "--eval", &data, "-o", "run"];
    refused(dir.path(), &train, &["NaN", "example 5", "not_a_number"]);
}

#[test]
fn a_tensor_that_no_input_reads_is_an_error() {
    let (model, data) = (at("labels", "many.onnx"), at("labels", "unread.npz"));
    refused(here().path(), &["eval", &model, "--data", &data], &["'xs'", "nearest is 'x'"]);
}

#[test]
fn ids_padded_without_a_mask_get_one_or_are_refused() {
    let dir = here();
    let data = at("labels", "unmasked.npz");
    refused(dir.path(), &["eval", &at("labels", "pooled.onnx"), "--data", &data], &["padded with 9", "attention_mask"]);
    std::fs::copy(fixture("labels").join("pooled.onnx"), dir.path().join("pooled.onnx")).unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"pad_token_id": 9}"#).unwrap();
    let got = json(dir.path(), &["eval", "pooled.onnx", "--data", &data, "--batch-size", "4", "--device", "cpu"]);
    near(&got["loss"], expected("labels")["pooled"].as_f64().unwrap(), "the loss under a mask made from the padding");
}

#[test]
fn labels_equal_to_the_ids_are_said_and_can_be_shifted() {
    let dir = here();
    let (model, data) = (at("labels", "tokens.onnx"), at("labels", "copied.npz"));
    let ran = cli(dir.path(), &["eval", &model, "--data", &data]);
    assert!(ran.err.contains("--shift-labels"), "{}", ran.err);
    let got = json(dir.path(), &["eval", &model, "--data", &data, "--shift-labels", "--device", "cpu"]);
    near(&got["loss"], expected("labels")["copied_shifted"].as_f64().unwrap(), "the loss of shifted labels");
}

#[test]
fn a_measurement_of_nothing_is_an_error() {
    let dir = here();
    let model = at("labels", "many.onnx");
    let none = dir.path().join("none.safetensors");
    let x = reslora_compile::internals::ir::Tensor::f32([3, 4], vec![0.5; 12]);
    let labels = reslora_compile::internals::ir::Tensor::i32([3], vec![-100; 3]);
    crate::cli::write_tensors(&none, &[("x", x.clone()), ("labels", labels)]);
    refused(dir.path(), &["eval", &model, "--data", "none.safetensors"], &["-100"]);
    json(dir.path(), &["inject", &model, "--rank", "1", "-o", "m.onnx", "--target", "fc"]);
    refused(dir.path(), &["train", "m.onnx", "--data", "none.safetensors", "-o", "a"], &["-100"]);
    let good = at("labels", "many_classes.npz");
    refused(dir.path(), &["train", "m.onnx", "--data", &good, "--eval", "none.safetensors", "-o", "b"], &["-100"]);
    // A step of its own without any label.
    let labels = reslora_compile::internals::ir::Tensor::i32([3], vec![1, -100, 2]);
    crate::cli::write_tensors(&dir.path().join("some.safetensors"), &[("x", x), ("labels", labels)]);
    let train = ["train", "m.onnx", "--data", "some.safetensors", "--batch-size", "1", "--no-shuffle", "-o", "c"];
    refused(dir.path(), &train, &["step 2", "-100"]);
}

/// Padding never changes a result: the loss is that of each text alone, whatever the batch size.
#[test]
fn padding_never_changes_a_result() {
    let dir = here();
    for (folder, data, want) in [
        ("padding-without-mask", "data.jsonl", expected("padding-without-mask")["loss"].as_f64().unwrap()),
        ("pad-id-in-the-graph", "texts.jsonl", 1.2277148772577244),
        ("softmax-output", "data.jsonl", expected("softmax-output")["loss"].as_f64().unwrap()),
        ("position-table-overflow", "data.jsonl", expected("position-table-overflow")["loss"].as_f64().unwrap()),
    ] {
        let (model, tokenizer, data) = (at(folder, "model.onnx"), at(folder, "tokenizer.json"), at(folder, data));
        for size in ["1", "8"] {
            let args =
                ["eval", &model, "--data", &data, "--tokenizer", &tokenizer, "--batch-size", size, "--device", "cpu"];
            near(&json(dir.path(), &args)["loss"], want, &format!("{folder} in batches of {size}: the loss"));
        }
    }
    // A step over all examples, in batches of four that hold texts of several lengths.
    let folder = "padding-without-mask";
    let (model, tokenizer, data) = (at(folder, "model.onnx"), at(folder, "tokenizer.json"), at(folder, "data.jsonl"));
    json(dir.path(), &["inject", &model, "-o", "m.onnx"]);
    let how = ["--batch-size", "4", "--accumulate", "4", "--max-steps", "1", "-o", "run", "--device", "cpu"];
    json(dir.path(), &[&["train", "m.onnx", "--data", &data, "--tokenizer", &tokenizer][..], &how].concat());
    near(&metrics(&dir.path().join("run"))[0]["loss"], expected(folder)["loss"].as_f64().unwrap(), "the step's loss");
}

#[test]
fn texts_longer_than_the_position_table_are_cut_and_that_is_said() {
    let folder = "position-table-overflow";
    let (model, tokenizer, data) = (at(folder, "model.onnx"), at(folder, "tokenizer.json"), at(folder, "long.jsonl"));
    let ran = cli(here().path(), &["eval", &model, "--data", &data, "--tokenizer", &tokenizer, "--device", "cpu"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("at most 20 tokens"), "{}", ran.err);
}

#[test]
fn rows_that_fill_up_a_batch_count_nowhere() {
    let (dir, folder) = (here(), "fill-rows-counted-in-mse");
    let (model, data) = (at(folder, "fixed.onnx"), at(folder, "rows.npz"));
    let got = json(dir.path(), &["eval", &model, "--data", &data, "--device", "cpu"]);
    assert_eq!(got["counted"], 10);
    near(&got["loss"], 47.855396, "the mean square of ten rows");
    json(dir.path(), &["inject", &model, "-o", "m.onnx"]);
    let how =
        ["--no-shuffle", "--max-steps", "2", "--optimizer", "sgd", "--lr", "1e-9", "-o", "run", "--device", "cpu"];
    json(dir.path(), &[&["train", "m.onnx", "--data", &data][..], &how].concat());
    near(&metrics(&dir.path().join("run"))[1]["loss"], 228.9737, "the mean square of the last two rows");
    // A loss that the graph holds would count them.
    let held = ["eval", &at(folder, "held.onnx"), "--data", &at(folder, "held.npz"), "--loss-output", "loss"];
    refused(dir.path(), &held, &["8", "12"]);
}

#[test]
fn a_model_that_sees_the_next_token_is_not_trained_on_it() {
    let (dir, folder) = (here(), "next-token-in-sight");
    let (data, tokenizer) = (at(folder, "text.jsonl"), at(folder, "tokenizer.json"));
    for name in ["causal", "bidirectional"] {
        let (model, injected) = (at(folder, &format!("{name}.onnx")), format!("{name}.onnx"));
        json(dir.path(), &["inject", &model, "-o", &injected]);
        let train = ["train", &injected, "--data", &data, "--tokenizer", &tokenizer, "-o", name, "--device", "cpu"];
        if name == "causal" {
            let ran = cli(dir.path(), &train);
            assert_eq!(ran.code, 0, "{}", ran.err);
            assert!(!ran.err.contains("not causal"), "{}", ran.err);
        } else {
            refused(dir.path(), &train, &["not causal", "hint"]);
        }
    }
}
