//! Writes adapters as Hugging Face PEFT reads them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

use super::peft::{CONFIG, METHODS, PREFIX, TENSORS};
use super::{Adapter, AdapterError};
use atomic_write_file::AtomicWriteFile;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Structures whose tensors PEFT keeps in another form.
const OTHERWISE: &[&str] = &["vera", "prompt"];

/// Writes an adapter that records how it was made into a folder, which is made if it is not there. Returns what a user should know.
///
/// # Errors
/// PEFT has no such method, the adapter trains more than its factors, or a file cannot be written.
pub fn write(adapter: &Adapter, dir: &Path) -> Result<Vec<String>, AdapterError> {
    let refused = |why: String| AdapterError::Kind { path: dir.to_path_buf(), why };
    let unknown = || refused("the adapter does not say how it was made\nhint: export one that train wrote".into());
    let text = adapter.config.as_deref().ok_or_else(unknown)?;
    let made: Map<String, Value> = serde_json::from_str(text).map_err(|_| unknown())?;
    let (config, notes) = config(&made, adapter)
        .map_err(|why| refused(format!("{why}\nhint: merge folds the adapter into the model, which needs no PEFT")))?;
    let io = |error| AdapterError::Write { path: dir.to_path_buf(), error };
    std::fs::create_dir_all(dir).map_err(io)?;
    let data: BTreeMap<String, Vec<u8>> = adapter
        .tensors
        .iter()
        .filter(|(name, _)| !name.ends_with(".loftq_error"))
        .map(|(name, t)| (name.clone(), t.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = data.iter().map(|(name, bytes)| {
        let view = TensorView::new(Dtype::F32, adapter.tensors[name].shape().to_vec(), bytes);
        (format!("{PREFIX}{name}"), view.expect("four bytes an element"))
    });
    let metadata = [("format".to_string(), "pt".to_string())].into();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| io(std::io::Error::other(e)))?;
    let text = serde_json::to_string_pretty(&config).expect("text and numbers") + "\n";
    for (name, bytes) in [(TENSORS, &bytes[..]), (CONFIG, text.as_bytes())] {
        let path = dir.join(name);
        let io = |error| AdapterError::Write { path: path.clone(), error };
        let mut file = AtomicWriteFile::open(&path).map_err(io)?;
        file.write_all(bytes).and_then(|()| file.commit()).map_err(io)?;
    }
    Ok(notes)
}

/// PEFT's configuration for an adapter that was made so.
fn config(made: &Map<String, Value>, adapter: &Adapter) -> Result<(Value, Vec<String>), String> {
    let text = |key: &str| made.get(key).and_then(Value::as_str).unwrap_or_default();
    let structure = text("structure");
    let written = METHODS.iter().filter(|m| !OTHERWISE.contains(&m.structure));
    let method = written.clone().find(|m| m.structure == structure).ok_or_else(|| {
        let all: Vec<&str> = written.map(|m| m.structure).collect();
        format!("{structure} cannot be written for PEFT, only {}", all.join(", "))
    })?;
    if !matches!(text("residual"), "" | "none") {
        return Err(format!("PEFT has no residual paths, and the adapter has {}", text("residual")));
    }
    if matches!(text("init"), "pissa" | "olora") {
        return Err(format!("the adapter started with --init {}, which takes a part out of the weights", text("init")));
    }
    let whole: Vec<&str> =
        made.get("also_train").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if !whole.is_empty() {
        return Err(format!("the adapter also trains {}", whole.join(", ")));
    }
    let mut notes = Vec::new();
    if adapter.tensors.keys().any(|n| n.ends_with(".loftq_error")) {
        notes.push("--init loftq: the adapter is for the base in the quantised form that it started with".into());
    }
    let targets: Vec<&Map<String, Value>> =
        made.get("targets").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object).collect();
    let path = |t: &Map<String, Value>| t.get("path").and_then(Value::as_str).unwrap_or_default().to_string();
    let paths: Vec<String> = targets.iter().map(|t| path(t)).collect();
    if method.alpha.is_empty() && targets.iter().any(|t| t.contains_key("rank")) {
        return Err(format!("PEFT's {} has one rank for all targets, and some have another here", method.peft_type));
    }
    let mut out = json!({
        "peft_type": method.peft_type,
        "task_type": null,
        "base_model_name_or_path": null,
        "inference_mode": true,
        "target_modules": paths,
    });
    // Patterns are regular expressions that end a path.
    let own = |key: &str| -> Map<String, Value> {
        let number = |t: &&Map<String, Value>| Some((regex::escape(&path(t)), t.get(key)?.clone()));
        targets.iter().filter_map(number).collect()
    };
    for (key, ours, pattern) in [(method.rank, "rank", "rank_pattern"), (method.alpha, "alpha", "alpha_pattern")] {
        if !key.is_empty() {
            out[key] = made.get(ours).cloned().unwrap_or_default();
        }
        if !key.is_empty() && !method.alpha.is_empty() {
            out[pattern] = Value::Object(own(ours));
        }
    }
    if method.rslora {
        out["use_rslora"] = made.get("rslora").cloned().unwrap_or(Value::Bool(false));
        out["use_dora"] = Value::Bool(method.dora);
        out["bias"] = "none".into();
        out["lora_dropout"] = made.get("dropout").cloned().unwrap_or_default();
    }
    match structure {
        "lokr" => {
            let setting = made.get("settings").and_then(|s| s.get("decompose-factor"));
            out["decompose_factor"] = setting.cloned().unwrap_or_else(|| json!(-1));
        }
        "oft" => {
            let size = |t: &&Map<String, Value>| {
                let blocks = adapter.tensors.get(&format!("{}.oft_R.weight", path(t)))?.shape().first().copied()?;
                Some(t.get("in_features")?.as_u64()? as usize / blocks.max(1))
            };
            (out["r"], out["oft_block_size"]) = (json!(0), json!(targets.iter().find_map(size)));
            (out["use_cayley_neumann"], out["bias"]) = (Value::Bool(false), "none".into());
        }
        "ia3" => {
            let down = |t: &&&Map<String, Value>| t.get("role").and_then(Value::as_str) == Some("mlp-down");
            out["feedforward_modules"] = targets.iter().filter(down).map(|t| path(t)).collect();
        }
        _ => {}
    }
    Ok((out, notes))
}
