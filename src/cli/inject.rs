//! `inject`

use super::common::{Outcome, Printer, Usage, beside, grouped, table};
use crate::adapter;
use crate::inject::{Options, Selector};
use crate::onnx::{self, ROLES};
use crate::pipeline::{self, Error};
use crate::structure::{STRUCTURES, Structure};
use anyhow::Result;
use regex::Regex;
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,
    /// Where to write the injected model [default: MODEL.reslora.onnx]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Linear nodes to adapt: a regular expression searched in module paths, or role:attention.q and the like
    /// [default: attention queries and values]
    #[arg(long, value_name = "RE|role:ROLE")]
    target: Vec<String>,
    /// Linear nodes to leave out
    #[arg(long, value_name = "RE")]
    exclude: Vec<String>,
    /// Residual paths between adapters: lora, input-shortcut (is), block-shortcut (bs), middle-shortcut (ms)
    #[arg(long, default_value = "block-shortcut", value_name = "NAME")]
    structure: String,
    /// Earlier blocks that block-shortcut and middle-shortcut read; -1 for all
    #[arg(long, default_value_t = 2, value_name = "N", allow_negative_numbers = true)]
    pre_num: i64,
    #[arg(long, default_value_t = 8, value_name = "N")]
    rank: usize,
    #[arg(long, default_value_t = 16.0, value_name = "F")]
    alpha: f64,
    /// Probability of dropping an element before A, in training
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    dropout: f64,
    /// Scale by alpha / sqrt(rank) rather than alpha / rank
    #[arg(long)]
    rslora: bool,
    /// Initializers to train fully: a regular expression searched in their names and in module paths
    #[arg(long, value_name = "RE")]
    also_train: Vec<String>,
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Start from the factors in this file
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// Show what would be injected, and write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Result_ {
    output: Option<PathBuf>,
    structure: Structure,
    rank: usize,
    alpha: f64,
    targets: Vec<TargetRow>,
    also_train: Vec<String>,
    breaks: Vec<String>,
    adapter_parameters: usize,
    also_trained_parameters: usize,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct TargetRow {
    path: String,
    weight: String,
    in_features: usize,
    out_features: usize,
    prev: Option<String>,
}

/// A regular expression given to a flag.
fn regex(flag: &str, text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|e| Usage(format!("{flag} '{text}' is no regular expression: {e}\nhint: put a backslash before ( ) [ ] . * + ? to match them as they are")).into())
}

/// What `--target` says.
fn selector(text: &str) -> Result<Selector> {
    let Some(role) = text.strip_prefix("role:") else { return Ok(Selector::Path(regex("--target", text)?)) };
    let found = ROLES.iter().find(|r| r.1 == role);
    let names: Vec<&str> = ROLES.iter().map(|r| r.1).collect();
    let hint = || Usage(format!("--target role:{role} is not known\nhint: the roles are {}", names.join(", ")));
    Ok(Selector::Role(found.ok_or_else(hint)?.0))
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let structure = Structure::parse(&args.structure).ok_or_else(|| {
        let names: Vec<String> = STRUCTURES.iter().map(|s| format!("{} ({})", s.name, s.alias)).collect();
        Usage(format!("--structure '{}' is not known\nhint: the structures are {}", args.structure, names.join(", ")))
    })?;
    let adapter = args.adapter.as_deref().map(adapter::read).transpose().map_err(Error::from)?;
    let options = Options {
        targets: args.target.iter().map(|t| selector(t)).collect::<Result<_>>()?,
        exclude: args.exclude.iter().map(|t| regex("--exclude", t)).collect::<Result<_>>()?,
        structure,
        pre_num: args.pre_num,
        rank: args.rank,
        alpha: args.alpha,
        dropout: args.dropout,
        rslora: args.rslora,
        also_train: args.also_train.iter().map(|t| regex("--also-train", t)).collect::<Result<_>>()?,
        seed: args.seed,
        adapter,
    };
    let base = pipeline::read(&args.model)?;
    let (model, report) = pipeline::inject(&base, &options)?;
    let output = args.output.clone().unwrap_or_else(|| beside(&args.model, "reslora"));
    if !args.dry_run {
        onnx::write(&model, &output).map_err(Error::from)?;
    }
    let c = &report.config;
    let result = Result_ {
        output: (!args.dry_run).then_some(output),
        structure,
        rank: c.rank,
        alpha: c.alpha,
        targets: c
            .targets
            .iter()
            .map(|t| TargetRow {
                path: t.path.clone(),
                weight: t.weight.clone(),
                in_features: t.in_features,
                out_features: t.out_features,
                prev: t.prev.clone(),
            })
            .collect(),
        also_train: c.also_train.clone(),
        breaks: report.breaks.iter().map(ToString::to_string).collect(),
        adapter_parameters: report.adapter_parameters,
        also_trained_parameters: report.also_trained_parameters,
        notes: report.notes,
    };
    printer.result(&result, || text(&result));
    Ok(Outcome::Done)
}

fn text(r: &Result_) -> String {
    let rows = r.targets.iter().map(|t| {
        let prev = t.prev.clone().unwrap_or("-".into());
        vec![t.path.clone(), format!("{} x {}", t.out_features, t.in_features), prev]
    });
    let mut out = table(&["target", "weight", "after"], rows.collect());
    out += &format!(
        "\n\n{} on {} targets, rank {}, alpha {}: {} parameters in adapters",
        r.structure,
        r.targets.len(),
        r.rank,
        r.alpha,
        grouped(r.adapter_parameters)
    );
    if !r.also_train.is_empty() {
        let (count, names) = (grouped(r.also_trained_parameters), r.also_train.join(", "));
        out += &format!("\nalso trained: {count} parameters in {names}");
    }
    for line in r.breaks.iter().chain(&r.notes) {
        out += &format!("\nnote: {line}");
    }
    out + &match &r.output {
        Some(path) => format!("\nwrote {}", path.display()),
        None => "\nnothing was written (--dry-run)".to_string(),
    }
}
