//! Chat templates: finds them where tokenizers keep them, and renders them as Jinja2 and Python would.

use super::python;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::Path;
use std::sync::{LazyLock, OnceLock};

/// The character pair that marks what a template says the model generates; taken out of the rendering.
pub const MARKS: [char; 2] = ['\u{10fff0}', '\u{10fff1}'];

/// The template tags around what the model generates.
static GENERATION: LazyLock<regex::Regex> =
    LazyLock::new(|| regex::Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("a pattern"));

/// The templates of a tokenizer, by name.
pub struct Templates {
    found: Vec<(String, Template)>,
    /// The one that the user names.
    chosen: Option<usize>,
}

/// A template.
pub struct Template {
    env: Environment<'static>,
    /// Whether it marks what the model generates.
    pub tagged: bool,
    /// Whether it takes the parts of a message's content apart itself.
    parts: OnceLock<bool>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub text: String,
    /// What the template marks as generated, in bytes of the text.
    pub generated: Vec<Range<usize>>,
}

impl Templates {
    /// Finds the templates in a tokenizer's folder. `choice` is the name of one of them, or a file.
    pub fn load(folder: &Path, config: Option<&Value>, choice: Option<&str>) -> Result<Templates, String> {
        let mut sources: Vec<(String, String)> = Vec::new();
        let file = |path: &Path| {
            let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", name()))
        };
        let own = folder.join("chat_template.jinja");
        if own.is_file() {
            sources.push(("default".into(), file(&own)?));
        }
        let mut more: Vec<_> = std::fs::read_dir(folder.join("additional_chat_templates"))
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        more.sort();
        for path in more.iter().filter(|p| p.extension().is_some_and(|e| e == "jinja")) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            sources.push((name, file(path)?));
        }
        // Files come before the configuration.
        if sources.is_empty()
            && let Some(config) = config
        {
            sources = listed(&config["chat_template"]);
        }
        let mut chosen = None;
        if let Some(choice) = choice {
            chosen = sources.iter().position(|s| s.0 == choice);
            if chosen.is_none() {
                let path = Path::new(choice);
                if !path.is_file() {
                    let names: Vec<&str> = sources.iter().map(|s| s.0.as_str()).collect();
                    let names = if names.is_empty() { "none".to_string() } else { names.join(", ") };
                    return Err(format!(
                        "--chat-template {choice} is neither a file nor one of its chat templates ({names})"
                    ));
                }
                let text = file(path)?;
                sources = match serde_json::from_str::<Value>(&text) {
                    Ok(config) if config.is_object() => listed(&config["chat_template"]),
                    _ => vec![("default".into(), text)],
                };
                match sources.iter().position(|s| s.0 == "default") {
                    None if sources.is_empty() => return Err(format!("{choice} holds no 'chat_template'")),
                    at => chosen = at.filter(|_| sources.len() == 1),
                }
            }
        }
        let found = sources.into_iter().map(|(name, source)| {
            let template = Template::new(&source).map_err(|e| format!("its chat template '{name}': {e}"))?;
            Ok((name, template))
        });
        Ok(Templates { found: found.collect::<Result<_, String>>()?, chosen })
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The template for a conversation, with or without tools.
    pub fn pick(&self, tools: bool) -> Result<&Template, String> {
        let named = |name: &str| self.found.iter().position(|t| t.0 == name);
        let at = self.chosen.or_else(|| named("tool_use").filter(|_| tools)).or_else(|| named("default"));
        match at {
            Some(at) => Ok(&self.found[at].1),
            None if self.is_empty() => Err("conversations need a chat template, and the tokenizer has none\n\
                 hint: put tokenizer_config.json or chat_template.jinja beside tokenizer.json, or give \
                 --chat-template FILE; or write 'prompt' and 'completion'"
                .into()),
            None => {
                let names: Vec<&str> = self.found.iter().map(|t| t.0.as_str()).collect();
                let names = names.join(", ");
                Err(format!(
                    "the tokenizer has several chat templates and no default one: {names}\n\
                     hint: --chat-template NAME"
                ))
            }
        }
    }
}

/// The templates in a `chat_template` entry: one text, or a list of names with texts.
fn listed(entry: &Value) -> Vec<(String, String)> {
    let pair = |name: &Value, text: &Value| Some((name.as_str()?.to_string(), text.as_str()?.to_string()));
    match entry {
        Value::String(text) => vec![("default".into(), text.clone())],
        Value::Array(list) => list.iter().filter_map(|t| pair(&t["name"], &t["template"])).collect(),
        Value::Object(by_name) => by_name.iter().filter_map(|(k, t)| Some((k.clone(), t.as_str()?.into()))).collect(),
        _ => vec![],
    }
}

impl Template {
    fn new(source: &str) -> Result<Template, String> {
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let tagged = GENERATION.is_match(&source);
        // A mark in a block of its own: what stands around it is trimmed as around the tag.
        let source = GENERATION.replace_all(&source, |c: &regex::Captures| {
            let mark = MARKS[c.get(2).is_some() as usize];
            format!("{{%{} if true %}}{mark}{{% endif {}%}}", &c[1], &c[3])
        });
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| e.to_string())?);
        python::install(&mut env);
        env.add_function("raise_exception", |why: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        });
        env.add_function("strftime_now", |format: String| -> Result<String, Error> {
            let now = jiff::ZonedDateTime::now();
            jiff::fmt::strtime::format(&format, &now)
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
        });
        env.add_template_owned("chat template", source.into_owned()).map_err(|e| said(&e))?;
        Ok(Template { env, tagged, parts: OnceLock::new() })
    }

    /// Renders messages; `more` holds what else the template sees.
    pub fn render(&self, messages: &[Value], more: &Map<String, Value>, prompt: bool) -> Result<Rendered, String> {
        let mut context = more.clone();
        context.insert("messages".into(), Value::from(messages));
        context.insert("add_generation_prompt".into(), Value::from(prompt));
        let template = self.env.get_template("chat template").map_err(|e| said(&e))?;
        let text = template.render(Serde(context)).map_err(|e| said(&e))?;
        if !self.tagged {
            return Ok(Rendered { text, generated: vec![] });
        }
        let mut out = Rendered { text: String::with_capacity(text.len()), generated: vec![] };
        let mut start = None;
        for c in text.chars() {
            match MARKS.iter().position(|m| *m == c) {
                Some(0) => start = Some(out.text.len()),
                Some(_) => out.generated.extend(start.take().map(|s| s..out.text.len())),
                None => out.text.push(c),
            }
        }
        Ok(out)
    }

    /// Whether the template takes the parts of a content apart, as one part in a message of the user shows.
    pub fn takes_parts(&self, more: &Map<String, Value>) -> bool {
        *self.parts.get_or_init(|| {
            let probe = "words-of-a-part";
            let message = json!({"role": "user", "content": [{"type": "text", "text": probe}]});
            let plain =
                |t: &Rendered| t.text.contains(probe) && !t.text.contains("'type'") && !t.text.contains("\"type\"");
            self.render(&[message], more, true).is_ok_and(|t| plain(&t))
        })
    }
}

/// What an error of a template says, with the line of the template.
fn said(e: &Error) -> String {
    let what = e.detail().map_or_else(|| e.kind().to_string(), String::from);
    match e.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

/// What templates see beside the messages: special tokens, tools and documents.
pub fn context(names: &Map<String, Value>, tools: Option<&Value>, documents: Option<&Value>) -> Map<String, Value> {
    let mut out = names.clone();
    out.insert("tools".into(), tools.cloned().unwrap_or_default());
    out.insert("documents".into(), documents.cloned().unwrap_or_default());
    out
}
