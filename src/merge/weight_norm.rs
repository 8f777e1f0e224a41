//! `weight-norm`, the paper's merge based on weights: for input-shortcut the ratio comes from the norms of the merged
//! weights that produced the inputs; for middle-shortcut each earlier block keeps its own A.

use super::input_norm::mean;
use super::strategy::StrategyInfo;
use super::{Delta, Inputs, MergeError};
use crate::adapters::{Merge, Residual, Target};
use ndarray::Array2;
use std::collections::HashMap;

pub const STRATEGY: StrategyInfo = StrategyInfo {
    name: "weight-norm",
    needs_norms: |config| config.residual() == Residual::MiddleShortcut,
    needs_rows: false,
    applies: |config| config.merge() == Merge::Approximate,
    deltas,
};

fn deltas(i: &Inputs) -> Result<Vec<Delta>, MergeError> {
    match i.config.residual() {
        Residual::MiddleShortcut => Ok(i.config.targets.iter().map(|t| middle(i, t)).collect()),
        Residual::InputShortcut | Residual::None | Residual::BlockShortcut => Ok(input(i)),
    }
}

/// `ΔW = s B (A + Σ α_k A_{n-k})`, `α_k = f_{n-k} / f_n`, f the root mean square of x over rows.
fn middle(i: &Inputs, t: &Target) -> Delta {
    let norm = |t: &Target| mean(i.norms[&t.path].x, i.norms[&t.path].rows);
    let own = norm(t);
    let ancestors = i.config.ancestors(t);
    let alphas: Vec<f64> = ancestors.iter().map(|e| if own == 0.0 { 0.0 } else { (norm(e) / own).sqrt() }).collect();
    let mut sum: Array2<f64> = i.factors[&t.path].carry.clone();
    for (alpha, e) in alphas.iter().zip(ancestors) {
        sum = sum + &i.factors[&e.path].carry * *alpha;
    }
    i.projected(t, sum, alphas)
}

/// `ΔW_n = s (1 + α_n) B A`, `α_n = f*_{n-2} / f*_{n-1}`, f* the Frobenius norm of a merged weight; 1 for the first two
/// blocks of a chain. Blocks are merged in execution order, as each needs those before it.
fn input(i: &Inputs) -> Vec<Delta> {
    let mut merged: HashMap<&str, f64> = HashMap::new();
    let mut out = Vec::new();
    for t in &i.config.targets {
        let prev = t.prev.as_ref().and_then(|p| i.config.target(p));
        let before = prev.and_then(|p| p.prev.as_ref());
        let alpha = match (prev, before) {
            (Some(p), Some(pp)) if merged[p.path.as_str()] > 0.0 => merged[pp.as_str()] / merged[p.path.as_str()],
            (Some(_), _) | (None, _) => 1.0,
        };
        let delta = i.projected(t, &i.factors[&t.path].carry * (1.0 + alpha), vec![alpha]);
        let norm = ((i.weights)(t) + &delta.delta).iter().map(|x| x * x).sum::<f64>().sqrt();
        merged.insert(&t.path, norm);
        out.push(delta);
    }
    out
}
