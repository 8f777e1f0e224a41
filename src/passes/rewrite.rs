//! Copying a graph node by node while replacing parts of it, and finding patterns in it.

use crate::ir::{Attrs, BuildError, Builder, Def, Graph, Node, Output, Type, Value};
use crate::ops::RULES;
use std::collections::HashMap;

/// A copy in the making. Values of the old graph map to values of the new one.
pub struct Rewriter<'a> {
    pub old: &'a Graph,
    pub b: Builder,
    map: Vec<Option<Value>>,
}

impl<'a> Rewriter<'a> {
    pub fn new(old: &'a Graph) -> Rewriter<'a> {
        Rewriter { old, b: Builder::new(RULES), map: vec![None; old.values.len()] }
    }

    /// The new value of an old one: a leaf is copied when first asked for.
    pub fn get(&mut self, v: Value) -> Value {
        if let Some(new) = self.map[v.index()] {
            return new;
        }
        let info = &self.old.values[v.index()];
        let Def::Leaf(leaf) = &info.def else { panic!("{v} is read before its node was copied") };
        let new = self.b.leaf(leaf.clone(), info.ty.clone());
        self.map[v.index()] = Some(new);
        new
    }

    pub fn set(&mut self, old: Value, new: Value) {
        self.map[old.index()] = Some(new);
    }

    /// Copies a node as it is.
    pub fn copy(&mut self, node: &Node) {
        let inputs: Vec<Value> = node.inputs.iter().map(|&v| self.get(v)).collect();
        let types: Vec<Type> = node.outputs.iter().map(|&v| self.old.ty(v).clone()).collect();
        self.b.set_origin(node.origin.clone());
        let outs = self.b.push(&node.op, &inputs, node.attrs.clone(), types);
        for (&o, n) in node.outputs.iter().zip(outs) {
            self.set(o, n);
        }
    }

    /// Adds an operation on new values in place of an old node's outputs.
    pub fn replace(&mut self, node: &Node, op: &str, inputs: &[Value], attrs: Attrs) -> Result<(), BuildError> {
        self.b.set_origin(node.origin.clone());
        let outs = self.b.emit_all(op, inputs, attrs)?;
        for (&o, n) in node.outputs.iter().zip(outs) {
            self.set(o, n);
        }
        Ok(())
    }

    /// The new graph, with the old one's outputs.
    pub fn finish(mut self) -> Graph {
        for out in &self.old.outputs {
            let value = self.get(out.value);
            self.b.graph.outputs.push(Output { value, ..out.clone() });
        }
        self.b.graph
    }
}

/// Rewrites single nodes: `rule` either maps the node's outputs itself and returns true, or leaves it to be copied.
pub fn each_node(
    graph: &Graph,
    mut rule: impl FnMut(&mut Rewriter, &Node) -> Result<bool, BuildError>,
) -> Result<Graph, BuildError> {
    let mut r = Rewriter::new(graph);
    for node in &graph.nodes {
        if !rule(&mut r, node)? {
            r.copy(node);
        }
    }
    Ok(r.finish())
}

/// How often each value is read.
pub fn uses(graph: &Graph) -> HashMap<Value, usize> {
    let mut uses = HashMap::new();
    let read = graph.nodes.iter().flat_map(|n| n.inputs.iter().copied()).chain(graph.outputs.iter().map(|o| o.value));
    read.for_each(|v| *uses.entry(v).or_default() += 1);
    uses
}

/// Questions that patterns ask.
impl Graph {
    /// The inputs of `v`'s node if that is a `op`.
    pub fn inputs_of(&self, v: Value, op: &str) -> Option<&[Value]> {
        self.producer(v).filter(|n| n.op == op).map(|n| n.inputs.as_slice())
    }

    /// The one input of `v`'s node if that is a `op`.
    pub fn operand(&self, v: Value, op: &str) -> Option<Value> {
        self.inputs_of(v, op).filter(|i| i.len() == 1).map(|i| i[0])
    }

    /// Both orders of the two inputs of `v`'s node if that is a `op`.
    pub fn either(&self, v: Value, op: &str) -> Vec<(Value, Value)> {
        match self.inputs_of(v, op) {
            Some(&[x, y]) => vec![(x, y), (y, x)],
            _ => vec![],
        }
    }

    /// The other factor if `v` is a product with a constant near `factor`, or a quotient by one near its inverse.
    pub fn scaled_by(&self, v: Value, factor: f64) -> Option<Value> {
        let near = |c: Value, want: f64| self.splat(c).is_some_and(|x| (x as f64 - want).abs() <= 1e-4 * want.abs());
        let product = self.either(v, "mul").into_iter().find(|&(_, c)| near(c, factor)).map(|(x, _)| x);
        product.or_else(|| match self.inputs_of(v, "div") {
            Some(&[x, c]) if near(c, 1.0 / factor) => Some(x),
            _ => None,
        })
    }

    /// The other summand if `v` is a sum with a constant, and that constant.
    pub fn plus_constant(&self, v: Value) -> Option<(Value, f32)> {
        self.either(v, "add").into_iter().find_map(|(x, c)| self.splat(c).map(|c| (x, c)))
    }

    /// `v` without the reshapes it went through.
    pub fn through_reshapes(&self, mut v: Value) -> Value {
        while let Some(x) = self.operand(v, "reshape") {
            v = x;
        }
        v
    }

    /// The operand if `v` is the mean of its last axis (kept): `reduce_sum` times one over the extent.
    pub fn mean_of(&self, v: Value) -> Option<Value> {
        let candidates = self.either(v, "mul").into_iter().filter_map(|(x, c)| Some((x, self.splat(c)? as f64)));
        let quotient = match self.inputs_of(v, "div") {
            Some(&[x, c]) => self.splat(c).map(|c| (x, 1.0 / c as f64)),
            _ => None,
        };
        candidates.chain(quotient).find_map(|(sum, factor)| {
            let flat = self.operand(self.through_reshapes(sum), "reduce_sum")?;
            let [_, n, inner] = self.shape(flat)[..] else { return None };
            let x = self.through_reshapes(flat);
            let last = self.shape(x).last() == Some(&n) && inner == 1;
            (last && (factor * n as f64 - 1.0).abs() < 1e-5).then_some(x)
        })
    }
}
