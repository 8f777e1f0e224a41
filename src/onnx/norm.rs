//! Normalization layers: where their trained weights and biases are.

use super::module_path::module_path;
use super::{Model, Node, NodeId};
use std::collections::HashMap;

/// A normalization layer with a weight of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    pub path: String,
    /// The node that reads the weight, and its name.
    pub weight: (NodeId, String),
    /// The same of the bias, where there is one.
    pub bias: Option<(NodeId, String)>,
    /// Elements of the weight.
    pub features: usize,
}

/// Operators that normalize and scale at once: the places of their weight and bias.
const FUSED: &[(&str, usize, Option<usize>)] = &[
    ("LayerNormalization", 1, Some(2)),
    ("RMSNormalization", 1, None),
    ("SimplifiedLayerNormalization", 1, None),
    ("SkipLayerNormalization", 2, Some(3)),
    ("SkipSimplifiedLayerNormalization", 2, None),
    ("GroupNormalization", 1, Some(2)),
    ("GroupNorm", 1, Some(2)),
    ("InstanceNormalization", 1, Some(2)),
    ("BatchNormalization", 1, Some(2)),
];

/// Operators that only move, view or convert what they read.
const VIEWS: &[&str] = &["Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten"];

/// Every normalization layer, in execution order: an operator that normalizes and reads a weight, or a product of a weight with a
/// value that was divided by a root mean square or by a standard deviation. Layers without a weight of their own (one number, or
/// all ones and zeros next to another weight) are left out.
pub fn norm_nodes(model: &Model) -> Vec<Norm> {
    let (producers, consumers) = (model.producers(), model.consumers());
    let found = Finder { model, producers, consumers };
    let mut out: Vec<Norm> = Vec::new();
    for (id, node) in model.nodes() {
        let norm = match FUSED.iter().find(|f| f.0 == node.op_type()) {
            Some(&(_, weight, bias)) => found.fused(id, node, weight, bias),
            None if node.op_type() == "Mul" => found.decomposed(id, node),
            None => None,
        };
        out.extend(norm);
    }
    // What is scaled once more has its weight there, as a group norm that is exported as an instance norm of ones.
    let again: Vec<String> = out.iter().filter(|n| n.features > 0).map(|n| n.path.clone()).collect();
    out.retain(|n| !found.is_scaled_again(n, &again));
    out
}

struct Finder<'a> {
    model: &'a Model,
    producers: HashMap<&'a str, NodeId>,
    consumers: HashMap<String, Vec<NodeId>>,
}

impl<'a> Finder<'a> {
    /// The length of a constant float vector, however many axes of one element it has besides.
    fn vector(&self, name: &str) -> Option<usize> {
        let (element, dims) = self.model.initializer_type(name)?;
        let long: Vec<usize> = dims.iter().copied().filter(|d| *d != 1).collect();
        let plain = element.is_float() && !dims.is_empty() && long.len() <= 1;
        plain.then(|| long.first().copied().unwrap_or(1)).filter(|n| *n > 1)
    }

    fn node(&self, value: &str) -> Option<(NodeId, &'a Node)> {
        self.producers.get(value).map(|id| (*id, self.model.node(*id)))
    }

    /// The initializer that a value is, through conversions; and the node that reads it.
    fn parameter(&self, reader: NodeId, value: &str) -> Option<(NodeId, String)> {
        if self.vector(value).is_some() {
            return Some((reader, value.to_string()));
        }
        let (id, node) = self.node(value)?;
        match node.op_type() {
            "Cast" | "Identity" | "Unsqueeze" | "Reshape" => self.parameter(id, node.input(0)?),
            // Gemma's weights have 1 added.
            "Add" => {
                let (a, b) = (node.input(0)?, node.input(1)?);
                let scalar = |n: &str| self.model.initializer_type(n).is_some_and(|t| t.1.iter().all(|d| *d == 1));
                match (scalar(a), scalar(b)) {
                    (false, true) => self.parameter(id, a),
                    (true, false) => self.parameter(id, b),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn layer(&self, node: &Node, weight: (NodeId, String), bias: Option<(NodeId, String)>) -> Option<Norm> {
        let features = self.vector(&weight.1)?;
        let bias = bias.filter(|b| self.vector(&b.1) == Some(features));
        Some(Norm { path: module_path(node, Some(&weight.1)), weight, bias, features })
    }

    fn fused(&self, id: NodeId, node: &Node, weight: usize, bias: Option<usize>) -> Option<Norm> {
        let weight = self.parameter(id, node.input(weight)?)?;
        let bias = bias.and_then(|n| node.input(n)).and_then(|b| self.parameter(id, b));
        self.layer(node, weight, bias)
    }

    fn decomposed(&self, id: NodeId, node: &Node) -> Option<Norm> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let (weight, x) = match (self.parameter(id, a), self.parameter(id, b)) {
            (Some(w), None) => (w, b),
            (None, Some(w)) => (w, a),
            _ => return None,
        };
        if !self.is_normalized(x) {
            return None;
        }
        let y = node.outputs().first()?;
        let add = match self.consumers.get(y).map(Vec::as_slice) {
            Some([one]) => Some((*one, self.model.node(*one))).filter(|(_, n)| n.op_type() == "Add"),
            _ => None,
        };
        let bias = add.and_then(|(id, n)| n.inputs().iter().filter(|i| *i != y).find_map(|i| self.parameter(id, i)));
        self.layer(node, weight, bias)
    }

    /// Whether a value was divided by the root of something, or comes from an operator that normalizes.
    fn is_normalized(&self, value: &str) -> bool {
        let Some((_, node)) = self.node(value) else { return false };
        let input = |n| node.input(n).unwrap_or("");
        match node.op_type() {
            op if VIEWS.contains(&op) => self.is_normalized(input(0)),
            op if FUSED.iter().any(|f| f.0 == op) => true,
            "Div" => self.is_root(input(1), 0),
            "Mul" => self.is_root(input(0), 0) || self.is_root(input(1), 0),
            _ => false,
        }
    }

    fn is_root(&self, value: &str, depth: usize) -> bool {
        let Some((_, node)) = self.node(value).filter(|_| depth < 6) else { return false };
        let next = |n| self.is_root(node.input(n).unwrap_or(""), depth + 1);
        match node.op_type() {
            "Sqrt" => true,
            // To the power of a half, or of minus a half.
            "Pow" => node
                .input(1)
                .and_then(|p| self.model.initializer(p)?.to_f64())
                .is_some_and(|p| p.iter().all(|x| x.abs() == 0.5)),
            "Reciprocal" | "Cast" | "Identity" | "Expand" | "Unsqueeze" | "Reshape" | "Clip" => next(0),
            "Div" => next(1),
            "Add" | "Max" => next(0) || next(1),
            _ => false,
        }
    }

    /// Whether another layer of the same module scales what this one gives.
    fn is_scaled_again(&self, norm: &Norm, paths: &[String]) -> bool {
        let node = self.model.node(norm.weight.0);
        let same = paths.iter().filter(|p| **p == norm.path).count() > 1;
        same && node.op_type() == "InstanceNormalization"
    }
}
