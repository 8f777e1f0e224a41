//! `exact`: lora and block-shortcut compute with one input, so plain weights compute the same.

use super::{Delta, Inputs, MergeError, Strategy, StrategyInfo};
use ndarray::Array2;

pub const STRATEGY: StrategyInfo = StrategyInfo {
    strategy: Strategy::Exact,
    name: "exact",
    needs_norms: |_| false,
    applies: |structure| structure.info().exact,
    deltas,
};

/// `ΔW_n = s Σ_k B_{n-k} A_{n-k}` over the block itself and the earlier ones it reads (none for lora).
fn deltas(i: &Inputs) -> Result<Vec<Delta>, MergeError> {
    let delta = |t: &crate::adapters::Target| {
        let mut sum = Array2::zeros((t.out_features, t.in_features));
        for block in [t].into_iter().chain(i.config.ancestors(t)) {
            let (a, b) = &i.factors[&block.path];
            sum += &b.dot(a);
        }
        // One block's factors stay factors; a sum of several has another rank.
        let a = i.config.ancestors(t).is_empty().then(|| i.factors[&t.path].0.clone());
        Delta { path: t.path.clone(), delta: sum * i.config.scale(), a, alphas: vec![] }
    };
    Ok(i.config.targets.iter().map(delta).collect())
}
