//! The graph: values, nodes, leaves and outputs.

use super::{Attrs, Shape, Tensor, Type};
use std::fmt;
use std::sync::Arc;

/// A value: an index into [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

impl Value {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// A frozen tensor of a model, loaded when a device first needs it. Name and source identify it: two leaves that agree in
/// both hold the same data, so plans of several batch shapes share one copy.
#[derive(Clone)]
pub struct Weight {
    pub name: String,
    /// Which state of which model it belongs to.
    pub source: u64,
    load: Arc<dyn Fn() -> Tensor + Send + Sync>,
    held: Option<Arc<dyn Words>>,
}

/// Memory that holds four-byte words, the same ones for as long as it lives.
pub trait Words: Send + Sync {
    /// The same words at the same place each time.
    fn words(&self) -> &[u32];

    /// Says that they will hardly be read again, so that memory may go to others meanwhile.
    fn release(&self) {}
}

impl Weight {
    pub fn new(name: impl Into<String>, source: u64, load: impl Fn() -> Tensor + Send + Sync + 'static) -> Weight {
        Weight { name: name.into(), source, load: Arc::new(load), held: None }
    }

    /// The same weight, whose words stand in memory already as `load` would give them.
    pub fn held_by(self, words: Arc<dyn Words>) -> Weight {
        Weight { held: Some(words), ..self }
    }

    /// The memory that has its words already, if any does: a device on the host need not copy them.
    pub fn held(&self) -> Option<&Arc<dyn Words>> {
        self.held.as_ref()
    }

    /// What a device's store knows it by.
    pub fn key(&self) -> String {
        format!("{}@{}", self.name, self.source)
    }

    pub fn load(&self) -> Tensor {
        (self.load)()
    }
}

impl Words for Vec<u32> {
    fn words(&self) -> &[u32] {
        self
    }
}

impl Words for Tensor {
    fn words(&self) -> &[u32] {
        Tensor::words(self)
    }
}

impl PartialEq for Weight {
    fn eq(&self, other: &Weight) -> bool {
        self.name == other.name && self.source == other.source
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({})", self.name)
    }
}

/// A value that no node computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Leaf {
    /// Data that each run brings.
    Input(String),
    /// A trained tensor: it lives in the device's store and gets a gradient.
    Parameter(String),
    /// A frozen tensor: it lives in the device's store.
    Weight(Weight),
    /// A small tensor known while compiling.
    Constant(Arc<Tensor>),
    /// A named buffer of the device's store, such as an optimiser's moments.
    State(String),
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    Leaf(Leaf),
    /// Output `output` of node `node`.
    Node {
        node: usize,
        output: usize,
    },
}

/// Type and origin of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    pub ty: Type,
    pub def: Def,
}

/// One primitive operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub op: String,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    pub attrs: Attrs,
    /// The ONNX node (or the rule) this operation came from, for messages.
    pub origin: Arc<str>,
}

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Read back by the host.
    Fetch,
    /// The gradient buffer of the named parameter.
    Gradient(String),
    /// The named buffer of the device's store, overwritten when the run ends.
    State(String),
}

/// A value that leaves the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: String,
    pub value: Value,
    pub sink: Sink,
}

/// A training program. Nodes stand in execution order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    pub values: Vec<ValueInfo>,
    pub nodes: Vec<Node>,
    pub outputs: Vec<Output>,
}

impl Graph {
    pub fn ty(&self, v: Value) -> &Type {
        &self.values[v.index()].ty
    }

    pub fn shape(&self, v: Value) -> &Shape {
        &self.ty(v).shape
    }

    pub fn leaf(&self, v: Value) -> Option<&Leaf> {
        match &self.values[v.index()].def {
            Def::Leaf(leaf) => Some(leaf),
            Def::Node { .. } => None,
        }
    }

    /// The node that computes `v`.
    pub fn producer(&self, v: Value) -> Option<&Node> {
        match self.values[v.index()].def {
            Def::Node { node, .. } => Some(&self.nodes[node]),
            Def::Leaf(_) => None,
        }
    }

    /// The tensor behind `v` if it is known while compiling.
    pub fn constant(&self, v: Value) -> Option<&Arc<Tensor>> {
        match self.leaf(v) {
            Some(Leaf::Constant(t)) => Some(t),
            _ => None,
        }
    }

    /// The single number behind `v`, if it is a constant whose elements are all equal.
    pub fn splat(&self, v: Value) -> Option<f32> {
        let data = self.constant(v)?.as_f32()?;
        let first = *data.first()?;
        data.iter().all(|x| x.to_bits() == first.to_bits()).then_some(first)
    }

    /// For every value, the indices of the nodes that read it.
    pub fn consumers(&self) -> Vec<Vec<usize>> {
        let mut out = vec![Vec::new(); self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for v in &node.inputs {
                if out[v.index()].last() != Some(&i) {
                    out[v.index()].push(i);
                }
            }
        }
        out
    }

    /// The names and types of the data inputs, in the order of their values.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &Type)> {
        self.values.iter().filter_map(|info| match &info.def {
            Def::Leaf(Leaf::Input(name)) => Some((name.as_str(), &info.ty)),
            _ => None,
        })
    }

    pub fn output(&self, name: &str) -> Option<Value> {
        self.outputs.iter().find(|o| o.name == name).map(|o| o.value)
    }
}
