//! `norm`: the weights and biases of normalization layers are trained themselves (LN tuning, arXiv 2312.11420).

use super::{
    Config, Drawing, Elsewhere, ElsewhereFolding, Emission, Emitted, Entry, Form, Places, Rewrite, Rewrites, Scene,
    Spec, Start, Target, Tensors,
};
use crate::onnx::{self, ElementType, Model, Norm, norm_nodes};
use ndarray::ArrayD;

const WEIGHT: &str = "ln_tuning_layers.weight";
const BIAS: &str = "ln_tuning_layers.bias";
/// The key of a target's names for its bias.
const BIAS_NAME: &str = "bias";

pub const ENTRY: Entry = Entry {
    name: "norm",
    aliases: &[],
    help: "weights and biases of normalization layers, trained themselves",
    settings: &[],
    rank: false,
    alpha: false,
    dropout: false,
    residual: None,
    residuals: &[],
    images: true,
    reads_roles: false,
    suffixes: &[WEIGHT, BIAS],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Elsewhere(Elsewhere {
        what: "normalization",
        places,
        targets: |_, places| Ok(places),
        emit,
        folding: ElsewhereFolding::Rewrites(Rewrites { rewrites, metadata: |_, _| vec![], adapted: None }),
    }),
};

/// The weight, and the bias where there is one, each `[out]`.
fn tensors(_: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let n = target.out_features;
    let weight = Spec::new(WEIGHT, [n], Start::Drawn(|call| own(call, |t| Some(&t.weight))));
    let bias = target.names.get(BIAS_NAME);
    let bias = bias.map(|_| Spec::new(BIAS, [n], Start::Drawn(|call| own(call, |t| t.names.get(BIAS_NAME)))));
    Ok([Some(weight), bias].into_iter().flatten().collect())
}

/// What the model holds.
fn own(call: &mut Drawing, name: fn(&Target) -> Option<&String>) -> Result<ArrayD<f32>, String> {
    let name = call.target.and_then(name).ok_or("it belongs to no target")?;
    let values = (call.initializer)(name, None)?;
    ArrayD::from_shape_vec(call.shape.to_vec(), values.iter().map(|x| *x as f32).collect()).map_err(|e| e.to_string())
}

/// One place a path: a layer that is called several times is one.
fn places(call: &Places) -> Result<Vec<Target>, String> {
    let mut out: Vec<Target> = Vec::new();
    for norm in norm_nodes(call.model) {
        if out.iter().any(|t| t.path == norm.path) {
            continue;
        }
        let names = norm.bias.iter().map(|(_, name)| (BIAS_NAME.to_string(), name.clone())).collect();
        let features = norm.features;
        out.push(Target {
            path: norm.path,
            weight: norm.weight.1,
            in_features: features,
            out_features: features,
            names,
            ..Target::default()
        });
    }
    Ok(out)
}

/// The parameters of a target's layers, each with its suffix.
fn parameters(norm: &Norm) -> impl Iterator<Item = (&'static str, &(onnx::NodeId, String))> {
    std::iter::once((WEIGHT, &norm.weight)).chain(norm.bias.iter().map(|b| (BIAS, b)))
}

/// Each node that reads a parameter reads the adapter's tensor.
fn emit(scene: &Scene) -> Emission {
    let (model, mut out) = (scene.model, Emission::default());
    let mut e = scene.emitter("", ElementType::F32);
    let found = if scene.fresh { norm_nodes(model) } else { vec![] };
    for target in &scene.config.targets {
        for (suffix, initializer) in [(WEIGHT, Some(&target.weight)), (BIAS, target.names.get(BIAS_NAME))] {
            let Some(initializer) = initializer else { continue };
            let (element, dims) = model.initializer_type(initializer).unwrap_or((ElementType::F32, vec![]));
            e.go_to(&target.path, element);
            let mut new = target.tensor(suffix);
            if dims.len() != 1 {
                let dims: Vec<i64> = dims.iter().map(|d| *d as i64).collect();
                new = e.reshape(&format!("{suffix}.shaped"), &new, &dims);
            }
            let new = e.narrow(&format!("{suffix}.narrow"), &new);
            let readers = match scene.fresh {
                true => {
                    let own = found.iter().filter(|n| n.path == target.path).flat_map(parameters);
                    own.filter(|(s, p)| *s == suffix && p.1 == *initializer).map(|(_, p)| p.0).collect()
                }
                false => scene.readers(initializer, &new, &|_| false),
            };
            for node in readers {
                out.blocks.push(Emitted::before(&target.path, node, initializer, &new, e.take()));
            }
        }
    }
    out.constants = e.into_constants();
    out
}

fn rewrites(model: &Model, config: &Config, tensors: &Tensors) -> Result<Vec<Rewrite>, String> {
    let found = norm_nodes(model);
    let mut out: Vec<Rewrite> = Vec::new();
    for target in &config.targets {
        let layers = || found.iter().filter(|n| n.path == target.path).flat_map(parameters);
        for (suffix, parameter) in layers() {
            if out.iter().any(|r| r.path == target.path && r.initializer == parameter.1) {
                continue;
            }
            let readers = layers().filter(|(_, p)| p.1 == parameter.1).map(|(_, p)| p.0).collect();
            let values = tensors[&target.tensor(suffix)].iter().map(|x| f64::from(*x)).collect();
            out.push(Rewrite {
                path: target.path.clone(),
                initializer: parameter.1.clone(),
                readers,
                values,
                append: false,
            });
        }
    }
    Ok(out)
}
