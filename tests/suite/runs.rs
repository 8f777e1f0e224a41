//! Runs: the one that goes on is the one that began, and the one that is merged is the newest that ended well.

use crate::build::{A, perceptron, spread, tensor};
use crate::cli::{Ran, cli, done, json, metrics, perceptron_data, write_tensors};
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::train::record::{self, Record, Status};
use serde_json::Value;
use std::path::Path;

fn refused(ran: Ran, mention: &str) -> String {
    assert!(ran.code == 1 || ran.code == 2, "exit code {}\n{}{}", ran.code, ran.out, ran.err);
    assert!(ran.err.contains(mention), "does not say '{mention}'\n{}", ran.err);
    ran.err
}

/// A folder with an injected model and data for it.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 16, |i| (i % 3) as i32);
    done(d, &["inject", "mlp.onnx", "--rank", "2", "-o", "t.onnx"]);
    dir
}

fn train(d: &Path, more: &[&str]) -> Ran {
    cli(d, &[&["train", "t.onnx", "--data", "data.safetensors", "--device", "cpu"], more].concat())
}

fn rates(run: &Path) -> Vec<f64> {
    metrics(run).iter().filter_map(|l| l["lr"].as_f64()).collect()
}

#[test]
fn a_resumed_run_is_the_same_run() {
    let dir = folder();
    let d = dir.path();
    let same = ["--schedule", "constant", "--lr", "1e-3", "--batch-size", "4", "-o", "run"];
    assert_eq!(train(d, &[&same[..], &["--max-steps", "4"]].concat()).code, 0);
    let before = std::fs::read(d.join("run/adapter.safetensors")).unwrap();
    let config = std::fs::read(d.join("run/config.toml")).unwrap();
    perceptron_data(&d.join("other.safetensors"), 16, |_| 0);
    done(d, &["inject", "mlp.onnx", "--rank", "2", "--alpha", "4", "-o", "u.onnx"]);
    for (flag, value, mention) in [
        ("--lr", "5e-2", "--lr was 0.001, now it is 0.05"),
        ("--schedule", "cosine", "--schedule was constant, now it is cosine"),
        ("--batch-size", "2", "--batch-size was 4, now it is 2"),
        ("--warmup-steps", "2", "--warmup-steps was 0, now it is 2"),
        ("--weight-decay", "0.5", "--weight-decay was 0.01, now it is 0.5"),
        ("--momentum", "0.5", "--momentum"),
        ("--clip-norm", "2", "--clip-norm"),
        ("--accumulate", "2", "--accumulate"),
        ("--optimizer", "sgd", "--optimizer was adamw, now it is sgd"),
        ("--precision", "mixed", "--precision was auto, now it is mixed"),
        ("--weights", "f16", "--weights"),
        ("--seed", "3", "--seed"),
        ("--loss", "mse", "--loss"),
        ("--loss-output", "loss", "--loss-output was not given, now it is loss"),
        ("--max-length", "64", "--max-length was 512, now it is 64"),
        ("--data", "other.safetensors", "--data was data.safetensors (sha256"),
        ("--eval", "data.safetensors", "--eval was not there, now it is data.safetensors (sha256"),
    ] {
        // The model of another name and alpha is refused with whatever else differs; so is the flag alone.
        let ran = cli(d, &["train", "--resume", "-o", "run", "--device", "cpu", "--max-steps", "8", flag, value]);
        let said = refused(ran, mention);
        assert!(said.contains(&format!("--resume-with {}", &flag[2..])), "{said}");
        assert!(std::fs::read(d.join("run/adapter.safetensors")).unwrap() == before, "{flag} changed the adapter");
        assert!(std::fs::read(d.join("run/config.toml")).unwrap() == config, "{flag} changed the configuration");
    }
    refused(cli(d, &["train", "u.onnx", "--resume", "-o", "run", "--device", "cpu"]), "MODEL was t.onnx");
    refused(cli(d, &["train", "--resume", "-o", "run", "--no-shuffle"]), "--no-shuffle was false, now it is true");
    refused(cli(d, &["train", "--resume", "-o", "run", "--max-steps", "2"]), "has done 4 steps");
    refused(cli(d, &["train", "--resume", "-o", "run", "--resume-with", "rate"]), "names no flag");

    // Alone it goes on as it began, further; with a flag that is allowed, from there on otherwise.
    done(d, &["train", "--resume", "-o", "run", "--max-steps", "6"]);
    done(d, &["train", "--resume", "-o", "run", "--max-steps", "8", "--lr", "5e-3", "--resume-with", "--lr"]);
    assert_eq!(rates(&d.join("run")), [&[1e-3; 6][..], &[5e-3; 2]].concat());
    // What the rate of every step depends on may not change.
    assert_eq!(train(d, &["--max-steps", "4", "-o", "falling"]).code, 0);
    refused(cli(d, &["train", "--resume", "-o", "falling", "--max-steps", "8"]), "--max-steps was 4, now it is 8");
    done(d, &["train", "--resume", "-o", "falling", "--max-steps", "8", "--resume-with", "max-steps"]);
    assert_eq!(rates(&d.join("falling")).len(), 8);
}

#[test]
fn a_run_keeps_the_type_that_its_products_multiply_in() {
    let dir = folder();
    let d = dir.path();
    let ran =
        json(d, &["train", "t.onnx", "--data", "data.safetensors", "--device", "cpu", "--max-steps", "2", "-o", "run"]);
    assert_eq!(ran["products"], "f32");
    // As a processor with units for bf16 would have left it.
    let path = d.join("run/last/progress.json");
    let mut progress: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(progress["identity"]["precision"], "f32");
    progress["identity"]["precision"] = "bf16".into();
    std::fs::write(&path, progress.to_string()).unwrap();
    let on = ["train", "--resume", "-o", "run", "--max-steps", "4", "--resume-with", "max-steps"];
    refused(cli(d, &on), "the run multiplies in bf16, which cpu");
    done(d, &[&on[..], &["--precision", "f32", "--resume-with", "precision"]].concat());
}

#[test]
fn types_that_a_device_does_not_have_are_refused_or_said() {
    let dir = folder();
    let d = dir.path();
    let said = train(d, &["--precision", "mixed", "--max-steps", "1", "-o", "mixed"]);
    assert!(said.code == 0 && said.err.contains("no units for products of bf16"), "{}", said.err);
    let run = ["train", "t.onnx", "--data", "data.safetensors", "--weights", "bf16", "--max-steps", "1"];
    refused(cli(d, &[&run[..], &["--device", "gpu", "-o", "gpu"]].concat()), "GPUs keep frozen weights as f32 or f16");
    done(d, &[&run[..], &["--device", "cpu", "-o", "cpu"]].concat());
}

/// With a rate of zero nothing changes but what the loss counts.
#[test]
fn smoothed_labels_are_for_training_alone() {
    let dir = folder();
    let d = dir.path();
    let run = |smoothing: &str, out: &str| {
        let how = ["train", "t.onnx", "--data", "data.safetensors", "--eval", "data.safetensors", "--device", "cpu"];
        json(d, &[&how[..], &["--lr", "0", "--label-smoothing", smoothing, "-o", out]].concat())
    };
    let (plain, smooth) = (run("0", "plain"), run("0.2", "smooth"));
    assert_eq!(plain["eval_loss"], smooth["eval_loss"]);
    assert!(plain["loss"].as_f64().unwrap() != smooth["loss"].as_f64().unwrap());
    refused(train(d, &["--label-smoothing", "1", "-o", "all"]), "must be below 1");
    let numbers = ["--loss", "mse", "--label-smoothing", "0.1", "-o", "numbers"];
    let data: Vec<f32> = (0..16 * 3).map(|i| (i % 5) as f32).collect();
    let x = spread(16 * 4, 9);
    write_tensors(
        &d.join("data.safetensors"),
        &[("x", Tensor::f32([16, 4], x)), ("labels", Tensor::f32([16, 3], data))],
    );
    refused(train(d, &numbers), "--label-smoothing is for cross-entropy");
}

#[test]
fn a_run_of_an_earlier_version_goes_on() {
    let dir = folder();
    let d = dir.path();
    assert_eq!(train(d, &["--schedule", "constant", "--max-steps", "4", "-o", "run"]).code, 0);
    std::fs::remove_file(d.join("run/run.json")).unwrap();
    std::fs::remove_file(d.join("run/run.lock")).unwrap();
    refused(cli(d, &["train", "--resume", "-o", "run", "--lr", "1"]), "--lr was 0.0002, now it is 1.0");
    done(d, &["train", "--resume", "-o", "run", "--max-steps", "6"]);
    perceptron_data(&d.join("data.safetensors"), 16, |_| 0);
    refused(cli(d, &["train", "--resume", "-o", "run"]), "--data was data.safetensors (sha256");
}

#[test]
fn a_configuration_holds_settings_alone() {
    let dir = folder();
    let d = dir.path();
    assert_eq!(train(d, &["--max-steps", "2", "-o", "run"]).code, 0);
    let file = d.join("run/config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("version = 1\n"), "{text}");
    let resume = ["train", "--resume", "-o", "run", "--max-steps", "4", "--resume-with", "max-steps"];
    let again = ["train", "--config", "run/config.toml", "-o", "again"];
    for args in [&resume[..], &again] {
        std::fs::write(&file, format!("batch-sizes = 2\n{text}")).unwrap();
        let said = refused(cli(d, args), "'batch-sizes' is no setting");
        assert!(said.contains("is it 'batch-size'?"), "{said}");
        std::fs::write(&file, text.replace("version = 1", "version = 2")).unwrap();
        refused(cli(d, args), "it is of version 2");
    }
    // As the first version wrote it: without a version, and without what was not set.
    let lines = text.lines().filter(|l| !["version", "label-names", "columns"].iter().any(|k| l.starts_with(k)));
    std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    done(d, &again);
    done(d, &["merge", "t.onnx", "--adapter", "run", "-o", "m.onnx", "--device", "cpu"]);
    done(d, &resume);
}

#[test]
fn a_run_directory_is_not_taken_twice() {
    let dir = folder();
    let d = dir.path();
    assert_eq!(train(d, &["--max-steps", "2", "-o", "run"]).code, 0);
    let before = std::fs::read(d.join("run/adapter.safetensors")).unwrap();
    let said = refused(train(d, &["--max-steps", "3", "-o", "run"]), "already holds a run");
    assert!(said.contains("--resume") && said.contains("--overwrite"), "{said}");
    assert!(std::fs::read(d.join("run/adapter.safetensors")).unwrap() == before);
    // The run's own configuration names its model and data, and its directory.
    refused(cli(d, &["train", "--config", "run/config.toml"]), "already holds a run");
    let again = json(d, &["train", "--config", "run/config.toml", "-o", "again"]);
    assert_eq!((&again["run"], &again["steps"]), (&Value::from("again"), &Value::from(2)));

    let lock = record::lock(&d.join("run")).unwrap();
    refused(train(d, &["--max-steps", "3", "-o", "run", "--overwrite"]), "in use by another process");
    refused(cli(d, &["train", "--resume", "-o", "run"]), "in use by another process");
    assert!(std::fs::read(d.join("run/adapter.safetensors")).unwrap() == before);
    drop(lock);
    assert_eq!(train(d, &["--max-steps", "3", "-o", "run", "--overwrite"]).code, 0);
    assert_eq!(rates(&d.join("run")).len(), 3);
}

#[test]
fn merge_takes_the_newest_run_that_ended_well() {
    let dir = folder();
    let d = dir.path();
    let run = |out: &str| assert_eq!(train(d, &["--max-steps", "2", "-o", out]).code, 0);
    // Names and depths say nothing; a run of another base is no run of this model.
    run("runs/deep/er/first");
    run("runs/t-9");
    let mut other = perceptron();
    other.graph.initializer[1] = tensor("net.0.up.bias", &[8], &spread(8, 77));
    other.write(&d.join("base2.onnx"));
    done(d, &["inject", "base2.onnx", "--rank", "2", "-o", "t2.onnx"]);
    done(d, &["train", "t2.onnx", "--data", "data.safetensors", "--device", "cpu", "-o", "runs/t-99"]);
    let merge = ["merge", "t.onnx", "--device", "cpu", "-o", "m.onnx"];
    let taken = json(d, &merge);
    assert_eq!((&taken["adapter"], &taken["run"]["path"]), (&"runs/t-9".into(), &"runs/t-9".into()));
    let record = |path: &str| record::read(&d.join(path)).unwrap().unwrap();
    assert_eq!(taken["run"]["ended"].as_str().unwrap(), record("runs/t-9").ended.unwrap().to_string());

    // Later runs that did not end well are named and passed over.
    let write = |path: &str, status: Status, error: Option<&str>| {
        run(path);
        let mut r = record(path);
        r.end(status, error.map(String::from));
        record::write(&d.join(path), &r).unwrap();
    };
    write("runs/failed", Status::Failed, Some("the loss of step 3 is NaN\nhint: no"));
    write("runs/interrupted", Status::Interrupted, None);
    run("runs/killed");
    record::write(&d.join("runs/killed"), &Record { ended: None, status: Status::Running, ..record("runs/killed") })
        .unwrap();
    run("runs/busy");
    record::write(&d.join("runs/busy"), &Record { ended: None, status: Status::Running, ..record("runs/busy") })
        .unwrap();
    let lock = record::lock(&d.join("runs/busy")).unwrap();
    done(d, &["inject", "mlp.onnx", "--rank", "2", "--alpha", "3", "-o", "alpha.onnx"]);
    done(d, &["train", "alpha.onnx", "--data", "data.safetensors", "--device", "cpu", "-o", "runs/alpha"]);
    let ran = done(d, &merge);
    drop(lock);
    assert!(ran.err.contains("note: runs/t-9 is taken, the newest run of the model; it ended 20"), "{}", ran.err);
    for (path, why) in [
        ("failed", "it failed: the loss of step 3 is NaN"),
        ("interrupted", "it was interrupted"),
        ("killed", "it was cut short"),
        ("busy", "it is still running"),
        ("alpha", "alpha is 3 in the adapter, 16 in the model"),
    ] {
        let line = ran.err.lines().find(|l| l.starts_with(&format!("note: skipped runs/{path}: ")));
        assert!(line.is_some_and(|l| l.contains(why)), "{path}\n{}", ran.err);
    }
    assert!(!ran.err.contains("t-99") && !ran.err.contains("first"), "{}", ran.err);
    assert_eq!(json(d, &merge)["run"]["passed_over"].as_array().unwrap().len(), 5);
    // Asked for by name, such a run is merged with a word.
    let ran = done(d, &[&merge[..], &["--adapter", "runs/failed"]].concat());
    assert!(ran.err.contains("is taken as asked, though it failed"), "{}", ran.err);
    // Without a run that ended well there is none.
    for path in ["runs/deep", "runs/t-9"] {
        std::fs::remove_dir_all(d.join(path)).unwrap();
    }
    let said = refused(cli(d, &merge), "there is no run of t.onnx in runs/ that can be merged");
    assert!(said.contains("runs/failed: it failed"), "{said}");
}

#[test]
fn a_run_that_fails_says_so_and_an_evaluation_that_is_no_number_is_never_the_best() {
    let dir = folder();
    let d = dir.path();
    let mut x = spread(16, 9);
    // Finite, but the products of them are not.
    x[4..8].fill(3.4e38);
    let labels = Tensor::i32([4], vec![0, 1, 2, 0]);
    write_tensors(&d.join("dev.safetensors"), &[("x", Tensor::f32([4, 4], x)), ("labels", labels)]);
    let ran = train(d, &["--eval", "dev.safetensors", "--epochs", "2", "-o", "run"]);
    let said = refused(ran, "the loss on dev.safetensors before the first step is NaN");
    assert!(said.contains("it comes from examples 2"), "{said}");
    assert!(!d.join("run/adapter.safetensors").exists());
    let record = record::read(&d.join("run")).unwrap().unwrap();
    assert_eq!(record.status, Status::Failed);
    assert!(record.error.unwrap().contains("NaN") && record.ended.is_some());
    // Mended, the run goes on from where it was.
    perceptron_data(&d.join("dev.safetensors"), 4, |i| (i % 3) as i32);
    refused(cli(d, &["train", "--resume", "-o", "run"]), "--eval was dev.safetensors");
    let result = json(d, &["train", "--resume", "-o", "run", "--resume-with", "eval"]);
    assert_eq!(result["steps"], 4);
}

#[test]
fn outputs_never_take_the_place_of_inputs() {
    let dir = folder();
    let d = dir.path();
    let base = std::fs::read(d.join("mlp.onnx")).unwrap();
    std::fs::hard_link(d.join("mlp.onnx"), d.join("hard.onnx")).unwrap();
    let absolute = d.join("mlp.onnx").display().to_string();
    let mut same = vec!["mlp.onnx", "./mlp.onnx", &absolute, "hard.onnx"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("mlp.onnx", d.join("link.onnx")).unwrap();
        same.push("link.onnx");
    }
    for to in &same {
        refused(cli(d, &["inject", "mlp.onnx", "-o", to]), "would overwrite the model");
    }
    assert_eq!(train(d, &["--max-steps", "2", "-o", "run"]).code, 0);
    same.extend(["t.onnx", "data.safetensors", "run/adapter.safetensors"]);
    for to in &same {
        refused(cli(d, &["merge", "t.onnx", "--adapter", "run", "--device", "cpu", "-o", to]), "would overwrite the");
    }
    // A command without --overwrite does not name it.
    let ran = cli(d, &["run", "mlp.onnx", "--data", "data.safetensors", "-o", "mlp.onnx"]);
    assert!(
        ran.code == 2 && ran.err.contains("would overwrite the model") && !ran.err.contains("--overwrite"),
        "{}",
        ran.err
    );
    assert!(std::fs::read(d.join("mlp.onnx")).unwrap() == base);
    done(d, &["inject", "mlp.onnx", "-o", "mlp.onnx", "--overwrite"]);
    assert!(std::fs::read(d.join("mlp.onnx")).unwrap() != base);
}

/// An output's data file is written too, and may be the one that the input keeps its weights in.
#[test]
fn data_beside_an_input_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut net = perceptron();
    let weight = &mut net.graph.initializer[0];
    std::fs::write(d.join("out.onnx.data"), std::mem::take(&mut weight.raw_data)).unwrap();
    weight.data_location = onnx_protobuf::tensor_proto::DataLocation::EXTERNAL.into();
    let (key, value) = ("location".to_string(), "out.onnx.data".to_string());
    weight.external_data.push(onnx_protobuf::StringStringEntryProto { key, value, ..Default::default() });
    net.write(&d.join("mlp.onnx"));
    refused(cli(d, &["inject", "mlp.onnx", "-o", "out.onnx"]), "out.onnx.data, which holds weights of mlp.onnx");
    assert!(!d.join("out.onnx").exists());
    done(d, &["inject", "mlp.onnx", "-o", "fine.onnx"]);
}

#[test]
fn settings_that_cannot_mean_what_they_say_are_refused() {
    let dir = folder();
    let d = dir.path();
    for (flags, mention) in [
        (
            &["--warmup-steps", "40", "--max-steps", "10"][..],
            "--warmup-steps 40 is longer than the run, which has 10 steps",
        ),
        (&["--optimizer", "sgd", "--momentum", "1"], "--momentum 1 must be below 1"),
        (&["--max-steps", "0"], "--max-steps must be at least 1"),
        (&["--eval", "data.safetensors", "--eval-every", "0"], "--eval-every must be at least 1"),
        (&["--save-every", "0"], "--save-every must be at least 1"),
        (&["--lr", "-1e-4"], "--lr -0.0001 must be a number that is not negative"),
        (&["--lr", "nan"], "--lr NaN must be a number"),
        (&["--weight-decay", "inf"], "--weight-decay inf must be a number"),
        (&["--max-steps", "-3"], "--max-steps"),
        (&["--eval-every", "5"], "--eval-every has nothing to evaluate on"),
    ] {
        refused(train(d, &[flags, &["-o", "no"]].concat()), mention);
        assert!(!d.join("no").exists(), "{flags:?}");
    }
    let ran = train(d, &["--momentum", "0.5", "--max-steps", "1", "-o", "noted"]);
    assert!(ran.code == 0 && ran.err.contains("note: --momentum is for sgd"), "{}", ran.err);
    let ran = cli(d, &["inject", "mlp.onnx", "--target", "net.0.up,net.0.down", "-o", "no.onnx"]);
    refused(ran, "hint: for either of several, write 'net.0.up|net.0.down'");
    let ran = cli(d, &["inject", "mlp.onnx", "--exclude", "up,down", "--dry-run"]);
    assert!(ran.out.contains("--exclude 'up,down' matches no linear node"), "{}", ran.out);
    refused(cli(d, &["inject", "mlp.onnx", "--alpha", "-1", "-o", "no.onnx"]), "--alpha -1 must be a positive number");
    refused(cli(d, &["verify", "mlp.onnx", "mlp.onnx", "--tolerance", "nan"]), "--tolerance NaN");
    assert!(train(d, &["--max-steps", "1", "-o", "rate"]).err.contains("examples/s"));
}

#[test]
fn differences_of_files_are_shown_as_they_are() {
    let dir = folder();
    let d = dir.path();
    let mut net = perceptron();
    let mut up = spread(32, 1);
    (up[0], up[1]) = (f32::NAN, f32::INFINITY);
    net.graph.initializer[0] = tensor("net.0.up.weight", &[4, 8], &up);
    net.graph.doc_string = "another".into();
    net.write(&d.join("other.onnx"));
    let ran = done(d, &["diff", "mlp.onnx", "other.onnx"]);
    for said in
        ["net.0.up ", "NaN", "NaN: 0 elements, then 1; infinite: 0 elements, then 1", "doc string '', then 'another'"]
    {
        assert!(ran.out.contains(said), "{said}\n{}", ran.out);
    }
}

/// Two weights of one module and a module that bears the name the second would get.
#[test]
fn every_weight_has_a_target_of_its_own() {
    let dir = folder();
    let d = dir.path();
    let square = |name: &str, seed| tensor(name, &[4, 4], &spread(16, seed));
    crate::build::Net::new(17)
        .input("x", crate::build::F32, &["batch", "4"])
        .output("logits", crate::build::F32, &["batch", "4"])
        .initializer(square("ih", 1))
        .initializer(square("hh", 2))
        .initializer(square("own", 3))
        .node("/cell/MatMul", "MatMul", &["x", "ih"], &["a"], &[])
        .node("/cell/MatMul_1", "MatMul", &["a", "hh"], &["b"], &[])
        .node("/cell_1/Gemm", "Gemm", &["b", "own"], &["logits"], &[("transB", A::I(1))])
        .write(&d.join("cell.onnx"));
    let report = json(d, &["inject", "cell.onnx", "--rank", "2", "--target", ".", "-o", "c.onnx"]);
    let paths: Vec<&str> = report["targets"].as_array().unwrap().iter().map(|t| t["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["cell", "cell_2", "cell_1"]);
    let x = Tensor::f32([12, 4], spread(48, 9));
    let labels = Tensor::i32([12], (0..12).map(|i| i % 4).collect());
    write_tensors(&d.join("cell.safetensors"), &[("x", x), ("labels", labels)]);
    done(d, &["train", "c.onnx", "--data", "cell.safetensors", "--lr", "0.05", "--device", "cpu", "-o", "run"]);
    let merged = json(d, &["merge", "c.onnx", "--adapter", "run", "-o", "m.onnx", "--device", "cpu"]);
    assert!(merged["differences"][0]["relative"].as_f64().unwrap() < 1e-5);
    let changed = json(d, &["diff", "cell.onnx", "m.onnx"]);
    assert_eq!(changed["tensors"].as_array().unwrap().len(), 3);
}
