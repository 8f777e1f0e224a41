//! Adapters kept in the file as side branches: nothing is folded, so nothing is lost, at the cost of their own products.

use super::encode::place;
use super::{LayerReport, MergeError, Report, config, fit};
use crate::adapter::Adapter;
use crate::onnx::Model;

/// The injected model with the adapter's tensors in place of those it was injected with.
pub fn keep_branch(injected: &Model, adapter: &Adapter) -> Result<(Model, Report), MergeError> {
    let config = config(injected)?;
    let (adapter, notes) = fit(injected, adapter)?;
    let mut model = injected.clone();
    for (name, t) in &adapter.tensors {
        if !model.is_constant(name) {
            return Err(MergeError::Nodes(format!("there is no initializer '{name}'")));
        }
        place(&mut model, name, t)?;
    }
    let layers = config.targets.iter().map(|t| LayerReport::unchanged(&t.path, &t.weight)).collect();
    Ok((model, Report { strategy: "branch".into(), layers, also_trained: config.also_train.clone(), notes }))
}
