//! The role of each linear node, found from the structure of the graph: attention q, k, v and o; mlp up, gate and down; head. Names are
//! not used.

use super::linear::Linear;
use super::{Model, NodeId};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

/// A part in attention or in the multi-layer perceptron.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Queries.
    AttentionQ,
    /// Keys.
    AttentionK,
    /// Values.
    AttentionV,
    /// One product that gives queries, keys and values at once.
    AttentionQkv,
    /// Attention's output projection.
    AttentionO,
    /// The first projection of the multi-layer perceptron.
    MlpUp,
    /// The projection whose activation gates the first.
    MlpGate,
    /// The last projection of the multi-layer perceptron.
    MlpDown,
    /// The output projection of the model.
    Head,
}

pub const ROLES: &[(Role, &str)] = &[
    (Role::AttentionQ, "attention.q"),
    (Role::AttentionK, "attention.k"),
    (Role::AttentionV, "attention.v"),
    (Role::AttentionQkv, "attention.qkv"),
    (Role::AttentionO, "attention.o"),
    (Role::MlpUp, "mlp.up"),
    (Role::MlpGate, "mlp.gate"),
    (Role::MlpDown, "mlp.down"),
    (Role::Head, "head"),
];

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ROLES.iter().find(|r| r.0 == *self).expect("every role is in the table").1)
    }
}

/// Operators that attention is called as where it is one node, with the inputs that are queries, keys and values.
const FUSED: &[(&str, &str, [usize; 3])] = &[
    ("com.microsoft", "MultiHeadAttention", [0, 1, 2]),
    ("com.microsoft", "GroupQueryAttention", [0, 1, 2]),
    ("com.microsoft", "PackedMultiHeadAttention", [0, 1, 2]),
    ("", "Attention", [0, 1, 2]),
];

const ACTIVATIONS: &[&str] = &[
    "Relu",
    "Gelu",
    "Erf",
    "Tanh",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Elu",
    "LeakyRelu",
    "Mish",
    "Swish",
    "FastGelu",
    "BiasGelu",
    "QuickGelu",
    "Softplus",
    "Clip",
];

/// Operators that carry a linear node's result on without mixing positions.
const CARRIERS: &[&str] = &[
    "Add",
    "Mul",
    "Div",
    "Sub",
    "Pow",
    "Reshape",
    "Transpose",
    "Cast",
    "Identity",
    "Dropout",
    "Split",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
];

struct Net<'a> {
    model: &'a Model,
    producers: HashMap<&'a str, NodeId>,
    consumers: HashMap<String, Vec<NodeId>>,
    linear: HashMap<NodeId, usize>,
}

/// The role of each linear node; `None` where the structure does not tell.
pub fn roles(model: &Model, linear: &[Linear]) -> Vec<Option<Role>> {
    let net = Net {
        model,
        producers: model.producers(),
        consumers: model.consumers(),
        linear: linear.iter().enumerate().map(|(i, l)| (l.node, i)).collect(),
    };
    let mut found: Vec<BTreeSet<Role>> = vec![BTreeSet::new(); linear.len()];
    for (id, node) in model.nodes() {
        let operands = match (node.domain(), node.op_type()) {
            ("", "Softmax") => net.attention(id),
            (domain, op) => FUSED
                .iter()
                .find(|f| f.0 == domain && f.1 == op)
                .map(|f| (f.2.map(|i| node.input(i).unwrap_or_default().to_string()), node.outputs()[0].clone())),
        };
        let Some((mut qkv, out)) = operands else { continue };
        // Queries, keys and values in one.
        if qkv[1].is_empty() && qkv[2].is_empty() {
            qkv = [qkv[0].clone(), qkv[0].clone(), qkv[0].clone()];
        }
        for (value, role) in qkv.iter().zip([Role::AttentionQ, Role::AttentionK, Role::AttentionV]) {
            for i in net.above(value) {
                found[i].insert(role);
            }
        }
        for i in net.below(&out) {
            found[i].insert(Role::AttentionO);
        }
    }
    let mut roles: Vec<Option<Role>> = found
        .iter()
        .map(|set| {
            let own: Vec<Role> = set.iter().copied().filter(|r| *r != Role::AttentionO).collect();
            match own[..] {
                [] => set.first().copied(),
                [role] => Some(role),
                _ => Some(Role::AttentionQkv),
            }
        })
        .collect();
    net.perceptrons(linear, &mut roles);
    roles
}

impl Net<'_> {
    /// For the softmax of attention written out: queries, keys and values, and the attended values. The softmax must
    /// stand between two products of computed values.
    fn attention(&self, softmax: NodeId) -> Option<([String; 3], String)> {
        let scores = self.up_to_product(self.model.node(softmax).input(0)?)?;
        let (q, k) = (scores.input(0)?.to_string(), scores.input(1)?.to_string());
        let mut open = vec![self.model.node(softmax).outputs()[0].clone()];
        for _ in 0..16 {
            let value = open.pop()?;
            for &id in self.consumers.get(&value)? {
                let node = self.model.node(id);
                match node.op_type() {
                    "MatMul" if node.input(0) == Some(&value) && !self.linear.contains_key(&id) => {
                        return Some(([q, k, node.input(1)?.to_string()], node.outputs()[0].clone()));
                    }
                    "Where" | "Dropout" | "Cast" | "Identity" | "IsNaN" | "Reshape" | "Mul" => {
                        open.insert(0, node.outputs()[0].clone());
                    }
                    _ => {}
                }
            }
        }
        None
    }

    /// The product that scores come from, through masks, scales and caps.
    fn up_to_product(&self, value: &str) -> Option<&super::Node> {
        let mut open = vec![value.to_string()];
        let mut seen = HashSet::new();
        while let Some(value) = open.pop() {
            let Some(&id) = self.producers.get(value.as_str()) else { continue };
            if !seen.insert(id) || seen.len() > 24 {
                continue;
            }
            let node = self.model.node(id);
            match node.op_type() {
                "MatMul" if !self.linear.contains_key(&id) => return Some(node),
                "Add" | "Mul" | "Div" | "Sub" | "Where" | "Cast" | "Tanh" | "Reshape" | "Identity" | "Max" => {
                    open.extend(node.inputs().iter().rev().cloned());
                }
                _ => {}
            }
        }
        None
    }

    /// The nearest linear nodes that `value` is computed from.
    fn above(&self, value: &str) -> Vec<usize> {
        let (mut open, mut seen, mut out) = (vec![value.to_string()], HashSet::new(), Vec::new());
        while let Some(value) = open.pop() {
            let Some(&id) = self.producers.get(value.as_str()) else { continue };
            if !seen.insert(id) {
                continue;
            }
            match self.linear.get(&id) {
                Some(&i) => out.push(i),
                None => {
                    let node = self.model.node(id);
                    let stop = matches!(node.op_type(), "Softmax" | "Shape" | "Gather") || seen.len() > 64;
                    if !stop {
                        open.extend(node.inputs().iter().cloned());
                    }
                }
            }
        }
        out
    }

    /// The linear nodes that read `value` through changes of layout alone.
    fn below(&self, value: &str) -> Vec<usize> {
        let (mut open, mut out) = (vec![value.to_string()], Vec::new());
        let mut steps = 0;
        while let Some(value) = open.pop() {
            for &id in self.consumers.get(&value).into_iter().flatten() {
                steps += 1;
                match self.linear.get(&id) {
                    Some(&i) => out.push(i),
                    None if steps < 64 => match self.model.node(id).op_type() {
                        "Transpose" | "Reshape" | "Cast" | "Squeeze" | "Unsqueeze" | "Identity" => {
                            open.extend(self.model.node(id).outputs().iter().cloned());
                        }
                        _ => {}
                    },
                    None => {}
                }
            }
        }
        out
    }

    /// Of the linear nodes without a role: `head` where the result reaches a graph output; `up` (or `gate`) where it
    /// passes an activation on its way to the one next linear node, or is multiplied with one that does; that next node
    /// is `down`.
    fn perceptrons(&self, linear: &[Linear], roles: &mut [Option<Role>]) {
        let constant = self.constants();
        let outputs: HashSet<String> = self.model.outputs().into_iter().map(|o| o.name).collect();
        let flows: Vec<Option<Flow>> =
            linear.iter().zip(roles.iter()).map(|(l, role)| role.is_none().then(|| self.flow(l, &constant))).collect();
        for (role, flow) in roles.iter_mut().zip(&flows) {
            if let Some(flow) = flow
                && flow.linear.is_empty()
                && !flow.derived.is_disjoint(&outputs)
            {
                *role = Some(Role::Head);
            }
        }
        for (i, flow) in flows.iter().enumerate() {
            if let Some(Flow { linear, activated, multiplied, .. }) = flow
                && let [down] = linear[..]
                && (*activated || *multiplied)
                && roles[down] != Some(Role::Head)
            {
                roles[i].get_or_insert(if *activated && *multiplied { Role::MlpGate } else { Role::MlpUp });
                roles[down].get_or_insert(Role::MlpDown);
            }
        }
    }

    /// Values that do not depend on the graph's inputs' elements.
    fn constants(&self) -> HashSet<String> {
        let mut out: HashSet<String> = self.model.initializers().map(String::from).collect();
        for (_, node) in self.model.nodes() {
            if node.op_type() == "Shape" || node.inputs().iter().all(|i| i.is_empty() || out.contains(i)) {
                out.extend(node.outputs().iter().cloned());
            }
        }
        out
    }

    /// Where a linear node's result goes by elementwise operators and changes of layout. A sum with something else (a
    /// residual path) ends the way; a product with something else is a gate.
    fn flow(&self, linear: &Linear, constant: &HashSet<String>) -> Flow {
        let mut flow = Flow::default();
        flow.derived.insert(linear.y.clone());
        for (id, node) in self.model.nodes().skip_while(|(id, _)| *id != linear.node).skip(1) {
            if !node.inputs().iter().any(|i| flow.derived.contains(i)) {
                continue;
            }
            if let Some(&i) = self.linear.get(&id) {
                flow.linear.push(i);
                continue;
            }
            let op = node.op_type();
            let activation = ACTIVATIONS.contains(&op);
            if !activation && !CARRIERS.contains(&op) {
                continue;
            }
            let alone = node.inputs().iter().all(|i| i.is_empty() || flow.derived.contains(i) || constant.contains(i));
            if alone || op == "Mul" {
                flow.multiplied |= !alone;
                flow.activated |= activation;
                flow.derived.extend(node.outputs().iter().cloned());
            }
        }
        flow
    }
}

#[derive(Default)]
struct Flow {
    derived: HashSet<String>,
    linear: Vec<usize>,
    activated: bool,
    multiplied: bool,
}
