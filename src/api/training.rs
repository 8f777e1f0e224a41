//! Training and evaluation.

use super::{Dataset, Device, Error, Model};
use crate::adapter::Adapter;
use crate::pipeline::{self, EvalRequest, Evaluation};
use crate::settings::{DataConfig, TrainConfig};
use crate::train::{Observer, Outcome};
use std::path::Path;

/// What to train.
pub struct TrainRequest<'a> {
    /// A model with adapters.
    pub model: &'a Model,
    /// What to train on.
    pub data: &'a Dataset,
    /// What to measure on as training goes; the adapter with the lowest loss on it is kept.
    pub eval: Option<&'a Dataset>,
    /// How to train.
    pub config: &'a TrainConfig,
    /// The run directory, made if it is not there. It gets the adapter, the metrics and checkpoints, in place of those of an earlier run.
    pub dir: &'a Path,
}

/// Trains a model's adapters. The same request gives the same adapter bit for bit on the same device. `&mut ()` is an observer that takes
/// no notice.
///
/// # Errors
/// The model has no adapters, the data does not fit it, a setting is none that a run can have, the device lacks memory, the run directory
/// cannot be written, or a loss or gradient is not a finite number.
pub fn train(request: &TrainRequest, device: &mut Device, observer: &mut dyn Observer) -> Result<Outcome, Error> {
    let TrainRequest { model, data, eval, config, dir } = request;
    config.check(eval.is_some())?;
    let settings = pipeline::settings(config)?;
    let request = pipeline::TrainRequest {
        eval: eval.map(|eval| &eval.0),
        ..pipeline::TrainRequest::configured(config, &settings, &model.0, &data.0, dir)?
    };
    let products = pipeline::precision::chosen(&config.precision, &request, device.0.as_ref())?.products;
    let settings = crate::train::Settings { products, ..settings.clone() };
    let request = pipeline::TrainRequest { settings: &settings, ..request };
    Ok(pipeline::train(&request, device.0.as_mut(), observer)?)
}

/// Measures a model on data, with an adapter if it was injected for one.
///
/// # Errors
/// The data or the adapter does not fit the model, the device lacks memory, or the loss is not a finite number.
pub fn evaluate(
    model: &Model,
    adapter: Option<&Adapter>,
    data: &Dataset,
    config: &DataConfig,
    device: &mut Device,
) -> Result<Evaluation, Error> {
    config.check()?;
    let request = EvalRequest { adapter, ..EvalRequest::configured(config, &model.0, &data.0)? };
    Ok(pipeline::evaluate(&request, device.0.as_mut())?)
}
