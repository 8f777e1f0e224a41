//! Metrics, predictions and early stopping, as a user runs them. What metrics compute is tested beside them.

use crate::build::{perceptron, spread};
use crate::cli::{cli, done, json, metrics, perceptron_data, write_tensors};
use reslora_compile::internals::ir::Tensor;
use serde_json::Value;
use std::path::Path;

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 30, |i| if i == 4 { -100 } else { (i * i % 3) as i32 });
    perceptron_data(&d.join("eval.safetensors"), 12, |i| (i % 3) as i32);
    done(d, &["inject", "mlp.onnx", "--rank", "2", "-o", "t.onnx"]);
    dir
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn predictions_are_what_metrics_are_computed_from() {
    let dir = folder();
    let d = dir.path();
    let asked = ["--metric", "f1,matthews,confusion-matrix,exact-match,accuracy", "--predictions", "out.jsonl"];
    let how = ["--data", "data.safetensors", "--batch-size", "7", "--label-names", "a,b,c", "--device", "cpu"];
    let ran = json(d, &[&["eval", "mlp.onnx"], &how[..], &asked].concat());
    let rows = lines(&d.join("out.jsonl"));
    assert_eq!(rows.len(), 30);
    let mut matrix = vec![vec![0u64; 3]; 3];
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["row"], i + 1);
        let p: Vec<f64> = row["probabilities"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{row}");
        if i == 4 {
            // A row whose label does not count has probabilities alone.
            assert!(row.get("label").is_none(), "{row}");
            continue;
        }
        let class = row["prediction"].as_u64().unwrap() as usize;
        assert!(p.iter().all(|x| *x <= p[class]), "{row}");
        assert_eq!(row["name"], ["a", "b", "c"][class]);
        let label = row["label"].as_u64().unwrap() as usize;
        assert_eq!(label, i * i % 3);
        matrix[label][class] += 1;
    }
    let hits = (0..3).map(|c| matrix[c][c]).sum::<u64>() as f64 / 29.0;
    let scores = &ran["eval_metrics"];
    for name in ["accuracy", "exact-match"] {
        assert!((scores[name].as_f64().unwrap() - hits).abs() < 1e-9, "{ran}");
    }
    assert!((ran["accuracy"].as_f64().unwrap() - hits).abs() < 1e-9, "{ran}");
    let said: Vec<Vec<u64>> = serde_json::from_value(ran["eval_confusion_matrix"].clone()).unwrap();
    assert_eq!(said, matrix);
    let f1: Vec<f64> = ran["eval_f1_per_class"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
    assert!((scores["f1"].as_f64().unwrap() - f1.iter().sum::<f64>() / f1.len() as f64).abs() < 1e-9, "{ran}");
    let shown = done(d, &[&["eval", "mlp.onnx"], &how[..], &asked].concat()).out;
    assert!(
        shown.contains("matthews ") && shown.contains("label / predicted") && shown.contains("class  f1"),
        "{shown}"
    );
}

#[test]
fn predictions_of_numbers_are_values() {
    let dir = folder();
    let d = dir.path();
    let labels = Tensor::f32([8, 3], spread(24, 4));
    write_tensors(
        &d.join("numbers.safetensors"),
        &[("x", Tensor::f32([8, 4], spread(32, 9))), ("labels", labels.clone())],
    );
    let ran = json(
        d,
        &["eval", "mlp.onnx", "--data", "numbers.safetensors", "--predictions", "out.jsonl", "--device", "cpu"],
    );
    let mut sum = 0.0;
    let list = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>();
    for (row, want) in lines(&d.join("out.jsonl")).iter().zip(labels.as_f32().unwrap().chunks(3)) {
        assert_eq!(list(&row["label"]), want.iter().map(|x| x.to_string().parse::<f64>().unwrap()).collect::<Vec<_>>());
        sum += list(&row["value"]).iter().zip(want).map(|(v, w)| (v - f64::from(*w)).powi(2)).sum::<f64>();
    }
    assert!((sum / 24.0 - ran["loss"].as_f64().unwrap()).abs() < 1e-5, "{ran}");
}

#[test]
fn the_base_is_measured_first_and_the_best_is_kept_by_the_metric() {
    let dir = folder();
    let d = dir.path();
    let how = [
        "--data",
        "data.safetensors",
        "--eval",
        "eval.safetensors",
        "--device",
        "cpu",
        "--lr",
        "0.05",
        "--eval-every",
        "2",
    ];
    let more = ["--metric", "confusion-matrix,accuracy,f1", "--max-steps", "24", "-o", "run"];
    let ran = json(d, &[&["train", "t.onnx"], &how[..], &more].concat());
    let all: Vec<Value> = metrics(&d.join("run")).into_iter().filter(|l| l["eval_loss"].is_f64()).collect();
    let base = json(d, &["eval", "mlp.onnx", "--data", "eval.safetensors", "--device", "cpu"]);
    assert_eq!(all[0]["step"], 0);
    assert!((all[0]["eval_loss"].as_f64().unwrap() - base["loss"].as_f64().unwrap()).abs() < 1e-6, "{base} {}", all[0]);
    assert_eq!(ran["base_eval_loss"], all[0]["eval_loss"]);
    let accuracy = |l: &Value| l["eval_metrics"]["accuracy"].as_f64().unwrap();
    assert!(all.iter().all(|l| accuracy(l) == l["eval_accuracy"].as_f64().unwrap()));
    let best = all[1..].iter().map(accuracy).fold(0.0, f64::max);
    let first = all[1..].iter().find(|l| accuracy(l) == best).unwrap();
    assert_eq!(ran["adapter_step"], first["step"]);
    assert_eq!(ran["eval_metrics"]["accuracy"], first["eval_metrics"]["accuracy"]);
    assert_eq!(ran["stopped_early"], false);
    let kept = json(d, &["eval", "t.onnx", "--adapter", "run", "--data", "eval.safetensors", "--device", "cpu"]);
    assert!((kept["accuracy"].as_f64().unwrap() - best).abs() < 1e-9, "{kept}");
}

#[test]
fn a_run_without_gain_ends_early() {
    let dir = folder();
    let d = dir.path();
    let how = [
        "--data",
        "data.safetensors",
        "--eval",
        "eval.safetensors",
        "--device",
        "cpu",
        "--eval-every",
        "1",
        "--lr",
        "1e-9",
    ];
    let more = ["--metric", "accuracy", "--early-stopping", "2", "--max-steps", "12", "-o", "run"];
    let ran = json(d, &[&["train", "t.onnx"], &how[..], &more].concat());
    // The first evaluation is the best; two more gain nothing.
    assert_eq!(
        (&ran["steps"], &ran["adapter_step"], &ran["stopped_early"]),
        (&3.into(), &1.into(), &true.into()),
        "{ran}"
    );
    // Going on, it knows that nothing was gained.
    let ran = json(d, &["train", "t.onnx", "--resume", "-o", "run"]);
    assert_eq!((&ran["steps"], &ran["stopped_early"]), (&4.into(), &true.into()), "{ran}");
    assert_eq!(ran["adapter_step"], 1);
}

#[test]
fn metrics_that_do_not_go_with_the_answers() {
    let dir = folder();
    let d = dir.path();
    let check = |command: &[&str], says: &[&str]| {
        let ran = cli(d, &[command, &["--data", "data.safetensors", "--device", "cpu"]].concat());
        assert_eq!(ran.code, 2, "{command:?}: {}", ran.err);
        says.iter().for_each(|part| assert!(ran.err.contains(part), "no '{part}' in: {}", ran.err));
    };
    check(
        &["eval", "mlp.onnx", "--metric", "spearman"],
        &["--metric spearman is for one number a row", "hint: accuracy, f1"],
    );
    check(&["eval", "mlp.onnx", "--metric", "recall@3"], &["--metric recall@3 is for pairs"]);
    check(&["eval", "mlp.onnx", "--metric", "bleu"], &["--metric 'bleu' is not known", "recall@K"]);
    check(&["train", "t.onnx", "--metric", "f1"], &["--metric has nothing to evaluate on"]);
    check(&["train", "t.onnx", "--early-stopping", "2"], &["--early-stopping has nothing to evaluate on"]);
    check(
        &["train", "t.onnx", "--early-stopping", "0", "--eval", "eval.safetensors"],
        &["--early-stopping must be at least 1"],
    );
}

/// The loss of a step is divided by the weights of its labels, over all its micro-batches.
#[test]
fn weights_of_classes_divide_the_loss() {
    let dir = folder();
    let d = dir.path();
    let loss = |more: &[&str]| {
        let how = [
            "--data",
            "eval.safetensors",
            "--max-steps",
            "1",
            "--no-shuffle",
            "--device",
            "cpu",
            "-o",
            "run",
            "--overwrite",
        ];
        json(d, &[&["train", "t.onnx"], &how[..], more].concat())["loss"].as_f64().unwrap()
    };
    let all = ["--batch-size", "12"];
    let plain = loss(&all);
    assert!((loss(&["--batch-size", "12", "--class-weights", "3,3,3"]) - plain).abs() < 1e-6);
    let weighted = loss(&["--batch-size", "12", "--class-weights", "0.5,2,7"]);
    assert!((weighted - plain).abs() > 1e-4);
    let parts = loss(&["--batch-size", "5", "--accumulate", "3", "--class-weights", "0.5,2,7"]);
    assert!((weighted - parts).abs() < 1e-6, "{weighted} {parts}");
    let refused = |more: &[&str], says: &str| {
        let ran = cli(d, &[&["train", "t.onnx", "--data", "eval.safetensors", "--device", "cpu"], more].concat());
        assert!(ran.code == 2 && ran.err.contains(says), "{}", ran.err);
    };
    refused(&["--class-weights", "1,2"], "--class-weights gives 2 numbers, and the model has 3 outputs");
    refused(&["--class-weights", "1,-2,1"], "--class-weights -2 must be a number that is not negative");
    refused(
        &["--class-weights", "1,2,1", "--label-smoothing", "0.1"],
        "--class-weights does not go with --label-smoothing",
    );
    refused(&["--teacher", "mlp.onnx"], "this run's loss reads no second model");
}
