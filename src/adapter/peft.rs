//! Reads adapters that Hugging Face PEFT saved. Only plain LoRA is accepted; anything else is refused by name.

use super::AdapterError;
use serde_json::{Map, Value, json};
use std::path::Path;

pub const TENSORS: &str = "adapter_model.safetensors";
pub const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "base_model.model.";
/// Parts of the names of tensors that plain LoRA does not have.
const FOREIGN: &[(&str, &str)] = &[
    (".lora_magnitude_vector", "a magnitude of DoRA"),
    (".lora_embedding_", "a factor of an embedding"),
    (".lora_A.bias", "a bias of a factor (lora_bias)"),
    (".lora_B.bias", "a bias of a factor (lora_bias)"),
];

/// How an adapter was made, as JSON: `structure`, `rank`, `alpha` and `rslora` from the configuration beside PEFT's file, and
/// `torch` where the tensors are PyTorch's; without that file, that it is plain LoRA. `None` where the file is not PEFT's.
pub fn config(path: &Path, names: &[&str]) -> Result<Option<String>, AdapterError> {
    for (part, what) in FOREIGN {
        if let Some(name) = names.iter().find(|n| n.contains(part)) {
            let hint = "hint: save the adapter as plain LoRA, or fold it into the base before the export";
            let why = format!("its tensor '{name}' is {what}, which is not plain LoRA\n{hint}");
            return Err(AdapterError::Kind { path: path.to_path_buf(), why });
        }
    }
    let torch = json!({ "structure": "lora", "torch": true }).to_string();
    let beside = path.with_file_name(CONFIG);
    if path.file_name().is_none_or(|n| n != TENSORS) || !beside.exists() {
        return Ok(names.iter().any(|n| n.starts_with(PREFIX)).then_some(torch));
    }
    let bytes = std::fs::read(&beside).map_err(|error| AdapterError::Open { path: beside.clone(), error })?;
    let kind = |why: String| AdapterError::Kind { path: beside.clone(), why };
    let config: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|e| kind(format!("it is not the configuration of an adapter: {e}")))?;
    if let Some(why) = beyond(&config) {
        return Err(kind(format!(
            "{why}\nhint: save the adapter as plain LoRA, or fold it into the base before the export"
        )));
    }
    let number =
        |key: &str| config.get(key).and_then(Value::as_f64).ok_or_else(|| kind(format!("'{key}' is not a number")));
    let (rank, alpha) = (number("r")?, number("lora_alpha")?);
    if let Some(why) = uneven(&config, rank, alpha) {
        return Err(kind(format!(
            "{why}\nhint: an adapter file here has one rank and one alpha for all of its targets"
        )));
    }
    // PEFT lists names of heads that the model may not have (both "classifier" and "score").
    let listed = config.get("modules_to_save").and_then(Value::as_array).into_iter().flatten();
    let modules: Vec<&str> = listed.filter_map(Value::as_str).collect();
    let of_one = |n: &&str| plain_name(n).split('.').any(|c| modules.contains(&c));
    if !modules.is_empty() && !names.iter().any(of_one) {
        return Err(kind(format!("modules_to_save lists {}, of which {TENSORS} holds no tensor", modules.join(", "))));
    }
    let rslora = config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
    let made = json!({ "structure": "lora", "rank": rank as u64, "alpha": alpha, "rslora": rslora, "torch": true });
    Ok(Some(made.to_string()))
}

/// What of a configuration plain LoRA does not have.
fn beyond(config: &Map<String, Value>) -> Option<String> {
    let get = |key: &str| config.get(key).filter(|v| !empty(v));
    let kind = get("peft_type").and_then(Value::as_str).unwrap_or("nothing");
    if !kind.eq_ignore_ascii_case("lora") {
        return Some(format!("peft_type is {kind}, not LORA"));
    }
    if let Some(bias) = get("bias").and_then(Value::as_str).filter(|b| *b != "none") {
        return Some(format!("bias is '{bias}': the base's biases were trained too"));
    }
    // Ways to start that change the base's weights as well.
    let plain = ["gaussian", "eva", "orthogonal", "true", "false"];
    if let Some(init) = get("init_lora_weights").and_then(Value::as_str)
        && !plain.contains(&init.to_ascii_lowercase().as_str())
    {
        return Some(format!("init_lora_weights is '{init}', which changes the base's weights"));
    }
    let others = [
        "use_dora",
        "use_qalora",
        "lora_bias",
        "use_bdlora",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        "alora_invocation_tokens",
        "arrow_config",
        "velora_config",
    ];
    others.iter().find_map(|key| get(key).map(|v| format!("{key} is {v}")))
}

/// Whether a setting says nothing.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// The pattern that gives some targets another rank or alpha.
fn uneven(config: &Map<String, Value>, rank: f64, alpha: f64) -> Option<String> {
    [("rank_pattern", "r", rank), ("alpha_pattern", "lora_alpha", alpha)].into_iter().find_map(|(key, whole, all)| {
        let other = config.get(key)?.as_object()?.iter().find(|(_, v)| v.as_f64() != Some(all))?;
        Some(format!("{key} gives '{}' {}, where {whole} is {all}", other.0, other.1))
    })
}

/// A tensor's name without what PEFT puts around it.
pub fn plain_name(name: &str) -> String {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    for factor in [".lora_A.", ".lora_B."] {
        if let Some((path, rest)) = name.rsplit_once(factor)
            && rest.strip_suffix(".weight").is_some_and(|adapter| !adapter.contains('.'))
        {
            return format!("{path}{factor}weight");
        }
    }
    match name.split_once(".modules_to_save.") {
        // In a model's own state the adapter's name follows.
        Some((path, rest)) => {
            let last = rest.rsplit_once('.').filter(|(adapter, _)| !adapter.contains('.')).map_or(rest, |r| r.1);
            format!("{path}.{last}")
        }
        None => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_what_peft_puts_around_them() {
        for (name, want) in [
            ("base_model.model.bert.q.lora_A.weight", "bert.q.lora_A.weight"),
            ("base_model.model.bert.q.lora_B.default.weight", "bert.q.lora_B.weight"),
            ("bert.q.lora_A.mine.weight", "bert.q.lora_A.weight"),
            ("bert.q.lora_A.weight", "bert.q.lora_A.weight"),
            ("base_model.model.head.modules_to_save.default.bias", "head.bias"),
            ("base_model.model.head.modules_to_save.weight", "head.weight"),
            ("model.embed.weight", "model.embed.weight"),
        ] {
            assert_eq!(plain_name(name), want);
        }
    }

    #[test]
    fn what_is_not_plain_lora_is_named() {
        let check = |more: Value, want: Option<&str>| {
            let mut config = json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": false });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let config = config.as_object().unwrap();
            let why = beyond(config).or_else(|| uneven(config, 4.0, 8.0));
            assert_eq!(why.is_some(), want.is_some(), "{why:?}");
            assert!(want.is_none_or(|w| why.as_ref().unwrap().contains(w)), "{why:?}");
        };
        check(json!({ "rank_pattern": {}, "alpha_pattern": { "q": 8 }, "fan_in_fan_out": true }), None);
        check(json!({ "init_lora_weights": "gaussian" }), None);
        check(json!({ "use_dora": true }), Some("use_dora"));
        check(json!({ "peft_type": "LOHA" }), Some("LOHA"));
        check(json!({ "rank_pattern": { "q": 2 } }), Some("rank_pattern"));
        check(json!({ "alpha_pattern": { "q": 2 } }), Some("alpha_pattern"));
        check(json!({ "bias": "lora_only" }), Some("lora_only"));
        check(json!({ "init_lora_weights": "pissa_niter_4" }), Some("pissa"));
    }
}
