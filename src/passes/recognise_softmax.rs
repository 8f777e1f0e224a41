//! Finds `select(is_nan(p), 0, p)` around a softmax `p`: what exporters write so that a row masked throughout gives
//! zeros. As one operation its gradient is zero there too, where that of the parts would be NaN.

use super::rewrite::each_node;
use crate::ir::{Attr, BuildError, Graph, Node, Value};

pub fn recognise_softmax(graph: &Graph) -> Result<Graph, BuildError> {
    each_node(graph, |r, node| {
        let Some((x, shape)) = guarded(r.old, node) else { return Ok(false) };
        let flat = r.get(x);
        r.b.set_origin(node.origin.clone());
        let safe = r.b.emit("softmax", &[flat], crate::ir::Attrs::new().with("safe", Attr::Bool(true)))?;
        let y = r.b.reshape(safe, shape)?;
        r.set(node.outputs[0], y);
        Ok(true)
    })
}

/// The softmax's operand, and the shape of the result.
fn guarded(graph: &Graph, node: &Node) -> Option<(Value, crate::ir::Shape)> {
    let [condition, zero, p] = node.inputs[..] else { return None };
    if node.op != "select" || graph.splat(zero) != Some(0.0) || graph.operand(condition, "is_nan") != Some(p) {
        return None;
    }
    let y = node.outputs[0];
    let x = graph.operand(graph.through_reshapes(p), "softmax")?;
    (graph.shape(p) == graph.shape(y)).then(|| (x, graph.shape(y).clone()))
}
