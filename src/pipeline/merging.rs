//! Merging with the statistics it needs, and checking what came out.

use super::comparing::{Inputs, compare_outputs, synthetic};
use super::surveying::survey;
use super::training::{self, EvalRequest, TrainRequest, load};
use super::{Error, fitting, input_specs};
use crate::adapter::{self, Adapter, Norms};
use crate::calibrate::Accumulator;
use crate::device::{Device, Run};
use crate::inject::{self, Options, Selector};
use crate::ir::outputs;
use crate::lower::loss::Loss;
use crate::merge::{self, Delta, MergeError, Report, Statistics, Strategy};
use crate::onnx::{self, ElementType, Model};
use crate::structure::{Config, Structure};
use crate::train::data::{Dataset, Feed, Padding};
use crate::train::{Purpose, Settings};
use crate::verify::Difference;
use regex::Regex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Data to gather statistics on.
#[derive(Clone, Copy)]
pub struct Calibration<'a> {
    pub data: &'a Dataset,
    pub batch_size: usize,
    pub max_length: usize,
    pub loss: Option<Loss>,
    pub loss_output: Option<&'a str>,
    /// Whether texts may be padded, as [`merge`] finds out.
    pub padding: Padding,
}

impl<'a> Calibration<'a> {
    /// With the loss that data and model suggest.
    pub fn new(data: &'a Dataset, batch_size: usize, max_length: usize) -> Calibration<'a> {
        let padding = Padding::default();
        Calibration { data, batch_size, max_length, loss: None, loss_output: None, padding }
    }

    /// How batches are made for a model.
    pub fn feed(&self, model: &Model) -> Feed {
        Feed { padding: self.padding, ..Feed::new(input_specs(model), self.max_length) }
    }

    /// Finds out whether texts may be padded.
    fn surveyed(mut self, model: &Arc<Model>, device: &mut dyn Device) -> Result<Calibration<'a>, Error> {
        if self.data.longest().is_some() && self.data.has_labels() {
            let mut trainee = load(model, None)?;
            trainee.feed = self.feed(model);
            trainee.set_loss(self.data, self.batch_size, self.loss, self.loss_output)?;
            survey(&mut trainee, self.data, device)?;
            self.padding = trainee.feed.padding;
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
    pub loss: [f64; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<[f64; 2]>,
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

/// The most examples that a comparison runs on.
const COMPARED: usize = 32;

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
    let (inputs, compared_on) = match given {
        Some(c) => held_back(request.injected, c)?,
        None => (vec![synthetic(request.injected, 0)?], "synthetic inputs".to_string()),
    };
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

    let mut chosen = approximate(request, given, &compare, device)?;
    let metric = metric(request, given, &chosen.model, device)?;
    let polished = match &request.polish {
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

fn largest(differences: &[Difference]) -> f64 {
    differences.iter().map(|d| d.relative).fold(0.0, |a, b| if b.is_nan() { b } else { a.max(b) })
}

/// The largest relative difference that an exact merge may have.
fn tolerance(model: &Model, config: &Config) -> f64 {
    let element = |t: &crate::structure::Target| model.initializer_type(&t.weight).map(|w| w.0);
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

/// An approximate merge that was chosen.
struct Chosen {
    model: Arc<Model>,
    report: Report,
    deltas: Vec<Delta>,
    differences: Vec<Difference>,
    tried: Vec<(String, f64)>,
}

type Compare<'a> = dyn Fn(&Arc<Model>, &mut dyn Device) -> Result<Vec<Difference>, Error> + 'a;

/// Tries the strategies that may apply, each as it is without the rows held back, and folds the best of them as it is with all.
fn approximate(
    request: &MergeRequest,
    given: Option<&Calibration>,
    compare: &Compare,
    device: &mut dyn Device,
) -> Result<Chosen, Error> {
    let (injected, adapter) = (request.injected, request.adapter);
    let p = merge::prepare(injected, adapter)?;
    let mut notes = Vec::new();
    let candidates = match (request.strategy, given) {
        (Some(s), _) => vec![s],
        (None, Some(_)) => vec![Strategy::LeastSquares, Strategy::InputNorm, Strategy::WeightNorm],
        (None, None) => vec![Strategy::InputNorm, Strategy::WeightNorm],
    };
    let fits = candidates.contains(&Strategy::LeastSquares);
    let needs = |s: &Strategy| (s.info().applies)(p.config.structure) && (s.info().needs_norms)(p.config.structure);
    let norms = match fits || candidates.iter().any(needs) {
        true => norms(request, device, &mut notes)?,
        false => BTreeMap::new(),
    };
    let mut statistics = Statistics { norms, ..Statistics::default() };
    // The strategies that need no rows first: their errors are found on the rows that least-squares reads anyway.
    let mut judged: Vec<(Strategy, Vec<Delta>)> = Vec::new();
    for &s in candidates.iter().filter(|s| **s != Strategy::LeastSquares) {
        judged.push((s, merge::deltas(&p, s, &statistics)?));
    }
    let mut errors: BTreeMap<&str, BTreeMap<String, f64>> = BTreeMap::new();
    let mut ridges = BTreeMap::new();
    if let Some(c) = given.filter(|_| fits || !statistics.norms.is_empty()) {
        let choices: Vec<Vec<Delta>> = judged.iter().map(|(_, d)| d.clone()).collect();
        let (prepared, norms, ridge) = (&p, &statistics.norms, request.ridge);
        let task = fitting::Task { prepared, injected, adapter, data: c, norms, ridge };
        let live = fitting::fit(&task, &choices, device)?;
        let names = judged.iter().map(|(s, _)| s.info().name);
        errors.extend(names.chain([Strategy::LeastSquares.info().name]).zip(live.errors));
        let mut fitted = live.fitted;
        if fits && request.sequential {
            let in_order = fitting::fit_in_order(&task, device)?;
            errors.extend([Strategy::LeastSquares.info().name].into_iter().zip(in_order.errors));
            fitted = in_order.fitted;
        }
        if fits {
            statistics.projections = fitted.projections(false);
            judged.insert(0, (Strategy::LeastSquares, merge::deltas(&p, Strategy::LeastSquares, &statistics)?));
            statistics.projections = fitted.projections(true);
            ridges = fitted.solutions.iter().map(|(path, s)| (path.clone(), s.ridge)).collect();
        }
    } else if fits {
        return Err(MergeError::NoRows { structure: p.config.structure }.into());
    }
    let mut outcomes = Vec::new();
    for (s, deltas) in judged {
        let mut model = p.model.clone();
        merge::fold(&mut model, &p.config, &deltas, &mut vec![])?;
        outcomes.push((s, compare(&Arc::new(model), device)?));
    }
    let tried: Vec<(String, f64)> = outcomes.iter().map(|(s, d)| (s.info().name.to_string(), largest(d))).collect();
    let best = outcomes.into_iter().min_by(|a, b| largest(&a.1).total_cmp(&largest(&b.1)));
    let (strategy, differences) = best.expect("there is a candidate");
    if tried.len() > 1 {
        let all: Vec<String> = tried.iter().map(|(name, error)| format!("{name} {error:.1e}")).collect();
        notes.push(format!("{} changes the outputs least: {}", strategy.info().name, all.join(", ")));
    }
    // As it will be written: from all rows.
    let deltas = merge::deltas(&p, strategy, &statistics)?;
    let (mut model, mut all_notes) = (p.model, p.notes);
    let mut layers = merge::fold(&mut model, &p.config, &deltas, &mut all_notes)?;
    for layer in &mut layers {
        layer.error = errors.get(strategy.info().name).and_then(|e| e.get(&layer.path)).copied();
        layer.ridge = ridges.get(&layer.path).copied().filter(|_| strategy == Strategy::LeastSquares);
    }
    all_notes.extend(notes);
    let also_trained = p.config.also_train.clone();
    let report = Report { strategy: strategy.info().name.into(), layers, also_trained, notes: all_notes };
    Ok(Chosen { model: Arc::new(model), report, deltas, differences, tried })
}

/// Trains the merged form, plain LoRA with the projections that were found, for some steps on the rows not held back.
fn polish(
    request: &MergeRequest,
    given: Option<&Calibration>,
    chosen: &mut Chosen,
    settings: &Settings,
    device: &mut dyn Device,
) -> Result<u64, Error> {
    let none = "--polish needs data to train on\nhint: give --calibrate FILE with labels";
    let c = given.ok_or_else(|| Error::Usage(none.into()))?;
    let config = merge::config(request.injected)?;
    let bare = merge::strip(request.injected, &config)?;
    let mut start = Adapter::default();
    for (t, delta) in config.targets.iter().zip(&chosen.deltas) {
        let a = delta.a.as_ref().expect("an approximate merge keeps the rank");
        start.tensors.insert(t.a(), a.mapv(|x| x as f32).into_dyn());
        start.tensors.insert(t.b(), request.adapter.tensors[&t.b()].clone());
    }
    for name in &config.also_train {
        start.tensors.insert(name.clone(), request.adapter.tensors[name].clone());
    }
    let exactly = |name: &String| Regex::new(&format!("^{}$", regex::escape(name))).expect("an escaped name");
    let options = Options {
        targets: config.targets.iter().map(|t| Selector::Path(exactly(&t.path))).collect(),
        exclude: vec![],
        structure: Structure::Lora,
        pre_num: 0,
        rank: config.rank,
        alpha: config.alpha,
        dropout: config.dropout,
        rslora: config.rslora,
        also_train: config.also_train.iter().map(exactly).collect(),
        seed: config.seed,
        adapter: Some(start),
    };
    let (lora, _) = inject::inject(&bare, &options, &|_| None)?;
    let lora = Arc::new(lora);
    let n = c.data.len();
    let data = c.data.subset(0..n - fitting::held_back(n));
    let dir = tempfile::tempdir().map_err(|e| Error::Model(format!("no temporary folder: {e}")))?;
    let train = TrainRequest {
        model: &lora,
        data: &data,
        eval: None,
        settings,
        max_length: c.max_length,
        loss: c.loss,
        loss_output: c.loss_output,
        fuse: true,
        dir: dir.path(),
        resume: false,
    };
    struct Quiet;
    impl crate::train::Observer for Quiet {}
    let outcome = training::train(&train, device, &mut Quiet)?;
    let mut p = merge::prepare(&lora, &outcome.adapter)?;
    let deltas = merge::deltas(&p, Strategy::Exact, &Statistics::default())?;
    let layers = merge::fold(&mut p.model, &p.config, &deltas, &mut vec![])?;
    for (old, new) in chosen.report.layers.iter_mut().zip(layers) {
        (old.relative_change, old.requantised) = (new.relative_change, new.requantised);
    }
    (chosen.model, chosen.deltas) = (Arc::new(p.model), deltas);
    Ok(outcome.steps)
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
    let (data, measured_on) = match (&request.evaluate, fitting::held_back(n)) {
        (None, held) if held > 0 => {
            (c.data.subset(n - held..n), format!("the last {held} examples of {}", c.data.path.display()))
        }
        _ => (c.data.subset(0..n), c.data.path.display().to_string()),
    };
    if !data.has_labels() && c.loss_output.is_none() {
        return Ok(None);
    }
    let mut ask = |model, adapter| {
        let (batch_size, max_length) = (c.batch_size, c.max_length);
        let (loss, loss_output) = (c.loss, c.loss_output);
        let request =
            EvalRequest { model, adapter, data: &data, batch_size, max_length, loss, loss_output, mixed: false };
        training::evaluate(&request, device)
    };
    let live = ask(request.injected, Some(request.adapter))?;
    // A file that keeps the branches holds the adapter's factors itself.
    let after = ask(merged, None)?;
    let accuracy = live.accuracy.zip(after.accuracy).map(|(a, b)| [a, b]);
    Ok(Some(Metric { measured_on, loss: [live.loss, after.loss], accuracy }))
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
        "base": request.injected.metadata(crate::structure::BASE_KEY),
        "data": given.and_then(digest),
        "strategy": merged.report.strategy,
        "sequential": request.sequential && merged.report.strategy == "least-squares",
        "polish": merged.polished.as_ref().map(|p| p.steps),
        "error": largest(&merged.differences),
    });
    merged.model.set_metadata(MERGE_KEY, Some(record.to_string()));
}

/// Norms of the blocks: from the data given, else from the data to fall back on, else as the run recorded them.
fn norms(
    request: &MergeRequest,
    device: &mut dyn Device,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, Norms>, Error> {
    if let Some(c) = &request.calibrate {
        return calibrate(request.injected, request.adapter, c, device);
    }
    if let Some(c) = &request.fallback {
        notes.push(format!("statistics were gathered on {}", c.data.path.display()));
        return calibrate(request.injected, request.adapter, c, device);
    }
    if !request.adapter.statistics.is_empty() {
        notes.push(
            "norms are those recorded over the last steps of training; --calibrate FILE gathers them anew".into(),
        );
    }
    Ok(request.adapter.statistics.clone())
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
            for (name, t) in session.device.collect(true)?.into_iter().flat_map(|f| f.runs).flatten() {
                if name == outputs::STATISTICS {
                    sums.add(t.as_f32().unwrap_or_default());
                }
            }
        }
        Ok(())
    })?;
    Ok(sums.finish())
}

/// Batches of the last examples of a data set, and what to call them.
fn held_back(model: &Arc<Model>, c: &Calibration) -> Result<(Vec<Inputs>, String), Error> {
    let n = c.data.len();
    let count = COMPARED.min(n.div_ceil(10)).max(1);
    let feed = c.feed(model);
    let rows: Vec<usize> = (n - count..n).collect();
    let batches = c.data.batches(&feed, &rows, c.batch_size);
    let batches = batches.iter().map(|r| Ok(c.data.batch(&feed, r)?.inputs));
    let inputs: Result<Vec<_>, Error> = batches.collect();
    Ok((inputs?, format!("the last {count} examples of {}", c.data.path.display())))
}
