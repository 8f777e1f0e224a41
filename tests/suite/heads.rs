//! New classifiers: what `inject --head` makes of a model, trained and merged.

use crate::build::{A, F32, Net, perceptron, spread, tensor};
use crate::cli::{cli, done, json, perceptron_data};
use reslora_compile::internals::onnx::{self, Dim, Model};
use reslora_compile::internals::pipeline;
use std::path::Path;
use std::sync::Arc;

fn read(path: &Path) -> Arc<Model> {
    pipeline::read(path).unwrap()
}

fn logits(model: &Model) -> Vec<Dim> {
    model.outputs().into_iter().find(|o| o.name == "logits").unwrap().dims.unwrap()
}

#[test]
fn a_new_head_is_trained_whole_and_merged() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 40, |i| (i % 5) as i32);
    let injected = json(d, &["inject", "mlp.onnx", "--head", "a, b,c,d,e", "--rank", "2", "--target", "up"]);
    let fresh: Vec<&str> = injected["also_train"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert!(fresh[0].ends_with(".head.weight"), "{fresh:?}");
    let model = read(&d.join("mlp.reslora.onnx"));
    assert_eq!(logits(&model).last(), Some(&Dim::Fixed(5)));
    assert_eq!(model.metadata("id2label"), Some(r#"{"0":"a","1":"b","2":"c","3":"d","4":"e"}"#));
    // Normal with deviation 0.02, drawn from the seed.
    let values = model.initializer(fresh[0]).unwrap().to_f32().unwrap();
    let deviation = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
    assert!((0.01..0.03).contains(&deviation), "{deviation}");
    done(d, &["inject", "mlp.onnx", "--head", "5", "--rank", "2", "--target", "up", "--seed", "9", "-o", "other.onnx"]);
    let other = read(&d.join("other.onnx"));
    assert_ne!(other.initializer(fresh[0]).unwrap().to_f32().unwrap(), values);
    let how = ["--data", "data.safetensors", "--device", "cpu"];
    let train = ["--lr", "0.05", "--epochs", "20", "-o", "run"];
    done(d, &[&["train", "mlp.reslora.onnx"], &how[..], &train[..]].concat());
    done(d, &["merge", "mlp.reslora.onnx", "--adapter", "run", "-o", "merged.onnx"]);
    let merged = read(&d.join("merged.onnx"));
    assert_eq!(logits(&merged).last(), Some(&Dim::Fixed(5)));
    assert_eq!(merged.metadata("id2label"), model.metadata("id2label"));
    assert!(merged.metadata("reslora.config").is_none());
    let loss = |args: &[&str]| json(d, &[&["eval"], args, &how[..]].concat())["loss"].as_f64().unwrap();
    let (start, live, end) =
        (loss(&["mlp.reslora.onnx"]), loss(&["mlp.reslora.onnx", "--adapter", "run"]), loss(&["merged.onnx"]));
    assert!(live < start - 0.02 && (live - end).abs() < 1e-5, "{start} {live} {end}");
    // An independent engine runs it.
    done(d, &["verify", "merged.onnx", "merged.onnx"]);
}

/// Classifiers in other forms: Gemm with its bias inside, a softmax after it, a weight that is transposed, one that something else reads.
#[test]
fn classifiers_of_every_form_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let start = || {
        Net::new(17)
            .input("x", F32, &["batch", "4"])
            .output("logits", F32, &["batch", "classes"])
            .initializer(tensor("body", &[4, 4], &spread(16, 1)))
            .initializer(tensor("w", &[3, 4], &spread(12, 2)))
            .initializer(tensor("b", &[3], &spread(3, 3)))
            .node("/body/fc/MatMul", "MatMul", &["x", "body"], &["h"], &[])
    };
    let gemm = |out: &str| start().node("/classifier/Gemm", "Gemm", &["h", "w", "b"], &[out], &[("transB", A::I(1))]);
    let transposed = start()
        .node("/classifier/Transpose", "Transpose", &["w"], &["wt"], &[("perm", A::Is(vec![1, 0]))])
        .node("/classifier/MatMul", "MatMul", &["h", "wt"], &["p"], &[])
        .node("/classifier/Add", "Add", &["b", "p"], &["logits"], &[]);
    let shared = gemm("logits").output("other", F32, &["batch", "3"]).node(
        "/second/Gemm",
        "Gemm",
        &["x", "w", "b"],
        &["other"],
        &[("transB", A::I(1))],
    );
    let soft = gemm("z").node("/soft", "Softmax", &["z"], &["logits"], &[("axis", A::I(-1))]);
    for (name, net, keeps) in [
        ("gemm", gemm("logits"), false),
        ("soft", soft, false),
        ("transposed", transposed, false),
        ("shared", shared, true),
    ] {
        net.write(&d.join("m.onnx"));
        done(d, &["inject", "m.onnx", "--head", "7", "--rank", "1", "-o", "m.reslora.onnx", "--overwrite"]);
        let model = read(&d.join("m.reslora.onnx"));
        assert_eq!(logits(&model)[1], Dim::Fixed(7), "{name}");
        assert_eq!(model.is_initializer("w"), keeps, "{name}");
        let linear = onnx::linear_nodes(&model);
        let head = linear.iter().find(|l| l.path == "classifier").unwrap_or_else(|| panic!("{name}"));
        assert_eq!((head.in_features, head.out_features), (4, 7), "{name}");
        perceptron_data(&d.join("data.safetensors"), 14, |i| (i % 7) as i32);
        let ran = json(d, &["eval", "m.reslora.onnx", "--data", "data.safetensors", "--device", "cpu"]);
        // Near even odds, since fresh weights are small.
        assert!((ran["loss"].as_f64().unwrap() - 7f64.ln()).abs() < 0.2, "{name}: {ran}");
        done(d, &["verify", "m.reslora.onnx", "m.reslora.onnx"]);
    }
}

#[test]
fn heads_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    let check = |head: &str, says: &str| {
        let ran = cli(d, &["inject", "mlp.onnx", "--head", head]);
        assert!(ran.code == 2 && ran.err.contains(says), "--head {head}: {} {}", ran.code, ran.err);
    };
    check("0", "--head 0 must be at least 1 output");
    check("-3", "--head -3 must be at least 1 output");
    check("a,,b", "has a class without a name");
    check("a,b,a", "names 'a' twice");
    let net = Net::new(17)
        .input("x", F32, &["batch", "4"])
        .output("logits", F32, &["batch", "4"])
        .initializer(tensor("w", &[4, 4], &spread(16, 1)))
        .node("/fc/MatMul", "MatMul", &["x", "w"], &["h"], &[])
        .node("/last/Relu", "Relu", &["h"], &["logits"], &[]);
    net.write(&d.join("mlp.onnx"));
    check("2", "--head finds no classifier: output 'logits' comes from node '/last/Relu' (Relu)");
}
