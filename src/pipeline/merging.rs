//! Merging with the statistics it needs, and checking what came out.

use super::approximating::{approximate, compared_on, inputs, largest, polish};
use super::comparing::compare_outputs;
use super::surveying::survey;
use super::training::{self, EvalRequest, load};
use super::{Error, fitting, input_specs};
use crate::adapter::{self, Adapter, Norms};
use crate::adapters::Config;
use crate::calibrate::Accumulator;
use crate::device::{Device, Run};
use crate::ir::outputs;
use crate::lower::loss::Loss;
use crate::merge::{self, Report, Statistics, Strategy};
use crate::onnx::{self, ElementType, Model};
use crate::train::data::{Dataset, Feed, Padding};
use crate::train::{Purpose, Settings};
use crate::verify::Difference;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Data to gather statistics on.
#[derive(Clone)]
pub struct Calibration<'a> {
    pub data: &'a Dataset,
    pub batch_size: usize,
    pub max_length: usize,
    pub loss: Option<Loss>,
    pub loss_output: Option<&'a str>,
    /// Whether texts may be padded, as [`merge`] finds out.
    pub padding: Padding,
    /// Inputs that shapes depend on, which are found likewise.
    pub known: BTreeSet<String>,
}

impl<'a> Calibration<'a> {
    /// With the loss that data and model suggest.
    pub fn new(data: &'a Dataset, batch_size: usize, max_length: usize) -> Calibration<'a> {
        let (padding, known) = (Padding::default(), BTreeSet::new());
        Calibration { data, batch_size, max_length, loss: None, loss_output: None, padding, known }
    }

    /// How batches are made for a model.
    pub fn feed(&self, model: &Model) -> Feed {
        let known = self.known.clone();
        Feed { padding: self.padding, known, ..Feed::new(input_specs(model), self.max_length) }
    }

    /// Finds out whether texts may be padded, and which inputs programs are made for by value.
    fn surveyed(mut self, model: &Arc<Model>, device: &mut dyn Device) -> Result<Calibration<'a>, Error> {
        if self.data.has_labels() {
            let mut trainee = load(model, None)?;
            trainee.feed = self.feed(model);
            trainee.set_loss(self.data, self.batch_size, self.loss, self.loss_output)?;
            survey(&mut trainee, &[self.data], device)?;
            (self.padding, self.known) = (trainee.feed.padding, trainee.feed.known);
        }
        Ok(self)
    }
}

/// What to merge.
#[derive(Clone)]
pub struct MergeRequest<'a> {
    pub injected: &'a Arc<Model>,
    pub adapter: &'a Adapter,
    /// `None` takes exact where that is possible, else whichever changes the outputs least on held-back rows.
    pub strategy: Option<Strategy>,
    /// Keep the adapters in the file rather than fold them into weights.
    pub keep_branch: bool,
    /// Data given for statistics; without it, what the adapter recorded.
    pub calibrate: Option<Calibration<'a>>,
    /// Data to fall back on for statistics, and for comparing outputs.
    pub fallback: Option<Calibration<'a>>,
    /// The ridge of least-squares; `None` finds one for each block on held-back rows.
    pub ridge: Option<f64>,
    /// Least-squares block by block, each on the model merged so far.
    pub sequential: bool,
    /// Optimiser steps of the merged form after the solution.
    pub polish: Option<Settings>,
    /// The same, where too little of the gain is left and nothing was asked for.
    pub rescue: Option<Settings>,
    /// Data to measure the evaluation metric on; without it, the rows held back.
    pub evaluate: Option<Calibration<'a>>,
}

/// A merged model, and how far it is from what was trained.
pub struct Merged {
    pub model: Model,
    pub report: Report,
    /// The adapter graph against the merged model, output by output. An approximate merge is judged as it was fitted on the
    /// rows that were not held back.
    pub differences: Vec<Difference>,
    /// What the comparison ran on.
    pub compared_on: String,
    /// The largest relative difference that an exact merge may have, given the weights' element types.
    pub exact_tolerance: f64,
    /// The strategies that were tried, with the largest relative difference of an output.
    pub tried: Vec<(String, f64)>,
    /// The metric with the adapter live, and merged.
    pub metric: Option<Metric>,
    pub polished: Option<Polished>,
}

/// The evaluation metric before and after merging.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Metric {
    pub measured_on: String,
    /// Of the model without the adapter.
    pub base: f64,
    /// With the adapter live, and merged.
    pub loss: [f64; 2],
    /// Which loss it is, and why.
    pub chosen: String,
    /// The share of what the adapter gained that the merged model keeps; `None` where it gained nothing to speak of.
    pub kept: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<[f64; 2]>,
}

/// The least of a gain that a merge must keep to pass for one.
pub const KEPT: f64 = 0.9;

impl Metric {
    /// A gain in loss is nothing to speak of below this share of the loss.
    const NOTICED: f64 = 1e-4;

    fn new(measured_on: String, base: f64, loss: [f64; 2], accuracy: Option<[f64; 2]>, chosen: String) -> Metric {
        let [live, merged] = loss;
        let gain = base - live;
        let kept = (gain > Metric::NOTICED * base.abs().max(live.abs())).then(|| (base - merged) / gain);
        Metric { measured_on, base, loss, chosen, kept, accuracy }
    }

    /// Whether too little of the gain is left.
    pub fn falls_short(&self) -> bool {
        self.kept.is_some_and(|k| k.is_nan() || k < KEPT)
    }
}

/// What polishing changed.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Polished {
    pub steps: u64,
    /// The metric merged, before and after.
    pub metric: Option<[f64; 2]>,
    /// The largest relative difference of an output from the live model's, before and after.
    pub difference: [f64; 2],
}

/// Reads an adapter for an injected model: under the model's names, checked to fit, with notes on what could not be checked.
pub fn read_adapter(path: &Path, injected: &Model) -> Result<(Adapter, Vec<String>), Error> {
    Ok(merge::fit(injected, &adapter::read(path)?)?)
}

/// Merges, then runs the adapter graph and the merged model on the same rows. What they give must be finite.
pub fn merge(request: &MergeRequest, device: &mut dyn Device) -> Result<Merged, Error> {
    let (adapter, mut notes) = merge::fit(request.injected, request.adapter)?;
    let mut merged = fitted(&MergeRequest { adapter: &adapter, ..request.clone() }, device)?;
    if let Some((d, why)) = merged.differences.iter().find_map(|d| Some((d, d.not_finite.as_ref()?))) {
        let (output, on) = (&d.output, &merged.compared_on);
        return Err(Error::Model(format!(
            "output '{output}' {why} on {on} (first the adapter live, second merged), so the merge cannot be judged\n\
             hint: give inputs that the model takes with --calibrate FILE; if it is the adapter's doing, train with a smaller --lr"
        )));
    }
    notes.append(&mut merged.report.notes);
    merged.report.notes = notes;
    Ok(merged)
}

/// Merges an adapter that was checked to fit.
fn fitted(request: &MergeRequest, device: &mut dyn Device) -> Result<Merged, Error> {
    let config = merge::config(request.injected)?;
    if let Some(strategy) = request.strategy {
        merge::check_strategy(&config, strategy)?;
    }
    let mut request = request.clone();
    for c in [&mut request.calibrate, &mut request.fallback] {
        *c = c.take().map(|c| c.surveyed(request.injected, device)).transpose()?;
    }
    let request = &request;
    let given = request.calibrate.as_ref().or(request.fallback.as_ref());
    let (inputs, compared_on) = (inputs(request.injected, given)?.concat(), compared_on(given));
    let injected = request.injected;
    let compare = |model: &Arc<Model>, device: &mut dyn Device| {
        compare_outputs(injected, Some(request.adapter), model, &inputs, device)
    };
    let exact_tolerance = tolerance(injected, &config);
    let done = |model, report, differences| Merged {
        model,
        report,
        differences,
        compared_on: compared_on.clone(),
        exact_tolerance,
        tried: vec![],
        metric: None,
        polished: None,
    };

    let exact = config.structure.info().exact;
    if request.keep_branch || exact {
        if request.polish.is_some() {
            let what = if exact {
                format!("{} merges exactly", config.structure)
            } else {
                "--keep-branch loses nothing".into()
            };
            return Err(Error::Usage(format!("--polish has nothing to do: {what}")));
        }
        let (model, report) = match request.keep_branch {
            true => merge::keep_branch(injected, request.adapter)?,
            false => {
                let strategy = request.strategy.unwrap_or(Strategy::Exact);
                merge::merge(injected, request.adapter, strategy, &Statistics::default())?
            }
        };
        let model = Arc::new(model);
        let differences = compare(&model, device)?;
        let metric = metric(request, given, &model, device)?;
        let mut merged = done(owned(model), report, differences);
        merged.metric = metric;
        record(&mut merged, request, &config, given);
        return Ok(merged);
    }

    let mut chosen = approximate(request, given, request.sequential, device)?;
    let mut metric = metric(request, given, &chosen.model, device)?;
    let short = |m: &Option<Metric>| request.strategy.is_none() && m.as_ref().is_some_and(Metric::falls_short);
    if short(&metric) && !request.sequential && given.is_some() {
        // Too little is left: least squares layer by layer makes up for what earlier layers lost.
        let only = MergeRequest { strategy: Some(Strategy::LeastSquares), ..request.clone() };
        let mut other = approximate(&only, given, true, device)?;
        let better = self::metric(request, given, &other.model, device)?;
        if better.as_ref().and_then(|m| m.kept) > metric.as_ref().and_then(|m| m.kept) {
            other.report.notes.push("least squares layer by layer (--sequential) keeps more of the gain: taken".into());
            other.tried.splice(0..0, chosen.tried);
            (chosen, metric) = (other, better);
        }
    }
    let rescued = request.rescue.as_ref().filter(|_| short(&metric) && request.polish.is_none() && given.is_some());
    if let Some(settings) = rescued {
        chosen.report.notes.push(format!(
            "too little of the gain was left: the merged form was trained for {} steps (--polish)",
            settings.max_steps.unwrap_or_default()
        ));
    }
    let polished = match request.polish.as_ref().or(rescued) {
        None => None,
        Some(settings) => {
            let before = (largest(&chosen.differences), metric.as_ref().map(|m| m.loss[1]));
            let steps = polish(request, given, &mut chosen, settings, device)?;
            chosen.differences = compare(&chosen.model, device)?;
            Some((before, steps))
        }
    };
    let metric = match polished {
        Some(_) => self::metric(request, given, &chosen.model, device)?,
        None => metric,
    };
    let polished = polished.map(|(before, steps)| Polished {
        steps,
        metric: before.1.zip(metric.as_ref().map(|m| m.loss[1])).map(|(a, b)| [a, b]),
        difference: [before.0, largest(&chosen.differences)],
    });
    let mut merged = done(owned(chosen.model), chosen.report, chosen.differences);
    (merged.tried, merged.metric, merged.polished) = (chosen.tried, metric, polished);
    record(&mut merged, request, &config, given);
    Ok(merged)
}

fn owned(model: Arc<Model>) -> Model {
    Arc::try_unwrap(model).unwrap_or_else(|shared| (*shared).clone())
}

/// The largest relative difference that an exact merge may have.
fn tolerance(model: &Model, config: &Config) -> f64 {
    let element = |t: &crate::adapters::Target| model.initializer_type(&t.weight).map(|w| w.0);
    config.targets.iter().filter_map(element).fold(1e-4f64, |t, element| {
        // A weight is rounded once to the type the file stores; eight and eleven bits of mantissa allow no better.
        t.max(match element {
            ElementType::F16 => 5e-3,
            ElementType::Bf16 => 4e-2,
            ElementType::F32 | ElementType::F64 => 1e-4,
            // A quantised weight: its error is reported, layer by layer.
            _ => f64::INFINITY,
        })
    })
}

/// The metric of the live and of the merged model, on the data for it or the rows held back; `None` where there are no labels.
fn metric(
    request: &MergeRequest,
    given: Option<&Calibration>,
    merged: &Arc<Model>,
    device: &mut dyn Device,
) -> Result<Option<Metric>, Error> {
    let Some(c) = request.evaluate.as_ref().or(given) else { return Ok(None) };
    let n = c.data.len();
    let (data, measured_on) = match (&request.evaluate, fitting::folds(n).last()) {
        (None, Some(first)) => {
            let count = n - first.start;
            (c.data.subset(first.start..n), format!("the last {count} examples of {}", c.data.path.display()))
        }
        _ => (c.data.subset(0..n), c.data.path.display().to_string()),
    };
    if !data.has_labels() && c.loss_output.is_none() {
        return Ok(None);
    }
    let mut ask = |model, adapter| {
        let (batch_size, max_length) = (c.batch_size, c.max_length);
        let (loss, loss_output) = (c.loss, c.loss_output);
        let request = EvalRequest {
            model,
            adapter,
            data: &data,
            batch_size,
            max_length,
            loss,
            loss_output,
            mixed: false,
            guard: true,
        };
        training::evaluate(&request, device)
    };
    let bare = Arc::new(merge::strip(request.injected, &merge::config(request.injected)?)?);
    let base = ask(&bare, None)?.loss;
    let live = ask(request.injected, Some(request.adapter))?;
    // A file that keeps the branches holds the adapter's factors itself.
    let after = ask(merged, None)?;
    let accuracy = live.accuracy.zip(after.accuracy).map(|(a, b)| [a, b]);
    let chosen = live.notes.into_iter().next().unwrap_or_default();
    Ok(Some(Metric::new(measured_on, base, [live.loss, after.loss], accuracy, chosen)))
}

/// The key under which a merged model says how it came about, as JSON.
pub const MERGE_KEY: &str = "reslora.merge";

/// Writes into the model's metadata what it was made of and how well.
fn record(merged: &mut Merged, request: &MergeRequest, config: &Config, given: Option<&Calibration>) {
    if merged.report.strategy == "branch" {
        return;
    }
    let digest = |c: &Calibration| std::fs::read(&c.data.path).ok().map(|b| onnx::sha256(&b));
    let record = serde_json::json!({
        "version": 1,
        "structure": config.structure,
        "pre_num": config.pre_num,
        "rank": config.rank,
        "alpha": config.alpha,
        "rslora": config.rslora,
        "seed": config.seed,
        "targets": config.targets.len(),
        "base": request.injected.metadata(crate::adapters::BASE_KEY),
        "data": given.and_then(digest),
        "strategy": merged.report.strategy,
        "sequential": request.sequential && merged.report.strategy == "least-squares",
        "polish": merged.polished.as_ref().map(|p| p.steps),
        "error": largest(&merged.differences),
    });
    merged.model.set_metadata(MERGE_KEY, Some(record.to_string()));
}

/// Runs an injected model over a whole data set and sums the norms of its blocks.
pub fn calibrate(
    injected: &Arc<Model>,
    adapter: &Adapter,
    c: &Calibration,
    device: &mut dyn Device,
) -> Result<BTreeMap<String, Norms>, Error> {
    let mut trainee = load(injected, Some(adapter))?;
    trainee.feed = c.feed(injected);
    let mut sums = Accumulator::new(&trainee.program.blocks());
    trainee.session(device, |session| {
        let all: Vec<usize> = (0..c.data.len()).collect();
        for examples in c.data.batches(session.feed, &all, c.batch_size) {
            let batch = c.data.batch(session.feed, &examples)?;
            let plan = session.plan(&batch, Purpose::Calibrate)?;
            session.device.submit(vec![Run { plan, inputs: batch.inputs }])?;
            for (name, t) in session.collect(true)?.into_iter().flat_map(|f| f.runs).flatten() {
                if name == outputs::STATISTICS {
                    sums.add(t.as_f32().unwrap_or_default());
                }
            }
        }
        Ok(())
    })?;
    Ok(sums.finish())
}
