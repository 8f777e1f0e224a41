//! Evaluates, on the host, values of a graph that depend only on its inputs.

use crate::ir::{Builder, Graph, Leaf, Tensor, Type, Value};
use crate::ops::RULES;
use std::collections::HashMap;

/// The most nodes that one evaluation may take.
const SMALL: usize = 2000;

/// The tensor that a graph input holds, for its name and type.
pub type Given<'a> = dyn Fn(&str, &Type) -> Option<Tensor> + 'a;

/// A value that depends on `given` inputs and constants alone; `None` if it depends on more.
pub fn evaluate(graph: &Graph, value: Value, given: &Given) -> Option<Tensor> {
    let mut b = Builder::new(RULES);
    let mut fold = Fold { graph, given, b: &mut b, done: HashMap::new(), left: SMALL };
    let folded = fold.value(value)?;
    b.constant_of(folded).map(|t| (**t).clone())
}

struct Fold<'a> {
    graph: &'a Graph,
    given: &'a Given<'a>,
    b: &'a mut Builder,
    done: HashMap<Value, Value>,
    left: usize,
}

impl Fold<'_> {
    fn value(&mut self, v: Value) -> Option<Value> {
        if let Some(&known) = self.done.get(&v) {
            return Some(known);
        }
        self.left = self.left.checked_sub(1)?;
        let out = match self.graph.leaf(v) {
            Some(Leaf::Constant(t)) => self.b.constant(t.clone()),
            Some(Leaf::Input(name)) => {
                let ty = self.graph.ty(v);
                let t = (self.given)(name, ty).filter(|t| t.ty() == *ty)?;
                self.b.constant(t)
            }
            Some(_) => return None,
            None => {
                let node = self.graph.producer(v)?;
                let inputs: Option<Vec<Value>> = node.inputs.iter().map(|&i| self.value(i)).collect();
                let outs = self.b.emit_all(&node.op, &inputs?, node.attrs.clone()).ok()?;
                self.b.constant_of(*outs.first()?)?;
                outs[node.outputs.iter().position(|o| *o == v)?]
            }
        };
        self.done.insert(v, out);
        Some(out)
    }
}
