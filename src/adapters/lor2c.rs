//! `lor2c`: `h_{i+1} = F_i(h_i) + s B A h_in` across spans of transformer blocks (LoR2C, arXiv 2503.00572).
//!
//! Blocks are the modules `….N` that hold linear nodes and pass a residual stream from one to the next. The tensors of a span bear the
//! path of its last block.

use super::{
    Config, Elsewhere, ElsewhereFolding, Emission, Emitted, Entry, Form, Group, Places, Scene, Setting, SettingKind,
    Spec, Start, Target, base_name, lora,
};
use crate::onnx::{self, ElementType, Linear, Model, NodeId};
use std::collections::{BTreeMap, HashMap, HashSet};

const SPAN: &str = "span";
/// Keys of a target's names: the value that its first block reads, and the one that its last block gives.
const READS: &str = "reads";
const GIVES: &str = "gives";

pub const ENTRY: Entry = Entry {
    name: "lor2c",
    help: "h + s B A h_in on the residual stream, across spans of transformer blocks",
    settings: &[Setting {
        name: SPAN,
        help: "blocks from where it reads to where it adds",
        kind: SettingKind::Count { default: Some(1), least: 1 },
    }],
    aliases: &[],
    dropout: false,
    residuals: &[],
    images: false,
    suffixes: &[lora::A, lora::B],
    tensors,
    form: Form::Elsewhere(Elsewhere {
        what: "transformer block",
        places,
        targets,
        emit,
        folding: ElsewhereFolding::KeepsBranch(
            "it passes by whole blocks, whose nonlinear parts no weight can replace",
        ),
    }),
    ..lora::ENTRY
};

/// A `[rank, hidden]`, B `[hidden, rank]`.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let (rank, hidden) = (config.rank_of(target), target.out_features);
    Ok(vec![
        Spec::new(lora::A, [rank, hidden], Start::KaimingUniform),
        Spec::new(lora::B, [hidden, rank], Start::Zeros).group(Group::OutputFactor),
    ])
}

/// The block that a module path lies in: the path up to its first component that is a number, and what stands before that.
fn block_of(path: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = path.split('.').collect();
    let at = parts.iter().position(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_digit()))?;
    (at > 0).then(|| (parts[..at].join("."), parts[..=at].join(".")))
}

/// One block of a stack.
struct Part {
    path: String,
    nodes: HashSet<NodeId>,
    /// Features of the first linear node's input.
    hidden: usize,
}

/// Stacks of at least two blocks that hold linear nodes, in execution order.
fn stacks(model: &Model, linear: &[Linear]) -> Vec<Vec<Part>> {
    let mut order: Vec<String> = Vec::new();
    let mut stacks: HashMap<String, Vec<Part>> = HashMap::new();
    let paths: HashMap<NodeId, &str> = linear.iter().map(|l| (l.node, l.path.as_str())).collect();
    for (id, node) in model.nodes() {
        let path = paths.get(&id).map_or_else(|| onnx::module_path(node, None), |p| p.to_string());
        let Some((stack, block)) = block_of(&path) else { continue };
        let parts = stacks.entry(stack.clone()).or_insert_with(|| {
            order.push(stack);
            vec![]
        });
        let at = parts.iter().position(|p| p.path == block).unwrap_or_else(|| {
            parts.push(Part { path: block, nodes: HashSet::new(), hidden: 0 });
            parts.len() - 1
        });
        let part = &mut parts[at];
        part.nodes.insert(id);
        if let Some(l) = linear.iter().find(|l| l.node == id && l.strides.is_none() && part.hidden == 0) {
            part.hidden = l.in_features;
        }
    }
    let mut out = Vec::new();
    for stack in order {
        let mut parts = stacks.remove(&stack).unwrap_or_default();
        parts.retain(|p| p.hidden > 0);
        if parts.len() > 1 {
            out.push(parts);
        }
    }
    out
}

fn places(call: &Places) -> Result<Vec<Target>, String> {
    let model = call.model;
    let linear = onnx::linear_nodes(model);
    let (producers, consumers) = (model.producers(), model.consumers());
    let outputs: HashSet<String> = model.outputs().into_iter().map(|o| o.name).collect();
    let mut out = Vec::new();
    for parts in stacks(model, &linear) {
        let mut stream: Option<String> = None;
        for part in &parts {
            let shape_of = |v: &str| (call.shape_of)(v).filter(|s| s.len() >= 2 && s.last() == Some(&part.hidden));
            let outside = |v: &str| {
                let read = consumers.get(v).is_some_and(|c| c.iter().any(|c| !part.nodes.contains(c)));
                read || outputs.contains(v)
            };
            let nodes = model.nodes().filter(|(id, _)| part.nodes.contains(id));
            let given: Vec<&String> =
                nodes.flat_map(|(_, n)| n.outputs()).filter(|v| outside(v) && shape_of(v).is_some()).collect();
            let gives = given.last().ok_or_else(|| {
                format!(
                    "the block '{}' gives no residual stream of {} features that can be found: the model's shapes must be known, and \
                     its nodes must bear the names of their modules", part.path, part.hidden
                )
            })?;
            let shape = shape_of(gives);
            let reads = match stream {
                Some(before) => before,
                None => {
                    let inside = model.nodes().filter(|(id, _)| part.nodes.contains(id)).flat_map(|(_, n)| n.inputs());
                    let from_outside = |v: &&String| producers.get(v.as_str()).is_none_or(|p| !part.nodes.contains(p));
                    let found = inside.filter(from_outside).find(|v| !model.is_constant(v) && shape_of(v) == shape);
                    found.ok_or_else(|| format!("no residual stream enters the block '{}'", part.path))?.clone()
                }
            };
            stream = Some(gives.to_string());
            let names = [(READS, reads), (GIVES, gives.to_string())].map(|(k, v)| (k.to_string(), v));
            out.push(Target {
                path: part.path.clone(),
                in_features: part.hidden,
                out_features: part.hidden,
                names: BTreeMap::from(names),
                ..Target::default()
            });
        }
    }
    if out.is_empty() {
        return Err("the model has no stack of blocks that holds linear nodes (modules named ….0, ….1, …)".into());
    }
    Ok(out)
}

/// Cuts each stack into spans; the last one is shorter if they do not divide.
fn targets(config: &Config, places: Vec<Target>) -> Result<Vec<Target>, String> {
    let span = config.count(SPAN).unwrap_or(1) as usize;
    let mut out: Vec<Target> = Vec::new();
    let stack = |t: &Target| block_of(&t.path).map(|b| b.0);
    for stack in places.chunk_by(|a, b| stack(a) == stack(b)) {
        for blocks in stack.chunks(span) {
            let mut last = blocks[blocks.len() - 1].clone();
            last.names.insert(READS.into(), blocks[0].names[READS].clone());
            out.push(last);
        }
    }
    Ok(out)
}

fn emit(scene: &Scene) -> Emission {
    let mut out = Emission::default();
    let mut e = scene.emitter("", ElementType::F32);
    let linear = onnx::linear_nodes(scene.model);
    for target in &scene.config.targets {
        let inside = |l: &&Linear| block_of(&l.path).is_some_and(|b| b.1 == target.path);
        let element = linear.iter().find(inside).map_or(ElementType::F32, |l| l.element);
        e.go_to(&target.path, element);
        let (reads, gives, base) = (&target.names[READS], &target.names[GIVES], base_name(&target.path));
        let t = e.product_down("lora_A", reads, &target.tensor(lora::A));
        let t = e.product_up("lora_B", &t, &target.tensor(lora::B));
        let scale = e.scale(scene.config, target);
        let t = e.node("lora_scale", "Mul", &[&t, &scale]);
        e.node("lora_add", "Add", &[&base, &t]);
        let nodes = e.take();
        if let Some(node) = scene.producer(gives, &base) {
            out.blocks.push(Emitted::after(&target.path, node, gives, &base, nodes));
        }
    }
    out.constants = e.into_constants();
    out
}
