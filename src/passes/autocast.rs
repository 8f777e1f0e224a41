//! Autocast, for mixed precision: products read their operands rounded to a type of 16 bits, and add up in f32. Nothing else changes: values
//! between operations, parameters, gradients and moments stay f32.

use super::rewrite::each_node;
use crate::ir::{Attr, BuildError, FloatType, Graph, Value};
use crate::ops;

/// Marks every product.
pub fn autocast(graph: &Graph, products: FloatType) -> Result<Graph, BuildError> {
    let flag = match products {
        FloatType::F32 => return Ok(graph.clone()),
        FloatType::F16 => "halves",
        FloatType::Bf16 => "bf16",
    };
    each_node(graph, |r, node| {
        if !ops::takes(&node.op, flag) {
            return Ok(false);
        }
        let inputs: Vec<Value> = node.inputs.iter().map(|&v| r.get(v)).collect();
        r.replace(node, &node.op, &inputs, node.attrs.clone().with(flag, Attr::Bool(true)))?;
        Ok(true)
    })
}
