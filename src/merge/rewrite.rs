//! Merges of adapters that stand elsewhere than at linear nodes: initializers get other values, or more rows.

use super::encode::encoded;
use super::{LayerReport, MergeError, Prepared};
use crate::adapters::{Config, ElsewhereFolding, Form, Rewrite, Rewrites, Scene};
use crate::onnx::Model;

/// How a configuration's adapter rewrites initializers, if it does.
pub(super) fn of(config: &Config) -> Option<&'static Rewrites> {
    match &config.structure.entry().form {
        Form::Elsewhere(e) => match &e.folding {
            ElsewhereFolding::Rewrites(rewrites) => Some(rewrites),
            ElsewhereFolding::KeepsBranch(_) => None,
        },
        Form::Term(_) | Form::Whole(_) => None,
    }
}

/// Rewrites the initializers of a model that was taken apart.
pub(super) fn apply(p: &mut Prepared, rewrites: &Rewrites) -> Result<Vec<LayerReport>, MergeError> {
    let path = || p.config.targets.first().map_or_else(String::new, |t| t.path.clone());
    let all =
        (rewrites.rewrites)(&p.model, &p.config, &p.tensors).map_err(|why| MergeError::Fold { path: path(), why })?;
    let layers = all.iter().map(|r| write(&mut p.model, r, &mut p.notes)).collect::<Result<_, _>>()?;
    for (key, value) in (rewrites.metadata)(&p.model, &p.config) {
        p.notes.push(format!("metadata {key}: {value}"));
        p.model.set_metadata(&key, Some(value));
    }
    Ok(layers)
}

fn write(model: &mut Model, r: &Rewrite, notes: &mut Vec<String>) -> Result<LayerReport, MergeError> {
    let old = model.initializer(&r.initializer).ok_or_else(|| MergeError::Fold {
        path: r.path.clone(),
        why: format!("there is no constant '{}'", r.initializer),
    })?;
    let (element, mut dims) = (old.element, old.dims.clone());
    let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut relative_change = 0.0;
    let mut bytes = encoded(element, &r.values, &r.initializer, &r.path)?;
    if r.append {
        dims[0] += bytes.len() * dims[0] / old.bytes.len();
        bytes = [&old.bytes[..], &bytes].concat();
    } else if let Some(before) = old.to_f64() {
        let change: Vec<f64> = before.iter().zip(&r.values).map(|(a, b)| b - a).collect();
        relative_change = norm(&change) / norm(&before).max(f64::MIN_POSITIVE);
    }
    let consumers = model.consumers();
    let others = consumers.get(&r.initializer).into_iter().flatten().any(|c| !r.readers.contains(c));
    if others {
        // Several layers may have shared it: each has a copy of its own.
        let names = std::iter::once(String::new()).chain((2..).map(|n: usize| n.to_string()));
        let mut copies = names.map(|n| format!("{}.merged{n}", r.initializer));
        let copy = copies.find(|name| !model.is_constant(name)).expect("there are enough numbers");
        model.add_initializer(&copy, element, &dims, bytes);
        r.readers.iter().for_each(|id| model.node_mut(*id).rename_input(&r.initializer, &copy));
        notes.push(format!(
            "'{}' also belongs to another node: '{copy}' is a copy of its own for '{}'",
            r.initializer, r.path
        ));
    } else if r.append {
        model.remove_initializer(&r.initializer);
        model.add_initializer(&r.initializer, element, &dims, bytes);
    } else {
        model.replace_data(&r.initializer, bytes);
    }
    Ok(LayerReport { relative_change, ..LayerReport::unchanged(&r.path, &r.initializer) })
}

/// The merged model as it takes the inputs of the injected one and gives its outputs, where it does not without.
pub fn adapted(merged: &Model, config: &Config) -> Option<Model> {
    let adapted = of(config)?.adapted?;
    let emission = adapted(&Scene { model: merged, config, fresh: true });
    let mut model = merged.clone();
    emission.put_into(&mut model);
    for (name, constant) in &emission.constants {
        model.add_initializer(name, constant.element, &constant.dims, constant.bytes.clone());
    }
    Some(model)
}
