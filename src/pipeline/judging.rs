//! What a merge is judged by: the evaluation metric with the adapter live and merged, and how far apart outputs may be.

use super::Error;
use super::calibrating::Calibration;
use super::evaluating::{EvalRequest, evaluate};
use super::merge_request::MergeRequest;
use super::metric::Metric;
use super::terms::{Teacher, Terms};

use crate::adapters::{Config, Target};
use crate::calibrate::folds;
use crate::device::Device;
use crate::ir::FloatType;
use crate::merge;
use crate::onnx::{ElementType, Model};
use crate::settings::defaults;
use std::sync::Arc;

/// The metric of the live and of the merged model, on the data for it or the rows held back; `None` where there are no labels.
pub(super) fn metric(
    request: &MergeRequest,
    given: Option<&Calibration>,
    merged: &Arc<Model>,
    device: &mut dyn Device,
) -> Result<Option<Metric>, Error> {
    let Some(c) = request.evaluate.as_ref().or(given) else { return Ok(None) };
    let n = c.data.len();
    let (data, measured_on) = match (&request.evaluate, folds(n).last()) {
        (None, Some(first)) => {
            let count = n - first.start;
            (c.data.subset(first.start..n), format!("the last {count} examples of {}", c.data.path.display()))
        }
        _ => (c.data.subset(0..n), c.data.path.display().to_string()),
    };
    if !data.has_labels() && c.loss_output.is_none() {
        return Ok(None);
    }
    let bare = Arc::new(merge::strip(request.injected, &merge::config(request.injected)?)?);
    // A merged model no longer knows what it was compared with.
    let teacher = match &c.terms.teacher {
        Teacher::Base => Teacher::Model(bare.clone()),
        other => other.clone(),
    };
    let terms = Terms { teacher, ..c.terms.clone() };
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
            terms: terms.clone(),
            products: FloatType::F32,
            guard: true,
            metrics: &[],
            answers: false,
        };
        evaluate(&request, device)
    };
    let base = ask(&bare, None)?.loss;
    let live = ask(request.injected, Some(request.adapter))?;
    // A file that keeps the branches holds the adapter's factors itself.
    let after = ask(merged, None)?;
    let accuracy = live.accuracy.zip(after.accuracy).map(|(a, b)| [a, b]);
    let chosen = live.notes.into_iter().next().unwrap_or_default();
    Ok(Some(Metric::new(measured_on, base, [live.loss, after.loss], accuracy, chosen)))
}

/// The largest relative difference that an exact merge may have.
pub(super) fn tolerance(model: &Model, config: &Config) -> f64 {
    let element = |t: &Target| model.initializer_type(&t.weight).map(|w| w.0);
    config.targets.iter().filter_map(element).fold(defaults::TOLERANCE, |t, element| {
        // A weight is rounded once to the type the file stores; eight and eleven bits of mantissa allow no better.
        t.max(match element {
            ElementType::F16 => 5e-3,
            ElementType::Bf16 => 4e-2,
            ElementType::F32 | ElementType::F64 => defaults::TOLERANCE,
            // A quantised weight: its error is reported, layer by layer.
            _ => f64::INFINITY,
        })
    })
}
