//! Merging, and comparing what came of it.

use super::{Dataset, Device, Error, Model};
use crate::adapter::Adapter;
use crate::merge::Report;
use crate::pipeline::{self, Metric, Polished, Verification};
use crate::settings::{DataConfig, TrainConfig, defaults};
use crate::verify::Difference;
use std::path::Path;
use std::sync::Arc;

/// What to merge, and how.
pub struct MergeRequest<'a> {
    /// The model with adapters.
    pub model: &'a Model,
    /// Trained for this model.
    pub adapter: &'a Adapter,
    /// How the adapter was trained: how data is run, and how the merged weights are polished.
    pub config: &'a TrainConfig,
    /// The name of a merge strategy. `auto` merges exactly where that is possible, and else takes the strategy that changes the outputs least.
    pub strategy: &'a str,
    /// Held-out data. Approximate merges are fitted and judged on it; without it on norms that training recorded, and synthetic inputs.
    pub data: Option<&'a Dataset>,
    /// Data on which the losses of the base, of the live adapter and of the merged model are compared; `None` takes rows of `data`.
    pub eval: Option<&'a Dataset>,
    /// Keep the adapters in the model rather than fold them into its weights.
    pub keep_branch: bool,
    /// Graph inputs of the adapter to fold in, with their values.
    pub chosen: Vec<(String, f64)>,
    /// The ridge of least squares; `None` finds one for each block.
    pub ridge: Option<f64>,
    /// Fit least squares layer by layer, each on the model merged so far.
    pub sequential: bool,
    /// Steps for which the merged weights are trained on. `None` tries 50 where `auto` keeps too little of the gain.
    pub polish: Option<u64>,
}

impl<'a> MergeRequest<'a> {
    /// Merges with whichever strategy suits, without data.
    pub fn new(model: &'a Model, adapter: &'a Adapter, config: &'a TrainConfig) -> MergeRequest<'a> {
        MergeRequest {
            model,
            adapter,
            config,
            strategy: defaults::STRATEGY,
            data: None,
            eval: None,
            keep_branch: false,
            chosen: vec![],
            ridge: None,
            sequential: false,
            polish: None,
        }
    }
}

/// A merged model, and how far it is from what was trained.
pub struct Merged {
    /// The base with other bytes in its weights.
    pub model: Model,
    /// What was merged, layer by layer.
    pub report: Report,
    /// How far each output is from the live adapter's.
    pub differences: Vec<Difference>,
    /// What the outputs were compared on, in words.
    pub compared_on: String,
    /// The largest relative difference that rounding explains; `None` where the merge is approximate.
    pub tolerance: Option<f64>,
    /// Whether an output of an exact merge differs by more. The program does not write such a model.
    pub above_tolerance: bool,
    /// Losses before and after, where they could be measured.
    pub metric: Option<Metric>,
    /// Whether `auto` keeps too little of the gain. The program does not write such a model.
    pub falls_short: bool,
    /// What polishing changed, where there was any.
    pub polished: Option<Polished>,
}

/// Merges an adapter into the weights of its base.
///
/// # Errors
/// The adapter does not belong to the model, the strategy does not apply to it, the data does not fit the model, the device lacks memory,
/// or an output is not a finite number. A merge that changes the outputs is none: see [`Merged::above_tolerance`].
pub fn merge(request: &MergeRequest, device: &mut Device) -> Result<Merged, Error> {
    let how = &request.config.how;
    let strategy = pipeline::named_strategy(request.strategy)?;
    let polishing = |steps| pipeline::polishing(steps, Some(request.config), how);
    let merged = pipeline::merge(
        &pipeline::MergeRequest {
            strategy,
            keep_branch: request.keep_branch,
            chosen: request.chosen.clone(),
            calibrate: request.data.map(|data| pipeline::calibration(how, &data.0)).transpose()?,
            ridge: request.ridge,
            sequential: request.sequential,
            polish: request.polish.map(polishing).transpose()?,
            rescue: Some(polishing(defaults::RESCUE_STEPS)?),
            evaluate: request.eval.map(|data| pipeline::calibration(how, &data.0)).transpose()?,
            ..pipeline::MergeRequest::new(&request.model.0, request.adapter)
        },
        device.0.as_mut(),
    )?;
    let tolerance = merged.tolerance();
    Ok(Merged {
        tolerance,
        above_tolerance: tolerance.is_some_and(|t| merged.is_above(t)),
        falls_short: strategy.is_none() && merged.falls_short(),
        model: Model(Arc::new(merged.model)),
        report: merged.report,
        differences: merged.differences,
        compared_on: merged.compared_on,
        metric: merged.metric,
        polished: merged.polished,
    })
}

/// Which files to compare, and on what.
pub struct VerifyRequest<'a> {
    /// One file.
    pub first: &'a Path,
    /// Another file.
    pub second: &'a Path,
    /// Goes into whichever of the files has adapters (the first, if both have).
    pub adapter: Option<&'a Adapter>,
    /// What to run; `None` runs synthetic inputs.
    pub data: Option<&'a Dataset>,
    /// How the data is run.
    pub config: &'a DataConfig,
}

/// Runs two files on the same inputs with tract, an independent engine, and compares their outputs. A file that tract cannot run is run on
/// the CPU device, as is the other.
///
/// # Errors
/// A file cannot be read, has other inputs or outputs than the other, or does not take the adapter or the data.
pub fn verify(request: &VerifyRequest) -> Result<Verification, Error> {
    request.config.check()?;
    let (first, second) = (pipeline::read(request.first)?, pipeline::read(request.second)?);
    Ok(pipeline::verify(&pipeline::VerifyRequest {
        first: &first,
        second: &second,
        adapter: request.adapter,
        data: request.data.map(|data| &data.0),
        how: request.config,
    })?)
}
