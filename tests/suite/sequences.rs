//! Encoder-decoder models trained on prompts and completions.

use crate::cli::{cli, done, json};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/translators").join(name)
}

/// A folder with a model, its config.json, the tokenizer and the rows.
fn folder(model: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        &*format!("{model}/model.onnx"),
        &*format!("{model}/config.json"),
        "tokenizer.json",
        "tokenizer_config.json",
        "rows.jsonl",
    ] {
        let file = fixture(name);
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn losses_are_those_of_transformers() {
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap();
    for model in ["t5", "bart"] {
        let dir = folder(model);
        let d = dir.path();
        // All rows at once, padded, and one by one.
        for size in ["4", "1"] {
            let got = json(d, &["eval", "model.onnx", "--data", "rows.jsonl", "--batch-size", size, "--device", "cpu"]);
            let (loss, want) = (got["loss"].as_f64().unwrap(), expected[model].as_f64().unwrap());
            assert!((loss - want).abs() < 1e-5 * want, "{model}, {size} at once: {loss}, not {want}");
            assert_eq!(got["counted"], 14, "the words of the completions and the end of each");
            assert!((got["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-3 * loss.exp());
        }
    }
}

#[test]
fn a_translator_learns() {
    let dir = folder("t5");
    let d = dir.path();
    done(d, &["inject", "model.onnx", "--target", ".", "--rank", "8", "-o", "t.onnx"]);
    let train = [
        "train",
        "t.onnx",
        "--data",
        "rows.jsonl",
        "--lr",
        "1e-2",
        "--max-steps",
        "200",
        "--device",
        "cpu",
        "-o",
        "run",
    ];
    let got = json(d, &train);
    assert!(got["loss"].as_f64().unwrap() < 0.5, "{got}");
}

#[test]
fn where_a_decoder_begins_has_to_be_known() {
    let dir = folder("t5");
    let d = dir.path();
    std::fs::remove_file(d.join("config.json")).unwrap();
    let ran = cli(d, &["eval", "model.onnx", "--data", "rows.jsonl", "--device", "cpu"]);
    assert!(ran.code == 1 && ran.err.contains("decoder_start_token_id"), "{}\n{}", ran.code, ran.err);
    std::fs::copy(fixture("t5/config.json"), d.join("generation_config.json")).unwrap();
    done(d, &["eval", "model.onnx", "--data", "rows.jsonl", "--device", "cpu"]);
    std::fs::write(d.join("bad.jsonl"), "{\"prompt\": \"w5\"}\n").unwrap();
    let ran = cli(d, &["eval", "model.onnx", "--data", "bad.jsonl", "--device", "cpu"]);
    assert!(ran.code == 1 && ran.err.contains("there is no 'completion'"), "{}\n{}", ran.code, ran.err);
}
