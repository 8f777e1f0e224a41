//! Packed texts: several in a row, none of which changes another.

use crate::cli::{cli, done, json, metrics};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/decoders").join(name)
}

/// A decoder with its tokenizer, and 24 texts of 2 to 9 words.
fn folder(model: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for name in [model, "tokenizer.json", "generation_config.json"] {
        std::fs::copy(fixture(name), d.join(name)).unwrap();
    }
    let row = |r: usize| {
        let words: Vec<String> = (0..2 + r % 8).map(|i| format!("w{}", 3 + (r * 7 + i * i) % 60)).collect();
        format!("{{\"text\": \"{}\"}}\n", words.join(" "))
    };
    std::fs::write(d.join("data.jsonl"), (0..24).map(row).collect::<String>()).unwrap();
    done(d, &["inject", model, "--target", ".", "--rank", "4", "-o", "t.onnx"]);
    dir
}

#[test]
fn a_step_of_packed_texts_is_that_of_the_same_texts_apart() {
    let dir = folder("cached.onnx");
    let d = dir.path();
    // All texts in one step, apart and packed: the same mean over the same labels, so the same steps.
    let train = [
        "train",
        "t.onnx",
        "--data",
        "data.jsonl",
        "--no-shuffle",
        "--batch-size",
        "24",
        "--max-steps",
        "3",
        "--lr",
        "1e-2",
    ];
    let run = |more: &[&str], name: &str| {
        let ran = done(d, &[&train[..], &["--schedule", "constant", "--device", "cpu", "-o", name], more].concat());
        (metrics(&d.join(name)), ran.err)
    };
    let (apart, _) = run(&[], "apart");
    let (packed, said) = run(&["--pack", "--max-length", "32"], "packed");
    assert!(said.contains("24 texts in 5 rows of at most 32 tokens"), "{said}");
    for (a, b) in apart.iter().zip(&packed) {
        for key in ["loss", "grad_norm"] {
            let (a, b) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
            assert!((a - b).abs() < 2e-5 * a.abs(), "{key}: {b} packed, {a} apart");
        }
        assert_eq!(a["tokens"], b["tokens"]);
    }
    let resumed = done(d, &["train", "--resume", "-o", "packed", "--max-steps", "4"]);
    assert!(resumed.err.contains("rows of at most 32"), "{}", resumed.err);
}

#[test]
fn a_model_whose_texts_would_reach_each_other_is_refused() {
    // GPT-2's positions are in the graph, and do not begin again.
    let dir = folder("plain.onnx");
    let d = dir.path();
    let ran = cli(
        d,
        &["train", "t.onnx", "--data", "data.jsonl", "--pack", "--max-length", "32", "--device", "cpu", "-o", "first"],
    );
    assert!(
        ran.code == 2 && ran.err.contains("export the model with an input 'position_ids'"),
        "{}\n{}",
        ran.code,
        ran.err
    );
    std::fs::write(d.join("labelled.jsonl"), "{\"text\": \"w5 w6\", \"label\": 1}\n").unwrap();
    let ran = cli(d, &["train", "t.onnx", "--data", "labelled.jsonl", "--pack", "--device", "cpu", "-o", "other"]);
    assert!(ran.code == 1 && ran.err.contains("--pack is for texts"), "{}\n{}", ran.code, ran.err);
    let _ = json(d, &["eval", "t.onnx", "--data", "data.jsonl", "--device", "cpu"]);
}
