//! Approximate merges: the strategies tried on rows that they did not see, the best one folded, and what polishing adds.

use super::calibrating::{Calibration, calibrate};
use super::comparing::{Inputs, compare_outputs, synthetic};
use super::merge_request::MergeRequest;
use super::training::{self, TrainRequest};
use super::{Error, fitting};
use crate::adapter::{Adapter, Norms};
use crate::adapters;
use crate::calibrate::{folds, held_back};
use crate::device::Device;
use crate::inject::{self, Options, Selector};
use crate::merge::{self, Delta, MergeError, Report, Statistics, Strategy};
use crate::onnx::Model;
use crate::train::Settings;
use crate::train::data::Feed;
use crate::verify::Difference;
use ndarray::Array2;
use regex::Regex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most examples of a fold that outputs are compared on.
const COMPARED: usize = 32;

/// An approximate merge that was chosen.
pub(super) struct Chosen {
    pub model: Arc<Model>,
    pub report: Report,
    pub deltas: Vec<Delta>,
    pub differences: Vec<Difference>,
    pub tried: Vec<(String, f64)>,
}

/// Tries the strategies that may apply, each as it is without the rows held back, and folds the best of them as it is with all.
pub(super) fn approximate(
    request: &MergeRequest,
    given: Option<&Calibration>,
    sequential: bool,
    device: &mut dyn Device,
) -> Result<Chosen, Error> {
    let (injected, adapter) = (request.injected, request.adapter);
    let folds = inputs(injected, given)?;
    let p = merge::prepare(injected, adapter)?;
    let mut notes = Vec::new();
    let all = Strategy::all().filter(|s| (s.applies)(&p.config) && (given.is_some() || !s.needs_rows));
    let candidates = request.strategy.map_or_else(|| all.collect(), |s| vec![s]);
    let fits = candidates.iter().any(|s| s.needs_rows);
    let needs = |s: &Strategy| (s.applies)(&p.config) && (s.needs_norms)(&p.config);
    let norms = match fits || candidates.iter().any(needs) {
        true => norms(request, device, &mut notes)?,
        false => BTreeMap::new(),
    };
    let mut statistics = Statistics { norms, ..Statistics::default() };
    // The strategies that need no rows first: their errors are found on the rows that least-squares reads anyway.
    let mut judged: Vec<(Strategy, Vec<Vec<Delta>>)> = Vec::new();
    for &s in candidates.iter().filter(|s| !s.needs_rows) {
        judged.push((s, vec![merge::deltas(&p, s, &statistics)?; folds.len()]));
    }
    let mut errors: BTreeMap<&str, BTreeMap<String, f64>> = BTreeMap::new();
    let mut ridges = BTreeMap::new();
    if let Some(c) = given.filter(|_| fits || !statistics.norms.is_empty()) {
        let choices: Vec<Vec<Delta>> = judged.iter().map(|(_, d)| d[0].clone()).collect();
        let (prepared, norms, ridge) = (&p, &statistics.norms, request.ridge);
        let task = fitting::Task { prepared, injected, adapter, data: c, norms, ridge };
        let live = fitting::fit(&task, &choices, device)?;
        let names = judged.iter().map(|(s, _)| s.name);
        errors.extend(names.chain([Strategy::LEAST_SQUARES.name]).zip(live.errors));
        let mut fitted = live.fitted;
        if fits && sequential {
            let in_order = fitting::fit_in_order(&task, device)?;
            errors.extend([Strategy::LEAST_SQUARES.name].into_iter().zip(in_order.errors));
            fitted = in_order.fitted;
        }
        if fits {
            let mut each = Vec::new();
            for fold in 0..folds.len() {
                // A single example is fitted and judged on itself.
                let without = Some(fold).filter(|_| held_back(c.data.len()) > 0);
                statistics.projections = fitted.projections(without);
                each.push(merge::deltas(&p, Strategy::LEAST_SQUARES, &statistics)?);
            }
            judged.insert(0, (Strategy::LEAST_SQUARES, each));
            statistics.projections = fitted.projections(None);
            ridges = fitted.solutions.iter().map(|(path, s)| (path.clone(), s.ridge)).collect();
        }
    } else if fits {
        return Err(MergeError::NoRows { structure: p.config.structure }.into());
    }
    let mut outcomes = Vec::new();
    for (s, deltas) in judged {
        let mut parts = Vec::new();
        for (deltas, inputs) in deltas.iter().zip(&folds) {
            let mut model = p.model.clone();
            merge::fold(&mut model, &p.config, deltas, &mut vec![])?;
            parts.push(compare_outputs(injected, Some(adapter), &Arc::new(model), inputs, device)?);
        }
        outcomes.push((s, together(parts)));
    }
    let tried: Vec<(String, f64)> = outcomes.iter().map(|(s, d)| (s.name.to_string(), largest(d))).collect();
    let best = outcomes.into_iter().min_by(|a, b| largest(&a.1).total_cmp(&largest(&b.1)));
    let (strategy, differences) = best.expect("there is a candidate");
    if tried.len() > 1 {
        let all: Vec<String> = tried.iter().map(|(name, error)| format!("{name} {error:.1e}")).collect();
        notes.push(format!("chose {}: smallest output error ({})", strategy.name, all.join(", ")));
    }
    // As it will be written: from all rows.
    let deltas = merge::deltas(&p, strategy, &statistics)?;
    let (mut model, mut all_notes) = (p.model, p.notes);
    let mut layers = merge::fold(&mut model, &p.config, &deltas, &mut all_notes)?;
    for layer in &mut layers {
        layer.error = errors.get(strategy.name).and_then(|e| e.get(&layer.path)).copied();
        layer.ridge = ridges.get(&layer.path).copied().filter(|_| strategy == Strategy::LEAST_SQUARES);
    }
    all_notes.extend(notes);
    let also_trained = p.config.also_train.clone();
    let report = Report { strategy: strategy.name.into(), layers, also_trained, notes: all_notes };
    Ok(Chosen { model: Arc::new(model), report, deltas, differences, tried })
}

/// Trains the merged form, plain LoRA with the projections that were found, for some steps on the rows not held back.
pub(super) fn polish(
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
    let p = merge::prepare(request.injected, request.adapter)?;
    // One rank for all: A' and the last factor, filled up with zeros where a target's own is smaller.
    let rank = p.factors.values().map(|f| f.carry.nrows()).max().unwrap_or(1);
    let scale = p.factors.values().next().map_or(1.0, |f| f.scale);
    let mut start = Adapter::default();
    for (t, delta) in config.targets.iter().zip(&chosen.deltas) {
        let a = delta.a.as_ref().expect("an approximate merge keeps the rank");
        let last = &p.factors[&t.path].last;
        let share = p.factors[&t.path].scale / scale;
        let wide = Array2::from_shape_fn((rank, t.in_features), |(i, j)| a.get((i, j)).map_or(0.0, |x| *x as f32));
        let tall = Array2::from_shape_fn((t.out_features, rank), |(i, j)| {
            last.get((i, j)).map_or(0.0, |x| (x * share) as f32)
        });
        start.tensors.insert(t.tensor("lora_A.weight"), wide.into_dyn());
        start.tensors.insert(t.tensor("lora_B.weight"), tall.into_dyn());
    }
    for name in &config.also_train {
        start.tensors.insert(name.clone(), request.adapter.tensors[name].clone());
    }
    let exactly = |name: &String| Regex::new(&format!("^{}$", regex::escape(name))).expect("an escaped name");
    let options = Options {
        targets: config.targets.iter().map(|t| Selector::Path(exactly(&t.path))).collect(),
        structure: adapters::lora(),
        pre_num: 0,
        rank,
        alpha: scale * rank as f64,
        dropout: config.dropout,
        also_train: config.also_train.iter().map(exactly).collect(),
        seed: config.seed,
        adapter: Some(start),
        ..Options::default()
    };
    let (lora, _) = inject::inject(&bare, &options, &|_| None)?;
    let lora = Arc::new(lora);
    let n = c.data.len();
    let data = c.data.subset(0..n - held_back(n));
    let dir = tempfile::tempdir().map_err(|e| Error::Model(format!("no temporary folder: {e}")))?;
    let train = TrainRequest {
        max_length: c.max_length,
        loss: c.loss,
        loss_output: c.loss_output,
        terms: c.terms.clone(),
        ..TrainRequest::new(&lora, &data, settings, dir.path())
    };
    struct Quiet;
    impl crate::train::Observer for Quiet {}
    let outcome = training::train(&train, device, &mut Quiet)?;
    let mut p = merge::prepare(&lora, &outcome.adapter)?;
    let deltas = merge::deltas(&p, Strategy::EXACT, &Statistics::default())?;
    let layers = merge::fold(&mut p.model, &p.config, &deltas, &mut vec![])?;
    for (old, new) in chosen.report.layers.iter_mut().zip(layers) {
        (old.relative_change, old.requantised) = (new.relative_change, new.requantised);
    }
    (chosen.model, chosen.deltas) = (Arc::new(p.model), deltas);
    Ok(outcome.steps)
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
        notes.push("using norms recorded in the last training steps; --calibrate FILE recomputes them".into());
    }
    Ok(request.adapter.statistics.clone())
}

/// What outputs are compared on: batches of each fold's examples, or inputs that are made up where there is no data.
pub(super) fn inputs(model: &Arc<Model>, given: Option<&Calibration>) -> Result<Vec<Vec<Inputs>>, Error> {
    let Some(c) = given else { return Ok(vec![vec![synthetic(model, 0)?]]) };
    let n = c.data.len();
    let mut folds = folds(n);
    if folds.is_empty() {
        folds.push(0..n);
    }
    // Every input as it is: what shapes depend on, whoever runs them finds out.
    let feed = Feed { known: Default::default(), ..c.feed(model) };
    let mut out = Vec::new();
    for fold in folds {
        let rows: Vec<usize> = (fold.end - COMPARED.min(fold.len())..fold.end).collect();
        let batches = c.data.batches(&feed, &rows, c.batch_size);
        let inputs: Result<Vec<_>, Error> = batches.iter().map(|r| Ok(c.data.batch(&feed, r)?.inputs)).collect();
        out.push(inputs?);
    }
    Ok(out)
}

/// The examples that [`inputs`] takes, in words.
pub(super) fn compared_on(given: Option<&Calibration>) -> String {
    let Some(c) = given else { return "synthetic inputs".into() };
    let folds = folds(c.data.len());
    let count: usize = folds.iter().map(|f| COMPARED.min(f.len())).sum();
    let (count, path) = (if folds.is_empty() { c.data.len() } else { count }, c.data.path.display());
    let s = if count == 1 { "" } else { "s" };
    match folds.len() {
        0 => format!("{count} example{s} of {path}"),
        1 => format!("{count} held-out example{s} of {path}"),
        k => format!("{count} held-out example{s} of {path} ({k} folds)"),
    }
}

/// The differences of each output over several folds.
fn together(parts: Vec<Vec<Difference>>) -> Vec<Difference> {
    let count = parts.len() as f64;
    let mut all: Vec<Difference> = Vec::new();
    for d in parts.into_iter().flatten() {
        match all.iter_mut().find(|a| a.output == d.output) {
            None => all.push(Difference { relative: d.relative * d.relative, ..d }),
            Some(a) => {
                a.relative += d.relative * d.relative;
                a.largest = a.largest.max(d.largest);
                a.not_finite = a.not_finite.take().or(d.not_finite);
            }
        }
    }
    all.iter_mut().for_each(|a| a.relative = (a.relative / count).sqrt());
    all
}

/// The largest relative difference of an output.
pub(super) fn largest(differences: &[Difference]) -> f64 {
    differences.iter().map(|d| d.relative).fold(0.0, |a, b| if b.is_nan() { b } else { a.max(b) })
}
