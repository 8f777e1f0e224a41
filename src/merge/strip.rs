//! Takes adapters' nodes out of an injected model again.

use super::MergeError;
use crate::adapters::{Config, Emission, Form, Place, emit_again};
use crate::onnx::{self, Model, NodeId};
use std::collections::HashSet;

/// The model that was injected into: adapters' nodes and initializers removed, nothing merged.
pub fn strip(injected: &Model, config: &Config) -> Result<Model, MergeError> {
    let mut model = injected.clone();
    let emission = emitted(injected, config)?;
    let names: HashSet<&str> = emission.blocks.iter().flat_map(|b| &b.nodes).map(|n| n.name.as_str()).collect();
    let doomed: Vec<NodeId> = injected.nodes().filter(|(_, n)| names.contains(n.name())).map(|(id, _)| id).collect();
    if doomed.len() != names.len() {
        return Err(MergeError::Nodes(format!("{} of {} adapter nodes are there", doomed.len(), names.len())));
    }
    for block in &emission.blocks {
        let node = model.node_mut(block.node);
        match block.place {
            Place::Input => node.rename_input(&block.new, &block.old),
            Place::Product | Place::Output => node.rename_output(&block.new, &block.old),
        }
    }
    doomed.into_iter().for_each(|id| model.remove_node(id));
    for name in config.tensor_names().iter().chain(emission.constants.keys()) {
        model.remove_initializer(name);
    }
    for input in config.structure.inputs {
        model.remove_input(input.name);
    }
    for key in model.metadata_keys().iter().filter(|k| k.starts_with("reslora.")) {
        model.set_metadata(key, None);
    }
    Ok(model)
}

/// The nodes that injection added, each block with the value that stood in its place before.
fn emitted(injected: &Model, config: &Config) -> Result<Emission, MergeError> {
    let producers = injected.producers();
    let mut emission = emit_again(injected, config);
    for block in &mut emission.blocks {
        let found = match block.nodes.last() {
            None => None,
            Some(last) => {
                let found = injected.nodes().find(|(_, n)| n.name() == last.name).map(|(_, n)| n);
                Some(found.ok_or_else(|| MergeError::Nodes(format!("there is no node '{}'", last.name)))?)
            }
        };
        let follows = match block.place {
            Place::Input => injected.node(block.node).inputs().contains(&block.new),
            Place::Product | Place::Output => producers.get(block.new.as_str()) == Some(&block.node),
        };
        if !follows {
            return Err(MergeError::Nodes(format!("the adapter at '{}' does not stand beside its node", block.path)));
        }
        if let Some(found) = found.filter(|_| block.place != Place::Input) {
            // The linear node's output has its base name now; the value it had is what the block gives.
            block.old = found.outputs()[0].clone();
        }
    }
    if matches!(config.structure.form, Form::Elsewhere(_)) {
        let missing = config.targets.iter().find(|t| !emission.blocks.iter().any(|b| b.path == t.path));
        return match missing.filter(|_| emission.blocks.len() < config.targets.len()) {
            Some(t) => Err(MergeError::Nodes(format!("there is nothing of '{}'", t.path))),
            None => Ok(emission),
        };
    }
    let found: HashSet<String> = onnx::linear_nodes(injected).into_iter().map(|l| l.path).collect();
    match config.targets.iter().find(|t| !found.contains(&t.path)) {
        Some(t) => Err(MergeError::Nodes(format!("there is no linear node '{}'", t.path))),
        None => Ok(emission),
    }
}
