//! Finds cross-entropy over the products of rows with a frozen weight, which a language model ends in, so that neither the
//! logits nor their gradient ever stand in memory for all rows.

use super::differentiate::reached;
use super::rewrite::each_node;
use crate::ir::{Attr, Attrs, BuildError, Graph, Node, Value};

/// A frozen projection: its input, the parts of its weight along the columns, and its bias.
#[derive(Clone, Debug, PartialEq)]
struct Head {
    x: Value,
    weights: Vec<Value>,
    trans: bool,
    bias: Option<Value>,
}

/// Rewrites cross-entropy over logits that nothing else reads, if they are more than the rows they are computed from and a
/// gradient is wanted in those rows and in nothing else. Takes `rows` rows at a time, or as many as have `words` logits.
pub fn recognise_linear_cross_entropy(graph: &Graph, rows: usize, words: usize) -> Result<Graph, BuildError> {
    let (uses, reached) = (graph.uses(), reached(graph));
    each_node(graph, |r, node| {
        let Some(head) = head(r.old, &uses, &reached, node) else { return Ok(false) };
        r.b.set_origin(node.origin.clone());
        let columns = r.old.shape(node.inputs[0])[1];
        let rows = rows.min(r.old.shape(head.x)[0]).min(words / columns).max(1);
        let mut inputs = vec![r.get(head.x), r.get(node.inputs[1])];
        inputs.extend(head.weights.iter().map(|&w| r.get(w)));
        if let Some(bias) = head.bias {
            let bias = r.get(bias);
            inputs.push(r.b.reshape(bias, [columns])?);
        }
        let attrs = Attrs::new()
            .with("rows", Attr::Int(rows as i64))
            .with("trans", Attr::Bool(head.trans))
            .with("bias", Attr::Bool(head.bias.is_some()));
        let loss = r.b.emit("linear_cross_entropy", &inputs, attrs)?;
        r.set(node.outputs[0], loss);
        Ok(true)
    })
}

fn head(g: &Graph, uses: &[usize], reached: &[bool], node: &Node) -> Option<Head> {
    if node.op != "cross_entropy" || uses[node.outputs[1].index()] > 0 {
        return None;
    }
    let alone = |v: Value| uses[v.index()] == 1;
    let through = |mut v: Value| loop {
        match g.operand(v, "reshape") {
            _ if !alone(v) => return None,
            Some(x) => v = x,
            None => return Some(v),
        }
    };
    let columns = g.shape(node.inputs[0])[1];
    let y = through(node.inputs[0])?;
    let row = |v: Value| g.shape(v).last() == Some(&columns) && g.shape(v).elements() == columns;
    let sum = g.either(y, "add").into_iter().find(|&(_, b)| row(b) && !reached[b.index()]);
    let (y, bias) = match sum {
        Some((y, bias)) => (through(y)?, Some(bias)),
        None => (y, None),
    };
    let parts = match g.inputs_of(y, "concat") {
        Some(parts) if g.shape(y).len() == 2 && g.producer(y)?.attrs.int("axis") == 1 => parts.to_vec(),
        _ => vec![y],
    };
    let mut found: Option<Head> = None;
    for part in parts {
        let product = g.producer(part).filter(|n| n.op == "matmul" && !n.attrs.flag("trans_a") && alone(part))?;
        let [x, w] = product.inputs[..] else { return None };
        let trans = product.attrs.flag("trans_b");
        let head = found.get_or_insert(Head { x, weights: vec![], trans, bias });
        if head.x != x || head.trans != trans || g.shape(w).len() != 2 || reached[w.index()] {
            return None;
        }
        head.weights.push(w);
    }
    let head = found?;
    let more = g.shape(y).last() == Some(&columns) && g.shape(head.x)[1] < columns;
    (more && reached[head.x.index()]).then_some(head)
}
