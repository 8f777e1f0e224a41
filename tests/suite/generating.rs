//! Text of decoders: as transformers generates it, with the model's cache and without.

use crate::cli::{cli, done, json};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/decoders").join(name)
}

fn words(ids: &Value) -> String {
    ids.as_array().unwrap().iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
}

fn generate(d: &Path, model: &str, prompt: &str, more: &[&str]) -> Value {
    let model = fixture(model);
    json(d, &[&["generate", model.to_str().unwrap(), "--prompt", prompt, "--device", "cpu"], more].concat())
}

#[test]
fn text_is_what_transformers_generates() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap();
    for (model, cached) in [("cached", true), ("plain", false)] {
        for text in expected[model].as_array().unwrap() {
            let prompt = words(&text["prompt"]);
            let got = generate(d, &format!("{model}.onnx"), &prompt, &["--max-tokens", "20"]);
            assert_eq!(got["text"], Value::from(words(&text["tokens"])), "{model} after {prompt}");
            assert_eq!(got["ended"], text["ended"], "{model} after {prompt}");
            assert_eq!(got["cached"], Value::from(cached), "{model}");
            assert_eq!(got["prompt_tokens"], Value::from(text["prompt"].as_array().unwrap().len()));
        }
    }
}

#[test]
fn drawn_text_depends_on_the_seed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let of = |seed: &str| {
        let more = ["--max-tokens", "12", "--temperature", "5", "--seed", seed];
        generate(d, "cached.onnx", "w5", &more)["text"].as_str().unwrap().to_string()
    };
    assert_eq!(of("1"), of("1"));
    assert_ne!(of("1"), of("2"));
}

#[test]
fn text_before_and_after_training() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let model = fixture("plain.onnx");
    for name in ["plain.onnx", "tokenizer.json", "generation_config.json"] {
        std::fs::copy(fixture(name), d.join(name)).unwrap();
    }
    let rows: String = (0..8).map(|_| "{\"prompt\": \"w5 \", \"completion\": \"w9 w8 w7\"}\n").collect();
    std::fs::write(d.join("data.jsonl"), rows).unwrap();
    done(d, &["inject", "plain.onnx", "--target", ".", "--rank", "8", "-o", "t.onnx"]);
    let train = ["train", "t.onnx", "--data", "data.jsonl", "--lr", "3e-2", "--max-steps", "60", "-o", "run"];
    done(d, &[&train[..], &["--device", "cpu"]].concat());
    let base = model.to_str().unwrap();
    let more = ["--adapter", "run", "--compare", base, "--max-tokens", "3", "--device", "cpu"];
    let got = json(d, &[&["generate", "t.onnx", "--prompt", "w5"], &more[..]].concat());
    assert_eq!(got["text"], "w9 w8 w7");
    assert_eq!(got["compared"]["text"], "w57 w57 w8");
    let shown = done(d, &[&["generate", "t.onnx", "--prompt", "w5"], &more[..]].concat());
    assert!(shown.out.contains("before:\nw5w57 w57 w8\n\nafter:\nw5w9 w8 w7\n"), "{}", shown.out);
    // The merged file says the same.
    done(d, &["merge", "t.onnx", "--adapter", "run", "-o", "merged.onnx", "--force", "--device", "cpu"]);
    let got = json(d, &["generate", "merged.onnx", "--prompt", "w5", "--max-tokens", "3", "--device", "cpu"]);
    assert_eq!(got["text"], "w9 w8 w7");
}

#[test]
fn what_cannot_generate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::copy(fixture("plain.onnx"), d.join("alone.onnx")).unwrap();
    let refused = |args: &[&str], mention: &str| {
        let ran = cli(d, args);
        assert!(ran.code == 2 && ran.err.contains(mention), "{}\n{}", ran.code, ran.err);
    };
    refused(&["generate", "alone.onnx", "--prompt", "w5"], "--tokenizer FILE");
    let tokenizer = fixture("tokenizer.json");
    let with = ["--tokenizer", tokenizer.to_str().unwrap(), "--device", "cpu"];
    refused(&[&["generate", "alone.onnx", "--prompt", ""], &with[..]].concat(), "--prompt TEXT");
    refused(
        &[&["generate", "alone.onnx", "--prompt", "w5", "--temperature", "-1"], &with[..]].concat(),
        "--temperature",
    );
    let vit = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cases/vit-cls.ts.block/model.onnx");
    let ran = cli(d, &[&["generate", vit.to_str().unwrap(), "--prompt", "w5"], &with[..]].concat());
    assert!(ran.code == 1 && ran.err.contains("does not read 'input_ids'"), "{}", ran.err);
}
