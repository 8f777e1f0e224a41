//! Losses that compare with a second model, distillation and direct preference optimisation, against their formulas in PyTorch.

use crate::cli::{cli, done, json, metrics};
use reslora_compile::internals::{adapter, onnx, pipeline};
use serde_json::Value;
use std::path::Path;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/preferences");

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(FOLDER).unwrap().map(|f| f.unwrap().path()).filter(|f| f.is_file()) {
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(Path::new(FOLDER).join("expected.json")).unwrap()).unwrap()
}

fn close(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() < 2e-5 * want.abs().max(1.0), "{what}: {got}, not {want}");
}

/// One step of plain gradient descent.
const STEP: &[&str] = &[
    "--optimizer",
    "sgd",
    "--schedule",
    "constant",
    "--weight-decay",
    "0",
    "--clip-norm",
    "0",
    "--no-shuffle",
    "--batch-size",
    "4",
    "--precision",
    "f32",
    "-o",
    "run",
    "--overwrite",
];

#[test]
fn losses_and_gradients_are_those_of_the_formulas() {
    let dir = folder();
    let d = dir.path();
    let expected = expected();
    let path = expected["weight"].as_str().unwrap();
    done(d, &["inject", "model.onnx", "--target", "query", "--rank", "2", "--also-train", path]);
    let model = pipeline::read(&d.join("model.reslora.onnx")).unwrap();
    let linear = onnx::linear_nodes(&model);
    let l = linear.iter().find(|l| l.path.ends_with(path)).unwrap();
    let before = model.initializer(&l.weight).unwrap().to_f32().unwrap();
    let devices = if crate::gpu::available() { vec!["cpu", "gpu"] } else { vec!["cpu"] };
    for device in devices {
        for (name, file, flags) in
            [("dpo", "answers.jsonl", ["--beta", "0.3"]), ("distill", "completions.jsonl", ["--temperature", "2"])]
        {
            let (want, what) = (&expected[name], format!("{name} on {device}"));
            let args = ["--loss", name, "--teacher", "teacher.onnx", "--data", file, "--device", device];
            let args = [&["model.reslora.onnx"], &args[..], &flags].concat();
            let ran = json(d, &[&["train"], &args[..], STEP, &["--lr", "1", "--max-steps", "1"]].concat());
            close(&what, ran["loss"].as_f64().unwrap(), want["loss"].as_f64().unwrap());
            let trained = adapter::read(&d.join("run")).unwrap();
            let after: Vec<f32> = trained.tensors[&l.weight].iter().copied().collect();
            let want_gradient: Vec<f64> =
                want["gradient"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            let largest = want_gradient.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let n = l.in_features;
            for (at, w) in want_gradient.iter().enumerate() {
                let at = if l.transposed { at } else { at % n * l.out_features + at / n };
                let got = f64::from(before[at]) - f64::from(after[at]);
                assert!((got - w).abs() < 1e-3 * largest + 2e-7, "{what}: {got}, not {w} (largest {largest})");
            }
            let ran = json(d, &[&["eval"], &args[..], &["--batch-size", "3"]].concat());
            close(&what, ran["loss"].as_f64().unwrap(), want["loss"].as_f64().unwrap());
            if let Some(accuracy) = want["accuracy"].as_f64() {
                close(&what, ran["accuracy"].as_f64().unwrap(), accuracy);
            }
        }
    }
}

#[test]
fn preferences_are_written_with_their_margins() {
    let dir = folder();
    let d = dir.path();
    let args = [
        "eval",
        "model.onnx",
        "--teacher",
        "teacher.onnx",
        "--data",
        "answers.jsonl",
        "--beta",
        "0.3",
        "--device",
        "cpu",
    ];
    let ran = json(d, &[&args[..], &["--metric", "accuracy", "--predictions", "out.jsonl"]].concat());
    let text = std::fs::read_to_string(d.join("out.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let loss = rows.iter().map(|r| (1.0 + (-0.3 * r["margin"].as_f64().unwrap()).exp()).ln()).sum::<f64>() / 4.0;
    close("the loss", ran["loss"].as_f64().unwrap(), loss);
    let chosen = rows.iter().filter(|r| r["prediction"] == "chosen").count() as f64 / 4.0;
    close("accuracy", ran["eval_metrics"]["accuracy"].as_f64().unwrap(), chosen);
    // Language models: each row's tokens, and whether all of them are right.
    let args = ["eval", "model.onnx", "--data", "completions.jsonl", "--device", "cpu", "--predictions", "out.jsonl"];
    let ran = json(d, &[&args[..], &["--metric", "perplexity,exact-match"]].concat());
    close("perplexity", ran["eval_metrics"]["perplexity"].as_f64().unwrap(), ran["loss"].as_f64().unwrap().exp());
    let text = std::fs::read_to_string(d.join("out.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let exact = rows.iter().filter(|r| r["prediction"] == r["label"]).count() as f64 / 4.0;
    close("exact match", ran["eval_metrics"]["exact-match"].as_f64().unwrap(), exact);
    // " sings well" and the end of the sequence.
    assert_eq!(rows[0]["label"].as_array().unwrap().len(), 3);
}

/// Without a teacher, the reference is the model as it was: the first loss is log 2, and it stays where it is as the model moves.
#[test]
fn the_reference_is_the_model_without_its_adapters() {
    let dir = folder();
    let d = dir.path();
    let expected = expected();
    let path = expected["weight"].as_str().unwrap();
    // Adapters too small to count, so that one weight alone moves, as in the formulas.
    let base = pipeline::read(&d.join("model.onnx")).unwrap();
    let weight = onnx::linear_nodes(&base).into_iter().find(|l| l.path.ends_with(path)).unwrap().weight;
    let only = format!("^{weight}$");
    let inject =
        ["inject", "model.onnx", "--target", "layers.0.query", "--rank", "1", "--alpha", "1e-6", "-o", "one.onnx"];
    done(d, &[&inject[..], &["--also-train", &only]].concat());
    let how = ["--data", "answers.jsonl", "--beta", "0.3", "--device", "cpu", "--lr", "0.5", "--max-steps", "3"];
    done(d, &[&["train", "one.onnx"], &how[..], STEP].concat());
    let steps: Vec<f64> = metrics(&d.join("run")).iter().filter_map(|l| l["loss"].as_f64()).collect();
    close("the first step", steps[0], 2f64.ln());
    for (got, want) in steps.iter().zip(expected["against-itself"].as_array().unwrap()) {
        close("a step", *got, want.as_f64().unwrap());
    }
    // The model without adapters agrees with its reference, whichever way it prefers.
    let ran = json(d, &["eval", "model.onnx", "--data", "answers.jsonl", "--device", "cpu"]);
    close("the base", ran["loss"].as_f64().unwrap(), 2f64.ln());
    let trained = json(
        d,
        &["eval", "one.onnx", "--adapter", "run", "--data", "answers.jsonl", "--beta", "0.3", "--device", "cpu"],
    );
    assert!(trained["loss"].as_f64().unwrap() < steps[2], "{trained}");
    done(d, &["merge", "one.onnx", "--adapter", "run", "-o", "merged.onnx"]);
    let merged = json(
        d,
        &[
            "eval",
            "merged.onnx",
            "--teacher",
            "model.onnx",
            "--data",
            "answers.jsonl",
            "--beta",
            "0.3",
            "--device",
            "cpu",
        ],
    );
    close("merged", merged["loss"].as_f64().unwrap(), trained["loss"].as_f64().unwrap());
}

#[test]
fn what_does_not_go_with_a_second_model() {
    let dir = folder();
    let d = dir.path();
    done(d, &["inject", "model.onnx", "--target", "query", "--rank", "2"]);
    let check = |args: &[&str], says: &str| {
        let ran = cli(d, &[&["train", "model.reslora.onnx", "--device", "cpu"], args].concat());
        assert!(ran.code == 2 && ran.err.contains(says), "{args:?}: {} {}", ran.code, ran.err);
    };
    check(
        &["--data", "completions.jsonl", "--loss", "dpo"],
        "--loss dpo reads rows of text with the columns 'prompt', 'chosen' and 'rejected'",
    );
    check(&["--data", "answers.jsonl", "--loss", "distill"], "--loss distill does not go with the columns of");
    check(&["--data", "answers.jsonl", "--beta", "-1"], "--beta -1 must be a positive number");
    check(
        &["--data", "completions.jsonl", "--loss", "distill", "--temperature", "0"],
        "--temperature 0 must be a positive number",
    );
    let (short, long) = (d.join("short.jsonl"), std::fs::read_to_string(d.join("answers.jsonl")).unwrap());
    std::fs::write(&short, long).unwrap();
    let ran = cli(d, &["train", "model.reslora.onnx", "--data", "short.jsonl", "--max-length", "2", "--device", "cpu"]);
    assert!(ran.code == 1 && ran.err.contains("fill the 2 tokens of --max-length"), "{}", ran.err);
}
