//! `generate`

use super::common::{DeviceArg, Outcome, Printer, Usage};
use crate::adapter::Adapter;
use crate::onnx::Model;
use crate::pipeline::{self, Error, GenerateRequest, Generated};
use crate::train::data::{self, Text};
use anyhow::Result;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,
    /// The text to go on from
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// A Hugging Face tokenizer.json, or a folder that holds one [default: beside the model]
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: Option<PathBuf>,
    /// An adapter for an injected model: a file, a run directory, or a folder that PEFT saved
    #[arg(long, value_name = "FILE|DIR")]
    adapter: Option<PathBuf>,
    /// Another model, whose text is shown before: that from before training
    #[arg(long, value_name = "BASE")]
    compare: Option<PathBuf>,
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_tokens: usize,
    /// 0 takes the likeliest token each time; more than that draws them
    #[arg(long, default_value_t = 0.0, value_name = "F", allow_hyphen_values = true)]
    temperature: f64,
    /// Draws the tokens
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Put the prompt into the tokenizer's chat template, as a message of the user
    #[arg(long)]
    chat: bool,
    /// For --chat: the name of one of the tokenizer's chat templates, or a file with a template
    #[arg(long, value_name = "NAME|FILE", requires = "chat")]
    chat_template: Option<String>,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(Serialize)]
struct Result_ {
    prompt: String,
    prompt_tokens: usize,
    #[serde(flatten)]
    own: Said,
    /// What the model of --compare generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    compared: Option<Said>,
    device: String,
}

#[derive(Serialize)]
struct Said {
    text: String,
    tokens: usize,
    /// Whether an end-of-sequence token came.
    ended: bool,
    /// Whether the model's key-value cache was used.
    cached: bool,
    seconds: f64,
}

/// The text of a model, written out as it comes where somebody watches.
struct Writer<'a> {
    text: &'a Text,
    ids: Vec<i32>,
    written: usize,
    live: bool,
}

impl Writer<'_> {
    fn add(&mut self, id: i32) {
        self.ids.push(id);
        if !self.live {
            return;
        }
        let all = self.text.said(&self.ids);
        // A character may take several tokens.
        if !all.ends_with('\u{fffd}')
            && let Some(new) = all.get(self.written..)
        {
            print!("{new}");
            let _ = std::io::stdout().flush();
            self.written = all.len();
        }
    }
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let model = pipeline::read(&args.model)?;
    let base = args.compare.as_deref().map(pipeline::read).transpose()?;
    let adapter = args.adapter.as_deref().map(|path| pipeline::read_adapter(path, &model)).transpose()?;
    let adapter = adapter.map(|(adapter, notes)| {
        notes.iter().for_each(|n| printer.note(n));
        adapter
    });
    let options = data::Options {
        tokenizer: args.tokenizer.clone(),
        beside: args.model.parent().map(Path::to_path_buf),
        chat_template: args.chat_template.clone(),
        ..data::Options::default()
    };
    let text = data::open_tokenizer(&args.model, &options).map_err(|e| match e {
        data::DataError::NoTokenizer { .. } => Usage(
            "generate needs a tokenizer\nhint: give --tokenizer FILE, or put tokenizer.json beside the model".into(),
        )
        .into(),
        e => anyhow::Error::from(Error::from(e)),
    })?;
    let prompt = match args.chat {
        true => data::question(&text, &args.prompt).and_then(|asked| Ok(text.plain(&asked)?.0)),
        false => text.prompt(&args.prompt),
    };
    let prompt = prompt.map_err(Error::Model)?;
    let ends: Vec<i32> = text.eos.iter().map(|e| e.0).chain(text.ends.iter().copied()).collect();
    if ends.is_empty() {
        printer.note("no end-of-sequence token is known: --max-tokens alone ends the text");
    }
    let mut device = args.device.open()?;
    let live = !printer.json && std::io::stdout().is_terminal();
    let mut say = |model: &Arc<Model>, adapter: Option<&Adapter>, title: Option<&str>| -> Result<Said> {
        let request = GenerateRequest {
            model,
            adapter,
            prompt: &prompt,
            max_tokens: args.max_tokens,
            temperature: args.temperature,
            seed: args.seed,
            ends: &ends,
        };
        if live {
            title.inspect(|t| println!("{t}:"));
            print!("{}", args.prompt);
            let _ = std::io::stdout().flush();
        }
        let mut writer = Writer { text: &text, ids: vec![], written: 0, live };
        let start = Instant::now();
        let Generated { tokens, ended, cached } =
            pipeline::generate(&request, device.as_mut(), &mut |id| writer.add(id))?;
        if live {
            println!();
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(Said { text: text.said(&tokens), tokens: tokens.len(), ended, cached, seconds })
    };
    let compared = base.as_ref().map(|base| say(base, None, Some("before"))).transpose()?;
    let own = say(&model, adapter.as_ref(), compared.as_ref().map(|_| "after"))?;
    let result =
        Result_ { prompt: args.prompt.clone(), prompt_tokens: prompt.len(), own, compared, device: device.name() };
    printer.result(&result, || shown(&result, live));
    Ok(Outcome::Done)
}

/// The texts, where they were not written as they came, and the speed.
fn shown(r: &Result_, live: bool) -> String {
    let speed = |s: &Said| format!("{} tokens, {:.1} a second", s.tokens, s.tokens as f64 / s.seconds.max(1e-9));
    if live {
        return speed(&r.own);
    }
    let said = |s: &Said| format!("{}{}", r.prompt, s.text);
    match &r.compared {
        Some(base) => format!("before:\n{}\n\nafter:\n{}\n\n{}", said(base), said(&r.own), speed(&r.own)),
        None => format!("{}\n\n{}", said(&r.own), speed(&r.own)),
    }
}
