//! The nodes of adapters: what is put into a model, and taken out of it again.

use super::{Config, DROPOUT_RATIO, KERNEL_SHAPES, SCALE, a_name, b_name, base_name};
use crate::onnx::{AttrValue, ElementType, Model, NewNode, NodeId, linear_nodes};
use std::collections::{HashMap, HashSet};

/// The nodes to insert after each adapted linear node of `base`; the last of each is the Add that gives its old output.
pub fn emit(base: &Model, config: &Config) -> Vec<(NodeId, Vec<NewNode>)> {
    let linear = linear_nodes(base);
    let first_x: HashMap<&str, &str> = linear.iter().rev().map(|l| (l.path.as_str(), l.x.as_str())).collect();
    let mut calls: HashMap<&str, usize> = HashMap::new();
    let mut known = HashSet::new();
    let mut out = Vec::new();
    for l in &linear {
        let Some(target) = config.target(&l.path) else { continue };
        let call = calls.entry(&target.path).or_default();
        let mut e = Emitter {
            nodes: vec![],
            suffix: if *call == 0 { String::new() } else { format!(".call{call}") },
            path: l.path.clone(),
            element: l.element,
            strides: l.strides.clone(),
            dropout: config.dropout,
            known: std::mem::take(&mut known),
        };
        let ancestors =
            config.ancestors(target).into_iter().map(|t| (t.path.as_str(), first_x[t.path.as_str()])).collect();
        let block = Block { path: &l.path, x: &l.x, ancestors };
        let term = (config.structure.info().emit)(&mut e, &block);
        let scaled = e.node("lora_scale", "Mul", &[&term, SCALE]);
        let base_value = match *call {
            0 => base_name(&l.path),
            n => format!("{}.call{n}", base_name(&l.path)),
        };
        let add = e.node("lora_add", "Add", &[&base_value, &scaled]);
        let last = e.nodes.last_mut().expect("just added");
        debug_assert_eq!(last.name, add);
        last.outputs = vec![l.y.clone()];
        *call += 1;
        known = e.known;
        out.push((l.node, e.nodes));
    }
    out
}

/// One block to emit.
pub struct Block<'a> {
    pub path: &'a str,
    /// The linear node's input.
    pub x: &'a str,
    /// Paths and inputs of the blocks before it that it reads, nearest first.
    pub ancestors: Vec<(&'a str, &'a str)>,
}

/// Collects the nodes of one block.
pub struct Emitter {
    pub nodes: Vec<NewNode>,
    /// Distinguishes the nodes of a module's second and later calls; empty for the first.
    suffix: String,
    path: String,
    /// The element type of activations, to which factors are cast if it is not f32.
    element: ElementType,
    /// Strides, where the linear node is a convolution.
    strides: Option<Vec<i64>>,
    dropout: f64,
    /// Values that earlier blocks have computed, and this one may read.
    known: HashSet<String>,
}

impl Emitter {
    /// Adds a node called `{path}.{role}` whose output has the same name, and returns that.
    pub fn node(&mut self, role: &str, op: &str, inputs: &[&str]) -> String {
        let name = format!("{}.{role}{}", self.path, self.suffix);
        self.nodes.push(NewNode::new(&name, op, inputs, &name));
        self.known.insert(name.clone());
        name
    }

    /// A factor `(m, n)` as the operator that multiplies by it wants it, in the activations' element type: its transpose
    /// for MatMul, a kernel `(m, n, 1, 1)` for Conv. All blocks that read it share it.
    fn operand(&mut self, initializer: &str) -> String {
        let stem = initializer.strip_suffix(".weight").unwrap_or(initializer);
        let axes = self.strides.as_ref().map(Vec::len);
        let name = axes.map_or(format!("{stem}.T"), |_| format!("{stem}.kernel"));
        if self.known.insert(name.clone()) {
            let turn = |name: &str| match axes {
                None => NewNode::new(name, "Transpose", &[initializer], name).attr("perm", AttrValue::Ints(vec![1, 0])),
                Some(n) => NewNode::new(name, "Reshape", &[initializer, KERNEL_SHAPES[n - 1]], name),
            };
            if self.element == ElementType::F32 {
                self.nodes.push(turn(&name));
            } else {
                let wide = format!("{name}.float32");
                self.nodes.push(turn(&wide));
                let to = AttrValue::Int(self.element.number() as i64);
                self.nodes.push(NewNode::new(&name, "Cast", &[&wide], &name).attr("to", to));
            }
        }
        name
    }

    /// `D(x)`: dropout if the configuration has any, else `x` itself.
    pub fn dropped(&mut self, role: &str, x: &str) -> String {
        if self.dropout == 0.0 { x.to_string() } else { self.node(role, "Dropout", &[x, DROPOUT_RATIO]) }
    }

    /// `A x` of the block at `path` on the value `x`: `(.., in)` to `(.., rank)`.
    pub fn project_down(&mut self, role: &str, path: &str, x: &str) -> String {
        let a = self.operand(&a_name(path));
        let strides = self.strides.clone();
        self.product(role, x, &a, strides)
    }

    /// `B t` of the block at `path`: `(.., rank)` to `(.., out)`.
    pub fn project_up(&mut self, role: &str, path: &str, t: &str) -> String {
        let b = self.operand(&b_name(path));
        let strides = self.strides.as_ref().map(|s| vec![1; s.len()]);
        self.product(role, t, &b, strides)
    }

    fn product(&mut self, role: &str, x: &str, operand: &str, strides: Option<Vec<i64>>) -> String {
        let Some(strides) = strides else { return self.node(role, "MatMul", &[x, operand]) };
        let name = self.node(role, "Conv", &[x, operand]);
        let kernel = AttrValue::Ints(vec![1; strides.len()]);
        let attrs = [("kernel_shape".to_string(), kernel), ("strides".to_string(), AttrValue::Ints(strides))];
        self.nodes.last_mut().expect("just added").attrs.extend(attrs);
        name
    }
}
