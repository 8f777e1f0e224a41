//! Computes equal operations on equal operands once.

use super::rewrite::Rewriter;
use crate::ir::{Graph, Value, text};
use std::collections::HashMap;

pub fn common_subexpressions(graph: &Graph) -> Graph {
    let mut r = Rewriter::new(graph);
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
    r.finish()
}
