//! `messages` as text: the tokenizer's own chat template, or ChatML where its tokens exist.

use super::tokenizer::Text;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind};
use serde_json::Value;

/// Pieces of a conversation in order, and whether the loss counts on each: it does on what the assistant says.
pub fn pieces(text: &Text, messages: &[Value]) -> Result<Vec<(String, bool)>, String> {
    for m in messages {
        if m["role"].as_str().is_none() || m["content"].as_str().is_none() {
            return Err("each message needs a 'role' and a 'content'".into());
        }
    }
    if text.chat_template.is_none() {
        return chat_ml(text, messages);
    }
    let mut out: Vec<(String, bool)> = Vec::new();
    let mut before = String::new();
    for i in 0..messages.len() {
        let assistant = messages[i]["role"] == "assistant";
        if assistant {
            // The header that the template puts before an answer is given, not learnt.
            let header = render(text, &messages[..i], true)?;
            push(&mut out, &mut before, header, false)?;
        }
        let whole = render(text, &messages[..=i], false)?;
        push(&mut out, &mut before, whole, assistant)?;
    }
    Ok(out)
}

/// Adds what `now` has beyond `before`.
fn push(out: &mut Vec<(String, bool)>, before: &mut String, now: String, counts: bool) -> Result<(), String> {
    match now.strip_prefix(before.as_str()) {
        Some("") => Ok(()),
        Some(more) => {
            out.push((more.to_string(), counts));
            *before = now;
            Ok(())
        }
        None => Err("the chat template rewrites earlier messages as later ones come".into()),
    }
}

fn render(text: &Text, messages: &[Value], prompt: bool) -> Result<String, String> {
    let template = text.chat_template.as_deref().unwrap_or_default();
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|e| e.to_string())?);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |why: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, why))
    });
    let mut context: std::collections::BTreeMap<&str, Value> =
        text.special.iter().map(|(k, v)| (k.as_str(), Value::from(v.as_str()))).collect();
    context.insert("messages", Value::from(messages));
    context.insert("add_generation_prompt", Value::from(prompt));
    env.render_str(template, Serde(context)).map_err(|e| format!("chat template: {e:#}"))
}

fn chat_ml(text: &Text, messages: &[Value]) -> Result<Vec<(String, bool)>, String> {
    let known = |t: &str| text.tokenizer.token_to_id(t).is_some();
    if !known("<|im_start|>") || !known("<|im_end|>") {
        return Err(
            "the tokenizer has no chat template\nhint: put tokenizer_config.json beside tokenizer.json, or write \
                    'prompt' and 'completion'"
                .into(),
        );
    }
    let mut out = Vec::new();
    for m in messages {
        let (role, content) = (m["role"].as_str().unwrap_or_default(), m["content"].as_str().unwrap_or_default());
        out.push((format!("<|im_start|>{role}\n"), false));
        out.push((format!("{content}<|im_end|>\n"), role == "assistant"));
    }
    Ok(out)
}
