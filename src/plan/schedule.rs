//! Lifetimes of values. Steps run in the graph's order.

use crate::ir::{Graph, Value};

/// The memory that values share, and when each piece of it is used.
pub struct Uses {
    /// The value whose memory each value is: itself, or what it is a reshape of.
    pub root: Vec<Value>,
    /// For each root, the last node that uses its memory. Outputs live to the end.
    pub last: Vec<usize>,
}

pub fn uses(graph: &Graph) -> Uses {
    let n = graph.values.len();
    let end = graph.nodes.len();
    let mut root: Vec<Value> = (0..n as u32).map(Value).collect();
    let mut last = vec![0; n];
    for (i, node) in graph.nodes.iter().enumerate() {
        if node.op == "reshape" {
            root[node.outputs[0].index()] = root[node.inputs[0].index()];
        }
        for v in node.inputs.iter().chain(&node.outputs) {
            let r = root[v.index()].index();
            last[r] = last[r].max(i);
        }
    }
    for out in &graph.outputs {
        let r = root[out.value.index()].index();
        last[r] = end;
    }
    Uses { root, last }
}
