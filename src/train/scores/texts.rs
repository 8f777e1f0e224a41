//! Metrics of language models.

use super::{Input, Kind, Metric, Value};

/// `e^loss`
pub const PERPLEXITY: Metric = Metric {
    name: "perplexity",
    higher: false,
    takes: |kind| matches!(kind, Kind::Classes { next_token: true, .. }),
    of: "next tokens",
    at: false,
    value: Value::Number(|input| Some(input.loss.exp())),
};

/// The share of rows of which every position that counts is predicted right, each from the right ones before it.
pub const EXACT_MATCH: Metric = Metric {
    name: "exact-match",
    higher: true,
    takes: |kind| matches!(kind, Kind::Classes { .. }),
    of: "classes or next tokens",
    at: false,
    value: Value::Number(exact_match),
};

fn exact_match(input: &Input) -> Option<f64> {
    let rows: Vec<bool> =
        input.answers.iter().filter(|a| !a.labels.is_empty()).map(|a| a.labels == a.predicted).collect();
    (!rows.is_empty()).then(|| rows.iter().filter(|hit| **hit).count() as f64 / rows.len() as f64)
}
