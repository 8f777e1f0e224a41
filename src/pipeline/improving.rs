//! What makes up for an approximate merge that keeps too little of the gain: least squares layer by layer, and training of the
//! merged form.

use super::Error;
use super::approximating::{Chosen, approximate, inputs, largest, polish};
use super::calibrating::Calibration;
use super::comparing::compare_outputs;
use super::judging::metric;
use super::merge_request::{MergeRequest, Polished};
use super::metric::Metric;
use crate::device::Device;
use crate::merge::{self, Strategy};

/// Whether too little is left of the gain of a merge whose strategy was left to us.
fn short(request: &MergeRequest, judged: &Option<Metric>) -> bool {
    request.strategy.is_none() && judged.as_ref().is_some_and(Metric::falls_short)
}

/// Least squares layer by layer, which makes up for what earlier layers lost; taken where it keeps more.
pub(super) fn sequential(
    request: &MergeRequest,
    given: Option<&Calibration>,
    chosen: Chosen,
    judged: Option<Metric>,
    device: &mut dyn Device,
) -> Result<(Chosen, Option<Metric>), Error> {
    if !short(request, &judged) || request.sequential || given.is_none() {
        return Ok((chosen, judged));
    }
    let only = MergeRequest { strategy: Some(Strategy::LEAST_SQUARES), ..request.clone() };
    let mut other = approximate(&only, given, true, device)?;
    let better = metric(request, given, &other.model, device)?;
    let kept = |m: &Option<Metric>| m.as_ref().and_then(|m| m.kept);
    if kept(&better) <= kept(&judged) {
        return Ok((chosen, judged));
    }
    other.report.notes.push("chose layer-by-layer least squares (--sequential): it keeps more of the gain".into());
    other.tried.splice(0..0, chosen.tried);
    Ok((other, better))
}

/// Trains the merged form where that was asked for, or too little of the gain is left.
pub(super) fn polished(
    request: &MergeRequest,
    given: Option<&Calibration>,
    mut chosen: Chosen,
    judged: Option<Metric>,
    device: &mut dyn Device,
) -> Result<(Chosen, Option<Metric>, Option<Polished>), Error> {
    let config = merge::config(request.injected)?;
    if request.polish.is_some() && !config.adds_alone() {
        let why = format!("the merged form of {} is not a sum of two products", config.structure);
        return Err(Error::Usage(format!("--polish does not go with {}: {why}", config.structure)));
    }
    let rescues = short(request, &judged) && request.polish.is_none() && given.is_some() && config.adds_alone();
    let rescue = request.rescue.as_ref().filter(|_| rescues);
    if let Some(settings) = rescue {
        chosen.report.notes.push(format!(
            "too little of the gain was kept: trained the merged model for {} more steps (--polish)",
            settings.max_steps.unwrap_or_default()
        ));
    }
    let Some(settings) = request.polish.as_ref().or(rescue) else { return Ok((chosen, judged, None)) };
    let before = largest(&chosen.differences);
    let steps = polish(request, given, &mut chosen, settings, device)?;
    let inputs = inputs(request.injected, given)?.concat();
    chosen.differences = compare_outputs(request.injected, Some(request.adapter), &chosen.model, &inputs, device)?;
    let after = metric(request, given, &chosen.model, device)?;
    let losses = judged.as_ref().zip(after.as_ref()).map(|(a, b)| [a.loss[1], b.loss[1]]);
    let difference = [before, largest(&chosen.differences)];
    Ok((chosen, after, Some(Polished { steps, metric: losses, difference })))
}
