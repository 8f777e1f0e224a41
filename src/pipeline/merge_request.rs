//! What a merge is asked, and what it gives.

use super::Error;
use super::calibrating::Calibration;
use super::metric::Metric;
use crate::adapter::Adapter;
use crate::merge::{Report, Strategy};
use crate::onnx::Model;
use crate::settings::defaults;
use crate::train::Settings;
use crate::verify::Difference;
use std::sync::Arc;

/// What to merge.
#[derive(Clone)]
pub struct MergeRequest<'a> {
    pub injected: &'a Arc<Model>,
    pub adapter: &'a Adapter,
    /// `None` takes exact where that is possible, else whichever changes the outputs least on held-back rows.
    pub strategy: Option<Strategy>,
    /// Keep the adapters in the file rather than fold them into weights.
    pub keep_branch: bool,
    /// Graph inputs of the adapter to fold in, with their values.
    pub chosen: Vec<(String, f64)>,
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
    /// Whether the request was to keep the adapters in the file.
    pub keeps_branch: bool,
    /// The strategies that were tried, with the largest relative difference of an output.
    pub tried: Vec<(String, f64)>,
    /// The metric with the adapter live, and merged.
    pub metric: Option<Metric>,
    pub polished: Option<Polished>,
}

impl Merged {
    /// The largest relative difference of an output that rounding explains; `None` where the merge is approximate.
    pub fn tolerance(&self) -> Option<f64> {
        let limit = match self.report.strategy.as_str() {
            "branch" if self.keeps_branch => defaults::TOLERANCE,
            "exact" | "branch" => self.exact_tolerance,
            _ => return None,
        };
        limit.is_finite().then_some(limit)
    }

    /// Whether an output differs by more than a tolerance, as what is not a number always does.
    pub fn is_above(&self, tolerance: f64) -> bool {
        self.differences.iter().any(|d| d.exceeds(tolerance))
    }

    /// Whether too little of the gain is left. A branch that is kept as it was asked for loses nothing.
    pub fn falls_short(&self) -> bool {
        !self.keeps_branch && self.metric.as_ref().is_some_and(Metric::falls_short)
    }

    /// Refused where an output is not a number, with the adapter live or merged.
    pub(super) fn check_finite(self) -> Result<Merged, Error> {
        let Some((d, why)) = self.differences.iter().find_map(|d| Some((d, d.not_finite.as_ref()?))) else {
            return Ok(self);
        };
        let (output, on) = (&d.output, &self.compared_on);
        Err(Error::Model(format!(
            "output '{output}' {why} on {on} (first the adapter live, second merged), so the merge cannot be judged\n\
             hint: give inputs that the model takes with --calibrate FILE; if it is the adapter's doing, train with a smaller --lr"
        )))
    }
}

/// What polishing changed.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Polished {
    /// Optimiser steps.
    pub steps: u64,
    /// The metric merged, before and after.
    pub metric: Option<[f64; 2]>,
    /// The largest relative difference of an output from the live model's, before and after.
    pub difference: [f64; 2],
}
