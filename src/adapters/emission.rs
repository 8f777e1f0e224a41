//! The nodes that an adapter puts into a model, and where they stand.

use super::Place;
use crate::onnx::{ElementType, Model, NewNode, NodeId};
use std::collections::BTreeMap;

/// An initializer that adapters' nodes read and nothing trains.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    pub element: ElementType,
    pub dims: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// The nodes of one block.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// The node whose output or input the block takes over: the linear node, or the Add of its bias.
    pub node: NodeId,
    pub path: String,
    pub nodes: Vec<NewNode>,
    pub place: Place,
    /// What stood in the place: the value that `node` gave, or read.
    pub old: String,
    /// What stands there now: the value that `node` gives under another name, or the one it reads.
    pub new: String,
    /// The linear node's input.
    pub x: String,
    /// The signal that the last factor multiplies, where the block is a term.
    pub signal: Option<String>,
    /// What the block's own first factor gives, where the block is a term.
    pub carried: Option<String>,
}

impl Emitted {
    /// Nodes that a node reads instead of one of its inputs, in an adapter that stands elsewhere than at linear nodes.
    pub fn before(path: &str, node: NodeId, old: &str, new: &str, nodes: Vec<NewNode>) -> Emitted {
        let (path, old, new, x) = (path.to_string(), old.to_string(), new.to_string(), old.to_string());
        Emitted { node, path, nodes, place: Place::Input, old, new, x, signal: None, carried: None }
    }

    /// Nodes that take the place of a node's output: they read it as `new`, and the last of them gives `old`.
    pub fn after(path: &str, node: NodeId, old: &str, new: &str, mut nodes: Vec<NewNode>) -> Emitted {
        nodes.last_mut().expect("a block has nodes").outputs = vec![old.to_string()];
        let (path, old, new, x) = (path.to_string(), old.to_string(), new.to_string(), new.to_string());
        Emitted { node, path, nodes, place: Place::Output, old, new, x, signal: None, carried: None }
    }
}

/// The nodes of all blocks in execution order, and what they read.
#[derive(Clone, Debug, Default)]
pub struct Emission {
    pub blocks: Vec<Emitted>,
    pub constants: BTreeMap<String, Constant>,
}

impl Emission {
    /// Puts the nodes into the model that they were made for.
    pub fn put_into(&self, model: &mut Model) {
        for block in &self.blocks {
            match block.place {
                Place::Input => {
                    model.insert_before(block.node, block.nodes.clone());
                    model.node_mut(block.node).rename_input(&block.old, &block.new);
                }
                Place::Product | Place::Output => {
                    model.node_mut(block.node).rename_output(&block.old, &block.new);
                    model.insert_after(block.node, block.nodes.clone());
                }
            }
        }
    }
}
