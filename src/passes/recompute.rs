//! Computes cheap values of the forward pass anew in the backward pass instead of keeping them until then.
//!
//! A value is worth that when it is larger than what would have to be kept for it: an activation whose argument its own gradient
//! needs anyway, a broadcast beside what it repeats. Where its reader is elementwise too, the two fuse, and nothing of it is
//! written at all.

use super::rewrite::Rewriter;
use crate::ir::{BuildError, Def, Graph, Node, Value, outputs};
use crate::ops::{self, Gpu};

/// Rewrites a differentiated training program; any other is left as it is.
pub fn recompute(graph: &Graph) -> Result<Graph, BuildError> {
    let loss = graph.output(outputs::LOSS).map(|v| &graph.values[v.index()].def);
    let Some(&Def::Node { node: end, .. }) = loss else { return Ok(graph.clone()) };
    let again = worth(graph, end);
    let mut r = Rewriter::new(graph);
    let mut done = vec![false; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        if i > end {
            node.inputs.iter().for_each(|&v| copy_again(&mut r, &again, &mut done, v));
        }
        r.copy(node);
    }
    Ok(r.finish())
}

/// Nothing but one pass over memory.
fn cheap(node: &Node) -> bool {
    node.op == "broadcast" || ops::find(&node.op).is_some_and(|p| matches!(p.gpu, Gpu::Elementwise(_)))
}

/// The value whose memory `v` is: itself, or what it is a reshape of.
fn root(graph: &Graph, v: Value) -> Value {
    graph.through_reshapes(v)
}

/// For each value computed up to node `end`, whether it is to be computed again after it.
fn worth(graph: &Graph, end: usize) -> Vec<bool> {
    let mut late = vec![false; graph.values.len()];
    let read = graph.nodes[end + 1..].iter().flat_map(|n| &n.inputs);
    read.for_each(|&v| late[root(graph, v).index()] = true);
    let mut fixed = vec![false; graph.values.len()];
    graph.outputs.iter().for_each(|o| fixed[root(graph, o.value).index()] = true);
    let mut again = vec![false; graph.values.len()];
    for node in graph.nodes[..=end].iter().filter(|n| cheap(n)) {
        let [y] = node.outputs[..] else { continue };
        if !late[y.index()] || fixed[y.index()] {
            continue;
        }
        let mut kept: Vec<Value> = node.inputs.iter().map(|&v| root(graph, v)).collect();
        kept.sort_unstable();
        kept.dedup();
        kept.retain(|v| graph.leaf(*v).is_none() && !late[v.index()] && !again[v.index()] && !fixed[v.index()]);
        let words = |v: &Value| graph.ty(*v).elements();
        if kept.iter().map(words).sum::<usize>() < words(&y) {
            kept.iter().for_each(|v| late[v.index()] = true);
            late[y.index()] = false;
            again[y.index()] = true;
        }
    }
    again
}

/// Copies the node of `v` once more, and what it takes, if it is not to be kept.
fn copy_again(r: &mut Rewriter, again: &[bool], done: &mut [bool], v: Value) {
    let graph = r.old;
    if done[v.index()] || !again[root(graph, v).index()] {
        return;
    }
    done[v.index()] = true;
    let node = graph.producer(v).expect("leaves are not computed");
    node.inputs.iter().for_each(|&x| copy_again(r, again, done, x));
    r.copy(node);
}
