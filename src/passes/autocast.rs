//! Autocast, for mixed precision: products read their operands rounded to halves, and add up in f32. Nothing else changes: values between
//! operations, parameters, gradients and moments stay f32.

use super::rewrite::each_node;
use crate::ir::{Attr, BuildError, Graph, Value};
use crate::ops;

/// Marks every product.
pub fn autocast(graph: &Graph) -> Result<Graph, BuildError> {
    each_node(graph, |r, node| {
        if !ops::takes(&node.op, "halves") {
            return Ok(false);
        }
        let inputs: Vec<Value> = node.inputs.iter().map(|&v| r.get(v)).collect();
        r.replace(node, &node.op, &inputs, node.attrs.clone().with("halves", Attr::Bool(true)))?;
        Ok(true)
    })
}
