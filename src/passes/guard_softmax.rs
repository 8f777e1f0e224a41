//! Makes every softmax give zeros, not NaN, in a row that is -∞ throughout: a query that a mask leaves no key, as padding on the
//! left has under a causal mask. No label counts there, but 0 · NaN is NaN: one such row would take the whole gradient with it.
//! Zero is what PyTorch's attention computes for these rows, in both directions.
//!
//! For training and for statistics alone: what is evaluated is what the file says, NaN included.

use super::rewrite::each_node;
use crate::ir::{Attr, BuildError, Graph};

pub fn guard_softmax(graph: &Graph) -> Result<Graph, BuildError> {
    each_node(graph, |r, node| {
        if node.op != "softmax" || node.attrs.flag("safe") {
            return Ok(false);
        }
        let x = r.get(node.inputs[0]);
        r.replace(node, "softmax", &[x], node.attrs.clone().with("safe", Attr::Bool(true)))?;
        Ok(true)
    })
}
