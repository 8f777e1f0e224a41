//! Special tokens of a tokenizer: those its files name, placed as the framework that wrote the files would place them.

use super::classes::{CASED, CASED_BUT_CHINESE, CLASSES, FRAMED, LANGUAGES, LEFT, MODELS};
use serde_json::{Map, Value, json};
use std::path::Path;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

/// Names of special tokens, in the order in which they are added to a vocabulary that lacks them.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

const BOS: &[&str] =
    &["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|begin▁of▁sentence|>", "<｜begin▁of▁sentence｜>"];
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
    "<｜end▁of▁sentence｜>",
];
const PAD: &[&str] = &["<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>"];

/// What the files beside a tokenizer say, once they are put in place.
#[derive(Debug, Default)]
pub struct Special {
    /// Special tokens by name, such as `bos_token`; `additional_special_tokens` is a list.
    pub names: Map<String, Value>,
    pub eos: Option<(i32, String)>,
    pub pad: Option<i32>,
    pub pad_left: bool,
    pub cut_left: bool,
    pub model_max_length: Option<usize>,
    /// What frames the texts of language models where the tokenizer itself does not say.
    pub usual: Option<PostProcessorWrapper>,
    /// A word on what was added so, or could not be done.
    pub note: Option<String>,
}

/// Puts special tokens in place. `config` is tokenizer_config.json, `folder` where it lies.
pub fn apply(tokenizer: &mut Tokenizer, config: Option<&Value>, folder: &Path) -> Result<Special, String> {
    let mut special = Special::default();
    let carried_pad = tokenizer.get_padding().cloned();
    if let Some(p) = &carried_pad {
        special.pad_left = matches!(p.direction, tokenizers::PaddingDirection::Left);
    }
    if let Some(t) = tokenizer.get_truncation() {
        special.cut_left = t.direction == tokenizers::TruncationDirection::Left;
    }
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
    let map = object(&folder.join("special_tokens_map.json"))?;
    let in_vocabulary = |t: &Tokenizer, token: &str| t.token_to_id(token).map(|i| i as i32);
    let usual = |t: &Tokenizer, names: &[&str]| names.iter().find_map(|n| Some((in_vocabulary(t, n)?, n.to_string())));
    let carried = carried_pad.as_ref().map(|p| p.pad_token.clone());
    let usual_pad = usual(tokenizer, PAD).map(|p| p.0);
    let carried_id = carried_pad.as_ref().map(|p| p.pad_id as i32);

    let Some(config) = config.and_then(Value::as_object) else {
        let map = map.unwrap_or_default();
        let named = |role: &str| map.get(role).and_then(content).and_then(|t| Some((in_vocabulary(tokenizer, &t)?, t)));
        let bos = named("bos_token").or_else(|| usual(tokenizer, BOS));
        special.eos = named("eos_token").or_else(|| usual(tokenizer, EOS));
        special.pad = named("pad_token").map(|p| p.0).or(carried_id).or(usual_pad);
        special.names = names(&map, &|_| None);
        if tokenizer.get_post_processor().is_none() {
            special.usual = frame(bos.as_ref(), special.eos.as_ref())?;
            let added: Vec<&str> = [&bos, &special.eos].into_iter().flatten().map(|t| t.1.as_str()).collect();
            special.note = special.usual.as_ref().map(|_| {
                format!(
                    "neither tokenizer.json nor a tokenizer_config.json beside it says which special tokens a text gets; \
                     {} added by name (--no-special-tokens leaves them out)",
                    match added[..] {
                        [a, b] => format!("{a} and {b} are"),
                        _ => format!("{} is", added.join("")),
                    }
                )
            });
        }
        return Ok(special);
    };

    let class = class(config, folder)?;
    let class = class.as_deref().unwrap_or_default();
    let mut given = config.clone();
    let mut decoder: Vec<(u64, AddedToken)> = Vec::new();
    match given.get("added_tokens_decoder").and_then(Value::as_object) {
        Some(tokens) => {
            for (id, token) in tokens {
                let id = id.parse().map_err(|_| format!("tokenizer_config.json: added token '{id}' has no number"))?;
                decoder.extend(added(token, false).map(|t| (id, t)));
            }
        }
        // Older folders name special tokens in a file of their own, which comes before the configuration.
        None => {
            let mut map = map.unwrap_or_default();
            let key = "additional_special_tokens";
            if let Some(more) = map.get_mut(key).and_then(Value::as_array_mut) {
                let mut all = given.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
                all.extend(more.drain(..).filter(|t| !all.contains(t)).collect::<Vec<_>>());
                *more = all;
            }
            given.extend(map);
        }
    }
    decoder.sort_by_key(|d| d.0);

    let defaults = CLASSES.iter().find(|c| c.0.contains(&class)).map_or([""; 7], |c| c.1);
    let default = |role: &str| {
        let token = ROLES.iter().position(|r| *r == role).map(|r| defaults[r].to_string()).filter(|t| !t.is_empty());
        token.or_else(|| carried.clone().filter(|_| role == "pad_token"))
    };
    special.names = names(&given, &default);
    let named = |role: &str| special.names.get(role).and_then(Value::as_str);
    let pad = named("pad_token").and_then(|t| in_vocabulary(tokenizer, t));
    add(tokenizer, &given, &special.names, &decoder, class);

    let id = |token: &str| in_vocabulary(tokenizer, token).map(|i| (i, token.to_string()));
    let (bos, eos) = (named("bos_token").and_then(id), named("eos_token").and_then(id));
    special.pad = pad.or(carried_id).or(usual_pad);
    if let Some(side) = given.get("padding_side").and_then(Value::as_str) {
        special.pad_left = side == "left";
    } else if carried_pad.is_none() {
        special.pad_left = LEFT.contains(&class);
    }
    if let Some(side) = given.get("truncation_side").and_then(Value::as_str) {
        special.cut_left = side == "left";
    }
    let longest = given.get("model_max_length").or(given.get("max_len")).and_then(Value::as_f64);
    special.model_max_length = longest.filter(|n| (1.0..1e9).contains(n)).map(|n| n as usize);
    if let Some((_, default)) = FRAMED.iter().find(|f| f.0 == class) {
        let wants = |key: &str, default: bool| given.get(key).map_or(default, |v| v.as_bool().unwrap_or(false));
        let pick = |wanted: bool, what: &str, token: &Option<(i32, String)>| match (wanted, token) {
            (true, None) => Err(format!("tokenizer_config.json sets add_{what}_token, but names no {what}_token")),
            (true, Some(t)) => Ok(Some(t.clone())),
            (false, _) => Ok(None),
        };
        let front = pick(wants("add_bos_token", *default), "bos", &bos)?;
        let back = pick(wants("add_eos_token", false), "eos", &eos)?;
        tokenizer.with_post_processor(frame(front.as_ref(), back.as_ref())?);
    }
    if CASED.contains(&class) || CASED_BUT_CHINESE.contains(&class) {
        lower_case(tokenizer, &given, CASED.contains(&class))?;
    }
    prefix_space(tokenizer, &given, class)?;
    if given.get("split_special_tokens").and_then(Value::as_bool) == Some(true) {
        tokenizer.set_encode_special_tokens(true);
    }
    if LANGUAGES.contains(&class) {
        special.note = Some(format!(
            "{class} tokenizers frame texts with tokens of a language; here texts are framed as tokenizer.json says"
        ));
    }
    special.eos = eos;
    Ok(special)
}

/// The `eos_token_id` of a folder's `generation_config.json` and `config.json`: one token, or several.
pub fn ends(folder: &Path) -> Result<Vec<i32>, String> {
    let mut out = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        let Some(config) = object(&folder.join(name))? else { continue };
        let ids = match config.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.clone(),
            Some(id) => vec![id.clone()],
            None => vec![],
        };
        out.extend(ids.iter().filter_map(|id| i32::try_from(id.as_i64()?).ok()));
    }
    Ok(out)
}

/// A JSON file that holds an object; `None` where there is no such file.
pub fn object(path: &Path) -> Result<Option<Map<String, Value>>, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("{name}: {e}")),
    };
    match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Object(o)) => Ok(Some(o)),
        Ok(_) => Err(format!("{name} does not hold an object")),
        Err(e) => Err(format!("{name}: {e}")),
    }
}

/// The class of a tokenizer, without `Tokenizer` and `TokenizerFast`.
fn class(config: &Map<String, Value>, folder: &Path) -> Result<Option<String>, String> {
    let short = |name: &str| {
        let name = name.strip_suffix("Fast").unwrap_or(name);
        name.strip_suffix("Tokenizer").unwrap_or(name).to_string()
    };
    if let Some(name) = config.get("tokenizer_class").and_then(Value::as_str) {
        return Ok(Some(short(name)));
    }
    let Some(model) = object(&folder.join("config.json"))? else { return Ok(None) };
    if let Some(name) = model.get("tokenizer_class").and_then(Value::as_str) {
        return Ok(Some(short(name)));
    }
    let kind = model.get("model_type").and_then(Value::as_str);
    Ok(kind.and_then(|k| MODELS.iter().find(|m| m.0 == k)).map(|m| m.1.to_string()))
}

/// The text of a token that is given as text or as an object.
fn content(token: &Value) -> Option<String> {
    let text = token.as_str().or_else(|| token["content"].as_str())?;
    Some(text.to_string()).filter(|t| !t.is_empty())
}

/// A token to add, as text or as an object describes it.
fn added(token: &Value, special: bool) -> Option<AddedToken> {
    let text = content(token)?;
    let flag = |key: &str| token[key].as_bool();
    let special = flag("special").unwrap_or(false) || special;
    Some(
        AddedToken::from(text, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

/// Special tokens by name.
fn names(given: &Map<String, Value>, default: &dyn Fn(&str) -> Option<String>) -> Map<String, Value> {
    let mut out = Map::new();
    for role in ROLES {
        let token = match given.get(role) {
            Some(token) => content(token),
            None => default(role),
        };
        out.extend(token.map(|t| (role.to_string(), Value::from(t))));
    }
    let more = given.get("additional_special_tokens").and_then(Value::as_array);
    let more: Vec<String> = more.into_iter().flatten().filter_map(content).collect();
    if !more.is_empty() {
        out.insert("additional_special_tokens".into(), json!(more));
    }
    let extra = given.get("extra_special_tokens").and_then(Value::as_object);
    out.extend(extra.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), Value::from(content(v)?)))));
    out
}

/// Adds the tokens of `added_tokens_decoder` that differ from the tokenizer's, then special tokens that are not among
/// its added ones.
fn add(
    tokenizer: &mut Tokenizer,
    given: &Map<String, Value>,
    names: &Map<String, Value>,
    decoder: &[(u64, AddedToken)],
    class: &str,
) {
    let mut specials: Vec<AddedToken> = Vec::new();
    for (role, value) in names {
        let given = given.get(role).unwrap_or(&Value::Null);
        match value {
            Value::Array(more) => {
                let from = given.as_array().into_iter().flatten().filter_map(|t| added(t, true));
                specials.extend(from.filter(|t| more.iter().any(|m| m == t.content.as_str())));
            }
            // What is given as an object keeps its flags.
            value => specials.extend(added(if given.is_object() { given } else { value }, true)),
        }
    }
    if class == "CodeLlama" {
        specials.extend(["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"].map(|t| AddedToken::from(t, true)));
    }
    let have: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
    let mut tokens: Vec<AddedToken> = Vec::new();
    for (_, token) in decoder.iter().filter(|(_, t)| !have.contains(t)) {
        let special = token.special || specials.iter().any(|s| s.content == token.content);
        tokens.push(AddedToken { special, ..token.clone() });
    }
    for token in specials {
        let known = |t: &AddedToken| t.content == token.content;
        if !have.iter().any(known) && !tokens.iter().any(known) {
            tokens.push(token);
        }
    }
    tokenizer.add_tokens(&tokens);
}

/// A post-processor that puts tokens around every text; `None` where there is neither.
fn frame(bos: Option<&(i32, String)>, eos: Option<&(i32, String)>) -> Result<Option<PostProcessorWrapper>, String> {
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let token = |t: &(i32, String), kind: u32| json!({"SpecialToken": {"id": t.1, "type_id": kind}});
    let around = |of: &str, kind: u32| {
        let mut out: Vec<Value> = bos.map(|t| token(t, kind)).into_iter().collect();
        out.push(json!({"Sequence": {"id": of, "type_id": kind}}));
        out.extend(eos.map(|t| token(t, kind)));
        out
    };
    let mut tokens = Map::new();
    for t in [bos, eos].into_iter().flatten() {
        tokens.insert(t.1.clone(), json!({"id": t.1, "ids": [t.0], "tokens": [t.1]}));
    }
    let single = around("A", 0);
    let pair = [single.clone(), around("B", 1)].concat();
    let made = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens});
    serde_json::from_value(made).map(Some).map_err(|e| e.to_string())
}

/// Puts the case flags of a configuration into a normalizer that has them.
fn lower_case(tokenizer: &mut Tokenizer, given: &Map<String, Value>, chinese: bool) -> Result<(), String> {
    let mut state = serde_json::to_value(tokenizer.get_normalizer()).map_err(|e| e.to_string())?;
    let Some(fields) = state.as_object_mut() else { return Ok(()) };
    let flag = |key: &str, default: Value| given.get(key).cloned().unwrap_or(default);
    let wanted = [
        ("lowercase", flag("do_lower_case", json!(true))),
        ("strip_accents", flag("strip_accents", Value::Null)),
        ("handle_chinese_chars", flag("tokenize_chinese_chars", json!(true))),
    ];
    if fields.get("type") != Some(&json!("BertNormalizer")) {
        return Ok(());
    }
    let kept = if chinese { 3 } else { 2 };
    fields.extend(wanted.into_iter().take(kept).map(|(k, v)| (k.to_string(), v)));
    let made: NormalizerWrapper = serde_json::from_value(state).map_err(|e| e.to_string())?;
    tokenizer.with_normalizer(Some(made));
    Ok(())
}

/// Puts `add_prefix_space` of a configuration into a pre-tokenizer that has it.
fn prefix_space(tokenizer: &mut Tokenizer, given: &Map<String, Value>, class: &str) -> Result<(), String> {
    let wanted = match given.get("add_prefix_space") {
        Some(value) => value.as_bool(),
        None if ["Llama", "T5", "MT5"].contains(&class) => None,
        None => Some(class == "LayoutLMv3"),
    };
    let Some(wanted) = wanted else { return Ok(()) };
    let mut state = serde_json::to_value(tokenizer.get_pre_tokenizer()).map_err(|e| e.to_string())?;
    if let Some(flag) = state.get_mut("add_prefix_space") {
        *flag = json!(wanted);
    } else if wanted && ["Cohere", "Bloom"].contains(&class) {
        for part in state.get_mut("pretokenizers").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(flag) = part.get_mut("add_prefix_space") {
                *flag = json!(true);
            }
        }
    } else {
        return Ok(());
    }
    let made: PreTokenizerWrapper = serde_json::from_value(state).map_err(|e| e.to_string())?;
    tokenizer.with_pre_tokenizer(Some(made));
    Ok(())
}
