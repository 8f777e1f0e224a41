//! Drops nodes and leaves that no output depends on.

use super::rewrite::Rewriter;
use crate::ir::{BuildError, Graph};

pub fn dead_code(graph: &Graph) -> Result<Graph, BuildError> {
    let mut live = vec![false; graph.values.len()];
    graph.outputs.iter().for_each(|o| live[o.value.index()] = true);
    let mut keep = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        if node.outputs.iter().any(|v| live[v.index()]) {
            keep[i] = true;
            node.inputs.iter().for_each(|v| live[v.index()] = true);
        }
    }
    let mut r = Rewriter::new(graph);
    for (node, _) in graph.nodes.iter().zip(&keep).filter(|(_, keep)| **keep) {
        r.copy(node);
    }
    Ok(r.finish())
}
