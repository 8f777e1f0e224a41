//! The same rows in every format of tables: each gives the tokens and labels of its lines of JSON, and says what is wrong with it.

use crate::build::{A, F32, I64, Net, spread, tensor};
use crate::cli::{cli, done, json, metrics};
use crate::tokens::{Folder, base};
use reslora_compile::internals::train::data::{self, Column, Dataset, Options, Source, Task, TextExample};
use serde_json::json;
use std::path::{Path, PathBuf};

fn at(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/inputs/tables").join(name)
}

const STARS: [(&str, &str); 2] = [("text", "review"), ("label", "stars")];

/// Reads fixtures with the tokenizer of a folder.
fn read(folder: &Folder, names: &[&str], set: impl FnOnce(&mut Options)) -> Result<Dataset, String> {
    let mut options = Options { tokenizer: Some(folder.path("tokenizer.json")), ..Options::default() };
    set(&mut options);
    let given: Vec<PathBuf> = names.iter().map(|name| at(name)).collect();
    let root = at("").display().to_string();
    data::read_all(&given, &options).map_err(|e| e.to_string().replace(&root, ""))
}

fn columns(pairs: &[(&str, &str)]) -> impl FnOnce(&mut Options) {
    let pairs: Vec<(String, String)> = pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    move |options| options.columns = pairs
}

fn examples(data: &Dataset) -> Vec<TextExample> {
    match &data.source {
        Source::Text { examples, .. } => examples.iter().map(|e| e.unwrap().into_owned()).collect(),
        Source::Tensors { .. } => panic!("text"),
    }
}

#[test]
fn every_format_gives_the_examples_of_its_lines_of_json() {
    let folder = Folder::chat();
    // A column that only the model's adapter reads comes along.
    let set = |options: &mut Options| {
        columns(&STARS)(options);
        options.inputs = vec![Column { name: "id".into(), integer: true, range: Some((1.0, 5.0)) }];
    };
    let want = read(&folder, &["stars.jsonl"], set).unwrap();
    assert_eq!((want.len(), want.task()), (4, Task::Classify));
    assert_eq!(examples(&want).iter().map(|e| &e.numbers[..]).collect::<Vec<_>>(), [[1.0], [2.0], [3.0], [5.0]]);
    assert_eq!(want.integers("id"), Some((1, 5)));
    let files: &[&[&str]] = &[
        &["stars.json"],
        &["wrapped.json"],
        &["stars.csv"],
        &["stars.tsv"],
        &["stars.jsonl.gz"],
        &["stars.csv.zst"],
        &["packed.tsv"],
        &["snappy.parquet"],
        &["zstd.parquet"],
        &["gzip.parquet"],
        &["lz4.parquet"],
        &["none.parquet"],
        &["types.parquet"],
        &["snappy.parquet.gz"],
        &["named.parquet"],
        &["stars.feather"],
        &["stream.arrow"],
        &["saved"],
        &["one-split"],
        &["splits/train"],
        &["part-1.jsonl", "part-2.jsonl"],
        &["part-*.jsonl"],
        &["part-[12].jsonl"],
    ];
    for names in files {
        let got = read(&folder, names, set).unwrap_or_else(|e| panic!("{names:?}: {e}"));
        assert_eq!(examples(&got), examples(&want), "{names:?}");
        assert_eq!(got.label_kind(), want.label_kind(), "{names:?}");
    }
    // One file has the digest that it always had; several have one of their own.
    let digest = |names: &[&str]| read(&folder, names, columns(&STARS)).unwrap().digest;
    assert_eq!(digest(&["part-*.jsonl"]), digest(&["part-1.jsonl", "part-2.jsonl"]));
    assert_ne!(digest(&["part-2.jsonl", "part-1.jsonl"]), digest(&["part-1.jsonl", "part-2.jsonl"]));
}

#[test]
fn every_type_of_column_is_read_as_json_has_it() {
    let folder = Folder::chat();
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}";
    folder.write("tokenizer_config.json", json!({"eos_token": "</s>", "chat_template": template}).to_string());
    for name in ["many", "floats", "truth", "chat"] {
        let [want, got] = ["jsonl", "parquet"].map(|kind| {
            let name = format!("{name}.{kind}");
            read(&folder, &[&name], |_| ()).unwrap_or_else(|e| panic!("{name}: {e}"))
        });
        assert_eq!(examples(&got), examples(&want), "{name}");
        assert_eq!(got.label_kind(), want.label_kind(), "{name}");
        assert_eq!(got.task(), if name == "chat" { Task::LanguageModel } else { Task::Classify });
    }
}

#[test]
fn classes_of_a_saved_data_set_are_the_models_by_name() {
    let folder = Folder::chat();
    let labels = |names: &str, file: &str| {
        let names: Vec<String> = names.split(',').filter(|n| !n.is_empty()).map(String::from).collect();
        let data = read(&folder, &[file], |options| {
            columns(&STARS)(options);
            options.label_names = names;
        })?;
        let all = examples(&data).iter().map(|e| e.label.as_ref().and_then(|l| l.class()).unwrap()).collect();
        Ok::<(Vec<i32>, Vec<String>), String>((all, data.notes))
    };
    for file in ["saved", "named.parquet"] {
        assert_eq!(labels("", file).unwrap().0, vec![1, 0, 2, 1]);
        assert_eq!(labels("Bad,Fair,Good", file).unwrap().0, [1, 0, 2, 1]);
        assert_eq!(labels("LABEL_0,LABEL_1,LABEL_2", file).unwrap().0, [1, 0, 2, 1]);
        let (other, notes) = labels("good,fair,bad", file).unwrap();
        assert_eq!(other, [1, 2, 0, 1]);
        assert!(notes[0].contains("its classes are bad, fair, good, the model's good, fair, bad"), "{notes:?}");
        let error = labels("a,b,c", file).unwrap_err();
        assert!(
            error.contains("order bad, fair, good, and the model's are a, b, c\nhint: --label-names bad,fair,good")
        );
    }
}

#[test]
fn what_cannot_be_read_says_where_and_why() {
    let folder = Folder::chat();
    let check = |names: &[&str], says: &[&str]| {
        let error = read(&folder, names, |_| ()).map(|_| "no error".to_string()).unwrap_or_else(|e| e);
        says.iter().for_each(|s| assert!(error.contains(s), "{names:?} says '{error}', not '{s}'"));
        assert!(error.contains("hint:"), "{names:?}: {error}");
    };
    check(&["nan.parquet"], &["nan.parquet row 2: column 'label' holds NaN"]);
    check(&["time.parquet"], &["time.parquet row 1: column 'label' is of type Timestamp", "save it as text, numbers"]);
    check(
        &["others.parquet"],
        &["others.parquet row 1", "'sentence', 'target'", "--columns text=sentence,label=target"],
    );
    check(&["cut.parquet"], &["cut.parquet: it is no Parquet file, or a damaged one"]);
    check(&["brotli.parquet"], &["brotli.parquet: it is no Parquet file, or a damaged one", "brotli"]);
    check(&["cut.jsonl.gz"], &["cut.jsonl.gz: it cannot be unpacked", "download the file again"]);
    check(&["splits"], &["it holds the splits train, test", "hint: give one:", "splits/train"]);
    check(&["no-*.jsonl"], &["no file fits this pattern"]);
    check(&["."], &["it is a folder", "*."]);
    check(&["stars.jsonl", "../arrays/stored.npz"], &["some of these files hold text and some tensors"]);
    let error = read(&folder, &["snappy.parquet"], columns(&[("text", "body")])).unwrap_err();
    assert!(
        error.contains("no row has a column 'body' (--columns); its columns are 'id', 'review', 'stars'"),
        "{error}"
    );
}

#[test]
fn unreadable_rows_are_skipped_as_far_as_that_is_allowed() {
    let folder = Folder::chat();
    let skip = |name: &str, most: usize| read(&folder, &[name], |options| options.skip_bad_rows = most);
    let data = skip("bad.jsonl", 3).unwrap();
    assert_eq!(data.len(), 3);
    let [note] = &data.notes[..] else { panic!("{:?}", data.notes) };
    for says in ["skipped 3 unreadable rows", "line 2: expected", "line 4: there is no 'text'", "line 5: label \"x\""] {
        assert!(note.contains(says), "{note}");
    }
    let error = skip("bad.jsonl", 2).unwrap_err();
    assert!(
        error.contains("bad.jsonl line 5: label \"x\"") && error.contains("more than 2 rows (--skip-bad-rows)"),
        "{error}"
    );
    assert!(skip("bad.jsonl", 0).unwrap_err().starts_with("bad.jsonl line 2: expected"));
    assert_eq!(skip("bad.csv", 1).unwrap().len(), 2);
    assert_eq!(skip("nan.parquet", 1).unwrap().len(), 2);
}

#[test]
fn tensors_in_several_files_are_one_data_set() {
    let folder = |name: &str| at("../arrays").join(name);
    let read = |names: &[&str]| {
        let given: Vec<PathBuf> = names.iter().map(|n| folder(n)).collect();
        data::read_all(&given, &Options::default()).map_err(|e| e.to_string())
    };
    let data = read(&["stored.npz", "u16.safetensors"]).unwrap();
    assert_eq!(data.len(), 6);
    assert_eq!(data.tensor("labels").unwrap().as_i32().unwrap(), [0, 2, 1, 0, 2, 1]);
    let error = read(&["stored.npz", "integers.npz"]).unwrap_err();
    assert!(
        error.contains("integers.npz: 'x' is i32[3,4] in it, and f32[3,4] in") && error.contains("hint:"),
        "{error}"
    );
}

/// A model, injected, with a tokenizer and a data set of numbered texts in two classes.
fn classifier() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    Net::new(13)
        .input("input_ids", I64, &["batch", "sequence"])
        .initializer(tensor("table", &[1024, 4], &spread(1024 * 4, 3)))
        .initializer(tensor("w", &[4, 2], &spread(8, 5)))
        .node("/embed/Gather", "Gather", &["table", "input_ids"], &["e"], &[])
        .node("/pool/ReduceMean", "ReduceMean", &["e"], &["p"], &[("axes", A::Is(vec![1])), ("keepdims", A::I(0))])
        .node("/head/MatMul", "MatMul", &["p", "w"], &["logits"], &[])
        .output("logits", F32, &["batch", "2"])
        .write(&d.join("m.onnx"));
    std::fs::write(d.join("tokenizer.json"), base().to_string()).unwrap();
    let row = |i: usize| json!({"text": format!("text {i} {}", "more ".repeat(i % 5)), "label": i % 2}).to_string();
    std::fs::write(d.join("rows.jsonl"), (0..40).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    done(d, &["inject", "m.onnx", "--rank", "2", "-o", "t.onnx"]);
    dir
}

fn train(d: &Path, run: &str, more: &[&str]) {
    let how = ["train", "t.onnx", "--data", "rows.jsonl", "--device", "cpu", "--batch-size", "4", "-o", run];
    done(d, &[&how[..], more].concat());
}

fn losses(d: &Path, run: &str) -> Vec<(f64, f64)> {
    let both = |l: &serde_json::Value| (l["loss"].as_f64().unwrap_or(0.0), l["eval_loss"].as_f64().unwrap_or(0.0));
    metrics(&d.join(run)).iter().map(both).collect()
}

#[test]
fn a_share_of_the_rows_is_held_back() {
    let dir = classifier();
    let d = dir.path();
    train(d, "split", &["--eval-split", "0.26", "--seed", "3"]);
    // 11 of 40 rows, so 29 to train on: 8 steps, with an evaluation before and after them.
    assert_eq!(losses(d, "split").len(), 10);
    let config = std::fs::read_to_string(d.join("split/config.toml")).unwrap();
    assert!(config.contains("eval-split = 0.26"), "{config}");
    // The same rows as two files give the same run.
    let options = Options { tokenizer: Some(d.join("tokenizer.json")), ..Options::default() };
    let all = data::read(&d.join("rows.jsonl"), &options).unwrap();
    let (kept, held) = all.split(0.26, 3).unwrap();
    assert_eq!((kept.len(), held.len()), (29, 11));
    assert_eq!(examples(&all.split(0.26, 3).unwrap().1), examples(&held));
    assert_ne!(examples(&all.split(0.26, 4).unwrap().1), examples(&held));
    let lines = std::fs::read_to_string(d.join("rows.jsonl")).unwrap();
    let whole = examples(&all);
    for (name, part) in [("kept.jsonl", &kept), ("held.jsonl", &held)] {
        let part = examples(part);
        let chosen = lines.lines().zip(&whole).filter(|(_, e)| part.contains(e)).map(|(l, _)| l);
        std::fs::write(d.join(name), chosen.collect::<Vec<_>>().join("\n")).unwrap();
    }
    let how = ["--device", "cpu", "--batch-size", "4", "--seed", "3", "-o", "files"];
    done(d, &[&["train", "t.onnx", "--data", "kept.jsonl", "--eval", "held.jsonl"], &how[..]].concat());
    assert_eq!(losses(d, "files"), losses(d, "split"));
    for (more, says) in [
        (&["--eval-split", "0.2", "--eval", "rows.jsonl"][..], "both say what to evaluate on"),
        (&["--eval-split", "1.5"], "must lie between 0 and 1"),
        (&["--eval-split", "0.99"], "leaves nothing to train on"),
    ] {
        let ran = cli(d, &[&["train", "t.onnx", "--data", "rows.jsonl", "-o", "none"], more].concat());
        assert!(ran.code != 0 && ran.err.contains(says) && ran.err.contains("hint:"), "{more:?}: {}", ran.err);
    }
    let ran = cli(d, &["train", "--resume", "-o", "split", "--eval-split", "0.3"]);
    assert!(ran.code == 2 && ran.err.contains("--eval-split was 0.26, now it is 0.3"), "{}", ran.err);
    // Tensors are split as texts are.
    let tensors = data::read(&at("../arrays/stored.npz"), &Options::default()).unwrap();
    let (kept, held) = tensors.split(0.3, 0).unwrap();
    let labels = |d: &Dataset| d.tensor("labels").unwrap().as_i32().unwrap().to_vec();
    let mut both = [labels(&kept), labels(&held)].concat();
    both.sort();
    assert_eq!((both, held.len()), (vec![0, 1, 2], 1));
}

/// Tokens in a temporary file train as tokens in memory do, and a run that was interrupted there goes on as one.
#[test]
fn tokens_on_disk_give_the_numbers_of_tokens_in_memory() {
    let dir = classifier();
    let d = dir.path();
    let spilled = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_reslora-compile"))
            .current_dir(d)
            .env("RESLORA_SPILL_MIB", "0")
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let how =
        ["train", "t.onnx", "--data", "rows.jsonl", "--device", "cpu", "--batch-size", "4", "--eval-split", "0.2"];
    let steps = ["--schedule", "constant", "--max-steps", "20"];
    done(d, &[&how[..], &steps, &["-o", "memory"]].concat());
    spilled(&[&how[..], &steps, &["-o", "disk"]].concat());
    spilled(&[&how[..], &["--schedule", "constant", "--max-steps", "9", "-o", "resumed"]].concat());
    spilled(&["train", "--resume", "-o", "resumed", "--max-steps", "20"]);
    let adapter = |run: &str| {
        std::fs::read(d.join(run).join("last/adapter.safetensors"))
            .or_else(|_| std::fs::read(d.join(run).join("adapter.safetensors")))
            .unwrap()
    };
    for run in ["disk", "resumed"] {
        let steps = |run: &str| losses(d, run).into_iter().filter(|l| l.0 != 0.0).collect::<Vec<_>>();
        assert_eq!(steps(run), steps("memory"), "{run}");
        assert!(adapter(run) == adapter("memory"), "{run}");
    }
}

#[test]
fn data_shows_what_the_model_will_see() {
    let dir = classifier();
    let d = dir.path();
    std::fs::write(d.join("config.json"), json!({"id2label": {"0": "even", "1": "odd"}}).to_string()).unwrap();
    let shown = json(d, &["data", "m.onnx", "--data", "rows.jsonl", "-n", "2"]);
    assert_eq!((shown["examples"].as_u64(), shown["task"].as_str()), (Some(40), Some("classification")));
    let [_, second] = &shown["first"].as_array().unwrap()[..] else { panic!("{shown}") };
    assert_eq!((&second["label"], &second["label_name"]), (&json!(1), &json!("odd")));
    let pieces: Vec<&str> = second["pieces"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!(pieces.concat(), "text 1 more ");
    assert_eq!(
        shown["classes"],
        json!([{"class": 0, "name": "even", "examples": 20}, {"class": 1, "name": "odd", "examples": 20}])
    );
    let total: u64 =
        shown["lengths"]["histogram"].as_array().unwrap().iter().map(|b| b["examples"].as_u64().unwrap()).sum();
    assert_eq!(total, 40);

    std::fs::write(d.join("asked.jsonl"), json!({"prompt": "the sky is", "completion": " blue"}).to_string()).unwrap();
    let ran = done(d, &["data", "m.onnx", "--data", "asked.jsonl"]);
    let (given, learnt) = ran.out.split_once('«').expect("learnt tokens are marked");
    assert!(given.contains("th|e") && learnt.contains("»") && !ran.out.contains('\u{1b}'), "{}", ran.out);
    let shown = json(d, &["data", "m.onnx", "--data", "asked.jsonl"]);
    let first = &shown["first"][0];
    let learnt: Vec<&str> = first["pieces"]
        .as_array()
        .unwrap()
        .iter()
        .zip(first["learnt"].as_array().unwrap())
        .filter(|(_, l)| l.as_bool() == Some(true))
        .map(|(p, _)| p.as_str().unwrap())
        .collect();
    assert_eq!(learnt.concat(), " blue</s>");
}
