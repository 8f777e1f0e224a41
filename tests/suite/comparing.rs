//! `compare` and `report`.

use crate::build::perceptron;
use crate::cli::{cli, done, json, perceptron_data};
use serde_json::Value;
use std::path::Path;

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 32, |i| (i % 3) as i32);
    perceptron_data(&d.join("eval.safetensors"), 12, |i| (i % 3) as i32);
    dir
}

/// The numbers that a page holds.
fn numbers(page: &Path) -> Value {
    let html = std::fs::read_to_string(page).unwrap();
    let start = html.find("id=\"numbers\">").unwrap() + "id=\"numbers\">".len();
    let end = start + html[start..].find("</script>").unwrap();
    serde_json::from_str(&html[start..end]).unwrap()
}

#[test]
fn structures_are_compared_from_several_seeds() {
    let dir = folder();
    let d = dir.path();
    let args = ["compare", "mlp.onnx", "--data", "data.safetensors", "--eval", "eval.safetensors", "--structures"];
    let more =
        ["lora,bs,lora", "--alphas", "8,16", "--seeds", "2", "--max-steps", "6", "--eval-every", "2", "--rank", "2"];
    let how = ["--lr", "1e-2", "--device", "cpu", "-o", "c"];
    let got = json(d, &[&args[..], &more, &how].concat());
    let rows = got["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["lora alpha 8", "lora alpha 16", "block-shortcut"]);
    let trials = got["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 6);
    // Every mean is that of the runs' own records.
    for (v, row) in rows.iter().enumerate() {
        let ends: Vec<f64> = trials
            .iter()
            .filter(|t| t["variant"] == v)
            .map(|t| {
                let run = d.join(t["run"].as_str().unwrap());
                let lines = crate::cli::metrics(&run);
                lines.iter().filter_map(|l| l["eval_loss"].as_f64()).next_back().unwrap()
            })
            .collect();
        assert_eq!(ends.len(), 2);
        let mean = (ends[0] + ends[1]) / 2.0;
        assert!((row["loss"]["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
        assert!(row["loss"]["half"].as_f64().unwrap() >= 0.0);
    }
    // The best control has the target, and no difference from itself.
    let best = rows[..2]
        .iter()
        .min_by(|a, b| a["loss"]["mean"].as_f64().unwrap().total_cmp(&b["loss"]["mean"].as_f64().unwrap()))
        .unwrap();
    assert_eq!(got["target_of"], best["name"]);
    assert!(best.get("difference").is_none() && rows[2].get("difference").is_some());
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(d.join("c/compare.json")).unwrap()).unwrap(), got);
    let page = numbers(&d.join("c/report.html"));
    assert_eq!(page["runs"].as_array().unwrap().len(), 6);
    assert_eq!(page["comparison"]["rows"], got["rows"]);
    // The same seeds give the same losses.
    let again = json(d, &[&args[..], &more, &how[..5], &["d"]].concat());
    assert_eq!(again["rows"][2]["loss"], got["rows"][2]["loss"]);
}

#[test]
fn a_comparison_that_cannot_be_is_refused() {
    let dir = folder();
    let d = dir.path();
    let start = ["compare", "mlp.onnx", "--data", "data.safetensors", "-o", "c", "--device", "cpu"];
    for (more, mention) in [
        (
            &["--eval", "eval.safetensors", "--structures", "lora,none-such"][..],
            "--structures 'none-such' is not known",
        ),
        (&["--eval", "eval.safetensors", "--seeds", "0"], "--seeds 0 runs nothing"),
        (&["--eval", "eval.safetensors", "--alphas", "0"], "--alphas takes numbers above 0"),
        (&[], "--eval"),
    ] {
        let ran = cli(d, &[&start[..], more].concat());
        assert!(ran.code == 2 && ran.err.contains(mention), "{more:?}: {}\n{}", ran.code, ran.err);
    }
    assert!(!d.join("c").exists());
}

#[test]
fn a_page_holds_what_its_runs_recorded() {
    let dir = folder();
    let d = dir.path();
    done(d, &["inject", "mlp.onnx", "--rank", "2", "-o", "t.onnx"]);
    for run in ["a", "b<i>"] {
        let train = ["train", "t.onnx", "--data", "data.safetensors", "--eval", "eval.safetensors", "--max-steps", "5"];
        done(d, &[&train[..], &["--device", "cpu", "-o", run]].concat());
    }
    let own = numbers(&d.join("a/report.html"));
    assert!(own["title"].as_str().unwrap().starts_with("t · a"), "{}", own["title"]);
    let run = &own["runs"][0];
    assert_eq!(run["steps"].as_array().unwrap().len(), 5);
    assert_eq!(run["structure"], "block-shortcut");
    assert_eq!(run["unit"], "examples");
    // B starts at zero, so what it has become is what has been added to it.
    let trace = run["trace"].as_array().unwrap();
    assert_eq!(trace.len(), 5);
    let moved = |i: usize| trace[i]["moved"].as_object().unwrap().values().map(|x| x.as_f64().unwrap()).sum::<f64>();
    assert!(moved(0) > 0.0 && moved(4) > moved(0), "{} {}", moved(0), moved(4));
    assert!(trace[4]["memory"].as_u64().unwrap() > 1 << 20);
    assert_eq!(trace[0]["moved"].as_object().unwrap().len(), run["chains"].as_array().unwrap().len());
    assert!(run["merge"].is_null());
    done(d, &["merge", "t.onnx", "--adapter", "a", "-o", "m.onnx", "--force", "--device", "cpu"]);
    assert!(numbers(&d.join("a/report.html"))["runs"][0]["merge"]["layers"].is_array());
    // Several runs, one of a name that is HTML.
    done(d, &["report", "a", "b<i>", "-o", "both.html"]);
    let both = numbers(&d.join("both.html"));
    assert_eq!(both["runs"][1]["name"], "b<i>");
    assert!(!std::fs::read_to_string(d.join("both.html")).unwrap().contains("<i>"));
    for (args, mention) in [(&["report", "a", "b<i>"][..], "-o FILE.html"), (&["report", "."], "holds no run")] {
        let ran = cli(d, args);
        assert!(ran.code == 2 && ran.err.contains(mention), "{}\n{}", ran.code, ran.err);
    }
}

#[test]
fn a_search_prints_what_to_run() {
    let dir = folder();
    let d = dir.path();
    let args = [
        "tune",
        "mlp.onnx",
        "--data",
        "data.safetensors",
        "--eval",
        "eval.safetensors",
        "--max-steps",
        "45",
        "--budget",
        "30s",
    ];
    let space =
        ["--structures", "lora,ia3", "--ranks", "1,2", "--alphas", "8", "--rates", "1e-6,1e-2,1e30", "--device", "cpu"];
    let got = json(d, &[&args[..], &space].concat());
    let attempts = got["attempts"].as_array().unwrap();
    // Every combination once (ia3 has no rank and no alpha), a third of them for three times as long, and so on.
    let of = |round: u64| attempts.iter().filter(|a| a["round"] == round).collect::<Vec<_>>();
    assert_eq!([of(1).len(), of(2).len(), of(3).len()], [9, 3, 1], "{attempts:?}");
    assert_eq!([&of(1)[0]["steps"], &of(2)[0]["steps"], &of(3)[0]["steps"]], [5, 15, 45]);
    // A rate at which training breaks down is no candidate.
    assert!(of(2).iter().all(|a| a["lr"].as_f64() != Some(1e30)), "{attempts:?}");
    assert_eq!(got["best"]["loss"], of(3)[0]["loss"]);
    assert_eq!(got["best"]["lr"], 1e-2);
    // What it prints gives what it found.
    for command in got["commands"].as_array().unwrap() {
        let words: Vec<&str> = command.as_str().unwrap().split(' ').collect();
        assert_eq!(words[0], "reslora-compile");
        done(d, &[&words[1..], if words[1] == "train" { &["-o", "run"] } else { &[] }].concat());
    }
    let last = crate::cli::metrics(&d.join("run")).iter().filter_map(|l| l["eval_loss"].as_f64()).next_back().unwrap();
    assert!((last - got["best"]["loss"].as_f64().unwrap()).abs() < 1e-6 * last, "{last} {}", got["best"]);
    // With next to no time, the first candidate that gives a loss is all.
    let short = json(d, &[&args[..8], &["--budget", "1ms"], &space].concat());
    let losses: Vec<bool> = short["attempts"].as_array().unwrap().iter().map(|a| a["loss"].is_f64()).collect();
    assert_eq!(losses.iter().filter(|l| **l).count(), 1, "{short}");
}

#[test]
fn a_rehearsal_says_what_a_run_takes() {
    let dir = folder();
    let d = dir.path();
    done(d, &["inject", "mlp.onnx", "--rank", "2", "-o", "t.onnx"]);
    let train = [
        "train",
        "t.onnx",
        "--data",
        "data.safetensors",
        "--eval",
        "eval.safetensors",
        "--epochs",
        "10",
        "--batch-size",
        "8",
    ];
    let got = json(d, &[&train[..], &["--device", "cpu", "--dry-run", "-o", "run"]].concat());
    assert_eq!(
        (&got["steps"], &got["shapes"], &got["evaluations"]),
        (&Value::from(40), &Value::from(1), &Value::from(11))
    );
    assert!(got["parameters"].as_u64().unwrap() > 0 && got["seconds"].as_f64().unwrap() > 0.0);
    assert!(!d.join("run").exists());
}

#[test]
fn a_run_can_be_followed_as_json() {
    let dir = folder();
    let d = dir.path();
    done(d, &["inject", "mlp.onnx", "--rank", "2", "-o", "t.onnx"]);
    let train = ["train", "t.onnx", "--data", "data.safetensors", "--eval", "eval.safetensors", "--max-steps", "4"];
    let ran = done(d, &[&train[..], &["--device", "cpu", "--log-format", "json", "-o", "run"]].concat());
    let events: Vec<Value> = ran.err.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let of = |name: &str| events.iter().filter(|e| e["event"] == name).cloned().collect::<Vec<Value>>();
    assert_eq!(of("started")[0]["steps"], 4);
    assert_eq!(of("step").len(), 4);
    assert!(of("evaluation").last().unwrap()["best"].is_boolean());
    assert!(of("note").iter().any(|n| n["text"].as_str().unwrap().contains("the loss is")));
}
