//! The program as a user runs it, on models that bring a loss, float labels, tied weights or fixed shapes.

use crate::build::{A, F32, I64, Net, ints, perceptron, spread, tensor};
use crate::cli::{cli, done, json, metrics, perceptron_data, write_tensors};
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::pipeline;
use serde_json::Value;
use std::collections::BTreeMap;

#[test]
fn graph_that_holds_its_loss_trains_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut net = perceptron().input("labels", I64, &["batch"]).output("loss", F32, &[]);
    net =
        net.node("/loss", "SoftmaxCrossEntropyLoss", &["logits", "labels"], &["loss"], &[("ignore_index", A::I(-100))]);
    net.write(&d.join("held.onnx"));
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 10, |i| if i == 3 { -100 } else { (i % 3) as i32 });
    for model in ["held", "mlp"] {
        done(d, &["inject", &format!("{model}.onnx"), "--rank", "2"]);
        let how = [
            "--no-shuffle",
            "--batch-size",
            "4",
            "--accumulate",
            "2",
            "--device",
            "cpu",
            "--lr",
            "0.01",
            "--epochs",
            "3",
        ];
        done(
            d,
            &[&["train", &format!("{model}.reslora.onnx"), "--data", "data.safetensors", "-o", model], &how[..]]
                .concat(),
        );
    }
    // The loss a graph holds is a mean of its own; steps of it are those of the loss that training adds.
    let (held, added) = (metrics(&d.join("held")), metrics(&d.join("mlp")));
    assert_eq!(held.len(), 6);
    for (a, b) in held.iter().zip(&added) {
        let (x, y) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
        assert!((x - y).abs() < 1e-5 * y, "{x} and {y}");
    }
}

#[test]
fn regression_trains_on_float_labels() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    let labels = Tensor::f32([20, 3], spread(60, 4));
    write_tensors(&d.join("data.safetensors"), &[("x", Tensor::f32([20, 4], spread(80, 9))), ("labels", labels)]);
    done(d, &["inject", "mlp.onnx", "--rank", "2"]);
    done(
        d,
        &[
            "train",
            "mlp.reslora.onnx",
            "--data",
            "data.safetensors",
            "--device",
            "cpu",
            "--lr",
            "0.02",
            "--epochs",
            "20",
            "-o",
            "run",
        ],
    );
    let lines = metrics(&d.join("run"));
    let mean = |lines: &[Value]| lines.iter().map(|l| l["loss"].as_f64().unwrap()).sum::<f64>() / lines.len() as f64;
    assert!(mean(&lines[lines.len() - 5..]) < 0.8 * mean(&lines[..5]));
}

#[test]
fn also_trained_tensors_are_trained_and_merged() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 30, |i| (i % 3) as i32);
    let report = json(
        d,
        &["inject", "mlp.onnx", "--rank", "2", "--target", "up", "--also-train", "down|up.bias", "-o", "t.onnx"],
    );
    assert_eq!(report["also_train"], serde_json::json!(["net.0.up.bias", "net.0.down.weight"]));
    done(d, &["train", "t.onnx", "--data", "data.safetensors", "--device", "cpu", "--lr", "0.05", "-o", "run"]);
    let merged = json(d, &["merge", "t.onnx", "--adapter", "run", "-o", "m.onnx", "--device", "cpu"]);
    assert!(merged["differences"][0]["relative"].as_f64().unwrap() < 1e-5);
    let (base, new) = (pipeline::read(&d.join("mlp.onnx")).unwrap(), pipeline::read(&d.join("m.onnx")).unwrap());
    let mut changed: BTreeMap<String, bool> = BTreeMap::new();
    for name in base.initializers() {
        changed.insert(name.into(), base.initializer(name).unwrap().bytes != new.initializer(name).unwrap().bytes);
    }
    assert!(changed.values().all(|c| *c), "{changed:?}");
    assert_eq!(
        base.nodes().map(|(_, n)| n.label()).collect::<Vec<_>>(),
        new.nodes().map(|(_, n)| n.label()).collect::<Vec<_>>()
    );
}

#[test]
fn shared_weight_is_copied_only_for_the_target() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // A table that rows are looked up in and that the output is projected onto, as tied embeddings are.
    Net::new(17)
        .input("ids", I64, &["batch", "seq"])
        .output("logits", F32, &["batch", "seq", "12"])
        .initializer(tensor("embed.weight", &[12, 8], &spread(96, 1)))
        .initializer(ints("unused", &[1], &[0]))
        .node("/embed/Gather", "Gather", &["embed.weight", "ids"], &["h"], &[])
        .node("/head/Transpose", "Transpose", &["embed.weight"], &["wt"], &[("perm", A::Is(vec![1, 0]))])
        .node("/head/MatMul", "MatMul", &["h", "wt"], &["logits"], &[])
        .write(&d.join("tied.onnx"));
    let ids = Tensor::i32([6, 5], (0..30).map(|i| i * 7 % 12).collect());
    let labels = Tensor::i32([6, 5], (0..30).map(|i| i * 5 % 12).collect());
    write_tensors(&d.join("data.safetensors"), &[("ids", ids), ("labels", labels)]);
    done(d, &["inject", "tied.onnx", "--rank", "2", "-o", "t.onnx"]);
    done(
        d,
        &[
            "train",
            "t.onnx",
            "--data",
            "data.safetensors",
            "--device",
            "cpu",
            "--lr",
            "0.05",
            "--epochs",
            "4",
            "-o",
            "run",
        ],
    );
    let report = json(d, &["merge", "t.onnx", "--adapter", "run", "-o", "m.onnx", "--device", "cpu"]);
    assert!(report["differences"][0]["relative"].as_f64().unwrap() < 1e-5, "{report}");
    let (base, new) = (pipeline::read(&d.join("tied.onnx")).unwrap(), pipeline::read(&d.join("m.onnx")).unwrap());
    assert_eq!(base.initializer("embed.weight").unwrap().bytes, new.initializer("embed.weight").unwrap().bytes);
    assert!(new.is_initializer("head.weight.merged"));
}

#[test]
fn data_of_the_wrong_kind_of_batch_is_padded_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut net = perceptron();
    net.graph.input.clear();
    net = net.input("x", F32, &["4", "4"]);
    net.write(&d.join("fixed.onnx"));
    perceptron().write(&d.join("open.onnx"));
    // Ten rows in batches of four: the last batch of a fixed graph is filled up with rows that do not count.
    perceptron_data(&d.join("data.safetensors"), 10, |i| (i % 3) as i32);
    for model in ["fixed", "open"] {
        done(d, &["inject", &format!("{model}.onnx"), "--rank", "2"]);
        let how = ["--no-shuffle", "--batch-size", "4", "--device", "cpu", "--lr", "0.05", "-o", model];
        done(d, &[&["train", &format!("{model}.reslora.onnx"), "--data", "data.safetensors"], &how[..]].concat());
    }
    let losses =
        |run: &str| -> Vec<f64> { metrics(&d.join(run)).iter().map(|m| m["loss"].as_f64().unwrap()).collect() };
    for (a, b) in losses("fixed").iter().zip(losses("open")) {
        assert!((a - b).abs() < 1e-6, "{a} and {b}");
    }
    let ran = cli(d, &["train", "fixed.reslora.onnx", "--data", "data.safetensors", "--device", "cpu", "-o", "no"]);
    assert!(ran.code == 1 && ran.err.contains("hint: --batch-size 4"), "{}", ran.err);
}
