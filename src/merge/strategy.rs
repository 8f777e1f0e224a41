//! What a strategy is: how to find plain weights for what an adapter computes.

use super::error::MergeError;
use crate::adapter::Norms;
use crate::adapters::{Config, Factors, Fold, Form, Target, Values};
use ndarray::{Array1, Array2, ArrayD};
use std::collections::BTreeMap;

/// One strategy.
pub struct StrategyInfo {
    pub name: &'static str,
    /// Whether it needs the norms of inputs for this configuration.
    pub needs_norms: fn(&Config) -> bool,
    /// Whether it fits to rows of data.
    pub needs_rows: bool,
    pub applies: fn(&Config) -> bool,
    /// The change of every target, in order.
    pub deltas: fn(&Inputs) -> Result<Vec<Delta>, MergeError>,
}

/// What a strategy reads.
pub struct Inputs<'a> {
    pub config: &'a Config,
    /// The adapter's tensors by name.
    pub tensors: &'a BTreeMap<String, ArrayD<f32>>,
    /// The two maps of each term by module path, where the adapter is a term.
    pub factors: &'a BTreeMap<String, Factors>,
    /// Base weights as their nodes multiply by them, `[out, in]`.
    pub weights: &'a dyn Fn(&Target) -> Array2<f64>,
    /// Biases of the linear nodes, `[out]`.
    pub biases: &'a dyn Fn(&Target) -> Option<Array1<f64>>,
    pub norms: &'a BTreeMap<String, Norms>,
    /// The projections that least-squares found, `[k, in]`, by module path.
    pub projections: &'a BTreeMap<String, Array2<f64>>,
    /// Graph inputs that are folded in, with their values.
    pub chosen: &'a [(String, f64)],
}

impl Inputs<'_> {
    /// Calls `f` with what folding a target reads.
    pub fn fold<T>(&self, target: &Target, f: impl FnOnce(&Fold) -> T) -> T {
        let (weight, bias) = ((self.weights)(target), (self.biases)(target));
        let values = Values { tensors: self.tensors, target };
        let config = self.config;
        f(&Fold { config, target, weight: &weight, bias: bias.as_ref(), values: &values, chosen: self.chosen })
    }

    /// The change of a target whose term adds `sum · s` to its weight.
    pub fn delta(&self, target: &Target, sum: Array2<f64>, a: Option<Array2<f64>>, alphas: Vec<f64>) -> Delta {
        let added = sum * self.factors[&target.path].scale;
        let join = match &self.config.structure.form {
            Form::Term(term) => term.join.as_ref(),
            Form::Whole(_) | Form::Elsewhere(_) => None,
        };
        let delta = match join {
            None => added,
            Some(join) => self.fold(target, |fold| (join.fold)(fold, fold.weight + &added) - fold.weight),
        };
        Delta { path: target.path.clone(), delta, bias: None, a, alphas }
    }

    /// The change `s · last · a`.
    pub fn projected(&self, target: &Target, a: Array2<f64>, alphas: Vec<f64>) -> Delta {
        let sum = self.factors[&target.path].last.dot(&a);
        self.delta(target, sum, Some(a), alphas)
    }
}

/// The change of one target.
#[derive(Clone)]
pub struct Delta {
    pub path: String,
    /// What is added to the weight, `[out, in]`.
    pub delta: Array2<f64>,
    /// The new bias, `[out]`; `None` where it stays.
    pub bias: Option<Array1<f64>>,
    /// The projection `A'`, `[k, in]`, with which the change is `s · last · A'`; `None` where its rank is another.
    pub a: Option<Array2<f64>>,
    /// The factors found for earlier blocks, nearest first.
    pub alphas: Vec<f64>,
}
