//! Finds softmax written in parts, `e / Σ e` with `e = e^(x - max x)` over the last axis, and `select(is_nan(p), 0, p)` around a
//! softmax `p`: what exporters write so that a row masked throughout gives zeros. As one operation its gradient is zero there
//! too, where that of the parts would be NaN.

use super::rewrite::each_node;
use crate::ir::{Attr, Attrs, BuildError, Graph, Node, Shape, Value};

pub fn recognise_softmax(graph: &Graph) -> Result<Graph, BuildError> {
    let whole = each_node(graph, |r, node| {
        let Some(x) = in_parts(r.old, node) else { return Ok(false) };
        let shape = r.old.shape(x).clone();
        let n = shape[shape.len() - 1];
        let x = r.get(x);
        r.b.set_origin(node.origin.clone());
        let flat = r.b.reshape(x, [shape.elements() / n, n])?;
        let y = r.b.unary("softmax", flat)?;
        let y = r.b.reshape(y, shape)?;
        r.set(node.outputs[0], y);
        Ok(true)
    })?;
    each_node(&whole, |r, node| {
        let Some((x, shape)) = guarded(r.old, node) else { return Ok(false) };
        let flat = r.get(x);
        r.b.set_origin(node.origin.clone());
        let safe = r.b.emit("softmax", &[flat], Attrs::new().with("safe", Attr::Bool(true)))?;
        let y = r.b.reshape(safe, shape)?;
        r.set(node.outputs[0], y);
        Ok(true)
    })
}

/// The operand of `e^(x - max x) / Σ e^(x - max x)`.
fn in_parts(graph: &Graph, node: &Node) -> Option<Value> {
    let y = node.outputs[0];
    let &[e, sum] = graph.inputs_of(y, "div")? else { return None };
    let shifted = graph.operand(e, "exp")?;
    let &[x, top] = graph.inputs_of(shifted, "sub")? else { return None };
    let whole = !graph.shape(x).is_empty() && graph.shape(x) == graph.shape(y);
    (whole && over_last(graph, sum, "reduce_sum")? == e && over_last(graph, top, "reduce_max")? == x).then_some(x)
}

/// The operand if `v` is it reduced over its last axis, which is kept.
fn over_last(graph: &Graph, v: Value, op: &str) -> Option<Value> {
    let flat = graph.operand(graph.through_reshapes(v), op)?;
    let [_, n, 1] = graph.shape(flat)[..] else { return None };
    let x = graph.through_reshapes(flat);
    let (shape, kept) = (graph.shape(x), graph.shape(v));
    let (last, lead) = shape.split_last()?;
    (*last == n && kept.split_last() == Some((&1, lead))).then_some(x)
}

/// The softmax's operand, and the shape of the result.
fn guarded(graph: &Graph, node: &Node) -> Option<(Value, Shape)> {
    let [condition, zero, p] = node.inputs[..] else { return None };
    if node.op != "select" || graph.splat(zero) != Some(0.0) || graph.operand(condition, "is_nan") != Some(p) {
        return None;
    }
    let y = node.outputs[0];
    let x = graph.operand(graph.through_reshapes(p), "softmax")?;
    (graph.shape(p) == graph.shape(y)).then(|| (x, graph.shape(y).clone()))
}
