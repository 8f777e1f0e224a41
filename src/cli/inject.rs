//! `inject`

use super::common::{DataArgs, Outcome, Printer, Usage, beside, grouped, table};
use super::output::guard;
use super::starts::StartArgs;
use crate::adapter;
use crate::adapters::{self, INITS, Init, Made, RESIDUALS, Residual, SettingKind, Structure};
use crate::inject::{BIASES, Head, Options, POOLINGS, Selector};
use crate::onnx::{self, ROLES};
use crate::pipeline::{self, Error};
use anyhow::Result;
use regex::Regex;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,
    /// Where to write the injected model [default: MODEL.reslora.onnx]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Linear nodes to adapt: a regular expression searched in module paths, or role:attention.q and the like
    /// [default: the adapter's, or attention queries and values]
    #[arg(long, value_name = "RE|role:ROLE")]
    target: Vec<String>,
    /// Linear nodes to leave out
    #[arg(long, value_name = "RE")]
    exclude: Vec<String>,
    /// What the adapter computes [default: the adapter's, or block-shortcut]
    #[arg(long, value_name = "NAME", help = structures_help())]
    structure: Option<String>,
    /// Residual path between the adapters of a chain: input-shortcut (is), block-shortcut (bs) or middle-shortcut (ms)
    /// [default: the adapter's, or what the structure's name says]
    #[arg(long, value_name = "NAME")]
    residual: Option<String>,
    /// Earlier blocks that block-shortcut and middle-shortcut read; -1 for all [default: the adapter's, or 2]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pre_num: Option<i64>,
    /// Rows of A [default: the adapter's, or 8]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    rank: Option<usize>,
    /// Adapters are scaled by alpha / rank [default: the adapter's, or 16]
    #[arg(long, value_name = "F", allow_hyphen_values = true)]
    alpha: Option<f64>,
    /// Probability of dropping an element before A, in training [default: the adapter's, or 0]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    dropout: Option<f64>,
    /// The rank of targets whose path RE is found in; the first pattern that is found counts
    #[arg(long, value_name = "RE=N")]
    rank_pattern: Vec<String>,
    /// The alpha of targets whose path RE is found in
    #[arg(long, value_name = "RE=F")]
    alpha_pattern: Vec<String>,
    /// How the factors A and B start: gaussian, orthogonal, pissa, olora, eva or loftq; pissa, olora and loftq take a part of the
    /// weight, which is subtracted in the graph [default: the adapter's, or default]
    #[arg(long, value_name = "KIND")]
    init: Option<String>,
    #[command(flatten)]
    start: StartArgs,
    /// Biases to train besides: none, targets or all
    #[arg(long, value_name = "WHICH", default_value = "none")]
    bias: String,
    /// Keep the first factor A at its start, and train the others alone
    #[arg(long)]
    freeze_a: bool,
    /// Scale by alpha / sqrt(rank) rather than alpha / rank
    #[arg(long)]
    rslora: bool,
    /// Initializers to train fully: a regular expression searched in their names and in module paths
    /// [default: the adapter's, or none]
    #[arg(long, value_name = "RE")]
    also_train: Vec<String>,
    /// Replace the classifier by a fresh one, trained in full: the names of its classes, or their number
    #[arg(long, value_name = "NAMES|N", allow_hyphen_values = true)]
    head: Option<String>,
    /// Add a sentence embedding, pooled from hidden states: mean over tokens, cls (the first position) or last token
    #[arg(long, value_name = "HOW")]
    pool: Option<String>,
    /// Draws the first values of A [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Start from the factors in this file, run directory or PEFT folder; flags that are not given are as it was made
    #[arg(long, value_name = "FILE|DIR")]
    adapter: Option<PathBuf>,
    /// Write over a file that is in use: the model itself, its data or the adapter
    #[arg(long)]
    overwrite: bool,
    /// Show what would be injected, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    how: DataArgs,
    #[command(flatten)]
    settings: Settings,
}

/// The structures with what each computes.
fn structures_help() -> String {
    let name = |s: &Structure| s.names().map(String::from).reduce(|a, b| format!("{a} ({b})")).unwrap_or_default();
    let lines: Vec<String> = adapters::all().iter().map(|s| format!("{}: {}", name(s), s.help)).collect();
    format!("What the adapter computes [default: the adapter's, or {}]:\n{}", adapters::standard(), lines.join("\n"))
}

/// Settings of structures' own, a flag for each that the table of adapters names.
#[derive(Clone, Debug, Default)]
struct Settings(BTreeMap<String, Value>);

impl clap::Args for Settings {
    fn augment_args(command: clap::Command) -> clap::Command {
        let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for structure in adapters::all() {
            structure.settings.iter().for_each(|s| seen.entry(s.name).or_default().push(structure.name));
        }
        let all = adapters::all();
        let args = seen.into_iter().map(|(name, structures)| {
            let setting = all.iter().flat_map(|s| s.settings).find(|s| s.name == name).expect("just seen");
            let (value, default) = match setting.kind {
                SettingKind::Count { default, .. } => ("N", default.map(|d| d.to_string())),
                SettingKind::Number { default } => ("F", Some(default.to_string())),
                SettingKind::Tokens => ("TEXT", None),
                SettingKind::Text { default } => ("TEXT", Some(default.to_string()).filter(|d| !d.is_empty())),
            };
            let default = default.map_or(String::new(), |d| format!(" [default: {d}]"));
            let help = format!("For {}: {}{default}", structures.join(", "), setting.help);
            clap::Arg::new(name).long(name).value_name(value).help(help).allow_hyphen_values(true)
        });
        command.args(args)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Settings::augment_args(command)
    }
}

impl clap::FromArgMatches for Settings {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Settings, clap::Error> {
        let mut out = BTreeMap::new();
        for setting in adapters::all().iter().flat_map(|s| s.settings) {
            let Some(text) = matches.get_one::<String>(setting.name) else { continue };
            let value = match setting.kind {
                SettingKind::Count { .. } => text.parse::<i64>().ok().map(Value::from),
                SettingKind::Number { .. } => text.parse::<f64>().ok().map(Value::from),
                SettingKind::Text { .. } | SettingKind::Tokens => Some(Value::from(text.as_str())),
            };
            // What is no number is refused with the others, by what the structure takes.
            out.insert(setting.name.to_string(), value.unwrap_or_else(|| Value::from(text.as_str())));
        }
        Ok(Settings(out))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Settings::from_arg_matches(matches)?;
        Ok(())
    }
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
pub fn regex(flag: &str, text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|e| Usage(format!("{flag} '{text}' is no regular expression: {e}\nhint: put a backslash before ( ) [ ] . * + ? to match them as they are")).into())
}

/// What `--rank-pattern` or `--alpha-pattern` say.
fn patterns<T: std::str::FromStr>(flag: &str, given: &[String]) -> Result<Vec<(Regex, T)>> {
    let given = given.iter().map(|text| {
        let parts = text.rsplit_once('=').and_then(|(re, n)| Some((re, n.parse().ok()?)));
        let bad = || Usage(format!("{flag} '{text}' is no pattern\nhint: write it as RE=N, for example q_proj=4"));
        let (re, n) = parts.ok_or_else(bad)?;
        Ok((regex(flag, re)?, n))
    });
    given.collect()
}

/// What `--target` says.
pub fn selector(text: &str) -> Result<Selector> {
    let Some(role) = text.strip_prefix("role:") else { return Ok(Selector::Path(regex("--target", text)?)) };
    let found = ROLES.iter().find(|r| r.1 == role);
    let names: Vec<&str> = ROLES.iter().map(|r| r.1).collect();
    let each = if role.contains(',') { "give --target once for each role; " } else { "" };
    let hint = || Usage(format!("--target role:{role} is not known\nhint: {each}the roles are {}", names.join(", ")));
    Ok(Selector::Role(found.ok_or_else(hint)?.0))
}

/// What a name stands for.
fn named_one<T: Copy>(flag: &str, name: &str, all: &[(T, &str)]) -> Result<T> {
    let names = || all.iter().map(|i| i.1).collect::<Vec<_>>().join(", ");
    let found = all.iter().find(|i| i.1 == name).map(|i| i.0);
    Ok(found.ok_or_else(|| Usage(format!("{flag} '{name}' is not known\nhint: it takes {}", names())))?)
}

/// What a flag says, or else the adapter, or else the default; refused where flag and adapter differ.
fn settled<T: PartialEq + Display>(flag: &str, given: Option<T>, made: Option<T>, otherwise: T) -> Result<T> {
    match (given, made) {
        (Some(given), Some(made)) if given != made => Err(Usage(format!(
            "{flag} is {given}, but the adapter was made with {made}\nhint: omit {flag} to use the adapter's value"
        ))
        .into()),
        (given, made) => Ok(given.or(made).unwrap_or(otherwise)),
    }
}

/// `--structure lora --residual block-shortcut` is `--structure block-shortcut`: the structure whose name says both, if there is
/// one.
fn named(structure: Option<Structure>, residual: Option<Residual>) -> (Option<Structure>, Option<Residual>) {
    let path = residual.filter(|r| structure == Some(adapters::lora()) && *r != Residual::None);
    match path.and_then(|r| adapters::all().into_iter().find(|s| s.residual == Some(r))) {
        Some(whole) => (Some(whole), None),
        None => (structure, residual),
    }
}

/// The structure of a name that a flag gives.
pub fn structure(flag: &str, name: &str) -> Result<Structure> {
    let with_alias =
        |s: &Structure| s.names().map(String::from).reduce(|a, b| format!("{a} ({b})")).unwrap_or_default();
    let names = || adapters::all().iter().map(with_alias).collect::<Vec<_>>().join(", ");
    let found = adapters::find(name);
    Ok(found.ok_or_else(|| Usage(format!("{flag} '{name}' is not known\nhint: the structures are {}", names())))?)
}

/// What to inject: the flags, completed by what the adapter says of itself.
fn options(args: &Args) -> Result<Options> {
    let residual = |name: &String| {
        let names = || RESIDUALS.iter().map(|r| format!("{} ({})", r.1, r.2)).collect::<Vec<_>>().join(", ");
        Residual::parse(name)
            .ok_or_else(|| Usage(format!("--residual '{name}' is not known\nhint: the residual paths are {}", names())))
    };
    let init = args.init.as_ref().map(|name| named_one("--init", name, &INITS)).transpose()?;
    let residual = args.residual.as_ref().map(residual).transpose()?;
    let structure = args.structure.as_ref().map(|name| structure("--structure", name)).transpose()?;
    let adapter = args.adapter.as_deref().map(adapter::read).transpose().map_err(Error::from)?;
    let made = match &adapter {
        Some(a) => Made::read(a.config.as_deref(), &a.tensors).map_err(|e| Error::Inject(e.into()))?,
        None => Made::default(),
    };
    let (structure, residual) = named(structure, residual);
    let structure = settled("--structure", structure, made.structure, adapters::standard())?;
    let residual = settled("--residual", residual, made.residual, structure.residual.unwrap_or_default())?;
    let residual = if structure.residual == Some(residual) { Residual::None } else { residual };
    let pre_num = made.pre_num.filter(|_| structure.residual.unwrap_or(residual).reads_pre_num());
    let mut settings = args.settings.0.clone();
    for (name, value) in made.settings.into_iter().flatten() {
        let given = settings.remove(&name);
        settings.insert(name.clone(), settled(&format!("--{name}"), given, Some(value), Value::Null)?);
    }
    Ok(Options {
        targets: args.target.iter().map(|t| selector(t)).collect::<Result<_>>()?,
        exclude: args.exclude.iter().map(|t| regex("--exclude", t)).collect::<Result<_>>()?,
        structure,
        residual,
        settings,
        pre_num: settled("--pre-num", args.pre_num, pre_num, 2)?,
        rank: settled("--rank", args.rank, made.rank, 8)?,
        alpha: settled("--alpha", args.alpha, made.alpha, 16.0)?,
        dropout: args.dropout.or(made.dropout).unwrap_or(0.0),
        rslora: settled("--rslora", args.rslora.then_some(true), made.rslora, false)?,
        rank_pattern: patterns("--rank-pattern", &args.rank_pattern)?,
        alpha_pattern: patterns("--alpha-pattern", &args.alpha_pattern)?,
        freeze_a: args.freeze_a || made.freeze_a.unwrap_or(false),
        init: settled("--init", init, made.init, Init::Default)?,
        bias: named_one("--bias", &args.bias, &BIASES)?,
        head: args.head.as_deref().map(Head::parse).transpose().map_err(Usage)?,
        pool: args.pool.as_ref().map(|name| named_one("--pool", name, &POOLINGS)).transpose()?,
        also_train: args.also_train.iter().map(|t| regex("--also-train", t)).collect::<Result<_>>()?,
        seed: args.seed.or(made.seed).unwrap_or(0),
        loftq: args.start.loftq(),
        adapter,
        ..Options::default()
    })
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let mut options = options(args)?;
    let base = pipeline::read(&args.model)?;
    options.tokens = pipeline::setting_tokens(&base, &options, args.how.tokenizer.as_deref())?;
    let options = args.start.complete(options, &base, &args.how, printer)?;
    pipeline::model_notes(&base).iter().for_each(|n| printer.note(n));
    let (model, report) = pipeline::inject(&base, &options)?;
    let output = args.output.clone().unwrap_or_else(|| beside(&args.model, "reslora"));
    if !args.overwrite && !args.dry_run {
        let adapter = args.adapter.as_deref().map(adapter::file).transpose().map_err(Error::from)?;
        let inputs = [("the model", &*args.model)].into_iter().chain(adapter.as_deref().map(|a| ("the adapter", a)));
        guard(&output, inputs, &[&*base])?;
    }
    if !args.dry_run {
        onnx::write(&model, &output).map_err(Error::from)?;
    }
    let c = &report.config;
    let result = Result_ {
        output: (!args.dry_run).then_some(output),
        structure: c.structure,
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
        "\n\n{} on {} targets{}{}: {} parameters in adapters",
        r.structure,
        r.targets.len(),
        if r.structure.rank { format!(", rank {}", r.rank) } else { String::new() },
        if r.structure.alpha { format!(", alpha {}", r.alpha) } else { String::new() },
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
