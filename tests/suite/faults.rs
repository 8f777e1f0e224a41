//! What goes wrong in a run costs as little of it as can be.

use crate::build::{perceptron, spread};
use crate::changed::{Change, Changed};
use crate::cli::{cli, done, json, metrics, write_tensors};
use reslora_compile::internals::adapter;
use reslora_compile::internals::device::{Cpu, DeviceError};
use reslora_compile::internals::inject::Options;
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::pipeline::{self, TrainRequest};
use reslora_compile::internals::plan::Plan;
use reslora_compile::internals::train::data::{self, Dataset};
use reslora_compile::internals::train::{Observer, Settings, schedule};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A perceptron with adapters, and rows of data of which some make its outputs overflow.
fn folder(rows: usize, bad: impl Fn(usize) -> bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    let mut x = spread(rows * 4, 9);
    (0..rows).filter(|&r| bad(r)).for_each(|r| x[r * 4..][..4].fill(3e38));
    let labels = (0..rows as i32).map(|i| i % 3).collect();
    write_tensors(
        &d.join("data.safetensors"),
        &[("x", Tensor::f32([rows, 4], x)), ("labels", Tensor::i32([rows], labels))],
    );
    done(d, &["inject", "mlp.onnx", "--rank", "2", "-o", "t.onnx"]);
    dir
}

const TRAIN: &[&str] = &[
    "train",
    "t.onnx",
    "--data",
    "data.safetensors",
    "--device",
    "cpu",
    "--no-shuffle",
    "--batch-size",
    "4",
    "--lr",
    "1e-2",
    "--schedule",
    "constant",
];

#[test]
fn a_step_without_finite_gradients_is_skipped_and_written_down() {
    // Row 7 is in the second of four batches.
    let dir = folder(16, |r| r == 6);
    let d = dir.path();
    let got = json(d, &[TRAIN, &["--epochs", "2", "-o", "run"]].concat());
    assert_eq!((&got["steps"], &got["skipped"]), (&Value::from(8), &Value::from(2)));
    assert!(got["loss"].is_f64());
    let lines = metrics(&d.join("run"));
    let skipped: Vec<u64> =
        lines.iter().filter(|l| l["skipped"] == true).map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(skipped, [2, 6]);
    assert_eq!(lines[1]["rows"], serde_json::json!([5, 6, 7, 8]));
    assert!(lines[0].get("rows").is_none() && lines[0].get("skipped").is_none());
    // Nothing changes in it: not the parameters, and not the moments that the next step reads.
    let adapter = |steps: &str, run: &str| {
        done(d, &[TRAIN, &["--max-steps", steps, "-o", run]].concat());
        adapter::read(&d.join(run)).unwrap().tensors
    };
    let (one, two) = (adapter("1", "one"), adapter("2", "two"));
    assert_eq!(one, two);
    assert!(adapter("3", "three").values().flatten().all(|x| x.is_finite()));
    let said = cli(d, &[TRAIN, &["--max-steps", "4", "-o", "said"]].concat());
    assert!(said.err.contains("step 2: skipped") && said.err.contains("(rows 5, 6, 7, 8)"), "{}", said.err);
    assert!(said.out.contains("1 step skipped, whose gradients were not finite numbers"), "{}", said.out);
}

#[test]
fn several_such_steps_in_a_row_end_the_run_with_its_state_kept() {
    let dir = folder(40, |r| (8..28).contains(&r));
    let d = dir.path();
    let ran = cli(d, &[TRAIN, &["-o", "run"]].concat());
    assert_eq!(ran.code, 1, "{}", ran.err);
    for mention in ["the 5th step in a row", "rows 25, 26, 27, 28", "the last good state is kept", "step 7 is saved"] {
        assert!(ran.err.contains(mention), "no '{mention}' in {}", ran.err);
    }
    // It goes on behind them, as a run that had never ended does.
    done(d, &["train", "--resume", "-o", "run"]);
    let steps: Vec<u64> = metrics(&d.join("run")).iter().filter_map(|l| l["step"].as_u64()).collect();
    assert_eq!(steps, (1..=10).collect::<Vec<u64>>());
    // A run of nothing else is none.
    let dir = folder(8, |_| true);
    let ran = cli(dir.path(), &[TRAIN, &["-o", "run"]].concat());
    assert!(ran.code == 1 && !ran.err.contains("is saved"), "{}\n{}", ran.code, ran.err);
}

/// Arenas of no more than so many words.
struct Small(usize);

impl Change for Small {
    fn loads(&self, plan: &Plan) -> Result<(), DeviceError> {
        let words: usize = plan.arenas.iter().sum();
        match words > self.0 {
            true => Err(DeviceError::Memory { device: "host".into(), bytes: 4 * words, what: "an arena".into() }),
            false => Ok(()),
        }
    }
}

/// What a run says.
#[derive(Default)]
struct Notes(Vec<String>);

impl Observer for Notes {
    fn note(&mut self, text: &str) {
        self.0.push(text.to_string());
    }
}

#[test]
fn batches_that_memory_does_not_hold_become_several() {
    let dir = folder(480, |_| false);
    let d = dir.path();
    let base = pipeline::read(&d.join("mlp.onnx")).unwrap();
    let (model, _) = pipeline::inject(&base, &Options::default()).unwrap();
    let model = Arc::new(model);
    let data: Dataset = data::read(&d.join("data.safetensors"), &data::Options::default()).unwrap();
    let settings =
        Settings { batch_size: 240, lr: 1e-2, schedule: schedule::find("constant").unwrap(), ..Settings::default() };
    let run = |words: usize, name: &str| {
        let dir = d.join(name);
        let request = TrainRequest::new(&model, &data, &settings, Path::new(&dir));
        let mut notes = Notes::default();
        let outcome = pipeline::train(&request, &mut Changed(Cpu::new(None), Small(words)), &mut notes);
        (outcome, notes.0.join("\n"))
    };
    let (whole, said) = run(usize::MAX, "whole");
    assert!(!said.contains("micro-batches"), "{said}");
    let whole = whole.unwrap();
    // The least memory with which it can be done at all.
    let least = (1..).map(|n| n * 16).find(|&n| run(n, "least").0.is_ok()).unwrap();
    let (parts, said) = run(least, "parts");
    assert!(said.contains("which gives the same steps"), "{said}");
    let parts = parts.unwrap();
    assert_eq!(parts.steps, whole.steps);
    for (a, b) in parts.losses.iter().zip(&whole.losses) {
        assert!((a - b).abs() < 1e-6 * b.abs(), "{a} {b}");
    }
    let error = run(16, "none").0.unwrap_err().to_string();
    assert!(error.contains("has no memory for"), "{error}");
}

#[test]
fn a_disk_that_is_full_is_said_with_what_is_kept() {
    if !cfg!(target_os = "linux") {
        eprintln!("NOT RUN: it takes the shell of Linux");
        return;
    }
    let dir = folder(16, |_| false);
    let d = dir.path();
    done(d, &[TRAIN, &["--max-steps", "2", "-o", "run"]].concat());
    // Files may grow to 8 KiB from here on.
    let program = env!("CARGO_BIN_EXE_reslora-compile");
    let script = format!("trap '' XFSZ; ulimit -f 16; exec {program} train --resume -o run --max-steps 400");
    let ran = std::process::Command::new("sh").current_dir(d).args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    for mention in ["cannot write run", "free some space", "step 2 is saved"] {
        assert!(said.contains(mention), "no '{mention}' in {said}");
    }
    done(d, &["train", "--resume", "-o", "run", "--max-steps", "4"]);
    // A data file that has vanished.
    std::fs::rename(d.join("data.safetensors"), d.join("moved.safetensors")).unwrap();
    let ran = cli(d, &["train", "--resume", "-o", "run", "--max-steps", "6"]);
    assert!(ran.code == 1 && ran.err.contains("data.safetensors"), "{}\n{}", ran.code, ran.err);
}

#[cfg(unix)]
#[test]
fn a_run_that_is_told_to_end_saves_first() {
    let dir = folder(64, |_| false);
    let d = dir.path();
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_reslora-compile"))
        .current_dir(d)
        .args([TRAIN, &["--max-steps", "2000000", "-o", "run"]].concat())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while std::fs::metadata(d.join("run/metrics.jsonl")).map_or(0, |m| m.len()) < 1000 {
        assert!(run.try_wait().unwrap().is_none(), "it ended before it was told to");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // SIGTERM, as service managers send it.
    let told = std::process::Command::new("kill").arg(run.id().to_string()).status().unwrap();
    assert!(told.success());
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let record: Value = serde_json::from_slice(&std::fs::read(d.join("run/run.json")).unwrap()).unwrap();
    assert_eq!(record["status"], "interrupted");
    assert!(adapter::read(&d.join("run")).is_ok());
}
