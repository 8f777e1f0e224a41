//! Sentence embeddings: pooling, and losses of pairs and triplets, against what sentence-transformers computes.

use crate::build::{F32, I64, Net, ints, tensor};
use crate::cli::{cli, done, json};
use reslora_compile::internals::adapter;
use reslora_compile::internals::device::Cpu;
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::onnx::{self, Model};
use reslora_compile::internals::pipeline;
use reslora_compile::internals::settings::DataConfig;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/embeddings");

/// A folder with the fixture's files, without the one that says how it pools.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in
        ["model.onnx", "tokenizer.json", "tokenizer_config.json", "pairs.jsonl", "negatives.jsonl", "scored.jsonl"]
    {
        std::fs::copy(Path::new(FOLDER).join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(Path::new(FOLDER).join("expected.json")).unwrap()).unwrap()
}

fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        v => vec![v.as_f64().unwrap()],
    }
}

fn devices() -> Vec<&'static str> {
    if crate::gpu::available() { vec!["cpu", "gpu"] } else { vec!["cpu"] }
}

fn close(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() < tolerance * want.abs().max(1.0), "{what}: {got}, not {want}");
}

/// A model's embedding for the texts of a file.
fn embedded(model: &Arc<Model>, file: &Path) -> Vec<f32> {
    let data = pipeline::read_data(&DataConfig::default(), &[file.to_path_buf()], model).unwrap();
    let all: Vec<usize> = (0..data.len()).collect();
    let batch = data.batch(&crate::cli::feed(model), &all).unwrap();
    let ran = pipeline::run(model, None, batch.inputs.into_iter().collect(), &mut Cpu::new(None)).unwrap();
    let out = ran.into_iter().find(|o| o.name == "sentence_embedding").expect("the new output");
    out.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn pooled_texts_are_those_of_sentence_transformers() {
    let dir = folder();
    let d = dir.path();
    for (ours, theirs) in [("mean", "mean"), ("cls", "cls"), ("last", "lasttoken")] {
        done(d, &["inject", "model.onnx", "--pool", ours, "-o", "pooled.onnx", "--overwrite"]);
        let model = pipeline::read(&d.join("pooled.onnx")).unwrap();
        let output = model.outputs().into_iter().find(|o| o.name == "sentence_embedding").unwrap();
        assert_eq!(output.dims.unwrap().last(), Some(&onnx::Dim::Fixed(32)), "{ours}");
        let got = embedded(&model, &d.join("pairs.jsonl"));
        // The anchors are the first half.
        for (i, want) in numbers(&expected()["embeddings"][theirs]).into_iter().enumerate() {
            close(ours, f64::from(got[i]), want, 2e-5);
        }
    }
}

/// Hidden states that are an input, and a mask.
fn bare() -> Net {
    Net::new(17)
        .input("hidden", F32, &["batch", "sequence", "4"])
        .input("attention_mask", I64, &["batch", "sequence"])
        .output("last_hidden_state", F32, &["batch", "sequence", "4"])
        .initializer(tensor("w", &[4, 4], &[1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1.]))
        .node("/attn/query/MatMul", "MatMul", &["hidden", "w"], &["last_hidden_state"], &[])
}

#[test]
fn pooling_honours_the_mask_on_either_side() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    bare().write(&d.join("bare.onnx"));
    let hidden: Vec<f32> = (0..4 * 4 * 4).map(|i| (i * i % 23) as f32).collect();
    let mask = vec![1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1];
    for pool in ["mean", "cls", "last"] {
        done(d, &["inject", "bare.onnx", "--pool", pool, "-o", "pooled.onnx", "--overwrite"]);
        let model = pipeline::read(&d.join("pooled.onnx")).unwrap();
        let given = BTreeMap::from([
            ("hidden".to_string(), Tensor::f32([4, 4, 4], hidden.clone())),
            ("attention_mask".to_string(), Tensor::i32([4, 4], mask.clone())),
        ]);
        let ran = pipeline::run(&model, None, given, &mut Cpu::new(None)).unwrap();
        let out = ran.iter().find(|o| o.name == "sentence_embedding").unwrap();
        let got: Vec<f32> = out.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        for row in 0..4 {
            let kept: Vec<usize> = (0..4).filter(|t| mask[row * 4 + t] == 1).collect();
            for h in 0..4 {
                let at = |t: usize| hidden[(row * 4 + t) * 4 + h];
                let want = match pool {
                    "mean" => kept.iter().map(|t| at(*t)).sum::<f32>() / kept.len() as f32,
                    "cls" => at(0),
                    _ => at(*kept.last().unwrap()),
                };
                close(pool, f64::from(got[row * 4 + h]), f64::from(want), 1e-6);
            }
        }
        // An independent engine computes the same.
        let verified = json(d, &["verify", "pooled.onnx", "pooled.onnx"]);
        assert!(verified.to_string().contains("sentence_embedding"), "{verified}");
    }
}

/// A weight's gradient from one step of plain gradient descent at rate 1, `[out, in]`.
fn gradient(model: &Model, adapter: &adapter::Adapter, path: &str) -> Vec<f64> {
    let linear = onnx::linear_nodes(model);
    let l = linear.iter().find(|l| l.path.ends_with(path)).unwrap_or_else(|| panic!("no {path}"));
    let before = model.initializer(&l.weight).unwrap().to_f32().unwrap();
    let after: Vec<f32> = adapter.tensors[&l.weight].iter().copied().collect();
    let (rows, columns) = (l.out_features, l.in_features);
    let place = |o: usize, i: usize| if l.transposed { o * columns + i } else { i * rows + o };
    let all = (0..rows).flat_map(|o| (0..columns).map(move |i| place(o, i)));
    all.map(|at| f64::from(before[at]) - f64::from(after[at])).collect()
}

#[test]
fn losses_and_gradients_are_those_of_sentence_transformers() {
    let dir = folder();
    let d = dir.path();
    let expected = expected();
    let watched: Vec<String> =
        expected["weights"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().replace(".weight", "")).collect();
    let mut inject = vec!["inject", "model.onnx", "--pool", "mean", "--rank", "2", "-o", "model.reslora.onnx"];
    watched.iter().for_each(|w| inject.extend(["--also-train", w.as_str()]));
    done(d, &inject);
    let model = pipeline::read(&d.join("model.reslora.onnx")).unwrap();
    for device in devices() {
        for (name, file, more) in [
            ("pairs", "pairs.jsonl", &[][..]),
            ("pairs-scale-5", "pairs.jsonl", &["--scale", "5"]),
            ("negatives", "negatives.jsonl", &["--loss", "contrastive"]),
            ("triplet", "negatives.jsonl", &["--loss", "triplet"]),
            ("scored", "scored.jsonl", &["--loss", "contrastive"]),
        ] {
            let want = &expected["losses"][name];
            let what = format!("{name} on {device}");
            let args =
                ["model.reslora.onnx", "--data", file, "--device", device, "--batch-size", "5", "--precision", "f32"];
            let ran = json(d, &[&["eval"], &args[..], more].concat());
            close(&what, ran["loss"].as_f64().unwrap(), want["loss"].as_f64().unwrap(), 2e-5);
            if let Some(accuracy) = want["accuracy"].as_f64() {
                close(&what, ran["accuracy"].as_f64().unwrap(), accuracy, 1e-6);
            }
            let Some(gradients) = want["gradients"].as_object() else { continue };
            let how = [
                "--optimizer",
                "sgd",
                "--lr",
                "1",
                "--schedule",
                "constant",
                "--weight-decay",
                "0",
                "--clip-norm",
                "0",
                "--max-steps",
                "1",
                "--no-shuffle",
                "-o",
                "run",
                "--overwrite",
            ];
            let ran = json(d, &[&["train"], &args[..], &how[..], more].concat());
            close(&what, ran["loss"].as_f64().unwrap(), want["loss"].as_f64().unwrap(), 2e-5);
            let trained = adapter::read(&d.join("run")).unwrap();
            for (weight, want) in gradients {
                let got = gradient(&model, &trained, weight.strip_suffix(".weight").unwrap());
                let want = numbers(want);
                let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                assert!(largest > 1e-4, "{what}: {weight} has no gradient to speak of");
                for (g, w) in got.iter().zip(&want) {
                    assert!(
                        (g - w).abs() < 2e-3 * largest + 3e-7,
                        "{what}: {weight}: {g}, not {w} (largest {largest})"
                    );
                }
            }
        }
    }
}

#[test]
fn embeddings_have_ranks_and_correlations() {
    let dir = folder();
    let d = dir.path();
    done(d, &["inject", "model.onnx", "--pool", "mean", "--rank", "2"]);
    let eval = |file: &str, metric: &str| {
        let args = ["eval", "model.reslora.onnx", "--data", file, "--device", "cpu", "--metric", metric];
        let ran = json(d, &[&args[..], &["--predictions", "out.jsonl"]].concat());
        let text = std::fs::read_to_string(d.join("out.jsonl")).unwrap();
        (ran, text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>())
    };
    let (ran, rows) = eval("pairs.jsonl", "recall@1,recall@3,accuracy");
    let among = |k: u64| rows.iter().filter(|r| r["rank"].as_u64().unwrap() <= k).count() as f64 / 5.0;
    for (name, want) in [("recall@1", among(1)), ("recall@3", among(3)), ("accuracy", among(1))] {
        close(name, ran["eval_metrics"][name].as_f64().unwrap(), want, 1e-9);
    }
    close("hits", ran["accuracy"].as_f64().unwrap(), among(1), 1e-9);
    let (ran, rows) = eval("scored.jsonl", "spearman");
    let squares = rows.iter().map(|r| (r["value"].as_f64().unwrap() - r["label"].as_f64().unwrap()).powi(2));
    close("loss", ran["loss"].as_f64().unwrap(), squares.sum::<f64>() / 5.0, 1e-5);
    assert!(ran["eval_metrics"]["spearman"].as_f64().unwrap().abs() <= 1.0, "{ran}");
    let (_, rows) = eval("negatives.jsonl", "recall@1");
    assert!(rows.iter().all(|r| (1..=10).contains(&r["rank"].as_u64().unwrap())));
}

#[test]
fn an_embedding_trains_merges_and_evaluates() {
    let dir = folder();
    let d = dir.path();
    done(d, &["inject", "model.onnx", "--pool", "mean", "--rank", "4"]);
    let how = ["--data", "negatives.jsonl", "--device", "cpu"];
    let steps = ["--lr", "0.02", "--epochs", "30", "--batch-size", "5", "-o", "run"];
    done(d, &[&["train", "model.reslora.onnx"], &how[..], &steps[..]].concat());
    let before = json(d, &[&["eval", "model.reslora.onnx", "--batch-size", "5"], &how[..]].concat());
    done(d, &["merge", "model.reslora.onnx", "--adapter", "run", "-o", "merged.onnx"]);
    // The merged file has the embedding, and needs no word on how it pools.
    let after = json(d, &[&["eval", "merged.onnx", "--batch-size", "5"], &how[..]].concat());
    let loss = |v: &Value| v["loss"].as_f64().unwrap();
    assert!(loss(&after) < 0.5 * loss(&before), "{before} {after}");
    let trained =
        json(d, &[&["eval", "model.reslora.onnx", "--adapter", "run", "--batch-size", "5"], &how[..]].concat());
    close("merged", loss(&after), loss(&trained), 1e-4);
}

#[test]
fn pooling_is_found_beside_the_model() {
    let dir = folder();
    let d = dir.path();
    done(d, &["inject", "model.onnx", "--rank", "2"]);
    let args = ["eval", "model.reslora.onnx", "--data", "pairs.jsonl", "--device", "cpu"];
    let ran = cli(d, &args);
    assert!(ran.code == 2 && ran.err.contains("'last_hidden_state' holds hidden states"), "{}", ran.err);
    assert!(ran.err.contains("hint: inject --pool mean|cls|last adds it"), "{}", ran.err);
    std::fs::create_dir(d.join("1_Pooling")).unwrap();
    let write = |text: &str| std::fs::write(d.join("1_Pooling/config.json"), text).unwrap();
    let check = |want: f64| close("found", json(d, &args)["loss"].as_f64().unwrap(), want, 2e-5);
    let want = expected()["losses"]["pairs"]["loss"].as_f64().unwrap();
    std::fs::copy(Path::new(FOLDER).join("1_Pooling/config.json"), d.join("1_Pooling/config.json")).unwrap();
    check(want);
    // As earlier versions wrote it.
    write(r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false}"#);
    check(want);
    write(r#"{"pooling_mode": "max"}"#);
    let ran = cli(d, &args);
    assert!(ran.code == 2 && ran.err.contains("pooling 'max' is not supported"), "{}", ran.err);
    write(r#"{"pooling_mode": "mean"}"#);
    std::fs::write(d.join("modules.json"), r#"[{"type": "sentence_transformers.models.Dense"}]"#).unwrap();
    let ran = cli(d, &args);
    assert!(ran.code == 2 && ran.err.contains("has a module 'Dense'"), "{}", ran.err);
}

#[test]
fn rows_of_several_texts_that_cannot_be_used() {
    let dir = folder();
    let d = dir.path();
    done(d, &["inject", "model.onnx", "--pool", "mean", "--rank", "2"]);
    let check = |rows: &str, more: &[&str], says: &[&str]| {
        std::fs::write(d.join("data.jsonl"), rows).unwrap();
        let ran = cli(d, &[&["train", "model.reslora.onnx", "--data", "data.jsonl", "--device", "cpu"], more].concat());
        assert!(ran.code == 1 || ran.code == 2, "{rows}: {}", ran.code);
        says.iter().for_each(|part| assert!(ran.err.contains(part), "no '{part}' in: {}", ran.err));
    };
    let pair = "{\"anchor\": \"a man\", \"positive\": \"the man\"}\n";
    let scored = |score: &str| format!("{{\"text1\": \"a man\", \"text2\": \"the man\", \"score\": {score}}}\n");
    check(&pair.repeat(3), &["--batch-size", "1"], &["leaves contrastive without a negative", "a larger --batch-size"]);
    check(&pair.repeat(3), &["--loss", "triplet"], &["triplet reads one 'negative'", "have 0"]);
    check(&pair.repeat(3), &["--loss", "mse"], &["--loss mse does not go with the columns", "--loss contrastive"]);
    check(&format!("{pair}{{\"anchor\": \"a man\"}}\n"), &[], &["line 2", "there is no 'positive'"]);
    check(&scored("4.5"), &[], &["'score' is 4.5", "divide scores"]);
    check(&scored("\"high\""), &[], &["'score' is \"high\", not a number"]);
    let classed = "{\"text\": \"a man\", \"label\": 0}\n";
    check(
        classed,
        &["--loss", "contrastive"],
        &["--loss contrastive reads rows of text with the columns 'anchor' and 'positive'"],
    );
    check(&pair.repeat(3), &["--scale", "0"], &["--scale 0 must be a positive number"]);
}

/// Every text of a row is shown.
#[test]
fn data_shows_all_texts_of_a_row() {
    let dir = folder();
    let d = dir.path();
    let shown = json(d, &["data", "model.onnx", "--data", "negatives.jsonl", "-n", "1"]);
    assert_eq!(shown["task"], "embedding");
    let pieces = |v: &Value| {
        v["pieces"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(pieces(&shown["first"][0]), "[CLS] a man is playing guitar [SEP]");
    assert_eq!(pieces(&shown["first"][0]["further"][1]), "[CLS] the dog runs [SEP]");
}

/// A model that says how many texts it takes at once gets whole batches, or an error that says what to do.
#[test]
fn a_fixed_batch_holds_whole_rows() {
    let dir = folder();
    let d = dir.path();
    let net = Net::new(17)
        .input("input_ids", I64, &["4", "sequence"])
        .input("attention_mask", I64, &["4", "sequence"])
        .output("last_hidden_state", F32, &["4", "sequence", "3"])
        .initializer(tensor("table", &[60, 3], &crate::build::spread(180, 3)))
        .initializer(tensor("w", &[3, 3], &crate::build::spread(9, 5)))
        .initializer(ints("unused", &[1], &[0]))
        .node("/embed/Gather", "Gather", &["table", "input_ids"], &["x"], &[])
        .node("/attn/query/MatMul", "MatMul", &["x", "w"], &["last_hidden_state"], &[]);
    net.write(&d.join("fixed.onnx"));
    done(d, &["inject", "fixed.onnx", "--pool", "mean", "--rank", "2"]);
    let eval = |file: &str, size: &str| {
        cli(d, &["eval", "fixed.reslora.onnx", "--data", file, "--batch-size", size, "--device", "cpu"])
    };
    let ran = eval("pairs.jsonl", "2");
    assert!(ran.code != 0 && ran.err.contains("holds 4 texts, and 1 rows of 2 texts have 2"), "{}", ran.err);
    assert!(ran.err.contains("--batch-size 2, and a multiple of 2 rows"), "{}", ran.err);
    let text = std::fs::read_to_string(d.join("pairs.jsonl")).unwrap();
    let four: String = text.lines().take(4).map(|l| format!("{l}\n")).collect();
    std::fs::write(d.join("four.jsonl"), four).unwrap();
    let ran = eval("four.jsonl", "2");
    assert_eq!(ran.code, 0, "{}", ran.err);
}
