//! The nodes of adapters, block by block: what is put into a model, and found in it again.

use super::{
    Config, Emission, Emitted, Emitter, Form, Place, Target, base_name,
    emitter::{Mode, Shared},
};
use crate::onnx::{Bias, ElementType, Model, Node, NodeId, linear_nodes};
use ndarray::Array2;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What the nodes of an adapter that stands elsewhere than at linear nodes are made for.
pub struct Scene<'a> {
    pub model: &'a Model,
    pub config: &'a Config,
    /// Whether they are put into the model, rather than found in it again.
    pub fresh: bool,
}

impl Scene<'_> {
    /// What collects nodes called after `path` that read and give values of this type.
    pub fn emitter(&self, path: &str, element: ElementType) -> Emitter {
        let mode = Mode { opset: self.model.opset(""), fresh: self.fresh };
        Emitter::at(path, element, None, self.config, mode, String::new(), Shared::default())
    }

    /// The nodes that read a value which the adapter renames from `base` to `new`, but for its own, in execution order.
    pub fn readers(&self, base: &str, new: &str, own: &dyn Fn(&str) -> bool) -> Vec<NodeId> {
        let name = if self.fresh { base } else { new };
        let reads = |n: &Node| n.inputs().iter().any(|i| i == name) && !own(n.name());
        self.model.nodes().filter(|(_, n)| reads(n)).map(|(id, _)| id).collect()
    }

    /// The node that gives a value which the adapter renames from `base` to `new`.
    pub fn producer(&self, base: &str, new: &str) -> Option<NodeId> {
        let name = if self.fresh { base } else { new };
        self.model.nodes().find(|(_, n)| n.outputs().iter().any(|o| o == name)).map(|(id, _)| id)
    }
}

/// One block to emit.
pub struct Block<'a> {
    /// How the model is injected.
    pub config: &'a Config,
    /// The block's target.
    pub target: &'a Target,
    /// The linear node's input.
    pub x: &'a str,
    /// The value in the adapter's place: the product, or the output with its bias. Blocks that replace the input do not read it.
    pub y: &'a str,
    /// The initializer that `y` has added to the product, where the linear node adds it itself.
    pub bias: Option<&'a str>,
    /// The linear node.
    pub(crate) node: &'a Node,
    /// Its weight as it multiplies by it, `[out, in]`.
    pub weight: &'a dyn Fn() -> Array2<f64>,
    /// The model's graph inputs.
    pub inputs: &'a [String],
    /// The blocks before it that its residual path reads with their inputs, nearest first.
    pub ancestors: Vec<(&'a Target, &'a str)>,
}

impl Block<'_> {
    /// Whether the model has a graph input of this name.
    pub fn has_input(&self, name: &str) -> bool {
        self.inputs.iter().any(|i| i == name)
    }
}

/// The nodes to put into `base`.
pub fn emit(base: &Model, config: &Config) -> Emission {
    emit_with(base, config, None)
}

/// The nodes that [`emit`] has put into a model, found by emitting them again.
pub fn emit_again(injected: &Model, config: &Config) -> Emission {
    emit_with(injected, config, Some(injected))
}

fn emit_with(model: &Model, config: &Config, injected: Option<&Model>) -> Emission {
    if let Form::Elsewhere(elsewhere) = &config.structure.form {
        return (elsewhere.emit)(&Scene { model, config, fresh: injected.is_none() });
    }
    let linear = linear_nodes(model);
    let first_x: HashMap<&str, &str> = linear.iter().rev().map(|l| (l.path.as_str(), l.x.as_str())).collect();
    let mut calls: HashMap<&str, usize> = HashMap::new();
    let mut shared = Shared::default();
    let mut out = Emission::default();
    let inputs: Vec<String> = model.inputs().into_iter().map(|i| i.name).collect();
    let reads_bias = config.structure.form.reads_bias();
    let mode = Mode { opset: model.opset(""), fresh: injected.is_none() };
    let consumers = if reads_bias { model.consumers() } else { HashMap::new() };
    for l in &linear {
        let Some(target) = config.target(&l.path) else { continue };
        let call = calls.entry(&target.path).or_default();
        let ancestors = config.ancestors(target).into_iter().map(|t| (t, first_x[t.path.as_str()])).collect();
        let place = match &config.structure.form {
            Form::Term(_) | Form::Elsewhere(_) => Place::Product,
            Form::Whole(whole) => (whole.place)(config, target),
        };
        let base_value = match *call {
            0 => base_name(&l.path),
            n => format!("{}.call{n}", base_name(&l.path)),
        };
        let (own, add) = match l.bias(model, &consumers).filter(|_| reads_bias) {
            Some(Bias::Own { name }) => (Some(name), None),
            // The adapter stands behind the Add of the bias.
            Some(Bias::Added { node, output, .. }) if place == Place::Output => (None, Some((node, output))),
            Some(Bias::Added { .. }) | None => (None, None),
        };
        let (node, old) = match (place, add) {
            (Place::Product | Place::Output, Some((node, output))) => (node, output),
            (Place::Product | Place::Output, None) => (l.node, l.y.clone()),
            (Place::Input, _) => (l.node, l.x.clone()),
        };
        let weight = || l.multiplied(model).expect("checked before anything is emitted");
        let mut block = Block {
            config,
            target,
            x: &l.x,
            y: &base_value,
            bias: own.as_deref(),
            node: model.node(l.node),
            weight: &weight,
            inputs: &inputs,
            ancestors,
        };
        let suffix = if *call == 0 { String::new() } else { format!(".call{call}") };
        let original;
        let before = if place == Place::Input { shared.clone() } else { Shared::default() };
        let mut e = Emitter::new(l, config, mode, suffix.clone(), std::mem::take(&mut shared));
        let mut result = block_nodes(&mut e, &block);
        if let (Place::Input, Some(injected)) = (place, injected) {
            // The node reads what the adapter gave it: its own input is where the adapter's nodes begin.
            let names: HashSet<&str> = e.nodes.iter().map(|n| n.name.as_str()).collect();
            original = input_before(injected, &l.x, &names);
            block.x = &original;
            e = Emitter::new(l, config, mode, suffix, before);
            result = block_nodes(&mut e, &block);
        }
        let mut nodes = e.nodes;
        shared = e.shared;
        if place != Place::Input {
            let last = nodes.last_mut().expect("a block has nodes");
            assert_eq!(last.outputs, [result.clone()], "the last node of a block gives its value");
            last.outputs = vec![old.clone()];
        }
        let own = |map: &BTreeMap<String, String>| map.get(&target.path).cloned();
        let (old, new) = if place == Place::Input { (block.x.to_string(), result) } else { (old, base_value.clone()) };
        out.blocks.push(Emitted {
            node,
            path: l.path.clone(),
            nodes,
            place,
            old,
            new,
            x: block.x.to_string(),
            signal: own(&shared.signals),
            carried: own(&shared.carried),
        });
        *call += 1;
    }
    out.constants = shared.constants;
    out
}

/// The nodes of one block; the value that stands in its place.
fn block_nodes(e: &mut Emitter, block: &Block) -> String {
    match &block.config.structure.form {
        Form::Whole(whole) => (whole.emit)(e, block),
        Form::Elsewhere(_) => unreachable!("it has no block at a linear node"),
        Form::Term(term) => {
            let sum = block.config.residual().emit(e, term, block);
            let scaled = if block.config.structure.alpha {
                let scale = e.scale(block.config, block.target);
                e.node("lora_scale", "Mul", &[&sum, &scale])
            } else {
                sum
            };
            match &term.join {
                None => {
                    let y = match block.config.taken_out(block.target) {
                        None => block.y.to_string(),
                        Some(part) => {
                            let part = e.product_down("taken_out", block.x, &part);
                            e.node("lora_base", "Sub", &[block.y, &part])
                        }
                    };
                    e.node("lora_add", "Add", &[&y, &scaled])
                }
                Some(join) => (join.emit)(e, block, &scaled),
            }
        }
    }
}

/// The value from which nodes of these names compute `x`, along their first inputs.
fn input_before(model: &Model, x: &str, names: &HashSet<&str>) -> String {
    let producers = model.producers();
    let mut at = x;
    while let Some(node) = producers.get(at).map(|id| model.node(*id)).filter(|n| names.contains(n.name())) {
        let Some(input) = node.input(0) else { break };
        at = input;
    }
    at.to_string()
}
