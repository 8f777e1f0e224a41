//! `tune`

use super::common::{DataArgs, Outcome, Printer, TypeArgs, Usage, beside, data_help, read_data, table};
use super::inject::{regex, selector, structure};
use crate::inject::Options;
use crate::pipeline::{self, Attempt, Error, SearchRequest, Space};
use crate::settings::{TrainConfig, defaults};
use crate::train::Observer;
use crate::train::metrics::EvalMetrics;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(clap::Args)]
#[command(override_usage = "reslora-compile tune MODEL --data FILE... --eval FILE... [OPTIONS]")]
pub struct Args {
    /// The model without adapters
    model: PathBuf,
    #[arg(long, value_name = "FILE", required = true, num_args = 1.., help = data_help("What to train on"))]
    data: Vec<PathBuf>,
    /// What to measure on
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "eval_split")]
    eval: Vec<PathBuf>,
    /// Hold back this share of the training rows and measure on them
    #[arg(long, value_name = "F", allow_hyphen_values = true, conflicts_with = "eval")]
    eval_split: Option<f64>,
    /// The time for all runs together: 90s, 20m, 2h
    #[arg(long, value_name = "TIME", default_value = "20m", value_parser = duration)]
    budget: Duration,
    /// The structures to choose from
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', default_value = "lora,is,bs,ms")]
    structures: Vec<String>,
    /// The ranks to choose from
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "4,8,16,32")]
    ranks: Vec<usize>,
    /// The alphas to choose from
    #[arg(long, value_name = "F,...", value_delimiter = ',', default_value = "8,16,32,64")]
    alphas: Vec<f64>,
    /// The learning rates to choose from
    #[arg(long, value_name = "F,...", value_delimiter = ',', default_value = "1e-4,3e-4,1e-3,3e-3")]
    rates: Vec<f64>,
    /// Keep the runs in this folder [default: they are thrown away]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Linear nodes to adapt: a regular expression searched in module paths, or role:attention.q and the like
    /// [default: attention queries and values]
    #[arg(long, value_name = "RE|role:ROLE")]
    target: Vec<String>,
    /// Linear nodes to leave out
    #[arg(long, value_name = "RE")]
    exclude: Vec<String>,
    #[command(flatten)]
    how: DataArgs,
    /// Micro-batches to an optimiser step
    #[arg(long, default_value_t = defaults::ACCUMULATE, value_name = "N")]
    accumulate: usize,
    #[arg(long, default_value_t = defaults::EPOCHS, value_name = "N")]
    epochs: usize,
    /// The optimiser steps of the run that is prepared
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    /// Draws the candidates, and seeds their runs
    #[arg(long, default_value_t = defaults::SEED, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    types: TypeArgs,
}

/// A time as people write it.
fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| format!("'{text}' is no time: write 90s, 20m or 2h"))?;
    Duration::try_from(span).ok().filter(|d| !d.is_zero()).ok_or_else(|| format!("'{text}' is not above 0"))
}

#[derive(Serialize)]
struct Result_ {
    best: Attempt,
    /// What injects and trains as the best attempt did, for the whole run.
    commands: Vec<String>,
    attempts: Vec<Attempt>,
    device: String,
}

/// Follows one run after the other.
struct Follower;

impl Observer for Follower {
    fn evaluated(&mut self, metrics: &EvalMetrics, _: bool) {
        if metrics.step > 0 {
            eprintln!("  eval loss {:.4}", metrics.eval_loss);
        }
    }
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let config = TrainConfig {
        how: args.how.config(),
        accumulate: args.accumulate,
        epochs: args.epochs,
        max_steps: args.max_steps,
        seed: args.seed,
        precision: args.types.precision.clone(),
        weights: args.types.weights.clone(),
        ..TrainConfig::default()
    };
    config.check(true)?;
    let structures =
        args.structures.iter().map(|name| structure("--structures", name.trim())).collect::<Result<_>>()?;
    let space = Space { structures, ranks: args.ranks.clone(), alphas: args.alphas.clone(), rates: args.rates.clone() };
    let positive = |x: &f64| x.is_finite() && *x > 0.0;
    if !space.alphas.iter().chain(&space.rates).all(positive) || space.ranks.contains(&0) {
        return Err(Usage("--ranks, --alphas and --rates take numbers above 0".into()).into());
    }
    let options = Options {
        targets: args.target.iter().map(|t| selector(t)).collect::<Result<_>>()?,
        exclude: args.exclude.iter().map(|t| regex("--exclude", t)).collect::<Result<_>>()?,
        ..Options::default()
    };
    let model = pipeline::read(&args.model)?;
    pipeline::model_notes(&model).iter().for_each(|n| printer.note(n));
    let data = read_data(&config.how, &args.data, &model, printer)?;
    let (data, eval) = match args.eval_split {
        Some(share) => data.split(share, config.seed).map_err(Error::from)?,
        None => (data, read_data(&config.how, &args.eval, &model, printer)?),
    };
    let thrown = tempfile::tempdir().context("cannot make a temporary folder")?;
    let dir = args.output.as_deref().unwrap_or(thrown.path());
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut device = args.how.device.open_for(&args.types)?;
    let request = SearchRequest {
        base: &model,
        space: &space,
        options: &options,
        config: &config,
        data: &data,
        eval: &eval,
        budget: args.budget,
        dir,
    };
    let attempts = pipeline::search(&request, device.as_mut(), &mut |c, round, steps| {
        let (name, rank, alpha, lr) = (c.structure, c.rank, c.alpha, c.lr);
        eprintln!("round {round}, {steps} steps: {name}, rank {rank}, alpha {alpha}, lr {lr:e}");
        Follower
    })?;
    let best = pipeline::best_attempt(&attempts).cloned();
    let best =
        best.ok_or_else(|| Error::Model("training broke down for every candidate\nhint: smaller --rates".into()))?;
    let result = Result_ { commands: commands(args, &best), best, attempts, device: device.name() };
    printer.result(&result, || text(&result));
    Ok(Outcome::Done)
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

fn commands(args: &Args, best: &Attempt) -> Vec<String> {
    let (path, c) = (|p: &Path| quoted(&p.to_string_lossy()), &best.candidate);
    let injected = beside(&args.model, "reslora");
    let mut inject = format!("reslora-compile inject {} --structure {}", path(&args.model), c.structure);
    if c.structure.rank {
        inject += &format!(" --rank {}", c.rank);
    }
    if c.structure.alpha {
        inject += &format!(" --alpha {}", c.alpha);
    }
    for (flag, values) in [("--target", &args.target), ("--exclude", &args.exclude)] {
        values.iter().for_each(|v| inject += &format!(" {flag} {}", quoted(v)));
    }
    let files = |files: &[PathBuf]| files.iter().map(|f| path(f)).collect::<Vec<_>>().join(" ");
    let mut train = format!("reslora-compile train {} --data {}", path(&injected), files(&args.data));
    match args.eval_split {
        Some(share) => train += &format!(" --eval-split {share}"),
        None => train += &format!(" --eval {}", files(&args.eval)),
    }
    train += &format!(" --lr {:e}", c.lr);
    if let Some(tokenizer) = &args.how.tokenizer {
        train += &format!(" --tokenizer {}", path(tokenizer));
    }
    let how = [
        ("--batch-size", args.how.batch_size.to_string(), defaults::BATCH_SIZE.to_string()),
        ("--max-length", args.how.max_length.to_string(), defaults::MAX_LENGTH.to_string()),
        ("--loss", args.how.loss.name.clone(), defaults::LOSS.to_string()),
        ("--accumulate", args.accumulate.to_string(), defaults::ACCUMULATE.to_string()),
        ("--epochs", args.epochs.to_string(), defaults::EPOCHS.to_string()),
        ("--device", args.how.device.device.clone(), defaults::DEVICE.to_string()),
    ];
    for (flag, value, default) in how {
        if value != default {
            train += &format!(" {flag} {value}");
        }
    }
    if !args.how.columns.is_empty() {
        train += &format!(" --columns {}", quoted(&args.how.columns.join(",")));
    }
    if let Some(n) = args.max_steps {
        train += &format!(" --max-steps {n}");
    }
    vec![inject, train]
}

fn text(r: &Result_) -> String {
    let rows = r.attempts.iter().map(|a| {
        let c = &a.candidate;
        vec![
            a.round.to_string(),
            c.structure.to_string(),
            c.rank.to_string(),
            c.alpha.to_string(),
            format!("{:e}", c.lr),
            a.steps.to_string(),
            a.loss.map_or("broke down".into(), |l| format!("{l:.4}")),
            a.accuracy.map_or("-".into(), |x| format!("{:.2}", 100.0 * x)),
        ]
    });
    let header = ["round", "structure", "rank", "alpha", "lr", "steps", "eval loss", "accuracy %"];
    let b = &r.best;
    let mut out = table(&header, rows.collect());
    out +=
        &format!("\n\nthe best of {} runs has an eval loss of {:.4}:\n", r.attempts.len(), b.loss.unwrap_or(f64::NAN));
    out + &r.commands.iter().map(|c| format!("  {c}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(duration("20m"), Ok(Duration::from_secs(1200)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("0s").is_err() && duration("-5s").is_err() && duration("soon").is_err());
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("a/b-1.onnx"), "a/b-1.onnx");
        assert_eq!(quoted("it's (q|v)"), "'it'\\''s (q|v)'");
    }
}
