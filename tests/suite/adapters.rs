//! An adapter is used only as it was made: what PEFT saved, what another configuration made, and what holds no numbers.

use crate::build::{A, F32, Net, perceptron, spread, tensor};
use crate::cli::{cli, done, json, perceptron_data, write_tensors};
use onnx_protobuf::TensorProto;
use reslora_compile::internals::ir::Tensor;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fixtures/inputs/peft", name].iter().collect();
    path.display().to_string()
}

fn loss(dir: &Path, model: &str, more: &[&str]) -> f64 {
    let data = fixture("data.safetensors");
    let ran = json(dir, &[&["eval", model, "--data", &data, "--device", "cpu"], more].concat());
    ran["loss"].as_f64().unwrap()
}

fn near(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() < 1e-5 * want.abs(), "{what}: {got}, not {want}");
}

/// An error of exit code 1 or 2 that says `mention`.
fn refused(dir: &Path, args: &[&str], mention: &str) -> String {
    let ran = cli(dir, args);
    assert!(ran.code == 1 || ran.code == 2, "{args:?}: exit code {}\n{}{}", ran.code, ran.out, ran.err);
    assert!(ran.err.contains(mention), "{args:?}: does not say '{mention}'\n{}", ran.err);
    ran.err
}

#[test]
fn adapters_of_peft_give_what_onnx_runtime_gives() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(fixture("expected.json")).unwrap()).unwrap();
    for name in ["plain", "heads", "patterns"] {
        let want = expected[name].as_f64().unwrap();
        let adapter = fixture(name);
        let report = json(d, &["inject", &fixture("model.onnx"), "--adapter", &adapter, "-o", "t.onnx"]);
        assert_eq!((&report["structure"], &report["rank"]), (&"lora".into(), &3.into()));
        assert_eq!(report["targets"].as_array().unwrap().len(), 2);
        near(loss(d, "t.onnx", &[]), want, "injected");
        near(loss(d, "t.onnx", &["--adapter", &adapter]), want, "with the adapter");
        let file = format!("{adapter}/adapter_model.safetensors");
        done(d, &["merge", "t.onnx", "--adapter", &file, "-o", "m.onnx", "--device", "cpu"]);
        near(loss(d, "m.onnx", &[]), want, "merged");
        // The adapter goes into the file that is injected, whichever that is.
        let also: &[&str] = if name == "heads" { &["--also-train", "head"] } else { &[] };
        let scale: &[&str] = match name {
            "heads" => &["--alpha", "1.5", "--rslora"],
            "patterns" => &["--alpha", "6", "--rank-pattern", "block.1=2", "--alpha-pattern", "block.0=5"],
            _ => &["--alpha", "6"],
        };
        let fresh = ["inject", &fixture("model.onnx"), "--target", "fc", "--structure", "lora", "--rank", "3"];
        done(d, &[&fresh[..], scale, also, &["-o", "fresh.onnx"]].concat());
        let same = json(d, &["verify", "m.onnx", "fresh.onnx", "--adapter", &adapter]);
        assert_eq!((&same["engine"], &same["above_tolerance"]), (&"tract".into(), &false.into()));
        assert_eq!(cli(d, &["verify", "m.onnx", "fresh.onnx"]).code, 3);
    }
    refused(d, &["verify", "m.onnx", "m.onnx", "--adapter", &fixture("plain")], "neither file carries adapters");
}

#[test]
fn what_differs_from_how_an_adapter_was_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let (model, adapter, data) = (fixture("model.onnx"), fixture("plain"), fixture("data.safetensors"));
    let right = ["--target", "fc", "--structure", "lora", "--rank", "3", "--alpha", "6"];
    let others: &[(&[&str], &str)] = &[
        (&["--alpha", "12"], "alpha is 6 in the adapter, 12 in the model"),
        (&["--rslora"], "rslora is false in the adapter, true in the model"),
        (&["--rank", "2"], "rank is 3 in the adapter, 2 in the model"),
        (&["--structure", "bs"], "structure is lora in the adapter, block-shortcut in the model"),
        (&["--exclude", "block.1"], "'block.1.fc.lora_A.weight' belongs to no target"),
        (&["--target", "head"], "the adapter holds no 'm.head.lora_A.weight'"),
        (&["--also-train", "head"], "the adapter holds no 'm.head.weight'"),
    ];
    for (more, mention) in others {
        done(d, &[&["inject", &model], &right[..], more, &["-o", "t.onnx"]].concat());
        for command in [
            &["eval", "t.onnx", "--adapter", &adapter, "--data", &data, "--device", "cpu"][..],
            &["merge", "t.onnx", "--adapter", &adapter, "-o", "m.onnx", "--device", "cpu"],
            &["merge", "t.onnx", "--adapter", &adapter, "-o", "m.onnx", "--device", "cpu", "--keep-branch"],
            &["verify", "t.onnx", &model, "--adapter", &adapter],
        ] {
            let said = refused(d, command, mention);
            assert!(said.contains("hint: inject the base again with"), "{said}");
        }
        assert!(!d.join("m.onnx").exists());
    }
    // Scales and ranks of single targets too.
    let patterns = fixture("patterns");
    done(d, &[&["inject", &model], &right[..], &["-o", "t.onnx"]].concat());
    let said = refused(
        d,
        &["merge", "t.onnx", "--adapter", &patterns, "-o", "m.onnx", "--device", "cpu"],
        "alpha of m.block.0.fc is 5 in the adapter, 6 in the model",
    );
    assert!(said.contains("rank of m.block.1.fc is 2 in the adapter, 3 in the model"), "{said}");
    assert!(said.contains("--alpha-pattern '^m\\.block\\.0\\.fc$=5'"), "{said}");
    done(d, &[&["inject", &model], &right[..], &["--alpha-pattern", "block.0=5", "-o", "t.onnx"]].concat());
    let adapted = ["merge", "t.onnx", "--adapter", &adapter, "-o", "m.onnx", "--device", "cpu"];
    refused(d, &adapted, "alpha of m.block.0.fc is 6 in the adapter, 5 in the model");
    for (flag, value) in [("--alpha", "12"), ("--rank", "2"), ("--structure", "bs")] {
        let said = refused(d, &["inject", &model, "--adapter", &adapter, flag, value, "-o", "no.onnx"], flag);
        assert!(said.contains("adapter was made with"), "{said}");
    }
    refused(d, &["inject", &model, "--adapter", &adapter, "--target", "head", "-o", "no.onnx"], "belongs to no target");
    assert!(!d.join("no.onnx").exists());
}

/// Runs of this program carry their configuration, chains and whole-trained tensors included.
#[test]
fn adapters_of_runs_go_where_they_were_made() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let model = fixture("model.onnx");
    let how = ["--rank", "2", "--alpha", "8", "--pre-num", "1", "--target", "fc", "--also-train", "head"];
    done(d, &[&["inject", &model], &how[..], &["-o", "t.onnx"]].concat());
    let data = fixture("data.safetensors");
    done(d, &["train", "t.onnx", "--data", &data, "--lr", "0.05", "--device", "cpu", "-o", "run"]);
    let want = loss(d, "t.onnx", &["--adapter", "run"]);
    // The configuration comes with the adapter.
    let report = json(d, &["inject", &model, "--adapter", "run", "-o", "again.onnx"]);
    assert_eq!((&report["alpha"], &report["also_train"]), (&8.0.into(), &serde_json::json!(["m.head.weight"])));
    near(loss(d, "again.onnx", &[]), want, "injected again");
    near(loss(d, "again.onnx", &["--adapter", "run"]), want, "the same configuration");
    for (more, mention) in [
        (&["--pre-num", "2"][..], "pre-num is 1 in the adapter, 2 in the model"),
        (&["--structure", "ms"], "structure is block-shortcut in the adapter, middle-shortcut in the model"),
        (&["--exclude", "block.1"], "target m.block.1.fc is there in the adapter, not in the model"),
    ] {
        done(d, &[&["inject", &model], &how[..], more, &["-o", "other.onnx"]].concat());
        refused(d, &["eval", "other.onnx", "--adapter", "run", "--data", &data, "--device", "cpu"], mention);
    }
    let frozen = [&["inject", &model], &how[..8], &["-o", "frozen.onnx"]].concat();
    done(d, &frozen);
    let said = refused(d, &["merge", "frozen.onnx", "--adapter", "run", "--device", "cpu"], "m.head.weight is trained");
    assert!(said.contains("--also-train"), "{said}");
}

#[test]
fn adapters_beyond_plain_lora_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("plain/adapter_config.json")).unwrap()).unwrap();
    std::fs::create_dir(d.join("other")).unwrap();
    std::fs::copy(fixture("plain/adapter_model.safetensors"), d.join("other/adapter_model.safetensors")).unwrap();
    for (key, value, mention) in [
        ("use_qalora", Value::Bool(true), "use_qalora"),
        ("peft_type", "BOFT".into(), "BOFT"),
        ("bias", "all".into(), "bias is 'all'"),
        ("rank_pattern", serde_json::json!({ "fc": 2 }), "lora_A.weight' is [3, 4], not [2, 4]"),
        ("rank_pattern", serde_json::json!({ "fc(": 2 }), "'fc(' is no regular expression"),
        ("alpha_pattern", serde_json::json!({ "fc": "2" }), "alpha_pattern gives 'fc' \"2\""),
        ("modules_to_save", serde_json::json!(["head"]), "modules_to_save lists head"),
    ] {
        let mut config = config.clone();
        config[key] = value;
        std::fs::write(d.join("other/adapter_config.json"), config.to_string()).unwrap();
        refused(d, &["inject", &fixture("model.onnx"), "--adapter", "other", "-o", "t.onnx"], mention);
    }
    assert!(!d.join("t.onnx").exists());
}

/// What is written for PEFT reads back as it was, with ranks and alphas of single targets.
#[test]
fn adapters_are_written_as_peft_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let (model, data) = (fixture("model.onnx"), fixture("data.safetensors"));
    let patterns = ["--rank-pattern", "block.1=3", "--alpha-pattern", "block.0=5"];
    for (structure, more) in [
        ("lora", &patterns[..]),
        ("dora", &["--rslora"]),
        ("loha", &patterns),
        ("lokr", &["--decompose-factor", "2"]),
        ("ia3", &[]),
        ("miss", &[]),
        ("oft", &["--block-size", "2"]),
    ] {
        let rank: &[&str] = if matches!(structure, "ia3" | "oft") { &[] } else { &["--rank", "2"] };
        let how = ["--target", "fc", "--structure", structure];
        done(d, &[&["inject", &model], &how[..], rank, more, &["-o", "t.onnx"]].concat());
        done(d, &["train", "t.onnx", "--data", &data, "--lr", "0.05", "--device", "cpu", "-o", structure]);
        let want = loss(d, "t.onnx", &["--adapter", structure]);
        let folder = format!("{structure}-peft");
        done(d, &["export", "t.onnx", "--adapter", structure, "-o", &folder]);
        refused(d, &["export", "t.onnx", "--adapter", structure, "-o", &folder], "is there already");
        near(loss(d, "t.onnx", &["--adapter", &folder]), want, structure);
        done(d, &["inject", &model, "--adapter", &folder, "-o", "again.onnx"]);
        near(loss(d, "again.onnx", &[]), want, &format!("{structure}, injected from PEFT's folder"));
        let text = std::fs::read_to_string(d.join(&folder).join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["target_modules"], serde_json::json!(["m.block.0.fc", "m.block.1.fc"]));
        if more == patterns {
            assert_eq!(config["rank_pattern"], serde_json::json!({ "m\\.block\\.1\\.fc": 3 }), "{structure}");
            assert_eq!(config["alpha_pattern"], serde_json::json!({ "m\\.block\\.0\\.fc": 5.0 }), "{structure}");
        }
    }
    for (i, (how, mention)) in [
        (&["--structure", "block-shortcut"][..], "block-shortcut cannot be written for PEFT, only lora, dora"),
        (&["--structure", "lora", "--also-train", "head"], "also trains m.head.weight"),
        (&["--structure", "lora", "--init", "pissa", "--rank", "2"], "--init pissa, which takes a part"),
    ]
    .into_iter()
    .enumerate()
    {
        let run = format!("run{i}");
        done(d, &[&["inject", &model, "--target", "fc"], how, &["-o", "t.onnx"]].concat());
        done(d, &["train", "t.onnx", "--data", &data, "--max-steps", "1", "--device", "cpu", "-o", &run]);
        refused(d, &["export", "t.onnx", "--adapter", &run, "-o", "no"], mention);
        assert!(!d.join("no").exists());
    }
}

#[test]
fn numbers_that_are_none_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 12, |i| (i % 3) as i32);
    let how = ["--target", "up", "--structure", "lora", "--rank", "2", "--alpha", "2"];
    done(d, &[&["inject", "mlp.onnx"], &how[..], &["-o", "t.onnx"]].concat());
    let (a, b) = ("net.0.up.lora_A.weight", "net.0.up.lora_B.weight");
    for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "infinity")] {
        let mut up = spread(16, 5);
        up[3] = bad;
        let tensors = [(a, Tensor::f32([2, 4], spread(8, 4))), (b, Tensor::f32([8, 2], up))];
        write_tensors(&d.join("bad.safetensors"), &tensors);
        for args in [
            &["merge", "t.onnx", "--adapter", "bad.safetensors", "-o", "m.onnx", "--device", "cpu", "--force"][..],
            &["eval", "t.onnx", "--adapter", "bad.safetensors", "--data", "data.safetensors", "--device", "cpu"],
            &["inject", "mlp.onnx", "--adapter", "bad.safetensors", "-o", "m.onnx"],
            &["verify", "t.onnx", "mlp.onnx", "--adapter", "bad.safetensors"],
        ] {
            let said = refused(d, args, &format!("tensor '{b}' holds {word} (1 of 16 elements)"));
            assert!(!said.contains("panicked"), "{said}");
        }
    }
    // An output that is not a number compares with nothing, though both have it.
    let mut net = perceptron();
    net.graph.initializer[1] = tensor("net.0.up.bias", &[8], &[f32::NAN; 8]);
    net.write(&d.join("nan.onnx"));
    let ran = cli(d, &["verify", "nan.onnx", "nan.onnx"]);
    assert!(ran.code == 3 && ran.out.contains("holds NaN in both"), "{}", ran.out);
    done(d, &[&["inject", "nan.onnx"], &how[..], &["-o", "n.onnx"]].concat());
    let good = [(a, Tensor::f32([2, 4], spread(8, 4))), (b, Tensor::f32([8, 2], spread(16, 5)))];
    write_tensors(&d.join("good.safetensors"), &good);
    let merge = ["--adapter", "good.safetensors", "-o", "m.onnx", "--device", "cpu", "--force"];
    refused(d, &[&["merge", "n.onnx"], &merge[..]].concat(), "output 'logits' holds NaN in both");
    refused(d, &["eval", "nan.onnx", "--data", "data.safetensors", "--device", "cpu"], "the loss is NaN");
    assert!(!d.join("m.onnx").exists());
    done(d, &[&["merge", "t.onnx"], &merge[..]].concat());
}

#[test]
fn a_weight_too_large_for_its_type_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let halves = |x: &f32| half::f16::from_f32(*x).to_le_bytes();
    let raw_data = spread(12, 3).iter().flat_map(halves).collect();
    let weight =
        TensorProto { name: "fc.weight".into(), dims: vec![4, 3], data_type: 10, raw_data, ..Default::default() };
    Net::new(17)
        .input("x", F32, &["batch", "4"])
        .output("logits", F32, &["batch", "3"])
        .initializer(weight)
        .node("/fc/Cast", "Cast", &["fc.weight"], &["w"], &[("to", A::I(1))])
        .node("/fc/MatMul", "MatMul", &["x", "w"], &["logits"], &[])
        .write(&d.join("half.onnx"));
    let how = ["--target", "fc", "--structure", "lora", "--rank", "1", "--alpha", "1"];
    done(d, &[&["inject", "half.onnx"], &how[..], &["-o", "t.onnx"]].concat());
    let (a, b) = (Tensor::f32([1, 4], vec![300.0; 4]), Tensor::f32([3, 1], vec![1.0, 400.0, 1.0]));
    write_tensors(&d.join("large.safetensors"), &[("fc.lora_A.weight", a), ("fc.lora_B.weight", b)]);
    let args = ["merge", "t.onnx", "--adapter", "large.safetensors", "-o", "m.onnx", "--device", "cpu", "--force"];
    refused(d, &args, "weight 'fc.weight' of 'fc' would hold infinity as float16");
    assert!(!d.join("m.onnx").exists());
}
