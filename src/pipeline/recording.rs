//! What a merged model says of how it came about.

use super::approximating::largest;
use super::calibrating::Calibration;
use super::merge_request::{MergeRequest, Merged};
use crate::adapters::{BASE_KEY, Config};
use crate::onnx;

/// The key under which a merged model says how it came about, as JSON.
pub const MERGE_KEY: &str = "reslora.merge";

/// Writes into the model's metadata what it was made of and how well.
pub(super) fn record(merged: &mut Merged, request: &MergeRequest, config: &Config, given: Option<&Calibration>) {
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
        "base": request.injected.metadata(BASE_KEY),
        "data": given.and_then(digest),
        "strategy": merged.report.strategy,
        "sequential": request.sequential && merged.report.strategy == "least-squares",
        "polish": merged.polished.as_ref().map(|p| p.steps),
        "error": largest(&merged.differences),
    });
    merged.model.set_metadata(MERGE_KEY, Some(record.to_string()));
}
