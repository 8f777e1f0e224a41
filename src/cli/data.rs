//! `data`

use super::common::{DataArgs, Outcome, Printer, data_help, grouped, table};
use crate::pipeline::{self, Example, Lengths, Shown};
use anyhow::Result;
use std::io::IsTerminal;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(override_usage = "reslora-compile data MODEL --data FILE... [OPTIONS]")]
pub struct Args {
    /// The model that reads the data; its tokenizer and class names are looked for beside it
    model: PathBuf,
    #[arg(long, value_name = "FILE", required = true, num_args = 1.., help = data_help("What to show"))]
    data: Vec<PathBuf>,
    /// Examples to show
    #[arg(short = 'n', long, default_value_t = 3, value_name = "N")]
    examples: usize,
    #[command(flatten)]
    how: DataArgs,
}

/// The most tokens of an example that are printed.
const PRINTED: usize = 256;

/// The width of the longest bar.
const BAR: usize = 40;

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let how = args.how.config();
    how.check()?;
    let model = pipeline::read(&args.model)?;
    let shown = pipeline::show(&how, &args.data, &model, args.examples)?;
    if !printer.json {
        shown.notes.iter().for_each(|n| printer.note(n));
    }
    let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    printer.result(&shown, || text(&shown, coloured));
    Ok(Outcome::Done)
}

fn text(shown: &Shown, coloured: bool) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (i, e) in shown.first.iter().enumerate() {
        parts.push(example(&format!("example {}", i + 1), e, coloured));
        parts.extend(e.further.iter().enumerate().map(|(n, e)| example(&format!("  its text {}", n + 2), e, coloured)));
    }
    if shown.first.iter().any(|e| !e.learnt.is_empty()) {
        parts.push(match coloured {
            true => "green: tokens whose prediction counts in the loss".into(),
            false => "in « »: tokens whose prediction counts in the loss".into(),
        });
    }
    if !shown.tensors.is_empty() {
        let rows = shown.tensors.iter().map(|t| vec![t.name.clone(), t.kind.clone()]).collect();
        parts.push(table(&["tensor", "type"], rows));
    }
    if !shown.classes.is_empty() {
        let name = |c: &pipeline::Class| c.name.clone().unwrap_or_default();
        let rows = shown.classes.iter().map(|c| vec![c.class.to_string(), name(c), grouped(c.examples)]).collect();
        parts.push(table(&["class", "name", "examples"], rows));
    }
    parts.extend(shown.lengths.as_ref().map(lengths));
    parts.push(format!("{} examples ({})", grouped(shown.examples), shown.task));
    parts.join("\n\n")
}

fn example(name: &str, e: &Example, coloured: bool) -> String {
    let counts = |t: usize| e.learnt.get(t) == Some(&true);
    let learnt = e.learnt.iter().filter(|l| **l).count();
    let mut out = format!("{name}: {} tokens", e.ids.len());
    if !e.learnt.is_empty() {
        out += &format!(", {learnt} learnt");
    }
    if let Some(label) = &e.label {
        let name = e.label_name.as_ref().map(|n| format!(" ({n})")).unwrap_or_default();
        out += &format!(", label {label}{name}");
    }
    out.extend(e.inputs.iter().map(|(name, x)| format!(", {name} {x}")));
    let shown = e.ids.len().min(PRINTED);
    let mut line = String::new();
    for t in 0..shown {
        let piece = e.pieces[t].replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
        // What begins and ends is marked once for a run of tokens.
        let (begins, ends) = (counts(t) && (t == 0 || !counts(t - 1)), counts(t) && (t + 1 == shown || !counts(t + 1)));
        let (on, off) = if coloured { ("\u{1b}[32m", "\u{1b}[0m") } else { ("«", "»") };
        if t > 0 {
            line.push('|');
        }
        line += if begins { on } else { "" };
        line += &piece;
        line += if ends { off } else { "" };
    }
    let more = if shown < e.ids.len() { format!(" ... and {} more", e.ids.len() - shown) } else { String::new() };
    let ids: Vec<String> = e.ids[..shown].iter().map(i32::to_string).collect();
    format!("{out}\n  {line}{more}\n  ids {}{more}", ids.join(" "))
}

fn lengths(l: &Lengths) -> String {
    let most = l.histogram.iter().map(|b| b.examples).max().unwrap_or(1).max(1);
    let rows = l.histogram.iter().map(|b| {
        let bar = "#".repeat((b.examples * BAR).div_ceil(most));
        vec![format!("to {}", b.to), grouped(b.examples), bar]
    });
    format!(
        "{}\nshortest {}, median {}, mean {:.1}, 95% at most {}, longest {}, {} in all",
        table(&["tokens", "texts", ""], rows.collect()),
        l.shortest,
        l.median,
        l.mean,
        l.p95,
        l.longest,
        grouped(l.total)
    )
}
