//! `compare`

use super::common::{DataArgs, Outcome, Printer, TypeArgs, Usage, data_help, grouped, names, read_data, stem, table};
use super::inject::{regex, selector, structure};
use super::progress::{Log, Progress};
use crate::adapters::Structure;
use crate::inject::Options;
use crate::optim::OPTIMIZERS;
use crate::pipeline::{self, Comparison, Error, ExperimentRequest, Mean, Variant};
use crate::settings::{TrainConfig, defaults};
use crate::train::metrics::{EvalMetrics, StepMetrics};
use crate::train::schedule::SCHEDULES;
use crate::train::{self, Observer};
use anyhow::{Context, Result};
use std::cell::RefCell;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(override_usage = "reslora-compile compare MODEL --data FILE... --eval FILE... [OPTIONS]")]
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
    /// The structures, by name; plain lora is the control that the others are held against
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', default_value = "lora,is,bs,ms")]
    structures: Vec<String>,
    /// The alphas of the control; the others have --alpha
    #[arg(long, value_name = "F,...", value_delimiter = ',', default_value = "16,32,48")]
    alphas: Vec<f64>,
    /// Runs of each, from seeds 0, 1, ...
    #[arg(long, default_value_t = 3, value_name = "N")]
    seeds: u64,
    /// The folder for the runs, compare.json and report.html
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Linear nodes to adapt: a regular expression searched in module paths, or role:attention.q and the like
    /// [default: attention queries and values]
    #[arg(long, value_name = "RE|role:ROLE")]
    target: Vec<String>,
    /// Linear nodes to leave out
    #[arg(long, value_name = "RE")]
    exclude: Vec<String>,
    /// Rows of A
    #[arg(long, value_name = "N", default_value_t = 8)]
    rank: usize,
    /// Adapters other than the control are scaled by alpha / rank
    #[arg(long, value_name = "F", default_value_t = 16.0)]
    alpha: f64,
    /// Earlier blocks that block-shortcut and middle-shortcut read; -1 for all
    #[arg(long, value_name = "N", default_value_t = 2, allow_hyphen_values = true)]
    pre_num: i64,
    #[command(flatten)]
    how: DataArgs,
    /// Micro-batches to an optimiser step
    #[arg(long, default_value_t = defaults::ACCUMULATE, value_name = "N")]
    accumulate: usize,
    #[arg(long, default_value_t = defaults::EPOCHS, value_name = "N")]
    epochs: usize,
    /// Ends each run after this many optimiser steps, whatever --epochs says
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    #[arg(long, default_value = defaults::OPTIMIZER, value_name = "NAME",
          value_parser = names(OPTIMIZERS.iter().map(|o| o.name)))]
    optimizer: String,
    #[arg(long, default_value_t = defaults::LEARNING_RATE, value_name = "F", allow_hyphen_values = true)]
    lr: f64,
    #[arg(long, default_value = defaults::SCHEDULE, value_name = "NAME",
          value_parser = names(SCHEDULES.iter().map(|s| s.name)))]
    schedule: String,
    #[arg(long, default_value_t = defaults::WARMUP_STEPS, value_name = "N")]
    warmup_steps: u64,
    /// Steps between evaluations [default: a tenth of the run]
    #[arg(long, value_name = "N")]
    eval_every: Option<u64>,
    #[command(flatten)]
    types: TypeArgs,
}

impl Args {
    /// How every run is trained.
    fn config(&self) -> TrainConfig {
        TrainConfig {
            how: self.how.config(),
            accumulate: self.accumulate,
            epochs: self.epochs,
            max_steps: self.max_steps,
            optimizer: self.optimizer.clone(),
            lr: self.lr,
            schedule: self.schedule.clone(),
            warmup_steps: self.warmup_steps,
            eval_every: self.eval_every,
            precision: self.types.precision.clone(),
            weights: self.types.weights.clone(),
            ..TrainConfig::default()
        }
    }

    fn variants(&self) -> Result<Vec<Variant>> {
        let mut structures: Vec<Structure> = Vec::new();
        for name in &self.structures {
            let one = structure("--structures", name.trim())?;
            if !structures.contains(&one) {
                structures.push(one);
            }
        }
        if self.alphas.iter().any(|a| !(a.is_finite() && *a > 0.0)) {
            return Err(Usage("--alphas takes numbers above 0".into()).into());
        }
        if self.seeds == 0 {
            return Err(Usage("--seeds 0 runs nothing\nhint: at least 2 for a confidence interval".into()).into());
        }
        let options = Options {
            targets: self.target.iter().map(|t| selector(t)).collect::<Result<_>>()?,
            exclude: self.exclude.iter().map(|t| regex("--exclude", t)).collect::<Result<_>>()?,
            rank: self.rank,
            alpha: self.alpha,
            pre_num: self.pre_num,
            ..Options::default()
        };
        Ok(pipeline::variants(&structures, &self.alphas, &options))
    }
}

/// Follows one run after the other, each under its name.
struct Follower<'a> {
    inner: &'a RefCell<Progress>,
}

impl Observer for Follower<'_> {
    fn started(&mut self, total: u64, done: u64) {
        self.inner.borrow_mut().started(total, done);
    }

    fn step(&mut self, metrics: &StepMetrics) {
        self.inner.borrow_mut().step(metrics);
    }

    fn evaluated(&mut self, metrics: &EvalMetrics, best: bool) {
        self.inner.borrow_mut().evaluated(metrics, best);
    }
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let mut config = args.config();
    config.check(true)?;
    let variants = args.variants()?;
    let model = pipeline::read(&args.model)?;
    pipeline::model_notes(&model).iter().for_each(|n| printer.note(n));
    let data = read_data(&config.how, &args.data, &model, printer)?;
    let (data, eval) = match args.eval_split {
        Some(share) => data.split(share, config.seed).map_err(Error::from)?,
        None => (data, read_data(&config.how, &args.eval, &model, printer)?),
    };
    config.eval_every = Some(config.eval_every.unwrap_or((config.steps(data.len()) / 10).max(1)));
    std::fs::create_dir_all(&args.output).with_context(|| format!("cannot make {}", args.output.display()))?;
    let seeds: Vec<u64> = (0..args.seeds).collect();
    let mut device = args.how.device.open_for(&args.types)?;
    let request = ExperimentRequest {
        base: &model,
        variants: &variants,
        seeds: &seeds,
        data: &data,
        eval: &eval,
        config: &config,
        dir: &args.output,
    };
    let progress = RefCell::new(Progress::new(Log::beside(printer.json), data.unit()));
    let total = variants.len() * seeds.len();
    let mut number = 0;
    let comparison = pipeline::experiment(&request, device.as_mut(), &mut |variant, seed| {
        number += 1;
        eprintln!("run {number} of {total}: {}, seed {seed}", variant.name);
        Follower { inner: &progress }
    });
    progress.borrow().finish();
    let comparison = comparison?;
    let json = serde_json::to_value(&comparison)?;
    super::output::write(&args.output.join("compare.json"), &serde_json::to_string_pretty(&json)?)?;
    let mut runs = Vec::new();
    for trial in &comparison.trials {
        let run = train::ReportRun::read(&trial.run).with_context(|| format!("cannot read {}", trial.run.display()))?;
        runs.push(run.of(&variants[trial.variant].name));
    }
    let page = args.output.join("report.html");
    train::report_page(&page, &format!("{}: a comparison", stem(&args.model)), &runs, Some(&json))
        .with_context(|| format!("cannot write {}", page.display()))?;
    printer.result(&comparison, || text(&comparison, args));
    Ok(Outcome::Done)
}

/// A mean with its interval.
fn shown(m: &Mean, digits: usize) -> String {
    let half = m.half.map(|h| format!(" ± {h:.digits$}")).unwrap_or_default();
    format!("{:.digits$}{half}", m.mean)
}

fn text(c: &Comparison, args: &Args) -> String {
    let with = |f: fn(&pipeline::ComparedRow) -> bool| c.rows.iter().any(f);
    let (accuracy, perplexity) = (with(|r| r.accuracy.is_some()), with(|r| r.perplexity.is_some()));
    let mut header = vec!["structure", "parameters", "eval loss", "against the control"];
    header.extend(accuracy.then_some("accuracy %"));
    header.extend(perplexity.then_some("perplexity"));
    header.extend(["steps to target", "ms a step"]);
    let rows = c.rows.iter().map(|r| {
        let times = |m: Mean, by: f64| Mean { mean: by * m.mean, half: m.half.map(|h| by * h) };
        let mut row = vec![
            r.name.clone(),
            grouped(r.parameters),
            shown(&r.loss, 4),
            r.difference.as_ref().map_or("-".into(), |d| shown(d, 4)),
        ];
        row.extend(accuracy.then(|| r.accuracy.map_or("-".into(), |a| shown(&times(a, 100.0), 2))));
        row.extend(perplexity.then(|| r.perplexity.as_ref().map_or("-".into(), |p| shown(p, 3))));
        let some = if r.reached < c.seeds.len() {
            format!(" ({} of {} runs)", r.reached, c.seeds.len())
        } else {
            String::new()
        };
        row.push(r.steps_to_target.as_ref().map_or("not reached".into(), |s| shown(s, 0) + &some));
        row.push(format!("{:.0}", 1e3 * r.step_seconds));
        row
    });
    let mut out = table(&header, rows.collect());
    let n = c.seeds.len();
    out += &format!("\n\nmeans of {n} seed{}", if n == 1 { "" } else { "s, ± half the confidence interval of 95 %" });
    out += &format!("; the target is the loss that {} ends with, {:.4}", c.target_of, c.target_loss);
    if let Some(base) = c.base_loss {
        out += &format!("; the base has {base:.4}");
    }
    out + &format!("\nwrote {} and compare.json beside it", args.output.join("report.html").display())
}
