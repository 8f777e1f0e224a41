//! Reads adapters that Hugging Face PEFT saved: the methods of the table. Anything else is refused by name.

use super::AdapterError;
use serde_json::{Map, Value, json};
use std::path::Path;

pub const TENSORS: &str = "adapter_model.safetensors";
pub const CONFIG: &str = "adapter_config.json";
pub const PREFIX: &str = "base_model.model.";
/// Parts of the names of tensors that plain LoRA does not have.
const FOREIGN: &[(&str, &str)] = &[
    (".lora_embedding_", "a factor of an embedding"),
    (".lora_A.bias", "a bias of a factor (lora_bias)"),
    (".lora_B.bias", "a bias of a factor (lora_bias)"),
];

/// How an adapter was made, as JSON: `structure`, `rank`, `alpha`, `rslora` and the patterns from the configuration beside PEFT's file,
/// and `torch` where the tensors are PyTorch's; without that file, that it is plain LoRA. `None` where the file is not PEFT's.
pub fn config(path: &Path, names: &[&str]) -> Result<Option<String>, AdapterError> {
    for (part, what) in FOREIGN {
        if let Some(name) = names.iter().find(|n| n.contains(part)) {
            let hint = "hint: save the adapter as plain LoRA, or fold it into the base before the export";
            let why = format!("its tensor '{name}' is {what}, which is not plain LoRA\n{hint}");
            return Err(AdapterError::Kind { path: path.to_path_buf(), why });
        }
    }
    // A name of PEFT's says nothing of the kind but for factors of LoRA's alone.
    let lora = |n: &&str| n.contains(".lora_A.") || n.contains(".lora_B.");
    let plain = names.iter().any(lora) && !names.iter().any(|n| n.contains(".lora_magnitude_vector"));
    let torch =
        if plain { json!({ "structure": "lora", "torch": true }) } else { json!({ "torch": true }) }.to_string();
    let beside = path.with_file_name(CONFIG);
    if path.file_name().is_none_or(|n| n != TENSORS) || !beside.exists() {
        return Ok(names.iter().any(|n| n.starts_with(PREFIX)).then_some(torch));
    }
    let bytes = std::fs::read(&beside).map_err(|error| AdapterError::Open { path: beside.clone(), error })?;
    let kind = |why: String| AdapterError::Kind { path: beside.clone(), why };
    let config: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|e| kind(format!("it is not the configuration of an adapter: {e}")))?;
    let method = METHODS.iter().find(|m| m.names(&config));
    let why = method.map_or_else(|| Some(unknown(&config)), |m| beyond(&config, m));
    if let Some(why) = why {
        return Err(kind(format!(
            "{why}\nhint: save the adapter as plain LoRA, or fold it into the base before the export"
        )));
    }
    let method = method.expect("just checked");
    let number = |key: &str| match key {
        "" => Ok(None),
        key => {
            let value = config.get(key).and_then(Value::as_f64);
            value.map(Some).ok_or_else(|| kind(format!("'{key}' is not a number")))
        }
    };
    let (rank, alpha) = (number(method.rank)?, number(method.alpha)?);
    // PEFT lists names of heads that the model may not have (both "classifier" and "score").
    let listed = config.get("modules_to_save").and_then(Value::as_array).into_iter().flatten();
    let modules: Vec<&str> = listed.filter_map(Value::as_str).collect();
    let of_one = |n: &&str| plain_name(n).split('.').any(|c| modules.contains(&c));
    if !modules.is_empty() && !names.iter().any(of_one) {
        return Err(kind(format!("modules_to_save lists {}, of which {TENSORS} holds no tensor", modules.join(", "))));
    }
    let mut made = json!({ "structure": method.structure, "torch": true });
    if let Some(rank) = rank {
        made["rank"] = json!(rank as u64);
    }
    if let Some(alpha) = alpha {
        made["alpha"] = json!(alpha);
    }
    for (key, whole) in [("rank_pattern", rank), ("alpha_pattern", alpha)] {
        let rules = config.get(key).and_then(Value::as_object).filter(|rules| whole.is_some() && !rules.is_empty());
        let Some(rules) = rules else { continue };
        if let Some((rule, value)) = rules.iter().find(|(_, v)| v.as_f64().is_none_or(|x| x <= 0.0)) {
            return Err(kind(format!("{key} gives '{rule}' {value}, which is no positive number")));
        }
        // In the order of the file: PEFT takes the first that matches.
        made[key] = rules.iter().map(|(rule, value)| json!([rule, value])).collect();
    }
    if method.rslora {
        made["rslora"] = json!(config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false));
    }
    if let Some((theirs, ours)) = method.setting {
        let value = config.get(theirs).cloned().ok_or_else(|| kind(format!("it has no '{theirs}'")))?;
        made["settings"] = json!({ ours: value });
    }
    Ok(Some(made.to_string()))
}

/// A method of PEFT's, and what it is called here.
pub struct Method {
    pub peft_type: &'static str,
    /// Whether `use_dora` is set.
    pub dora: bool,
    pub structure: &'static str,
    /// The keys of its rank and alpha; empty where it has none.
    pub rank: &'static str,
    pub alpha: &'static str,
    pub rslora: bool,
    /// A setting of its own: PEFT's key, and ours.
    setting: Option<(&'static str, &'static str)>,
    /// Keys that must say nothing, and those that must be false.
    others: &'static [&'static str],
}

const NO_METHOD: Method = Method {
    peft_type: "",
    dora: false,
    structure: "",
    rank: "r",
    alpha: "",
    rslora: false,
    setting: None,
    others: &[],
};

/// What plain LoRA does not have.
const LORA_OTHERS: &[&str] = &[
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

pub const METHODS: &[Method] = &[
    Method {
        peft_type: "LORA",
        structure: "lora",
        alpha: "lora_alpha",
        rslora: true,
        others: LORA_OTHERS,
        ..NO_METHOD
    },
    Method {
        peft_type: "LORA",
        dora: true,
        structure: "dora",
        alpha: "lora_alpha",
        rslora: true,
        others: LORA_OTHERS,
        ..NO_METHOD
    },
    Method { peft_type: "LOHA", structure: "loha", alpha: "alpha", ..NO_METHOD },
    Method {
        peft_type: "LOKR",
        structure: "lokr",
        alpha: "alpha",
        setting: Some(("decompose_factor", "decompose-factor")),
        others: &["decompose_both"],
        ..NO_METHOD
    },
    Method { peft_type: "VERA", structure: "vera", ..NO_METHOD },
    Method { peft_type: "IA3", structure: "ia3", rank: "", ..NO_METHOD },
    Method { peft_type: "MISS", structure: "miss", ..NO_METHOD },
    Method {
        peft_type: "OFT",
        structure: "oft",
        rank: "",
        setting: Some(("oft_block_size", "block-size")),
        others: &["use_cayley_neumann", "block_share", "coft"],
        ..NO_METHOD
    },
    Method { peft_type: "LN_TUNING", structure: "norm", rank: "", ..NO_METHOD },
    Method {
        peft_type: "PROMPT_TUNING",
        structure: "prompt",
        rank: "",
        setting: Some(("num_virtual_tokens", "virtual-tokens")),
        ..NO_METHOD
    },
];

impl Method {
    /// Whether a configuration is of this method.
    fn names(&self, config: &Map<String, Value>) -> bool {
        let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        let dora = config.get("use_dora").and_then(Value::as_bool).unwrap_or(false);
        kind.eq_ignore_ascii_case(self.peft_type) && dora == self.dora
    }
}

fn unknown(config: &Map<String, Value>) -> String {
    let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or("nothing");
    let mut known: Vec<&str> = METHODS.iter().map(|m| m.peft_type).collect();
    known.dedup();
    format!("peft_type is {kind}, which is none of {}", known.join(", "))
}

/// What of a configuration the method here does not have.
fn beyond(config: &Map<String, Value>, method: &Method) -> Option<String> {
    let get = |key: &str| config.get(key).filter(|v| !empty(v));
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
    method.others.iter().find_map(|key| get(key).map(|v| format!("{key} is {v}")))
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
    fn each_method_says_how_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        for (more, want) in [
            (
                json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": true }),
                json!({ "structure": "dora", "rank": 4 }),
            ),
            (
                json!({ "peft_type": "LOHA", "r": 4, "alpha": 2 }),
                json!({ "structure": "loha", "rank": 4, "alpha": 2.0 }),
            ),
            (
                json!({ "peft_type": "LOKR", "r": 2, "alpha": 4, "decompose_factor": 8, "decompose_both": false }),
                json!({ "structure": "lokr", "settings": { "decompose-factor": 8 } }),
            ),
            (
                json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": { "v": 2, ".*q": 6 }, "alpha_pattern": {} }),
                json!({ "rank": 4, "rank_pattern": [["v", 2], [".*q", 6]], "alpha_pattern": null }),
            ),
            (json!({ "peft_type": "VERA", "r": 16 }), json!({ "structure": "vera", "rank": 16 })),
            (json!({ "peft_type": "IA3" }), json!({ "structure": "ia3" })),
            (json!({ "peft_type": "LN_TUNING" }), json!({ "structure": "norm" })),
            (
                json!({ "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5 }),
                json!({ "structure": "prompt", "settings": { "virtual-tokens": 5 } }),
            ),
            (json!({ "peft_type": "MISS", "r": 6 }), json!({ "structure": "miss", "rank": 6 })),
            (
                json!({ "peft_type": "OFT", "oft_block_size": 16, "use_cayley_neumann": false }),
                json!({ "structure": "oft", "settings": { "block-size": 16 } }),
            ),
        ] {
            std::fs::write(dir.path().join(CONFIG), more.to_string()).unwrap();
            let made = config(&dir.path().join(TENSORS), &["base_model.model.q.x"]).unwrap().unwrap();
            let made: Value = serde_json::from_str(&made).unwrap();
            for (key, value) in want.as_object().unwrap() {
                assert_eq!(&made[key], value, "{more}: {key}");
            }
        }
    }

    #[test]
    fn what_is_not_plain_lora_is_named() {
        let check = |more: Value, want: Option<&str>| {
            let mut config = json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": false });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let config = config.as_object().unwrap();
            let method = METHODS.iter().find(|m| m.names(config));
            let why = match method {
                None => Some(unknown(config)),
                Some(m) => beyond(config, m),
            };
            assert_eq!(why.is_some(), want.is_some(), "{why:?}");
            assert!(want.is_none_or(|w| why.as_ref().unwrap().contains(w)), "{why:?}");
        };
        check(json!({ "rank_pattern": {}, "alpha_pattern": { "q": 8 }, "fan_in_fan_out": true }), None);
        check(json!({ "init_lora_weights": "gaussian" }), None);
        check(json!({ "use_dora": true }), None);
        check(json!({ "peft_type": "BOFT" }), Some("BOFT"));
        check(json!({ "peft_type": "OFT", "use_cayley_neumann": true }), Some("use_cayley_neumann"));
        check(json!({ "bias": "lora_only" }), Some("lora_only"));
        check(json!({ "init_lora_weights": "pissa_niter_4" }), Some("pissa"));
    }
}
