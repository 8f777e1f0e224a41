//! A Hugging Face `tokenizer.json`, with the padding and truncation it carries replaced by ours.

use super::DataError;
use crate::file_kind::{self, Kind};
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

/// A tokenizer and the special tokens training needs.
pub struct Text {
    pub tokenizer: Tokenizer,
    pub bos: Option<i32>,
    pub eos: Option<i32>,
    pub pad: i32,
    /// The template of `messages`, and the special tokens by name, from `tokenizer_config.json` beside the tokenizer.
    pub chat_template: Option<String>,
    pub special: Vec<(String, String)>,
}

const BOS: &[&str] = &["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|begin▁of▁sentence|>"];
const EOS: &[&str] = &[
    "</s>",
    "<eos>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end▁of▁sentence|>",
];
const PAD: &[&str] = &["<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>"];

pub fn open(path: &Path) -> Result<Text, DataError> {
    let bad = |why: String| DataError::Tokenizer { path: path.to_path_buf(), why };
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| match file_kind::kind(&bytes) {
        Some(kind) if kind != Kind::Json => DataError::OtherTokenizer { path: path.to_path_buf(), kind },
        _ => bad(e.to_string()),
    })?;
    let carried_pad = tokenizer.get_padding().map(|p| p.pad_id as i32);
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| bad(e.to_string()))?;

    let config = path.with_file_name("tokenizer_config.json");
    let config: Value = match std::fs::read_to_string(&config) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| bad(format!("{}: {e}", config.display())))?,
        Err(_) => Value::Null,
    };
    let text_of = |key: &str| match &config[key] {
        Value::String(s) => Some(s.clone()),
        Value::Object(o) => o.get("content").and_then(Value::as_str).map(String::from),
        _ => None,
    };
    let id = |token: &str| tokenizer.token_to_id(token).map(|i| i as i32);
    let named =
        |key: &str, usual: &[&str]| text_of(key).and_then(|t| id(&t)).or_else(|| usual.iter().find_map(|t| id(t)));
    let wants_bos = config["add_bos_token"].as_bool();
    let bos = match wants_bos {
        Some(false) => None,
        Some(true) => named("bos_token", BOS),
        None => BOS.iter().find_map(|t| id(t)),
    };
    let eos = named("eos_token", EOS);
    let pad = text_of("pad_token").and_then(|t| id(&t)).or(carried_pad).or_else(|| PAD.iter().find_map(|t| id(t)));
    let special = ["bos_token", "eos_token", "pad_token", "unk_token"]
        .iter()
        .filter_map(|k| text_of(k).map(|t| (k.to_string(), t)))
        .collect();
    Ok(Text { bos, eos, pad: pad.unwrap_or(0), chat_template: text_of("chat_template"), special, tokenizer })
}

impl Text {
    /// Token ids and type ids, with the special tokens that the tokenizer's own post-processor adds.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<(Vec<i32>, Vec<i32>), String> {
        let encoding = match pair {
            Some(pair) => self.tokenizer.encode((text, pair), true),
            None => self.tokenizer.encode(text, true),
        };
        let encoding = encoding.map_err(|e| e.to_string())?;
        let ints = |xs: &[u32]| xs.iter().map(|&x| x as i32).collect();
        Ok((ints(encoding.get_ids()), ints(encoding.get_type_ids())))
    }

    /// Token ids of text alone.
    pub fn plain(&self, text: &str) -> Result<Vec<i32>, String> {
        let encoding = self.tokenizer.encode(text, false).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().iter().map(|&x| x as i32).collect())
    }
}
