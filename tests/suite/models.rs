//! The table of docs/models.md: every family and exporter, forward, gradient, training and merged, each cell measured.
//!
//! The fixtures are measured in every run. `RESLORA_CASES=DIR` names a folder of more cases, which fixtures/oracle/make_all.py
//! makes; then all are measured, and `RESLORA_WRITE_TABLE=1` writes the table.

use crate::gpu;
use crate::oracle::{self, Case, Open};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/models.md");

const HEAD: &str = "\
# Models

`tests/suite/models.rs` measures every row: it injects, trains and merges the file and compares the results with ResLoRA in PyTorch
(`fixtures/oracle`). All errors are relative. *forward* is the error of the loss, *gradient* the largest error of any factor's
gradient, *training* the largest error of any training loss, and *merged* the largest error of the logits over all applicable merge
strategies (least-squares at `--ridge 1e-6`). The models are small and random; their graphs are those of their families.

Exporters: `ts-14` is `torch.onnx.export(dynamo=False)` with opset 14, `dynamo-23` is `dynamo=True` with opset 23; plain `ts` uses opset
17 and plain `dynamo` opset 20. `ort` files were optimised by onnxruntime's transformer optimizer. `genai` files come from
onnxruntime-genai's model builder. In `int4` files every weight is quantised to 4-bit blocks, and merging requantises it to 4-bit blocks.

Tolerances: forward 1e-5, gradient and training 1e-4, merged 1e-3 (least-squares 5e-3). In `f16` and `bf16` files constants and merged
weights are rounded to that type, unlike the oracle's: forward 1e-4 and 1e-3, gradient 2e-3 and 2e-2, training 1e-3 and 1e-2,
merged 2e-3 and 2e-2. In `int4` files merged is 0.2.

";

const COLUMNS: &str = "| family | exporter | structure | device | forward | gradient | training | merged |\n|---|---|---|---|---|---|---|---|\n";

fn scientific(x: f64) -> String {
    format!("{x:.0e}")
}

/// A row, and what is wrong with it.
fn row(case: &Case, device: &str, open: Open) -> (String, Vec<String>) {
    let t = case.tolerances();
    let mut wrong = Vec::new();
    let mut cell = |what: &str, limit: f64, measured: Result<f64, String>| match measured {
        Ok(error) => {
            if error.is_nan() || error > limit {
                wrong.push(format!("{} on {device}: {what} off by {error:.1e}, not {limit:.0e}", case.name()));
            }
            scientific(error)
        }
        Err(why) => {
            wrong.push(format!("{} on {device}: {what}: {why}", case.name()));
            "fails".into()
        }
    };
    let probe = caught(|| oracle::measure_probe(case, open));
    let training = caught(|| oracle::measure_training(case, open).0.0);
    let merged = caught(|| oracle::measure_merges(case, open).0);
    let cells = [
        cell("forward", t.forward, probe.clone().map(|p| p.0)),
        cell("gradient", t.gradient, probe.map(|p| p.1.0)),
        cell("training", t.training, training),
        // Judged strategy by strategy where it is measured.
        cell("merged", 5.0 * t.merged, merged),
    ];
    let text = |key: &str| case.json[key].as_str().unwrap_or_default().to_string();
    let head = [text("model"), text("exporter"), case.structure().to_string(), device.to_string()];
    (format!("| {} | {} |\n", head.join(" | "), cells.join(" | ")), wrong)
}

fn caught<T>(measure: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(measure)).map_err(|e| {
        let text = e.downcast_ref::<String>().cloned();
        text.or_else(|| e.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_else(|| "it panicked".into())
    })
}

#[test]
fn every_model_of_the_table() {
    let cases = oracle::everything();
    let mut devices: Vec<(&str, Open)> = vec![("cpu", oracle::cpu)];
    if gpu::available() {
        devices.push(("vulkan", gpu::gpu));
    }
    // What errs is told below, by name; the hook would print a backtrace for each.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut rows, mut wrong) = (BTreeMap::new(), Vec::new());
    for case in &cases {
        for (d, (device, open)) in devices.iter().enumerate() {
            let (text, problems) = row(case, device, *open);
            rows.insert((case.name(), d), text);
            wrong.extend(problems);
        }
    }
    std::panic::set_hook(hook);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    if std::env::var("RESLORA_WRITE_TABLE").is_ok_and(|v| v == "1") {
        assert!(devices.len() == 2, "the table has rows for a Vulkan adapter, and there is none");
        let table: String = rows.values().map(String::as_str).collect();
        std::fs::write(PathBuf::from(DOCUMENT), format!("{HEAD}{COLUMNS}{table}")).unwrap();
    }
    // What was measured now stands in the table, each row within the tolerances it names.
    let document = std::fs::read_to_string(DOCUMENT).expect("docs/models.md");
    assert!(document.starts_with(HEAD), "docs/models.md has another text than tests/suite/models.rs: write it anew");
    for text in rows.values() {
        let key: Vec<&str> = text.split(" | ").take(4).collect();
        assert!(document.contains(&key.join(" | ")), "docs/models.md has no row {}", key.join(" | "));
    }
    let listed = document.lines().filter(|l| l.contains("| cpu |")).count();
    if listed > cases.len() {
        let others = listed - cases.len();
        crate::loudly(&format!(
            "{others} models of docs/models.md were NOT measured: RESLORA_CASES names no folder of them"
        ));
    }
}
