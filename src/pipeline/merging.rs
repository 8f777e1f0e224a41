//! Merging: an adapter is folded into its base, and what comes out is compared with what was trained.

use super::Error;
use super::approximating::{Chosen, approximate, compared_on, inputs};
use super::calibrating::Calibration;
use super::comparing::compare_outputs;
use super::improving::{polished, sequential};
use super::judging::{metric, tolerance};
use super::merge_request::{MergeRequest, Merged};
use super::recording::record;
use crate::adapter::{self, Adapter};
use crate::adapters::{Config, Merge};
use crate::device::Device;
use crate::merge::{self, Report, Statistics, Strategy};
use crate::onnx::Model;
use std::path::Path;
use std::sync::Arc;

/// Reads an adapter for an injected model: under the model's names, checked to fit, with notes on what could not be checked.
pub fn read_adapter(path: &Path, injected: &Model) -> Result<(Adapter, Vec<String>), Error> {
    Ok(merge::fit(injected, &adapter::read(path)?)?)
}

/// Merges, then runs the adapter graph and the merged model on the same rows. What they give must be finite.
pub fn merge(request: &MergeRequest, device: &mut dyn Device) -> Result<Merged, Error> {
    let (adapter, notes) = merge::fit(request.injected, request.adapter)?;
    let config = merge::config(request.injected)?;
    if let Some(strategy) = request.strategy {
        merge::check_strategy(&config, strategy)?;
    }
    if let Some((name, _)) = request.chosen.iter().find(|c| !folds(&config, &c.0)) {
        return Err(Error::Usage(format!("--{name} means nothing to {}", config.structure)));
    }
    let mut request = MergeRequest { adapter: &adapter, ..request.clone() };
    for c in [&mut request.calibrate, &mut request.fallback] {
        *c = c.take().map(|c| c.surveyed(request.injected, device)).transpose()?;
    }
    let given = request.calibrate.as_ref().or(request.fallback.as_ref());
    let mut merged = match whole(&request, &config)? {
        Some((model, report)) => judged(&request, &config, given, model, report, device)?,
        None => fitted(&request, &config, given, device)?,
    };
    record(&mut merged, &request, &config, given);
    merged.report.notes.splice(0..0, notes);
    merged.check_finite()
}

/// Whether a value of this graph input is folded in.
fn folds(config: &Config, name: &str) -> bool {
    config.merge() == Merge::Chosen(name)
}

/// The merge of an adapter for which there is one way alone: its exact weights, or the branch that is kept.
fn whole(request: &MergeRequest, config: &Config) -> Result<Option<(Model, Report)>, Error> {
    let (injected, adapter) = (request.injected, request.adapter);
    let refuse_polish = |what: String| match request.polish {
        Some(_) => Err(Error::Usage(format!("--polish has nothing to do: {what}"))),
        None => Ok(()),
    };
    if request.keep_branch {
        refuse_polish("--keep-branch loses nothing".into())?;
        return Ok(Some(merge::keep_branch(injected, adapter)?));
    }
    match config.merge() {
        Merge::Approximate => Ok(None),
        Merge::Exact => {
            refuse_polish(format!("{} merges exactly", config.structure))?;
            Ok(Some(merge::merge(injected, adapter, Strategy::EXACT, &Statistics::default())?))
        }
        Merge::Chosen(input) if request.chosen.iter().any(|c| c.0 == input) => {
            refuse_polish(format!("{} merges exactly", config.structure))?;
            let statistics = Statistics { chosen: request.chosen.clone(), ..Statistics::default() };
            Ok(Some(merge::merge(injected, adapter, Strategy::EXACT, &statistics)?))
        }
        Merge::Chosen(input) => {
            refuse_polish("a branch that is kept loses nothing".into())?;
            let (model, mut report) = merge::keep_branch(injected, adapter)?;
            let why = format!("it depends on the input '{input}'; --{input} VALUE folds one value in");
            report.notes.push(format!("{} is kept as a branch: {why}", config.structure));
            Ok(Some((model, report)))
        }
        Merge::KeepsBranch(why) => {
            refuse_polish("a branch that is kept loses nothing".into())?;
            let (model, mut report) = merge::keep_branch(injected, adapter)?;
            report.notes.push(format!("{} is kept as a branch: {why}", config.structure));
            Ok(Some((model, report)))
        }
    }
}

/// Compares a merged model with the live one.
fn judged(
    request: &MergeRequest,
    config: &Config,
    given: Option<&Calibration>,
    model: Model,
    report: Report,
    device: &mut dyn Device,
) -> Result<Merged, Error> {
    let model = Arc::new(model);
    let mut inputs = inputs(request.injected, given)?.concat();
    // The live model computes with what was folded in, whatever the data says.
    for (name, value) in request.chosen.iter().filter(|c| folds(config, &c.0)) {
        inputs.iter_mut().flatten().filter(|i| i.0 == *name).for_each(|i| i.1 = i.1.filled(*value));
    }
    // A merged model may want other inputs than the live one, as the tokens of a prompt.
    let adapted = if request.keep_branch { None } else { merge::adapted(&model, config) };
    let alike = adapted.map_or_else(|| model.clone(), Arc::new);
    let differences = compare_outputs(request.injected, Some(request.adapter), &alike, &inputs, device)?;
    let metric = match request.chosen.is_empty() {
        true => metric(request, given, &alike, device)?,
        // The data's examples have values of their own.
        false => None,
    };
    let chosen = Chosen { model, report, deltas: vec![], differences, tried: vec![] };
    Ok(Merged { metric, ..done(request, config, given, chosen) })
}

/// The approximate merge that changes the outputs least. Where too little of the gain is left, what makes up for it is tried.
fn fitted(
    request: &MergeRequest,
    config: &Config,
    given: Option<&Calibration>,
    device: &mut dyn Device,
) -> Result<Merged, Error> {
    let chosen = approximate(request, given, request.sequential, device)?;
    let judged = metric(request, given, &chosen.model, device)?;
    let (chosen, judged) = sequential(request, given, chosen, judged, device)?;
    let (chosen, metric, polished) = polished(request, given, chosen, judged, device)?;
    Ok(Merged { metric, polished, ..done(request, config, given, chosen) })
}

fn done(request: &MergeRequest, config: &Config, given: Option<&Calibration>, chosen: Chosen) -> Merged {
    Merged {
        model: Arc::try_unwrap(chosen.model).unwrap_or_else(|shared| (*shared).clone()),
        report: chosen.report,
        differences: chosen.differences,
        compared_on: compared_on(given),
        exact_tolerance: tolerance(request.injected, config),
        keeps_branch: request.keep_branch,
        tried: chosen.tried,
        metric: None,
        polished: None,
    }
}
