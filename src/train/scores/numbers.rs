//! Metrics of numbers.

use super::{Input, Kind, Metric, Value};

/// Spearman's rank correlation of labels and predictions; equal numbers share the mean of their ranks, as in scipy.
pub const SPEARMAN: Metric = Metric {
    name: "spearman",
    higher: true,
    takes: |kind| matches!(kind, Kind::Scores | Kind::Numbers { width: 1 }),
    of: "one number a row, or scores of two texts",
    at: false,
    value: Value::Number(spearman),
};

fn spearman(input: &Input) -> Option<f64> {
    let pairs = || input.answers.iter().flat_map(|a| a.labels.iter().zip(&a.predicted));
    let x = ranks(&pairs().map(|p| *p.0).collect::<Vec<f32>>());
    let y = ranks(&pairs().map(|p| *p.1).collect::<Vec<f32>>());
    let mean = (x.len() as f64 + 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let spread = (product(&x, &x) * product(&y, &y)).sqrt();
    (spread > 0.0).then(|| product(&x, &y) / spread)
}

/// Ranks from 1; equal numbers have the mean of theirs.
fn ranks(xs: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..xs.len()).collect();
    order.sort_by(|a, b| xs[*a].total_cmp(&xs[*b]));
    let mut out = vec![0.0; xs.len()];
    let mut from = 0;
    while from < order.len() {
        let same = order[from..].iter().take_while(|i| xs[**i] == xs[order[from]]).count().max(1);
        let rank = from as f64 + (same as f64 + 1.0) / 2.0;
        order[from..from + same].iter().for_each(|i| out[*i] = rank);
        from += same;
    }
    out
}
