//! `least-squares`: every term feeds its last factor a signal t. What the block's own input x predicts of it is found by
//! regression, shrinking towards `input-norm`; the regression itself is the calibration's.

use super::strategy::StrategyInfo;
use super::{Delta, Inputs, MergeError};
use crate::adapters::{Merge, Target};

pub const STRATEGY: StrategyInfo = StrategyInfo {
    name: "least-squares",
    needs_norms: |_| false,
    needs_rows: true,
    applies: |config| config.merge() == Merge::Approximate,
    deltas,
};

/// `ΔW = s B A'`, A' as the regression found it.
fn deltas(i: &Inputs) -> Result<Vec<Delta>, MergeError> {
    let delta = |t: &Target| {
        let a = i.projections.get(&t.path).ok_or(MergeError::NoRows { structure: i.config.structure })?;
        Ok(i.projected(t, a.clone(), vec![]))
    };
    i.config.targets.iter().map(delta).collect()
}
