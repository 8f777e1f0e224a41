//! Adapters kept in the file as side branches: nothing is folded, so nothing is lost, at the cost of their own products.

use super::{LayerReport, MergeError, Report, check_base, check_shape, config, factors};
use crate::adapter::Adapter;
use crate::onnx::{self, Model};

/// The injected model with the adapter's factors and trained tensors in place of those it was injected with.
pub fn keep_branch(injected: &Model, adapter: &Adapter) -> Result<(Model, Report), MergeError> {
    let config = config(injected)?;
    let notes = check_base(injected, adapter)?.into_iter().collect();
    factors(&config, adapter)?;
    let mut model = injected.clone();
    let names = config.targets.iter().flat_map(|t| [t.a(), t.b()]).chain(config.also_train.iter().cloned());
    for name in names {
        let t = adapter.tensors.get(&name).ok_or_else(|| MergeError::MissingTensor { name: name.clone() })?;
        let missing = || MergeError::Nodes(format!("there is no initializer '{name}'"));
        let (element, dims) = model.initializer_type(&name).ok_or_else(missing)?;
        check_shape(&name, t, &dims)?;
        let values: Vec<f64> = t.iter().map(|&x| x as f64).collect();
        model.replace_data(&name, onnx::encode_floats(element, &values).expect("trained tensors are floats"));
    }
    let layer = |t: &crate::structure::Target| LayerReport {
        path: t.path.clone(),
        weight: t.weight.clone(),
        relative_change: 0.0,
        alphas: vec![],
        error: None,
        ridge: None,
        requantised: None,
    };
    let layers = config.targets.iter().map(layer).collect();
    Ok((model, Report { strategy: "branch".into(), layers, also_trained: config.also_train.clone(), notes }))
}
