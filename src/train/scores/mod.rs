//! Metrics of an evaluation: what a model answered, row by row, and how good that is.
//!
//! A new metric is one function and one line in [`METRICS`].

mod classes;
mod numbers;
mod ranks;
mod texts;

use super::data::{Batch, UNCOUNTED};
use crate::ir::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a model's answers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of so many classes, for each row or for each position of it.
    Classes { count: usize, positions: bool, next_token: bool },
    /// Yes or no, so many times a row.
    Binary { width: usize },
    /// So many numbers a row.
    Numbers { width: usize },
    /// The cosine of two texts.
    Scores,
    /// The place of an anchor's own positive among all candidates, from 1.
    Ranks,
    /// How much more a preferred answer gained than the rejected one.
    Preferences,
}

/// What a model answered for one example, where labels count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// From 0.
    pub example: usize,
    /// Empty where rows have none.
    pub labels: Vec<f32>,
    /// Classes, probabilities of yes, numbers, a rank or a margin.
    pub predicted: Vec<f32>,
    /// Of each class, where the row has one.
    pub probabilities: Vec<f32>,
}

/// What a metric is computed from.
pub struct Input<'a> {
    pub kind: Kind,
    pub answers: &'a [Answer],
    /// The mean loss.
    pub loss: f64,
    /// What stands after `@` in the metric's name.
    pub at: usize,
}

/// A metric. `value` is `None` where it is not defined, as a correlation with a constant.
pub struct Metric {
    /// On the command line.
    pub name: &'static str,
    /// Whether more is better.
    pub higher: bool,
    /// Answers that it takes.
    pub takes: fn(Kind) -> bool,
    /// What it takes, in a sentence.
    pub of: &'static str,
    /// Whether it is written with a number: `recall@5`.
    pub at: bool,
    pub value: Value,
}

/// How a metric is computed.
pub enum Value {
    Number(fn(&Input) -> Option<f64>),
    /// Rows of counts: of each class (row), how often each one (column) was predicted.
    Matrix(fn(&Input) -> Vec<Vec<u64>>),
}

/// Every metric.
pub const METRICS: &[Metric] = &[
    classes::ACCURACY,
    classes::F1,
    classes::CONFUSION_MATRIX,
    classes::MATTHEWS,
    numbers::SPEARMAN,
    texts::PERPLEXITY,
    texts::EXACT_MATCH,
    ranks::RECALL,
];

/// A metric that is asked for.
#[derive(Clone, Copy)]
pub struct Asked {
    pub metric: &'static Metric,
    /// What stands after `@`.
    pub at: usize,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl Asked {
    pub fn name(&self) -> String {
        if self.metric.at { format!("{}@{}", self.metric.name, self.at) } else { self.metric.name.into() }
    }

    /// Whether it is one number, by which the best adapter can be chosen.
    pub fn is_number(&self) -> bool {
        matches!(self.metric.value, Value::Number(_))
    }

    /// Reads a metric's name; the error lists all.
    pub fn parse(text: &str) -> Result<Asked, String> {
        let (name, at) = text.split_once('@').map_or((text, None), |(name, at)| (name, Some(at)));
        let found = METRICS.iter().find(|m| m.name == name && (m.at || at.is_none()));
        let at = match at {
            None => Some(1),
            Some(at) => at.parse().ok().filter(|k| *k > 0),
        };
        let written = |m: &Metric| if m.at { format!("{}@K", m.name) } else { m.name.to_string() };
        match (found, at) {
            (Some(metric), Some(at)) => Ok(Asked { metric, at }),
            _ => {
                let all: Vec<String> = METRICS.iter().map(written).collect();
                Err(format!("--metric '{text}' is not known\nhint: {}", all.join(", ")))
            }
        }
    }
}

/// What was measured besides the loss.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Metrics by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", rename = "eval_metrics")]
    pub values: BTreeMap<String, f64>,
    /// F1 of each class; `None` for a class that neither labels nor predictions have.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "eval_f1_per_class")]
    pub f1_per_class: Vec<Option<f64>>,
    /// Of each class (row), how often each one (column) was predicted.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "eval_confusion_matrix")]
    pub confusion_matrix: Vec<Vec<u64>>,
}

/// Computes metrics of answers.
pub fn scores(kind: Kind, answers: &[Answer], loss: f64, asked: &[Asked]) -> Scores {
    let mut out = Scores::default();
    for a in asked {
        let input = Input { kind, answers, loss, at: a.at };
        match a.metric.value {
            Value::Number(value) => {
                out.values.extend(value(&input).filter(|x| x.is_finite()).map(|x| (a.name(), x)));
            }
            Value::Matrix(matrix) => out.confusion_matrix = matrix(&input),
        }
        if a.metric.name == classes::F1.name {
            out.f1_per_class = classes::f1_per_class(&input);
        }
    }
    out
}

/// The answers of a batch of examples. `predicted` holds the same number for each row.
pub fn answers(examples: &[usize], batch: &Batch, predicted: &Tensor, probabilities: Option<&Tensor>) -> Vec<Answer> {
    let floats = |t: &Tensor| match (t.as_f32(), t.as_i32()) {
        (Some(x), _) => x.to_vec(),
        (_, Some(x)) => x.iter().map(|&x| x as f32).collect(),
        _ => t.words().iter().map(|&w| w as f32).collect(),
    };
    // Rows that fill up a fixed batch come last.
    let labels = batch.labels.as_ref();
    let filled = labels.and_then(|l| l.shape().first().copied()).unwrap_or(0);
    let predicted = floats(predicted);
    let per_text = filled > 0 && predicted.len().is_multiple_of(filled);
    let rows = if per_text { filled } else { batch.examples };
    let part = |all: &[f32], r: usize| {
        let width = all.len() / rows.max(1);
        all[r * width..(r + 1) * width].to_vec()
    };
    let labels = labels.filter(|_| per_text).map(floats);
    let probabilities = probabilities.map(floats).unwrap_or_default();
    let one = |(r, &example): (usize, &usize)| {
        let predicted = part(&predicted, r);
        let labels = labels.as_ref().map(|l| part(l, r)).filter(|l| l.len() == predicted.len());
        let counts = |l: &f32| *l != -100.0 && *l != UNCOUNTED;
        let (predicted, labels) = match labels {
            None => (predicted, vec![]),
            Some(labels) => predicted.into_iter().zip(labels).filter(|(_, l)| counts(l)).unzip(),
        };
        Answer { example, labels, predicted, probabilities: part(&probabilities, r) }
    };
    examples.iter().take(batch.examples).enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(labels: &[f32], predicted: &[f32], width: usize) -> Vec<Answer> {
        let pairs = labels.chunks(width).zip(predicted.chunks(width)).enumerate();
        let one = |(example, (l, p)): (usize, (&[f32], &[f32]))| Answer {
            example,
            labels: l.to_vec(),
            predicted: p.to_vec(),
            probabilities: vec![],
        };
        pairs.map(one).collect()
    }

    fn check(kind: Kind, answers: &[Answer], name: &str, want: f64) {
        let got = scores(kind, answers, 0.7, &[Asked::parse(name).unwrap()]);
        let got = got.values[name];
        assert!((got - want).abs() < 1e-12, "{name}: {got}, not {want}");
    }

    /// What scikit-learn 1.9 and scipy 1.17 compute for the same numbers.
    #[test]
    fn metrics_are_those_of_scikit_learn_and_scipy() {
        let labels = [0., 1., 2., 2., 1., 0., 4., 2., 1., 0., 2., 2.];
        let predicted = [0., 2., 2., 2., 1., 1., 4., 0., 1., 0., 2., 1.];
        let classes = Kind::Classes { count: 5, positions: false, next_token: false };
        let all = rows(&labels, &predicted, 1);
        check(classes, &all, "accuracy", 0.6666666666666666);
        check(classes, &all, "f1", 0.7261904761904762);
        check(classes, &all, "matthews", 0.5346796732074042);
        let got = scores(classes, &all, 0.7, &[Asked::parse("f1").unwrap(), Asked::parse("confusion-matrix").unwrap()]);
        let matrix = [[2, 1, 0, 0, 0], [0, 2, 1, 0, 0], [1, 1, 3, 0, 0], [0; 5], [0, 0, 0, 0, 1]];
        assert_eq!(got.confusion_matrix, matrix.map(|row| row.to_vec()).to_vec());
        let f1: Vec<Option<f64>> = got.f1_per_class;
        let want = [Some(0.6666666666666666), Some(0.5714285714285714), Some(0.6666666666666666), None, Some(1.0)];
        for (got, want) in f1.iter().zip(want) {
            assert!(
                got.is_some() == want.is_some() && got.zip(want).is_none_or(|(g, w)| (g - w).abs() < 1e-12),
                "{f1:?}"
            );
        }
        // Several answers of yes and no a row.
        let labels = [1., 0., 1., 0., 0., 1., 1., 1., 0., 0., 0., 0.];
        let yes = [0.9, 0.2, 0.4, 0.6, 0.1, 0.8, 0.7, 0.3, 0.2, 0.1, 0.4, 0.9];
        let all = rows(&labels, &yes, 3);
        check(Kind::Binary { width: 3 }, &all, "accuracy", 0.6666666666666666);
        check(Kind::Binary { width: 3 }, &all, "f1", 0.43333333333333335);
        // With ties.
        let all = rows(&[1.0, 2.0, 2.0, 4.0, 5.5, -1.0, 0.3], &[0.2, 0.1, 0.5, 0.5, 0.9, -0.4, 0.1], 1);
        check(Kind::Numbers { width: 1 }, &all, "spearman", 0.8807710121010887);
        let constant = rows(&[1.0, 2.0, 3.0], &[0.5, 0.5, 0.5], 1);
        let none = scores(Kind::Scores, &constant, 0.7, &[Asked::parse("spearman").unwrap()]);
        assert!(none.values.is_empty());
    }

    #[test]
    fn metrics_of_texts_and_ranks() {
        let tokens = Kind::Classes { count: 9, positions: true, next_token: true };
        let mut all = rows(&[1., 2., 3., 4., 5., 6.], &[1., 2., 3., 4., 0., 6.], 2);
        all.push(Answer { example: 3, ..Answer::default() });
        check(tokens, &all, "exact-match", 2.0 / 3.0);
        check(tokens, &all, "accuracy", 5.0 / 6.0);
        check(tokens, &all, "perplexity", 0.7f64.exp());
        let ranks: Vec<Answer> =
            [1.0, 3.0, 2.0, 7.0].map(|r| Answer { predicted: vec![r], ..Answer::default() }).to_vec();
        check(Kind::Ranks, &ranks, "recall@1", 0.25);
        check(Kind::Ranks, &ranks, "recall@3", 0.75);
        check(Kind::Ranks, &ranks, "accuracy", 0.25);
        for bad in ["recall@0", "recall@x", "f1@2", "precision"] {
            let error = Asked::parse(bad).unwrap_err();
            assert!(error.contains("accuracy, f1, confusion-matrix") && error.contains("recall@K"), "{error}");
        }
    }
}
