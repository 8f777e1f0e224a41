//! `exact`: the adapter computes with the block's own input alone, so plain weights compute the same.

use super::strategy::StrategyInfo;
use super::{Delta, Inputs, MergeError};
use crate::adapters::{Fold, Folded, Folding, Form, Merge, Target};
use ndarray::{Array2, Ix2};

pub const STRATEGY: StrategyInfo = StrategyInfo {
    name: "exact",
    needs_norms: |_| false,
    needs_rows: false,
    applies: |config| matches!(config.merge(), Merge::Exact | Merge::Chosen(_)),
    deltas,
};

/// Terms: `ΔW_n = s Σ_k last_{n-k} carry_{n-k}` over the block itself and the earlier ones it reads. Other adapters fold
/// themselves.
fn deltas(i: &Inputs) -> Result<Vec<Delta>, MergeError> {
    let delta = |t: &Target| match &i.config.structure.form {
        Form::Term(_) => {
            let mut sum = Array2::zeros((t.out_features, t.in_features));
            for block in [t].into_iter().chain(i.config.ancestors(t)) {
                let f = &i.factors[&block.path];
                sum += &f.last.dot(&f.carry);
            }
            // One block's factors stay factors; a sum of several has another rank.
            let a = i.config.ancestors(t).is_empty().then(|| i.factors[&t.path].carry.clone());
            let mut delta = i.delta(t, sum, a, vec![]);
            if let Some(name) = i.config.taken_out(t) {
                let part =
                    i.tensors[&name].mapv(f64::from).into_dimensionality::<Ix2>().expect("its shape was checked");
                delta = Delta { delta: delta.delta - part, a: None, ..delta };
            }
            Ok(delta)
        }
        Form::Whole(whole) => match (whole.folding)(i.config) {
            Folding::Chosen(input, fold) => {
                let found = i.chosen.iter().find(|(name, _)| name == input).map(|(_, value)| *value);
                let value = found.ok_or(MergeError::NotChosen { structure: i.config.structure, input })?;
                folded(i, t, &|call| fold(call, value))
            }
            Folding::KeepsBranch(why) => Err(MergeError::KeepsBranch { structure: i.config.structure, why }),
            Folding::Exact(fold) => folded(i, t, &fold),
        },
        // Its initializers are rewritten, and no weight is changed by a sum.
        Form::Elsewhere(_) => {
            Ok(Delta { path: t.path.clone(), delta: Array2::zeros((0, 0)), bias: None, a: None, alphas: vec![] })
        }
    };
    i.config.targets.iter().map(delta).collect()
}

/// The change of a target that an adapter folds itself.
fn folded(i: &Inputs, t: &Target, fold: &dyn Fn(&Fold) -> Result<Folded, String>) -> Result<Delta, MergeError> {
    i.fold(t, |call| {
        let merged = fold(call).map_err(|why| MergeError::Fold { path: t.path.clone(), why })?;
        let delta = merged.weight - call.weight;
        Ok(Delta { path: t.path.clone(), delta, bias: merged.bias, a: None, alphas: vec![] })
    })
}
