//! Columns that adapters read besides the text: `task` and `quality`, one number for each row.

use crate::cli::{cli, done, json};
use serde_json::{Value, json};
use std::path::Path;

fn file(name: &str) -> String {
    format!("{}/fixtures/inputs/next-token-in-sight/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Rows of text with a column.
fn rows(path: &Path, column: &str, value: impl Fn(usize) -> Value) {
    let texts = ["the cat sat on the mat", "a big red dog ran fast", "the small dog was good", "a blue cat and a rug"];
    let row = |i: usize| json!({ "text": texts[i % 4], column: value(i) }).to_string();
    std::fs::write(path, (0..8).map(row).collect::<Vec<_>>().join("\n")).unwrap();
}

fn injected(d: &Path, structure: &[&str]) {
    let how = ["--target", ".", "--rank", "2", "-o", "t.onnx"];
    done(d, &[&["inject", &file("causal.onnx"), "--structure"], structure, &how[..]].concat());
}

fn train(d: &Path, data: &str, more: &[&str]) -> crate::cli::Ran {
    let tokenizer = file("tokenizer.json");
    let how = ["--tokenizer", &tokenizer, "--device", "cpu", "--max-steps", "3", "--lr", "0.02"];
    cli(d, &[&["train", "t.onnx", "--data", data], &how[..], more].concat())
}

#[test]
fn a_task_is_read_from_rows_of_text() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    injected(d, &["mtl-lora", "--tasks", "2"]);
    rows(&d.join("good.jsonl"), "task", |i| (i % 2).into());
    let ran = train(d, "good.jsonl", &["-o", "run"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    // Another column, and numbers as text.
    rows(&d.join("named.jsonl"), "domain", |i| (i % 2).to_string().into());
    let ran = train(d, "named.jsonl", &["--columns", "task=domain", "-o", "other"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for (value, mention) in [
        (json!(2), "bad.jsonl line 6: 'task' is 2, out of range: it goes from 0 to 1"),
        (json!(-1), "line 6: 'task' is -1, out of range"),
        (json!(0.5), "line 6: 'task' is 0.5, not a whole number"),
        (json!("x"), "line 6: 'task' is \"x\", not a whole number"),
        (json!(null), "line 6: there is no 'task', which the model's adapter reads"),
    ] {
        rows(&d.join("bad.jsonl"), "task", |i| if i == 5 { value.clone() } else { 0.into() });
        let ran = train(d, "bad.jsonl", &["-o", "none"]);
        assert!(ran.code == 1 || ran.code == 2, "{value}: {}", ran.err);
        assert!(ran.err.contains(mention), "{value}: {}", ran.err);
    }
    // The other task gives another loss: the column reaches the model.
    let loss = |task: usize| {
        rows(&d.join("one.jsonl"), "task", |_| task.into());
        let (data, tokenizer) = (["--data", "one.jsonl"], ["--tokenizer", &file("tokenizer.json")]);
        let args = [&["eval", "t.onnx", "--adapter", "run", "--device", "cpu"][..], &data, &tokenizer].concat();
        json(d, &args)["loss"].as_f64().unwrap()
    };
    assert_ne!(loss(0), loss(1));
    // As it does from tokens on disk: the file holds task 1.
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_reslora-compile"))
        .current_dir(d)
        .env("RESLORA_SPILL_MIB", "0")
        .args(["eval", "t.onnx", "--adapter", "run", "--device", "cpu", "--data", "one.jsonl", "--json"])
        .args(["--tokenizer", &file("tokenizer.json")])
        .output()
        .unwrap();
    let spilled: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(spilled["loss"].as_f64().unwrap(), loss(1));
    // An exact merge loses nothing, and does not ask for data.
    let ran = done(d, &["merge", "t.onnx", "--adapter", "run", "--device", "cpu", "--task", "1", "-o", "m.onnx"]);
    assert!(ran.out.contains("nothing of the gain is lost for task 1: the merge is exact"), "{}", ran.out);
    assert!(!ran.out.contains("--calibrate"), "{}", ran.out);
}

#[test]
fn a_quality_lies_within_its_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    injected(d, &["petalface"]);
    rows(&d.join("good.jsonl"), "quality", |i| (i as f64 / 7.0).into());
    let ran = train(d, "good.jsonl", &["-o", "run"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    rows(&d.join("bad.jsonl"), "quality", |i| if i == 2 { json!(1.5) } else { json!(1) });
    let ran = train(d, "bad.jsonl", &["-o", "none"]);
    assert!(ran.code == 1 || ran.code == 2, "{}", ran.err);
    assert!(ran.err.contains("bad.jsonl line 3: 'quality' is 1.5, out of range: it goes from 0 to 1"), "{}", ran.err);
    let ran = done(d, &["merge", "t.onnx", "--adapter", "run", "--device", "cpu", "--quality", "0.5", "-o", "m.onnx"]);
    assert!(ran.out.contains("nothing of the gain is lost for quality 0.5"), "{}", ran.out);
}
