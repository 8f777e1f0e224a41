//! Metrics of classes, and of answers of yes and no. As scikit-learn computes them.

use super::{Input, Kind, Metric, Value};

/// The most classes of which a matrix is made.
const MOST: usize = 4096;

pub const ACCURACY: Metric = Metric {
    name: "accuracy",
    higher: true,
    takes: |kind| !matches!(kind, Kind::Numbers { .. } | Kind::Scores),
    of: "classes, answers of yes and no, pairs and preferences",
    at: false,
    value: Value::Number(accuracy),
};

/// The mean over classes.
pub const F1: Metric = Metric {
    name: "f1",
    higher: true,
    takes: |kind| matches!(kind, Kind::Binary { .. }) || few(kind),
    of: "at most 4096 classes, or answers of yes and no",
    at: false,
    value: Value::Number(f1),
};

pub const CONFUSION_MATRIX: Metric = Metric {
    name: "confusion-matrix",
    higher: true,
    takes: |kind| few(kind) || kind == Kind::Binary { width: 1 },
    of: "at most 4096 classes, or one answer of yes or no",
    at: false,
    value: Value::Matrix(matrix),
};

/// Matthews' correlation coefficient, of any number of classes.
pub const MATTHEWS: Metric = Metric {
    name: "matthews",
    higher: true,
    takes: |kind| few(kind) || kind == Kind::Binary { width: 1 },
    of: "at most 4096 classes, or one answer of yes or no",
    at: false,
    value: Value::Number(matthews),
};

fn few(kind: Kind) -> bool {
    matches!(kind, Kind::Classes { count, .. } if count <= MOST)
}

/// A label with what was predicted, as class numbers.
fn pairs(input: &Input) -> impl Iterator<Item = (usize, usize)> {
    let class = match input.kind {
        Kind::Binary { .. } => |x: f32| usize::from(x > 0.5),
        _ => |x: f32| x as usize,
    };
    let all = input.answers.iter().flat_map(|a| a.labels.iter().zip(&a.predicted));
    all.map(move |(l, p)| (class(*l), class(*p)))
}

fn accuracy(input: &Input) -> Option<f64> {
    let hits: Vec<bool> = match input.kind {
        Kind::Ranks => input.answers.iter().map(|a| a.predicted == [1.0]).collect(),
        Kind::Preferences => input.answers.iter().map(|a| a.predicted.first().is_some_and(|m| *m > 0.0)).collect(),
        _ => pairs(input).map(|(l, p)| l == p).collect(),
    };
    (!hits.is_empty()).then(|| hits.iter().filter(|h| **h).count() as f64 / hits.len() as f64)
}

fn matrix(input: &Input) -> Vec<Vec<u64>> {
    let count = match input.kind {
        Kind::Classes { count, .. } => count,
        _ => 2,
    };
    let mut out = vec![vec![0; count]; count];
    for (l, p) in pairs(input).filter(|(l, p)| *l < count && *p < count) {
        out[l][p] += 1;
    }
    out
}

/// F1 of each class, or of each answer of yes.
pub fn f1_per_class(input: &Input) -> Vec<Option<f64>> {
    let of = |hits: f64, misses: f64| hits / (hits + misses / 2.0);
    match input.kind {
        Kind::Binary { width } if width > 1 => {
            let one = |k: usize| {
                let all =
                    input.answers.iter().filter_map(|a| Some((*a.labels.get(k)? > 0.5, *a.predicted.get(k)? > 0.5)));
                let all: Vec<(bool, bool)> = all.collect();
                let hits = all.iter().filter(|(l, p)| *l && *p).count() as f64;
                let misses = all.iter().filter(|(l, p)| l != p).count() as f64;
                // No yes anywhere counts as 0, as for scikit-learn.
                Some(if hits + misses == 0.0 { 0.0 } else { of(hits, misses) })
            };
            (0..width).map(one).collect()
        }
        _ => {
            let m = matrix(input);
            let one = |c: usize| {
                let (row, column) = (m[c].iter().sum::<u64>(), m.iter().map(|row| row[c]).sum::<u64>());
                (row + column > 0).then(|| of(m[c][c] as f64, (row + column - 2 * m[c][c]) as f64))
            };
            (0..m.len()).map(one).collect()
        }
    }
}

fn f1(input: &Input) -> Option<f64> {
    let all: Vec<f64> = f1_per_class(input).into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
}

fn matthews(input: &Input) -> Option<f64> {
    let m = matrix(input);
    let rows: Vec<f64> = m.iter().map(|row| row.iter().sum::<u64>() as f64).collect();
    let columns: Vec<f64> = (0..m.len()).map(|c| m.iter().map(|row| row[c]).sum::<u64>() as f64).collect();
    let hits: f64 = (0..m.len()).map(|c| m[c][c] as f64).sum();
    let n: f64 = rows.iter().sum();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
    let covariance = hits * n - dot(&rows, &columns);
    let spread = (n * n - dot(&rows, &rows)) * (n * n - dot(&columns, &columns));
    (n > 0.0).then(|| if spread == 0.0 { 0.0 } else { covariance / spread.sqrt() })
}
