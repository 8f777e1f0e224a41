//! What is computed is what the file says, and what is written is what was checked: files as exporters leave them, integers,
//! losses that models hold, and merges that say what they keep. Right numbers come from ONNX Runtime, through the scripts
//! beside the fixtures.

use crate::build::{F32, I64, Net, spread, tensor};
use crate::cli::{cli, done, json, metrics};
use crate::inputs::{at, expected, near, refused};
use std::path::Path;

fn here() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn loss(dir: &Path, model: &str, data: &str, more: &[&str]) -> serde_json::Value {
    json(dir, &[&["eval", model, "--data", data, "--device", "cpu"], more].concat())["loss"].clone()
}

#[test]
fn nodes_may_stand_in_any_order() {
    let (dir, folder) = (here(), "unsorted-graph");
    let (model, data) = (at(folder, "reversed.onnx"), at(folder, "rows.npz"));
    let right = 1.2664128951554179;
    near(&loss(dir.path(), &model, &data, &[]), right, "the loss of a graph in reverse order");
    done(dir.path(), &["inject", &model, "-o", "m.onnx", "--target", "."]);
    near(&loss(dir.path(), "m.onnx", &data, &[]), right, "the injected model's loss");
    // Taking the adapters out gives the file back, in its own order.
    done(
        dir.path(),
        &["train", "m.onnx", "--data", &data, "--max-steps", "1", "--lr", "0", "-o", "run", "--device", "cpu"],
    );
    done(dir.path(), &["merge", "m.onnx", "--adapter", "run", "-o", "merged.onnx", "--device", "cpu"]);
    let diff = json(dir.path(), &["diff", &model, "merged.onnx"]);
    assert_eq!((&diff["same_graph"], &diff["tensors"]), (&true.into(), &serde_json::json!([])), "{diff}");
}

#[test]
fn files_of_ir_version_3_are_taken() {
    let (dir, folder) = (here(), "ir3-inputs");
    let (model, data, want) = (at(folder, "model.onnx"), at(folder, "data.safetensors"), expected("ir3-inputs"));
    let base = want["loss"].as_f64().unwrap();
    near(&loss(dir.path(), &model, &data, &[]), base, "the base's loss");
    let how = ["-o", "m.onnx", "--target", "fc", "--structure", "lora", "--rank", "2"];
    done(dir.path(), &[&["inject", &model], &how[..]].concat());
    near(&loss(dir.path(), "m.onnx", &data, &[]), base, "the injected model's loss");
    let how = ["-o", "run", "--max-steps", "30", "--lr", "1e-2", "--device", "cpu"];
    done(dir.path(), &[&["train", "m.onnx", "--data", &data], &how[..]].concat());
    let live = loss(dir.path(), "m.onnx", &data, &["--adapter", "run"]);
    assert!(live.as_f64().unwrap() < 0.9 * base, "{live}");
    done(dir.path(), &["merge", "m.onnx", "--adapter", "run", "-o", "merged.onnx", "--device", "cpu"]);
    near(&loss(dir.path(), "merged.onnx", &data, &[]), live.as_f64().unwrap(), "the merged model's loss");
    let diff = json(dir.path(), &["diff", &model, "merged.onnx"]);
    assert_eq!(diff["same_graph"], true, "{diff}");
}

#[test]
fn inputs_that_pick_a_branch_are_filled() {
    let (dir, folder) = (here(), "use-cache-branch");
    let (model, data, tokenizer) = (at(folder, "model.onnx"), at(folder, "data.jsonl"), at(folder, "tokenizer.json"));
    let got = loss(dir.path(), &model, &data, &["--tokenizer", &tokenizer]);
    near(&got, expected(folder)["loss"].as_f64().unwrap(), "the loss without a cache");
    done(dir.path(), &["inject", &model, "-o", "m.onnx"]);
    let how = ["--tokenizer", &tokenizer, "--max-steps", "1", "-o", "run", "--device", "cpu"];
    done(dir.path(), &[&["train", "m.onnx", "--data", &data], &how[..]].concat());
}

#[test]
fn a_weight_that_shares_its_bytes_changes_alone() {
    let (dir, folder) = (here(), "shared-external-bytes");
    for name in ["model.onnx", "model.onnx.data"] {
        std::fs::copy(at(folder, name), dir.path().join(name)).unwrap();
    }
    let (data, want) = (at(folder, "data.safetensors"), expected(folder));
    let how = ["--target", "layers.0", "--structure", "lora", "--rank", "4", "--alpha", "8", "-o", "m.onnx"];
    done(dir.path(), &[&["inject", "model.onnx"], &how[..]].concat());
    near(&loss(dir.path(), "m.onnx", &data, &[]), want["base"].as_f64().unwrap(), "the injected model's loss");
    let adapter = at(folder, "adapter.safetensors");
    let how = ["--adapter", &adapter, "--calibrate", &data, "-o", "merged.onnx", "--device", "cpu", "--force"];
    done(dir.path(), &[&["merge", "m.onnx"], &how[..]].concat());
    near(&loss(dir.path(), "merged.onnx", &data, &[]), want["loss"].as_f64().unwrap(), "the merged file's loss");
    // A folder gets what lies beside the model.
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let how = ["--adapter", &adapter, "--calibrate", &data, "-o", "out/", "--device", "cpu", "--force"];
    done(dir.path(), &[&["merge", "m.onnx"], &how[..]].concat());
    for name in ["model.onnx", "model.onnx.data", "config.json"] {
        assert!(dir.path().join("out").join(name).is_file(), "{name} is missing");
    }
}

#[test]
fn an_index_beyond_its_table_is_an_error_however_it_is_computed() {
    let (dir, folder) = (here(), "index-past-the-table");
    let lookup = at(folder, "lookup.onnx");
    loss(dir.path(), &lookup, &at(folder, "within.npz"), &[]);
    refused(dir.path(), &["eval", &lookup, "--data", &at(folder, "past.npz")], &["index 10", "10 rows", "/emb/Gather"]);
    let own = ["eval", &at(folder, "own.onnx"), "--data", &at(folder, "own.npz"), "--loss-output", "loss"];
    refused(dir.path(), &own, &["index 7", "2 rows"]);
}

#[test]
fn integers_that_need_64_bits_are_refused_by_name() {
    let folder = "int64-product-overflow";
    for name in ["hash", "large"] {
        let model = at(folder, &format!("{name}.onnx"));
        refused(here().path(), &["eval", &model, "--data", &at(folder, "ids.npz")], &["/hash/Mul", "64-bit"]);
    }
}

#[test]
fn a_loss_of_the_models_own_is_averaged_by_what_it_divides_by() {
    let (dir, folder) = (here(), "own-loss-uneven-batches");
    for (name, right) in [("weighted", 1.946359), ("ignored", 2.0522492)] {
        let (model, data) = (at(folder, &format!("{name}.onnx")), at(folder, &format!("{name}.npz")));
        for size in ["12", "5", "4", "1"] {
            let got = loss(dir.path(), &model, &data, &["--loss-output", "loss", "--batch-size", size]);
            near(&got, right, &format!("{name} in batches of {size}: the loss"));
        }
        let injected = format!("{name}.reslora.onnx");
        done(dir.path(), &["inject", &model, "-o", &injected]);
        let step = |size: &str, accumulate: &str| {
            let run = format!("{name}-{size}");
            let how = ["--batch-size", size, "--accumulate", accumulate, "--no-shuffle", "--max-steps", "1"];
            let train = ["train", &injected, "--data", &data, "--loss-output", "loss", "-o", &run, "--device", "cpu"];
            done(dir.path(), &[&train[..], &how].concat());
            metrics(&dir.path().join(run)).swap_remove(0)
        };
        let (whole, parts) = (step("12", "1"), step("4", "3"));
        for key in ["loss", "grad_norm"] {
            near(&parts[key], whole[key].as_f64().unwrap(), &format!("{name}: {key} of three batches"));
        }
    }
}

#[test]
fn a_merge_that_four_bits_swallow_is_not_written() {
    let (dir, folder) = (here(), "int4-swallowed");
    let (data, adapter) = (at(folder, "data.safetensors"), at(folder, "adapter.safetensors"));
    let how = ["--target", "fc", "--structure", "lora", "--rank", "4", "--alpha", "8", "-o", "m.onnx"];
    done(dir.path(), &[&["inject", &at(folder, "model.onnx")], &how[..]].concat());
    let merge =
        ["merge", "m.onnx", "--adapter", &adapter, "--calibrate", &data, "-o", "merged.onnx", "--device", "cpu"];
    let ran = cli(dir.path(), &merge);
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("0 % of the gain is kept") && ran.out.contains("--keep-branch"), "{}", ran.out);
    assert!(!dir.path().join("merged.onnx").exists());
    done(dir.path(), &[&merge[..], &["--force"]].concat());
    let kept = json(dir.path(), &[&merge[..6], &["--device", "cpu", "--keep-branch", "-o", "kept.onnx"]].concat());
    let share = kept["metric"]["kept"].as_f64().unwrap();
    assert!((share - 1.0).abs() < 0.01, "{share}");
}

#[test]
fn a_small_change_survives_in_16_bits() {
    let (dir, folder) = (here(), "merge-swallowed-by-bf16");
    let (model, data) = (at(folder, "bf16.onnx"), at(folder, "rows.npz"));
    done(dir.path(), &["inject", &model, "-o", "m.onnx", "--structure", "lora"]);
    let how = ["--epochs", "10", "--schedule", "constant", "-o", "run", "--device", "cpu"];
    done(dir.path(), &[&["train", "m.onnx", "--data", &data], &how[..]].concat());
    let merge = ["merge", "m.onnx", "--adapter", "run", "-o", "merged.onnx", "--calibrate", &data, "--device", "cpu"];
    let ran = cli(dir.path(), &[&merge[..], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let kept = report["metric"]["kept"].as_f64().unwrap();
    // Rounding each weight alone keeps 11 %. What is left short of nine tenths is not written.
    assert!(kept > 0.5, "{kept}");
    assert_eq!(ran.code, if kept < 0.9 { 3 } else { 0 }, "{kept}");
}

#[test]
fn a_merge_is_chosen_on_enough_rows() {
    let (dir, folder) = (here(), "one-held-back-row");
    let (data, adapter, want) = (at(folder, "data.safetensors"), at(folder, "adapter.safetensors"), expected(folder));
    let how = ["--target", "fc", "--structure", "ms", "--pre-num", "2", "--rank", "4", "--alpha", "8", "-o", "m.onnx"];
    done(dir.path(), &[&["inject", &at(folder, "model.onnx")], &how[..]].concat());
    let (base, live) = (want["base"].as_f64().unwrap(), want["live"].as_f64().unwrap());
    let mut gains = Vec::new();
    for strategy in ["least-squares", "weight-norm", "input-norm", "auto"] {
        let out = format!("{strategy}.onnx");
        let merge = ["merge", "m.onnx", "--adapter", &adapter, "--calibrate", &data, "--device", "cpu"];
        done(dir.path(), &[&merge[..], &["--strategy", strategy, "-o", &out]].concat());
        let merged = loss(dir.path(), &out, &data, &[]).as_f64().unwrap();
        gains.push((base - merged) / (base - live));
    }
    let best = gains.iter().copied().fold(f64::MIN, f64::max);
    assert!(gains[3] >= best - 0.03, "{gains:?}");
}

/// A merge of a weight that is read in two ways, by way of nodes that change its type and layout, changes the target alone.
#[test]
fn a_tied_weight_behind_several_nodes_is_split() {
    let dir = here();
    let net = Net::new(17)
        .input("input_ids", I64, &["n", "t"])
        .output("logits", F32, &["n", "t", "6"])
        .initializer(tensor("embed.weight", &[6, 4], &spread(24, 3)))
        .node("/Identity", "Identity", &["embed.weight"], &["table"], &[])
        .node("/embed/Gather", "Gather", &["table", "input_ids"], &["e"], &[])
        .node("/Transpose", "Transpose", &["table"], &["turned"], &[])
        .node("/lm_head/MatMul", "MatMul", &["e", "turned"], &["logits"], &[]);
    net.write(&dir.path().join("tied.onnx"));
    let rows = reslora_compile::internals::ir::Tensor::i32([4, 3], vec![0, 1, 2, 3, 4, 5, 5, 3, 1, 0, 2, 4]);
    let labels = reslora_compile::internals::ir::Tensor::i32([4, 3], vec![5, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 5]);
    crate::cli::write_tensors(&dir.path().join("d.safetensors"), &[("input_ids", rows), ("labels", labels)]);
    let how = ["--target", "lm_head", "--rank", "2", "--structure", "lora", "-o", "m.onnx"];
    done(dir.path(), &[&["inject", "tied.onnx"], &how[..]].concat());
    let how = ["--max-steps", "20", "--lr", "0.05", "-o", "run", "--device", "cpu"];
    done(dir.path(), &[&["train", "m.onnx", "--data", "d.safetensors"], &how[..]].concat());
    let live = loss(dir.path(), "m.onnx", "d.safetensors", &["--adapter", "run"]).as_f64().unwrap();
    done(dir.path(), &["merge", "m.onnx", "--adapter", "run", "-o", "merged.onnx", "--device", "cpu"]);
    let base = loss(dir.path(), "tied.onnx", "d.safetensors", &[]).as_f64().unwrap();
    assert!(live < base - 0.1, "{base} {live}");
    near(&loss(dir.path(), "merged.onnx", "d.safetensors", &[]), live, "the merged loss");
}

#[test]
fn data_that_another_model_may_read_is_not_overwritten() {
    let (dir, folder) = (here(), "shared-external-bytes");
    for name in ["model.onnx", "model.onnx.data"] {
        std::fs::copy(at(folder, name), dir.path().join(name)).unwrap();
    }
    done(dir.path(), &["inject", "model.onnx", "--target", "layers.0", "-o", "m.onnx"]);
    std::fs::rename(dir.path().join("m.onnx"), dir.path().join("other.onnx")).unwrap();
    let before = std::fs::read(dir.path().join("m.onnx.data")).unwrap();
    let inject = ["inject", "model.onnx", "--target", "layers.2", "-o", "m.onnx"];
    refused(dir.path(), &inject, &["m.onnx.data", "--overwrite"]);
    assert!(std::fs::read(dir.path().join("m.onnx.data")).unwrap() == before);
}

#[test]
fn one_inference_gives_every_output_in_its_declared_type() {
    let dir = here();
    let (model, data) = (at("labels", "many.onnx"), dir.path().join("x.safetensors"));
    let x: Vec<f32> = (0..8).map(|i| i as f32 / 4.0 - 1.0).collect();
    crate::cli::write_tensors(&data, &[("x", reslora_compile::internals::ir::Tensor::f32([2, 4], x))]);
    let mut results = Vec::new();
    for out in ["out.npz", "out.safetensors"] {
        let ran = json(dir.path(), &["run", &model, "--data", "x.safetensors", "-o", out, "--device", "cpu"]);
        assert_eq!(ran["outputs"][0], serde_json::json!({"name": "logits", "element": "float32", "shape": [2, 3]}));
        results.push(
            reslora_compile::internals::train::data::read_tensors(&dir.path().join(out)).unwrap()["logits"].clone(),
        );
    }
    assert_eq!(results[0], results[1]);
    crate::cli::write_tensors(&data, &[("y", reslora_compile::internals::ir::Tensor::f32([1], vec![1.0]))]);
    refused(dir.path(), &["run", &model, "--data", "x.safetensors", "-o", "o.npz"], &["no input 'y'", "x"]);
}

#[test]
fn integers_of_few_bits_wrap_around() {
    let (dir, folder) = (here(), "odd-models");
    let got = loss(dir.path(), &at(folder, "few-bits.onnx"), &at(folder, "few-bits.npz"), &[]);
    near(&got, expected(folder)["few-bits"].as_f64().unwrap(), "the loss on differences of uint8");
    let words = ["uint32", "wrap around", "hint:"];
    let ran = at(folder, "no-sign.onnx");
    refused(dir.path(), &["eval", &ran, "--data", &at(folder, "few-bits.npz"), "--device", "cpu"], &words);
}

#[test]
fn a_program_is_made_for_each_value_that_shapes_depend_on() {
    let (dir, folder) = (here(), "odd-models");
    let (model, want) = (at(folder, "by-value.onnx"), expected(folder));
    let data = |columns: usize| at(folder, &format!("by-value-{columns}.npz"));
    for columns in [5, 12] {
        let right = want[format!("by-value-{columns}")].as_f64().unwrap();
        near(&loss(dir.path(), &model, &data(columns), &["--batch-size", "6"]), right, "the loss");
    }
    done(dir.path(), &["inject", &model, "-o", "m.onnx", "--target", "fc", "--structure", "lora", "--rank", "2"]);
    // Trained at one value, measured at another.
    let how = ["--max-steps", "2", "-o", "run", "--device", "cpu", "--lr", "0"];
    let ran = cli(dir.path(), &[&["train", "m.onnx", "--data", &data(5), "--eval", &data(12)], &how[..]].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("shapes depend on the values of 'columns'"), "{}", ran.err);
    let all = metrics(&dir.path().join("run"));
    let evaluation = all.iter().find(|m| m.get("eval_loss").is_some()).expect("an evaluation");
    near(&evaluation["eval_loss"], want["by-value-12"].as_f64().unwrap(), "the loss while training");
    // An approximate merge gathers statistics, and measures.
    done(
        dir.path(),
        &["inject", &model, "-o", "s.onnx", "--target", "fc", "--structure", "input-shortcut", "--rank", "2"],
    );
    let how = ["--max-steps", "2", "-o", "short", "--device", "cpu"];
    done(dir.path(), &[&["train", "s.onnx", "--data", &data(5)], &how[..]].concat());
    let how = ["--calibrate", &data(5), "-o", "merged.onnx", "--device", "cpu", "--force"];
    let merged = cli(dir.path(), &[&["merge", "s.onnx", "--adapter", "short"], &how[..]].concat());
    assert!(merged.out.contains("the loss is cross-entropy of 'logits'"), "{}{}", merged.out, merged.err);
}

#[test]
fn an_index_that_weights_decide_is_checked_where_it_is_computed() {
    let (dir, folder) = (here(), "odd-models");
    let words = ["lookup", "outside its table of 8 rows"];
    // The twelfth example, in batches of eight.
    let row = |name: &str| if name == "by-many-weights" { "row 4 of its batch" } else { "example 12" };
    let mut devices = vec!["cpu"];
    devices.extend(crate::gpu::available().then_some("gpu"));
    for name in ["by-few-weights", "by-many-weights"] {
        let at = |end: &str| at(folder, &format!("{name}{end}"));
        let (model, good, bad) = (at(".onnx"), at(".npz"), at("-beyond.npz"));
        done(dir.path(), &["inject", &model, "-o", "m.onnx", "--target", "fc", "--structure", "lora", "--rank", "2"]);
        let right = expected(folder)[name].as_f64().unwrap();
        for device in &devices {
            near(&json(dir.path(), &["eval", &model, "--data", &good, "--device", device])["loss"], right, "the loss");
            refused(dir.path(), &["eval", &model, "--data", &bad, "--device", device], &words);
            refused(dir.path(), &["eval", &model, "--data", &bad, "--device", device], &[row(name)]);
            let run = format!("{name}-{device}");
            refused(dir.path(), &["train", "m.onnx", "--data", &bad, "-o", &run, "--device", device], &words);
        }
    }
}

#[test]
fn how_many_logits_to_keep_is_filled_with_all() {
    let (dir, folder) = (here(), "odd-models");
    let got = loss(dir.path(), &at(folder, "kept.onnx"), &at(folder, "kept.npz"), &[]);
    near(&got, expected(folder)["kept"].as_f64().unwrap(), "the loss of every position");
}

#[test]
fn an_input_that_no_lowering_reads_refuses_its_node() {
    let (dir, model) = (here(), at("odd-models", "unread.onnx"));
    done(dir.path(), &["inject", &model, "-o", "m.onnx", "--target", "q"]);
    let words = ["/heads/MultiHeadAttention", "'past_sequence_length'", "not supported", "hint:"];
    refused(dir.path(), &["bench", "m.onnx", "--batch", "1", "--seq", "4", "--device", "cpu"], &words);
}

#[test]
fn tensors_that_nobody_would_find_are_refused_by_name() {
    let (dir, folder) = (here(), "odd-models");
    refused(dir.path(), &["inject", &at(folder, "sparse.onnx")], &["'shift'", "sparse initializer", "hint:"]);
    let words = ["'shift'", "'the_shift' (Constant)", "external data", "hint:"];
    refused(dir.path(), &["inject", &at(folder, "constant-elsewhere.onnx")], &words);
}

#[test]
fn operators_inside_branches_are_found_where_they_are_taken() {
    let (dir, folder) = (here(), "odd-models");
    let words = ["TfIdfVectorizer", "strange", "no lowering"];
    refused(dir.path(), &["inject", &at(folder, "branch-taken.onnx"), "-o", "m.onnx"], &words);
    assert!(!dir.path().join("m.onnx").exists());
    let listed = json(dir.path(), &["inspect", &at(folder, "branch-taken.onnx")]);
    assert!(listed["unsupported"].to_string().contains("TfIdfVectorizer"), "{listed}");
    done(dir.path(), &["inject", &at(folder, "branch-passed.onnx"), "-o", "m.onnx"]);
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    use reslora_compile::internals::device::{Cpu, Device};
    let text = Cpu::new(None).reserve("moments", usize::MAX / 64).unwrap_err().to_string();
    assert!(text.contains("no memory") && text.contains("moments") && text.contains("hint:"), "{text}");
}

#[test]
fn values_without_elements_have_a_place_on_every_device() {
    use reslora_compile::internals::device::{Cpu, Device, Gpu, Run};
    use reslora_compile::internals::ir::{Builder, Sink, Tensor, Type};
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Cpu::new(None))];
    if crate::gpu::available() {
        devices.push(Box::new(Gpu::open(None, None).unwrap()));
    }
    for mut device in devices {
        let mut b = Builder::new(reslora_compile::internals::ops::RULES);
        let x = b.input("x", Type::f32([2, 3]));
        let none = b.slice(x, 1, 3, 0, 1).unwrap();
        b.output("y", none, Sink::Fetch);
        let plan = reslora_compile::internals::plan::plan(b.graph, &Default::default(), device.limits()).unwrap();
        let id = device.load(plan).unwrap();
        let inputs = vec![("x".to_string(), Tensor::f32([2, 3], vec![1.0; 6]))];
        device.submit(vec![Run { plan: id, inputs }]).unwrap();
        let (_, y) = device.collect(true).unwrap().remove(0).runs.remove(0).remove(0);
        assert_eq!(y.shape(), [2, 0]);
    }
}
