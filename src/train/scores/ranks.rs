//! Metrics of retrieval.

use super::{Input, Kind, Metric, Value};

/// The share of anchors whose positive is among the first K candidates of its batch.
pub const RECALL: Metric = Metric {
    name: "recall",
    higher: true,
    takes: |kind| kind == Kind::Ranks,
    of: "pairs of anchor and positive",
    at: true,
    value: Value::Number(recall),
};

fn recall(input: &Input) -> Option<f64> {
    let found = input.answers.iter().filter(|a| a.predicted.first().is_some_and(|r| *r <= input.at as f32)).count();
    (!input.answers.is_empty()).then(|| found as f64 / input.answers.len() as f64)
}
