//! Computes equal operations on equal operands once; equal constants are one.

use super::rewrite::Rewriter;
use crate::ir::{BuildError, DType, Graph, Shape, Value, text};
use std::collections::HashMap;

pub fn common_subexpressions(graph: &Graph) -> Result<Graph, BuildError> {
    let mut r = Rewriter::new(graph);
    let mut held: HashMap<(DType, &Shape, &[u32]), Value> = HashMap::new();
    for v in (0..graph.values.len() as u32).map(Value) {
        let Some(t) = graph.constant(v) else { continue };
        let first = *held.entry((t.dtype(), graph.shape(v), t.words())).or_insert(v);
        if first != v {
            let same = r.get(first);
            r.set(v, same);
        }
    }
    let mut seen: HashMap<(String, String, Vec<Value>), Vec<Value>> = HashMap::new();
    for node in &graph.nodes {
        let inputs: Vec<Value> = node.inputs.iter().map(|&v| r.get(v)).collect();
        let key = (node.op.clone(), text::attrs(&node.attrs), inputs);
        match seen.get(&key) {
            Some(outs) => {
                let outs = outs.clone();
                node.outputs.iter().zip(outs).for_each(|(&o, n)| r.set(o, n));
            }
            None => {
                r.copy(node);
                let outs = node.outputs.iter().map(|&o| r.get(o)).collect();
                seen.insert(key, outs);
            }
        }
    }
    Ok(r.finish())
}
