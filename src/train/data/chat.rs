//! Conversations: rendered whole with the tokenizer's chat template; only the assistant's answers are trained on.

use super::template::{self, Rendered, Template};
use super::tokenizer::Text;
use serde_json::{Map, Value, json};
use std::ops::Range;

/// A conversation as a row gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Talk {
    pub messages: Vec<Value>,
    /// Messages that are given: answers among them are not learnt.
    pub given: usize,
    pub tools: Option<Value>,
    pub documents: Option<Value>,
    /// What else the template sees.
    pub more: Map<String, Value>,
}

/// A rendering with the parts of it that are learnt, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: String,
    pub learnt: Vec<Range<usize>>,
    /// Whether the template itself marks them.
    pub tagged: bool,
}

impl Talk {
    /// Reads a conversation from a row: `messages`, `prompt` and `completion` as lists of messages, or `conversations`.
    /// `None` if the row holds none.
    pub fn read(row: &Map<String, Value>) -> Result<Option<Talk>, String> {
        let list = |key: &str| row.get(key).and_then(Value::as_array);
        let (messages, given) = match (list("messages"), list("prompt"), list("completion"), list("conversations")) {
            (Some(messages), ..) => (messages.clone(), 0),
            (None, Some(prompt), Some(completion), _) => ([&prompt[..], completion].concat(), prompt.len()),
            (None, Some(_), None, _) => {
                return Err("'prompt' is a list of messages, but 'completion' is not".into());
            }
            (.., Some(turns)) => (share_gpt(turns)?, 0),
            _ => return Ok(None),
        };
        let system = row.get("system").and_then(Value::as_str).filter(|s| !s.is_empty());
        let mut talk = Talk { messages, given, tools: None, documents: None, more: Map::new() };
        if let Some(system) = system.filter(|_| list("messages").is_none() && list("prompt").is_none()) {
            talk.messages.insert(0, json!({"role": "system", "content": system}));
        }
        talk.tools = structured(row, "tools")?;
        talk.documents = structured(row, "documents")?;
        if let Some(Value::Object(more)) = row.get("chat_template_kwargs") {
            talk.more = more.clone();
        }
        talk.check()?;
        Ok(Some(talk))
    }

    /// A question and its answer.
    pub fn of(question: &str, answer: &str, system: Option<&str>) -> Talk {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let mut messages: Vec<Value> = system.map(|s| message("system", s)).into_iter().collect();
        messages.extend([message("user", question), message("assistant", answer)]);
        Talk { messages, given: 0, tools: None, documents: None, more: Map::new() }
    }

    fn check(&self) -> Result<(), String> {
        for (i, m) in self.messages.iter().enumerate() {
            let n = i + 1;
            let Some(fields) = m.as_object() else { return Err(format!("message {n} is not an object")) };
            if m["role"].as_str().is_none() {
                return Err(format!("message {n} has no 'role'; each message needs a 'role' and a 'content'"));
            }
            match &m["content"] {
                Value::String(_) => {}
                Value::Array(parts) if parts.iter().all(|p| p.is_string() || p.is_object()) => {}
                // What calls a tool, or only thinks, says nothing.
                Value::Null if fields.keys().any(|k| k != "role" && k != "content" && !fields[k].is_null()) => {}
                Value::Null => {
                    return Err(format!("message {n} has no 'content'; each message needs a 'role' and a 'content'"));
                }
                _ => return Err(format!("the 'content' of message {n} is neither text nor a list of parts")),
            }
        }
        Ok(())
    }
}

/// A list that a row holds as such, or as JSON text.
fn structured(row: &Map<String, Value>, key: &str) -> Result<Option<Value>, String> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Array(list)) => Ok(Some(Value::from(list.clone()))),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Array(list)) if list.is_empty() => Ok(None),
            Ok(list @ Value::Array(_)) => Ok(Some(list)),
            _ => Err(format!("'{key}' must be a list")),
        },
        Some(_) => Err(format!("'{key}' must be a list")),
    }
}

/// Turns of the form `{"from": "human", "value": "..."}` as messages.
fn share_gpt(turns: &[Value]) -> Result<Vec<Value>, String> {
    let turn = |(i, turn): (usize, &Value)| {
        if turn["role"].is_string() {
            return Ok(turn.clone());
        }
        let (Some(from), Some(value)) = (turn["from"].as_str(), turn["value"].as_str()) else {
            return Err(format!("turn {} of 'conversations' needs a 'from' and a 'value'", i + 1));
        };
        let role = match from {
            "human" | "user" => "user",
            "gpt" | "assistant" | "model" | "chatgpt" | "bot" => "assistant",
            "system" => "system",
            "tool" | "observation" | "function_response" => "tool",
            "function_call" => {
                let calls = match serde_json::from_str(value) {
                    Ok(Value::Array(calls)) => calls,
                    Ok(call @ Value::Object(_)) => vec![call],
                    _ => return Err(format!("turn {} of 'conversations' calls a function, but is not JSON", i + 1)),
                };
                let call =
                    |c: Value| if c["function"].is_object() { c } else { json!({"type": "function", "function": c}) };
                let calls: Vec<Value> = calls.into_iter().map(call).collect();
                return Ok(json!({"role": "assistant", "content": "", "tool_calls": calls}));
            }
            other => {
                return Err(format!(
                    "turn {} of 'conversations' is from '{other}'\n\
                     hint: 'from' is human, gpt, system, tool, observation or function_call",
                    i + 1
                ));
            }
        };
        Ok(json!({"role": role, "content": value}))
    };
    turns.iter().enumerate().map(turn).collect()
}

/// Renders a conversation. One piece holds all answers, unless the template shows earlier messages otherwise once later
/// ones come; then there is a piece for each answer.
pub fn pieces(text: &Text, talk: &Talk) -> Result<Vec<Piece>, String> {
    let template = text.templates.pick(talk.tools.is_some())?;
    let mut context = template::context(&text.names, talk.tools.as_ref(), talk.documents.as_ref());
    context.extend(talk.more.clone());
    let messages = contents(template, talk, &context)?;
    if template.tagged
        && (Value::from(messages.clone()).to_string() + &json!(context).to_string()).contains(template::MARKS)
    {
        return Err(
            "it holds a character (U+10FFF0 or U+10FFF1) that marks answers while templates are rendered".into()
        );
    }
    let render = |n: usize, prompt: bool| {
        template.render(&messages[..n], &context, prompt).map_err(|e| format!("the chat template says: {e}"))
    };
    let whole = render(messages.len(), false);
    if template.tagged {
        return Ok(vec![tagged(whole?, talk, &render)]);
    }
    let answers = (talk.given..messages.len()).filter(|&i| messages[i]["role"] == "assistant");
    let answers: Vec<usize> = answers.collect();
    if answers.is_empty() {
        return Ok(vec![Piece { text: whole?.text, learnt: vec![], tagged: false }]);
    }
    let mut apart = Vec::new();
    for i in answers {
        let now = match (&whole, i + 1 == messages.len()) {
            (Ok(whole), true) => whole.text.clone(),
            _ => render(i + 1, false)?.text,
        };
        let start = start(&now, i, &messages[i], &render);
        let learnt = std::iter::once(start..now.len()).collect();
        apart.push(Piece { learnt, text: now, tagged: false });
    }
    match whole {
        Ok(whole) if apart.iter().all(|p| whole.text.starts_with(&p.text)) => {
            let learnt = apart.into_iter().flat_map(|p| p.learnt).collect();
            Ok(vec![Piece { text: whole.text, learnt, tagged: false }])
        }
        _ => Ok(apart),
    }
}

/// What asks for an answer to a message of the user.
pub fn question(text: &Text, message: &str) -> Result<String, String> {
    let template = text.templates.pick(false)?;
    let context = template::context(&text.names, None, None);
    let messages = [json!({"role": "user", "content": message})];
    let rendered = template.render(&messages, &context, true).map_err(|e| format!("the chat template says: {e}"))?;
    Ok(rendered.text)
}

/// A rendering whose template marks answers itself, without those that are given.
fn tagged(whole: Rendered, talk: &Talk, render: &dyn Fn(usize, bool) -> Result<Rendered, String>) -> Piece {
    let given = match talk.given {
        0 => 0,
        n => render(n, false).map_or(0, |r| if whole.text.starts_with(&r.text) { r.text.len() } else { 0 }),
    };
    let learnt = whole.generated.into_iter().filter(|r| r.start >= given && !r.is_empty()).collect();
    Piece { text: whole.text, learnt, tagged: true }
}

/// Where answer `i` begins in the rendering that ends with it: behind what asks for an answer.
fn start(now: &str, i: usize, message: &Value, render: &dyn Fn(usize, bool) -> Result<Rendered, String>) -> usize {
    let header = render(i, true).map(|r| r.text);
    if let Ok(header) = &header
        && now.starts_with(header.as_str())
    {
        return header.len();
    }
    let common = |other: &str| {
        let same = now.char_indices().zip(other.chars()).find(|((_, a), b)| a != b).map(|((at, _), _)| at);
        same.unwrap_or(now.len().min(other.len()))
    };
    // A header that the answer does not keep, such as one that opens a thought: as far as the two agree, but not into
    // the answer itself.
    let before = render(i, false).map_or(0, |r| common(&r.text));
    let content = message["content"].as_str().unwrap_or_default().trim();
    let own = now[before..].find(content).filter(|_| !content.is_empty()).map(|at| before + at);
    match header {
        Ok(header) => common(&header).min(own.unwrap_or(now.len())).max(before.min(own.unwrap_or(before))),
        Err(_) => own.unwrap_or(before),
    }
}

/// The messages as the template takes them: parts of a content are joined unless it takes them apart itself.
fn contents(template: &Template, talk: &Talk, context: &Map<String, Value>) -> Result<Vec<Value>, String> {
    if !talk.messages.iter().any(|m| m["content"].is_array()) || template.takes_parts(context) {
        return Ok(talk.messages.clone());
    }
    let mut messages = talk.messages.clone();
    for (i, message) in messages.iter_mut().enumerate() {
        let Some(parts) = message["content"].as_array() else { continue };
        let text = |p: &Value| p.as_str().or_else(|| p["text"].as_str()).map(String::from);
        let joined: Option<Vec<String>> = parts.iter().map(text).collect();
        let Some(joined) = joined else {
            return Err(format!(
                "message {} has a part that is not text, which the chat template does not take",
                i + 1
            ));
        };
        message["content"] = Value::from(joined.concat());
    }
    Ok(messages)
}

/// Which tokens are learnt, from the bytes of the text that each token holds.
pub fn mask(piece: &Piece, offsets: &[Range<usize>]) -> Vec<bool> {
    let mut out = vec![false; offsets.len()];
    for span in &piece.learnt {
        let overlaps = |o: &Range<usize>| o.start < span.end && o.end > span.start && o.start < o.end;
        let (first, mut last) = (offsets.iter().position(overlaps), offsets.iter().rposition(overlaps));
        // transformers ends a marked answer at the first token of its last character, and several tokens may share one.
        if piece.tagged {
            let end = piece.text[..span.end].char_indices().next_back().map_or(0, |c| c.0);
            last = offsets.iter().position(|o| o.start <= end && end < o.end).or(last);
        }
        if let (Some(first), Some(last)) = (first, last)
            && first <= last
        {
            out[first..=last].fill(true);
        }
    }
    out
}
