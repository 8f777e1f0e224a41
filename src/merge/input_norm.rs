//! `input-norm`, the paper's merge based on inputs: an earlier block's input (or projection) is taken for the block's own,
//! scaled by the ratio of their norms.

use super::strategy::StrategyInfo;
use super::{Delta, Inputs, MergeError};
use crate::adapter::Norms;
use crate::adapters::{Merge, Residual, Target};

pub const STRATEGY: StrategyInfo = StrategyInfo {
    name: "input-norm",
    needs_norms: |_| true,
    needs_rows: false,
    applies: |config| config.merge() == Merge::Approximate,
    deltas,
};

/// `ΔW = s (1 + Σ α_k) B A`. For input-shortcut `α = f_{n-1} / f_n`, f the root mean square of x over rows, and 1 for the
/// first block of a chain, which adds its own input; for middle-shortcut `α_k = f_{n-k} / f_n`, f that of A x.
fn deltas(i: &Inputs) -> Result<Vec<Delta>, MergeError> {
    let delta = |t: &Target| {
        let alphas = alphas(i, t);
        let a = &i.factors[&t.path].carry * (1.0 + alphas.iter().sum::<f64>());
        i.projected(t, a, alphas)
    };
    Ok(i.config.targets.iter().map(delta).collect())
}

/// The factors of the earlier blocks that `t` reads, nearest first.
pub fn alphas(i: &Inputs, t: &Target) -> Vec<f64> {
    let ancestors = i.config.ancestors(t);
    let ratio = |norm: &dyn Fn(&Norms) -> f64, earlier: &Target| {
        let own = norm(&i.norms[&t.path]);
        if own == 0.0 { 0.0 } else { (norm(&i.norms[&earlier.path]) / own).sqrt() }
    };
    match i.config.residual() {
        Residual::InputShortcut => match ancestors.first() {
            Some(earlier) => vec![ratio(&|n| mean(n.x, n.rows), earlier)],
            None => vec![1.0],
        },
        Residual::MiddleShortcut => ancestors.into_iter().map(|e| ratio(&|n| mean(n.xa, n.rows), e)).collect(),
        // Their terms read the block's own input alone.
        Residual::None | Residual::BlockShortcut => vec![],
    }
}

pub fn mean(sum: f64, rows: f64) -> f64 {
    if rows == 0.0 { 0.0 } else { sum / rows }
}
