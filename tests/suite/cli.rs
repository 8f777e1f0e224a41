//! The program as a user runs it.

use crate::build::{F32, Net, perceptron, spread, tensor};
use crate::oracle::{self, Case, relative};
use ndarray::ArrayD;
use reslora_compile::internals::adapter;
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::pipeline;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs the program in `dir`.
pub fn cli(dir: &Path, args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_reslora-compile"))
        .current_dir(dir)
        .args(args)
        // Tests compare with results in f32, whatever units the processor has.
        .env("RESLORA_BF16", "0")
        .output()
        .expect("the program runs");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

pub fn done(dir: &Path, args: &[&str]) -> Ran {
    let ran = cli(dir, args);
    assert_eq!(ran.code, 0, "{args:?}\n{}{}", ran.out, ran.err);
    ran
}

pub fn json(dir: &Path, args: &[&str]) -> Value {
    let ran = done(dir, &[args, &["--json"]].concat());
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{args:?}: {e}\n{}", ran.out))
}

/// A data file of tensors.
pub fn write_tensors(path: &Path, tensors: &[(&str, Tensor)]) {
    let stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, t)| match (t.as_f32(), t.as_i32()) {
            (Some(x), _) => {
                (name.to_string(), Dtype::F32, t.shape().to_vec(), x.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            (_, Some(x)) => {
                let bytes = x.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect();
                (name.to_string(), Dtype::I64, t.shape().to_vec(), bytes)
            }
            _ => (name.to_string(), Dtype::BOOL, t.shape().to_vec(), t.words().iter().map(|&w| w as u8).collect()),
        })
        .collect();
    let views = stored.iter().map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Inputs and labels for [`perceptron`].
pub fn perceptron_data(path: &Path, rows: usize, label: impl Fn(usize) -> i32) {
    let x = Tensor::f32([rows, 4], spread(rows * 4, 9));
    write_tensors(path, &[("x", x), ("labels", Tensor::i32([rows], (0..rows).map(label).collect()))]);
}

/// How batches are made for a model.
pub fn feed(model: &reslora_compile::internals::onnx::Model) -> reslora_compile::internals::train::data::Feed {
    reslora_compile::internals::train::data::Feed::new(pipeline::input_specs(model), 512)
}

fn case(name: &str) -> Case {
    oracle::fixtures().into_iter().find(|c| c.name() == name).expect("a fixture")
}

pub fn metrics(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn bert_case_from_inject_to_merge() {
    let case = case("bert-cls.ts.input");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| case.dir.join(name).display().to_string();
    let (model, init, data) = (at("model.onnx"), at("init.safetensors"), at("data.safetensors"));
    let adapted = ["--target", "self.(query|value)", "--structure", "input-shortcut", "--rank", "4", "--alpha", "8"];
    done(dir.path(), &[&["inject", &model], &adapted[..], &["--adapter", &init, "-o", "t.onnx"]].concat());
    let settings = ["--no-shuffle", "--batch-size", "2", "--epochs", "1", "--lr", "5e-3", "--schedule", "constant"];
    let how = ["--optimizer", "adamw", "--weight-decay", "0.1", "--clip-norm", "0", "--device", "cpu", "-o", "run"];
    done(dir.path(), &[&["train", "t.onnx", "--data", &data], &settings[..], &how[..]].concat());
    let want = case.json["losses"].as_array().unwrap();
    for (line, want) in metrics(&dir.path().join("run")).iter().zip(want) {
        let (got, want) = (line["loss"].as_f64().unwrap(), want.as_f64().unwrap());
        assert!((got - want).abs() <= 1e-4 * want, "step {}: {got}, not {want}", line["step"]);
    }
    let trained = adapter::read(&dir.path().join("run")).unwrap();
    assert_eq!(trained.tensors.len(), 16);

    let all = reslora_compile::internals::train::data::Options::default();
    let all = reslora_compile::internals::train::data::read(&case.dir.join("data.safetensors"), &all).unwrap();
    let reslora_compile::internals::train::data::Source::Tensors { tensors, .. } = all.subset(0..16).source else {
        panic!()
    };
    let calib: Vec<(&str, Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    write_tensors(&dir.path().join("calib.safetensors"), &calib);
    for (strategy, key) in [("input-norm", "input"), ("weight-norm", "weight")] {
        let how =
            ["--strategy", strategy, "--calibrate", "calib.safetensors", "--batch-size", "2", "-o", "merged.onnx"];
        let report =
            json(dir.path(), &[&["merge", "t.onnx", "--adapter", "run", "--device", "cpu"], &how[..]].concat());
        assert_eq!(report["layers"].as_array().unwrap().len(), 8);
        let merged = pipeline::read(&dir.path().join("merged.onnx")).unwrap();
        let probe = all.batch(&feed(&merged), &[0, 1]).unwrap().inputs;
        let trainee = pipeline::load(&merged, None).unwrap();
        let logits = &pipeline::infer(&trainee, &[probe], oracle::cpu().as_mut()).unwrap()["logits"][0];
        let logits = ArrayD::from_shape_vec(logits.shape(), logits.as_f32().unwrap().to_vec()).unwrap();
        let error = relative(&logits, &case.expected.tensors[&format!("merged.{key}.logits")]);
        assert!(error < 1e-3, "{strategy}: {error:.1e}");
    }

    // Where no data is given the run's own serves, and where that is not known, the norms recorded in training.
    let norms = |adapter| {
        json(dir.path(), &["merge", "t.onnx", "--adapter", adapter, "--strategy", "input-norm", "--device", "cpu"])
    };
    assert!(norms("run")["notes"][0].as_str().unwrap().contains("gathered on"));
    std::fs::create_dir(dir.path().join("alone")).unwrap();
    std::fs::copy(dir.path().join("run/adapter.safetensors"), dir.path().join("alone/a.safetensors")).unwrap();
    assert!(norms("alone/a.safetensors")["notes"][0].as_str().unwrap().contains("recorded"));
    assert!(dir.path().join("t.merged.onnx").exists());

    // From the probe's factors, one step of SGD at rate 1 takes the gradient off them.
    let probe = at("probe.safetensors");
    done(dir.path(), &[&["inject", &model], &adapted[..], &["--adapter", &probe, "-o", "p.onnx"]].concat());
    let step = ["--optimizer", "sgd", "--lr", "1", "--schedule", "constant", "--weight-decay", "0", "--max-steps", "1"];
    let how = ["--no-shuffle", "--batch-size", "2", "--clip-norm", "0", "--device", "cpu", "-o", "probe"];
    done(dir.path(), &[&["train", "p.onnx", "--data", &data], &step[..], &how[..]].concat());
    let (before, after) =
        (adapter::read(Path::new(&probe)).unwrap(), adapter::read(&dir.path().join("probe")).unwrap());
    for (name, start) in &before.tensors {
        let error = relative(&(start - &after.tensors[name]), &case.expected.tensors[&format!("probe.grad.{name}")]);
        assert!(error < 1e-4, "{name}: {error:.1e}");
    }
}

/// A model with two operators that nothing here can lower, in three nodes.
fn unsupported() -> Net {
    Net::new(17)
        .input("x", F32, &["batch", "4", "4"])
        .output("y", F32, &["batch"])
        .node("/a/TfIdf", "TfIdfVectorizer", &["x"], &["d"], &[])
        .node("/b/TfIdf", "TfIdfVectorizer", &["x"], &["e"], &[])
        .node("/c/Hann", "com.example:Windowed", &["d"], &["f"], &[])
        .node("/d/Add", "Add", &["e", "f"], &["y"], &[])
}

/// A model whose weight is in a file that is not there.
pub fn external() -> Net {
    let mut weight = tensor("w", &[4, 3], &[]);
    weight.data_location = onnx_protobuf::tensor_proto::DataLocation::EXTERNAL.into();
    weight.external_data.push(onnx_protobuf::StringStringEntryProto {
        key: "location".into(),
        value: "weights.bin".into(),
        ..Default::default()
    });
    Net::new(17).input("x", F32, &["batch", "4"]).output("y", F32, &["batch", "3"]).initializer(weight).node(
        "/fc/MatMul",
        "MatMul",
        &["x", "w"],
        &["y"],
        &[],
    )
}

/// Bad input: one clear error, exit code 1 or 2, and nothing written.
#[test]
fn bad_input_is_refused_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::write(d.join("text.onnx"), "this is no model, but it is long enough to look at").unwrap();
    std::fs::write(d.join("empty.onnx"), "").unwrap();
    let whole = std::fs::read(case("bert-cls.ts.input").dir.join("model.onnx")).unwrap();
    std::fs::write(d.join("cut.onnx"), &whole[..whole.len() / 2]).unwrap();
    // A model that opens as one, then nests unknown groups a hundred thousand deep.
    let mut groups = vec![0x08, 0x08];
    groups.extend(std::iter::repeat_n([0xa3u8, 0x06], 100_000).flatten());
    std::fs::write(d.join("groups.onnx"), groups).unwrap();
    unsupported().write(&d.join("unsupported.onnx"));
    external().write(&d.join("external.onnx"));
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 8, |i| (i % 3) as i32);
    perceptron_data(&d.join("labels.safetensors"), 8, |i| i as i32);
    let rows = Tensor::i32([8], (0..8).map(|i| i % 3).collect());
    write_tensors(&d.join("shape.safetensors"), &[("x", Tensor::f32([8, 5], spread(40, 1))), ("labels", rows.clone())]);
    write_tensors(&d.join("name.safetensors"), &[("pixels", Tensor::f32([8, 4], spread(32, 1))), ("labels", rows)]);
    write_tensors(&d.join("unlabelled.safetensors"), &[("x", Tensor::f32([8, 4], spread(32, 1)))]);
    std::fs::write(d.join("text.jsonl"), "{\"text\": \"a\", \"label\": 0}\n").unwrap();
    done(d, &["inject", "mlp.onnx", "--rank", "2", "-o", "ok.onnx"]);
    let mut other = perceptron();
    other.graph.initializer[1] = tensor("net.0.up.bias", &[8], &spread(8, 77));
    other.write(&d.join("other.onnx"));
    done(d, &["inject", "other.onnx", "--rank", "2", "-o", "other.reslora.onnx"]);
    done(d, &["train", "other.reslora.onnx", "--data", "data.safetensors", "--device", "cpu", "-o", "otherrun"]);

    let before: Vec<PathBuf> = listing(d);
    let bad: &[(&str, &[&str])] = &[
        ("no such file", &["inject", "nowhere.onnx"]),
        ("not a model", &["inject", "text.onnx"]),
        ("empty file", &["inject", "empty.onnx"]),
        ("truncated model", &["inject", "cut.onnx"]),
        ("nested groups", &["inject", "groups.onnx"]),
        ("missing external data", &["inject", "external.onnx"]),
        ("operators without a lowering", &["inject", "unsupported.onnx"]),
        ("target that matches nothing", &["inject", "mlp.onnx", "--target", "net.0.donw"]),
        ("unknown role", &["inject", "mlp.onnx", "--target", "role:attention.z"]),
        ("role that is not there", &["inject", "mlp.onnx", "--target", "role:attention.q"]),
        ("regular expression", &["inject", "mlp.onnx", "--target", "("]),
        ("also-train that matches nothing", &["inject", "mlp.onnx", "--also-train", "clasifier"]),
        ("unknown structure", &["inject", "mlp.onnx", "--structure", "highway"]),
        ("injected twice", &["inject", "ok.onnx"]),
        ("nothing to train", &["train", "mlp.onnx", "--data", "data.safetensors"]),
        ("labels out of range", &["train", "ok.onnx", "--data", "labels.safetensors"]),
        ("data of another shape", &["train", "ok.onnx", "--data", "shape.safetensors"]),
        ("data of another name", &["train", "ok.onnx", "--data", "name.safetensors"]),
        ("data without labels", &["train", "ok.onnx", "--data", "unlabelled.safetensors"]),
        ("text without a tokenizer", &["train", "ok.onnx", "--data", "text.jsonl"]),
        ("unknown kind of data", &["train", "ok.onnx", "--data", "mlp.onnx"]),
        ("no such device", &["train", "ok.onnx", "--data", "data.safetensors", "--device", "tpu"]),
        ("no such GPU", &["train", "ok.onnx", "--data", "data.safetensors", "--device", "gpu:99"]),
        ("zero batch", &["train", "ok.onnx", "--data", "data.safetensors", "--batch-size", "0"]),
        ("resume without a run", &["train", "ok.onnx", "--data", "data.safetensors", "--resume", "-o", "nothing"]),
        ("no such output", &["train", "ok.onnx", "--data", "data.safetensors", "--loss-output", "loss"]),
        ("no run to merge", &["merge", "ok.onnx"]),
        ("adapter of another base", &["merge", "ok.onnx", "--adapter", "otherrun", "--device", "cpu"]),
        ("adapter that is none", &["merge", "ok.onnx", "--adapter", "text.jsonl"]),
        ("strategy that does not apply", &["merge", "ok.onnx", "--adapter", "otherrun", "--strategy", "input-norm"]),
        ("merging what was not injected", &["merge", "mlp.onnx", "--adapter", "otherrun"]),
    ];
    let mut text = String::new();
    for (what, args) in bad {
        let ran = cli(d, args);
        assert!(ran.code == 1 || ran.code == 2, "{what}: exit code {}\n{}{}", ran.code, ran.out, ran.err);
        assert_eq!(ran.out, "", "{what}");
        text += &format!("# {what}: {}\n$ reslora-compile {}\n{}\n", ran.code, args.join(" "), ran.err);
        assert_eq!(listing(d), before, "{what} left a file");
    }
    // How many adapters this machine has is its own affair.
    insta::with_settings!({filters => vec![(r"hint: (no Vulkan.*|there are \d+:.*)", "hint: [adapters]")]}, {
        insta::assert_snapshot!("bad_input", text);
    });
}

fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn resumed_run_ends_bit_for_bit_where_a_whole_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 50, |i| ((i * 7) % 3) as i32);
    perceptron_data(&d.join("eval.safetensors"), 9, |i| (i % 3) as i32);
    done(d, &["inject", "mlp.onnx", "--rank", "2", "--structure", "lora", "--dropout", "0.2", "-o", "t.onnx"]);
    let how =
        ["--eval", "eval.safetensors", "--eval-every", "5", "--batch-size", "4", "--accumulate", "2", "--lr", "0.05"];
    let run = |out: &str, steps: &str, more: &[&str]| {
        let rest = ["--schedule", "constant", "--device", "cpu", "--max-steps", steps, "-o", out];
        done(d, &[&["train", "t.onnx", "--data", "data.safetensors"], &how[..], &rest[..], more].concat());
    };
    run("whole", "20", &[]);
    run("parts", "12", &["--save-every", "4"]);
    run("parts", "20", &["--resume"]);
    let read = |name: &str| std::fs::read(d.join(name)).unwrap();
    assert!(read("whole/adapter.safetensors") == read("parts/adapter.safetensors"));
    assert!(read("whole/last/states.safetensors") == read("parts/last/states.safetensors"));
    let bare = |dir: &str| -> Vec<(Value, Value, Value)> {
        metrics(&d.join(dir)).iter().map(|m| (m["step"].clone(), m["loss"].clone(), m["grad_norm"].clone())).collect()
    };
    let (mut whole, mut parts) = (bare("whole"), bare("parts"));
    whole.retain(|m| !m.1.is_null());
    parts.retain(|m| !m.1.is_null());
    assert_eq!(whole.len(), 20);
    assert_eq!(whole, parts);

    // Other data is refused.
    perceptron_data(&d.join("data.safetensors"), 50, |_| 0);
    let ran = cli(
        d,
        &[
            "train",
            "t.onnx",
            "--data",
            "data.safetensors",
            "--batch-size",
            "4",
            "--accumulate",
            "2",
            "--resume",
            "-o",
            "parts",
            "--device",
            "cpu",
        ],
    );
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("--data was data.safetensors"), "{}", ran.err);
}

/// Mixed precision goes on bit for bit too, its loss scale included; a gradient that overflows halves the scale and leaves the
/// adapter as it was.
#[test]
fn mixed_precision_scales_the_loss_and_resumes() {
    if !crate::gpu::available() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 50, |i| ((i * 7) % 3) as i32);
    done(d, &["inject", "mlp.onnx", "--rank", "2", "--structure", "lora", "-o", "t.onnx"]);
    let run = |out: &str, steps: &str, more: &[&str]| {
        let how = ["train", "t.onnx", "--data", "data.safetensors", "--batch-size", "4", "--lr", "0.05"];
        let rest =
            ["--schedule", "constant", "--precision", "mixed", "--device", "gpu", "--max-steps", steps, "-o", out];
        done(d, &[&how[..], &rest[..], more].concat());
    };
    run("whole", "8", &[]);
    run("parts", "5", &[]);
    // The first step's gradients overflow, the others' do not.
    let path = d.join("parts/last/progress.json");
    let mut progress: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(progress["loss_scale"], serde_json::json!({ "scale": 32768.0, "good": 4, "skipped": 1 }));
    run("parts", "8", &["--resume"]);
    let read = |name: &str| std::fs::read(d.join(name)).unwrap();
    assert!(read("whole/adapter.safetensors") == read("parts/adapter.safetensors"));
    assert!(read("whole/last/states.safetensors") == read("parts/last/states.safetensors"));
    assert!(read("whole/last/progress.json") == read("parts/last/progress.json"));
    let all = metrics(&d.join("whole"));
    assert_eq!(
        all.iter().map(|m| m["loss_scale"].as_f64().unwrap()).collect::<Vec<_>>()[..3],
        [65536.0, 32768.0, 32768.0]
    );
    assert_eq!(all.iter().map(|m| m["grad_norm"].is_null()).collect::<Vec<_>>()[..3], [true, false, false]);
    assert!(all.iter().all(|m| m["loss"].is_number()));

    // A scale at which every gradient overflows: steps are skipped until it is small enough.
    progress["loss_scale"] = serde_json::json!({ "scale": 2f64.powi(40), "good": 1998, "skipped": 1 });
    std::fs::write(&path, progress.to_string()).unwrap();
    let before = read("parts/last/states.safetensors");
    progress["step"] = 8.into();
    std::fs::write(&path, progress.to_string()).unwrap();
    run("parts", "10", &["--resume"]);
    let all = metrics(&d.join("parts"));
    let skipped = &all[8..];
    assert!(skipped.iter().all(|m| m["grad_norm"].is_null() && m["loss"].is_number()), "{skipped:?}");
    assert_eq!(
        skipped.iter().map(|m| m["loss_scale"].as_f64().unwrap()).collect::<Vec<_>>(),
        [2f64.powi(40), 2f64.powi(39)]
    );
    assert!(read("parts/last/states.safetensors") == before, "a skipped step changed something");
    let progress: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(progress["loss_scale"], serde_json::json!({ "scale": 2f64.powi(38), "good": 0, "skipped": 3 }));

    // A run in f32 is another run.
    let args = ["train", "t.onnx", "--data", "data.safetensors", "--batch-size", "4", "--device", "gpu"];
    let ran = cli(d, &[&args[..], &["--precision", "f32", "--resume", "-o", "parts"]].concat());
    assert!(ran.code == 2 && ran.err.contains("--precision was mixed, now it is f32"), "{}", ran.err);
}

#[test]
fn run_directory_holds_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 30, |i| (i % 3) as i32);
    done(d, &["inject", "mlp.onnx", "--rank", "2"]);
    assert!(d.join("mlp.reslora.onnx").exists());
    let result = json(
        d,
        &[
            "train",
            "mlp.reslora.onnx",
            "--data",
            "data.safetensors",
            "--eval",
            "data.safetensors",
            "--device",
            "cpu",
            "--epochs",
            "2",
        ],
    );
    assert_eq!(result["run"], "runs/mlp-1");
    assert_eq!(result["steps"], 8);
    let run = d.join("runs/mlp-1");
    for name in [
        "config.toml",
        "adapter.safetensors",
        "metrics.jsonl",
        "report.html",
        "last/progress.json",
        "last/states.safetensors",
    ] {
        assert!(run.join(name).exists(), "{name}");
    }
    let events =
        listing(&run).into_iter().any(|p| p.file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents."));
    assert!(events);
    let lines = metrics(&run);
    assert!(lines.iter().all(|l| l["loss"].is_null() != l["eval_loss"].is_null()));
    // The base's, and those of both epochs.
    assert_eq!(lines.iter().filter(|l| !l["eval_loss"].is_null()).count(), 3);
    for key in ["step", "loss", "grad_norm", "lr", "tokens", "seconds"] {
        assert!(lines[1][key].is_number(), "{key}");
    }

    // The run's own configuration runs it again, under another name; flags win over it.
    let again =
        json(d, &["train", "mlp.reslora.onnx", "--config", "runs/mlp-1/config.toml", "-o", "again", "--epochs", "1"]);
    assert_eq!((&again["run"], &again["steps"]), (&Value::from("again"), &Value::from(4)));

    // Without flags, merge takes the newest run of the model, and says what it wrote.
    let merged = json(d, &["merge", "mlp.reslora.onnx", "--device", "cpu"]);
    assert_eq!(merged["adapter"], "runs/mlp-1");
    assert_eq!(merged["output"], "mlp.merged.onnx");
    assert_eq!(merged["strategy"], "exact");
    assert!(merged["differences"][0]["relative"].as_f64().unwrap() < 1e-4);

    // The adapter graph and the merged model measure the same.
    let with = json(
        d,
        &["eval", "mlp.reslora.onnx", "--adapter", "runs/mlp-1", "--data", "data.safetensors", "--device", "cpu"],
    );
    let without = json(d, &["eval", "mlp.merged.onnx", "--data", "data.safetensors", "--device", "cpu"]);
    assert!((with["loss"].as_f64().unwrap() - without["loss"].as_f64().unwrap()).abs() < 1e-5);
    assert_eq!(with["accuracy"], without["accuracy"]);

    // Merged and base differ, and verify says so; a model does not differ from itself.
    let same = json(d, &["verify", "mlp.merged.onnx", "mlp.merged.onnx"]);
    assert_eq!((&same["engine"], &same["outputs"][0]["largest"]), (&Value::from("tract"), &Value::from(0.0)));
    assert_eq!(cli(d, &["verify", "mlp.onnx", "mlp.merged.onnx"]).code, 3);

    // A tolerance that the merge cannot meet: exit code 3, and no file.
    std::fs::remove_file(d.join("mlp.merged.onnx")).unwrap();
    let ran = cli(d, &["merge", "mlp.reslora.onnx", "--device", "cpu", "--tolerance", "0"]);
    assert!(ran.code == 3 && !d.join("mlp.merged.onnx").exists() || ran.code == 0, "{}", ran.err);
}

#[test]
fn quickstart_shows_the_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let result = json(dir.path(), &["quickstart", "--device", "cpu"]);
    let accuracy = |i: usize| result["rows"][i]["accuracy"].as_f64().unwrap();
    assert!(accuracy(0) < 0.3, "the base has never seen a turned digit: {}", accuracy(0));
    assert!(accuracy(1) > 0.75, "{}", accuracy(1));
    assert_eq!(accuracy(1), accuracy(2));
    assert!(result["merge_difference"].as_f64().unwrap() < 1e-4);
    assert!(result["engine_difference"].as_f64().unwrap() < 1e-4);
    assert!(dir.path().join("quickstart/model.merged.onnx").exists());
}

#[test]
fn other_subcommands_answer() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    unsupported().write(&d.join("unsupported.onnx"));
    assert_eq!(json(d, &["devices"])["devices"][0]["id"], "cpu");
    assert_eq!(json(d, &["doctor", "--device", "cpu"])["devices"][0]["sound"], true);
    let found = json(d, &["inspect", "mlp.onnx", "--batch", "2", "--seq", "4", "--device", "cpu", "--dot", "mlp.dot"]);
    let roles: Vec<&Value> = found["linear"].as_array().unwrap().iter().map(|l| &l["role"]).collect();
    assert_eq!(roles, [&Value::Null, &Value::from("head")]);
    assert!(found["memory"]["arenas"].as_u64().unwrap() > 0);
    assert!(std::fs::read_to_string(d.join("mlp.dot")).unwrap().starts_with("digraph"));
    let bad = json(d, &["inspect", "unsupported.onnx", "--device", "cpu"]);
    assert_eq!(bad["unsupported"][0], serde_json::json!(["TfIdfVectorizer", ["/a/TfIdf", "/b/TfIdf"]]));
    assert_eq!(json(d, &["inject", "mlp.onnx", "--dry-run"])["output"], Value::Null);
    assert_eq!(json(d, &["diff", "mlp.onnx", "mlp.onnx"])["same_graph"], true);
    assert!(!d.join("mlp.reslora.onnx").exists());
    assert!(done(d, &["completions", "bash"]).out.contains("reslora-compile"));

    // bench: every figure is there, and the kernels' shares are a whole.
    done(d, &["inject", "mlp.onnx", "-o", "bench.onnx"]);
    let args = ["bench", "bench.onnx", "--batch", "4", "--seq", "3", "--steps", "3", "--device", "cpu", "--profile"];
    let b = json(d, &args);
    assert_eq!(b["steps_ms"].as_array().unwrap().len(), 3);
    for key in ["step_ms", "tokens_per_s", "compile_s", "utilisation", "memory", "arenas", "model_gflop"] {
        assert!(b[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {b}");
    }
    let shares = b["profile"]["kernels"].as_array().unwrap().iter().map(|k| k["share"].as_f64().unwrap());
    assert!((shares.sum::<f64>() - 1.0).abs() < 1e-6);
    let trace: Value = serde_json::from_str(&std::fs::read_to_string(d.join("bench.trace.json")).unwrap()).unwrap();
    assert_eq!(trace["traceEvents"][0]["ph"], "X");
    let types = ["--precision", "mixed", "--weights", "f16", "--steps", "2"];
    let b = json(d, &[&["bench", "bench.onnx", "--batch", "4", "--device", "cpu"], &types[..]].concat());
    assert_eq!((b["precision"].as_str(), b["weights"].as_str()), (Some("mixed"), Some("f16")));
    let missing = cli(d, &["bench", "mlp.onnx", "--device", "cpu"]);
    assert!(missing.err.contains("has no adapters") && missing.code == 1, "{}", missing.err);
}
