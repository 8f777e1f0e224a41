//! Which linear nodes are adapted, and which tensors are trained themselves.

use super::error::{InjectError, either, is_list};
use super::options::{Biases, Options, Selector};
use crate::adapters::Target;
use crate::onnx::{self, Bias, Linear, Model, Role};
use std::collections::{HashMap, HashSet};

/// The linear nodes to adapt, in execution order.
pub(super) fn choose<'a>(
    model: &Model,
    linear: &'a [Linear],
    o: &Options,
    own: Option<&[String]>,
) -> Result<(Vec<&'a Linear>, Vec<String>), InjectError> {
    if linear.is_empty() {
        return Err(InjectError::NoLinear);
    }
    let roles = onnx::roles(model, linear);
    let mut notes = Vec::new();
    let mut keep = vec![false; linear.len()];
    for selector in &o.targets {
        let hits: Vec<usize> = (0..linear.len())
            .filter(|&i| match selector {
                Selector::Path(re) => re.is_match(&linear[i].path),
                Selector::Role(role) => roles[i] == Some(*role),
            })
            .collect();
        if hits.is_empty() {
            return Err(no_match(selector, linear, &roles));
        }
        hits.into_iter().for_each(|i| keep[i] = true);
    }
    if let Some(own) = own.filter(|_| o.targets.is_empty()) {
        keep.iter_mut().zip(linear).for_each(|(k, l)| *k = own.contains(&l.path));
    } else if o.targets.is_empty() {
        let wanted = [Role::AttentionQ, Role::AttentionV, Role::AttentionQkv];
        for (k, role) in keep.iter_mut().zip(&roles) {
            *k = role.is_some_and(|r| wanted.contains(&r));
        }
        if !keep.contains(&true) {
            keep.fill(true);
            notes.push("no attention found: targeting every linear node".into());
        }
    }
    for re in o.exclude.iter().filter(|re| !linear.iter().any(|l| re.is_match(&l.path))) {
        let hint = either(re.as_str(), is_list(re, linear.iter().map(|l| l.path.as_str())));
        let hint = hint.strip_suffix("; ").map_or(String::new(), |h| format!(": {h}"));
        notes.push(format!("--exclude '{}' matches no linear node{hint}", re.as_str()));
    }
    for (k, l) in keep.iter_mut().zip(linear) {
        *k &= !o.exclude.iter().any(|re| re.is_match(&l.path));
    }
    let chosen: Vec<&Linear> = linear.iter().zip(&keep).filter(|(_, k)| **k).map(|(l, _)| l).collect();
    if chosen.is_empty() { Err(InjectError::AllExcluded) } else { Ok((chosen, notes)) }
}

fn no_match(selector: &Selector, linear: &[Linear], roles: &[Option<Role>]) -> InjectError {
    let paths = || linear.iter().map(|l| l.path.as_str());
    let list = matches!(selector, Selector::Path(re) if is_list(re, paths()));
    let (pattern, nearest) = match selector {
        Selector::Path(re) => {
            let paths = paths();
            (re.as_str().to_string(), onnx::nearest(re.as_str(), paths, 8).into_iter().map(String::from).collect())
        }
        Selector::Role(role) => {
            let mut found: Vec<String> = roles.iter().flatten().map(|r| format!("role:{r}")).collect();
            found.sort();
            found.dedup();
            (format!("role:{role}"), found)
        }
    };
    InjectError::NoMatch { pattern, count: linear.len(), nearest, list }
}

/// Float initializers whose name, or the module path of a node that reads them, a pattern matches.
pub(super) fn also_trained(model: &Model, linear: &[Linear], o: &Options) -> Result<Vec<String>, InjectError> {
    let mut paths: HashMap<&str, Vec<String>> = HashMap::new();
    for (_, node) in model.nodes() {
        for input in node.inputs().iter().filter(|i| model.is_initializer(i)) {
            let name = model.initializers().find(|n| n == input).expect("just asked");
            paths.entry(name).or_default().push(onnx::module_path(node, None));
        }
    }
    for l in linear {
        if let Some(name) = model.initializers().find(|n| *n == l.weight) {
            paths.entry(name).or_default().push(l.path.clone());
        }
    }
    let trainable = |name: &&str| {
        model
            .initializer_type(name)
            .is_some_and(|(element, dims)| element.is_float() && dims.iter().product::<usize>() > 1)
    };
    let candidates: Vec<&str> = model.initializers().filter(trainable).collect();
    let mut chosen: HashSet<&&str> = HashSet::new();
    for re in &o.also_train {
        let hit = |n: &&&str| re.is_match(n) || paths.get(**n).is_some_and(|p| p.iter().any(|p| re.is_match(p)));
        let hits: Vec<&&str> = candidates.iter().filter(hit).collect();
        if hits.is_empty() {
            let nearest = onnx::nearest(re.as_str(), candidates.iter().copied(), 8);
            return Err(InjectError::NoInitializer {
                pattern: re.as_str().into(),
                nearest: nearest.into_iter().map(String::from).collect(),
                list: is_list(re, candidates.iter().copied()) || is_list(re, linear.iter().map(|l| l.path.as_str())),
            });
        }
        chosen.extend(hits);
    }
    Ok(candidates.iter().filter(|n| chosen.contains(n)).map(|n| n.to_string()).collect())
}

/// The biases that are trained besides: initializers that a linear node, a convolution or a normalization layer adds.
pub(super) fn biases(
    model: &Model,
    linear: &[Linear],
    which: Biases,
    targets: &[Target],
) -> Result<Vec<String>, InjectError> {
    let consumers = model.consumers();
    let of_linear = |l: &Linear| match l.bias(model, &consumers) {
        Some(Bias::Own { name } | Bias::Added { name, .. }) => Some(name),
        None => None,
    };
    let mut out: Vec<String> = match which {
        Biases::None => return Ok(vec![]),
        Biases::Targets => {
            linear.iter().filter(|l| targets.iter().any(|t| t.path == l.path)).filter_map(of_linear).collect()
        }
        Biases::All => {
            let norms = onnx::norm_nodes(model).into_iter().filter_map(|n| Some(n.bias?.1));
            let convolution =
                |n: &onnx::Node| n.op_type().starts_with("Conv").then(|| n.input(2)).flatten().map(String::from);
            let convolutions = model.nodes().filter_map(|(_, n)| convolution(n));
            linear.iter().filter_map(of_linear).chain(norms).chain(convolutions).collect()
        }
    };
    out.retain(|name| model.initializer_type(name).is_some_and(|t| t.0.is_float()));
    match out.is_empty() {
        true => Err(InjectError::Option("--bias finds no bias to train\nhint: leave it out".into())),
        false => Ok(out),
    }
}
