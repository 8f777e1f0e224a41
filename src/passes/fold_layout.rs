//! Folds changes of layout away: a reshape of a reshape, a transpose of a transpose, and a transpose of the last two axes
//! into the matmul that reads it. So that the last is found, such a transpose moves after a reshape of the axes before it
//! and after a product with one number.

use super::rewrite::{Rewriter, each_node};
use crate::ir::{BuildError, Graph, Node, Value};

pub fn fold_layout(graph: &Graph) -> Result<Graph, BuildError> {
    each_node(graph, |r, node| match node.op.as_str() {
        "reshape" => reshape(r, node),
        "transpose" => transpose(r, node),
        "matmul" => matmul(r, node),
        "mul" => scale(r, node),
        _ => Ok(false),
    })
}

fn reshape(r: &mut Rewriter, node: &Node) -> Result<bool, BuildError> {
    let x = r.get(node.inputs[0]);
    let shape = r.old.shape(node.outputs[0]).clone();
    let rank = shape.len();
    if let (inner, true) = untransposed(&r.b.graph, x)
        && rank >= 2
        && shape[rank - 2..] == r.b.shape(x)[r.b.shape(x).len() - 2..]
    {
        r.b.set_origin(node.origin.clone());
        let mut swapped = shape.0.clone();
        swapped.swap(rank - 2, rank - 1);
        let moved = r.b.reshape(inner, swapped)?;
        let y = swap_last(r, moved)?;
        r.set(node.outputs[0], y);
        return Ok(true);
    }
    let root = r.b.graph.through_reshapes(x);
    if root == x && r.b.shape(x) != r.old.shape(node.outputs[0]) {
        return Ok(false);
    }
    r.b.set_origin(node.origin.clone());
    let y = r.b.reshape(root, shape)?;
    r.set(node.outputs[0], y);
    Ok(true)
}

fn transpose(r: &mut Rewriter, node: &Node) -> Result<bool, BuildError> {
    let x = r.get(node.inputs[0]);
    let Some(inner) = r.b.graph.producer(x).filter(|n| n.op == "transpose").cloned() else { return Ok(false) };
    let first = inner.attrs.sizes("perm");
    let both: Vec<usize> = node.attrs.sizes("perm").iter().map(|&p| first[p]).collect();
    r.b.set_origin(node.origin.clone());
    let y = r.b.transpose(inner.inputs[0], &both)?;
    r.set(node.outputs[0], y);
    Ok(true)
}

fn matmul(r: &mut Rewriter, node: &Node) -> Result<bool, BuildError> {
    let (a, b) = (r.get(node.inputs[0]), r.get(node.inputs[1]));
    let (left, flip_a) = untransposed(&r.b.graph, a);
    let (right, flip_b) = untransposed(&r.b.graph, b);
    if !flip_a && !flip_b {
        return Ok(false);
    }
    let (ta, tb) = (node.attrs.flag("trans_a") != flip_a, node.attrs.flag("trans_b") != flip_b);
    r.b.set_origin(node.origin.clone());
    let y = r.b.matmul(left, right, ta, tb)?;
    r.set(node.outputs[0], y);
    Ok(true)
}

fn scale(r: &mut Rewriter, node: &Node) -> Result<bool, BuildError> {
    let (x, y) = (r.get(node.inputs[0]), r.get(node.inputs[1]));
    let single = |r: &Rewriter, v: Value| r.b.graph.splat(v).is_some() && r.b.shape(v).elements() == 1;
    let (x, factor) = if single(r, y) { (x, y) } else { (y, x) };
    let (inner, true) = untransposed(&r.b.graph, x) else { return Ok(false) };
    if !single(r, factor) || r.b.shape(factor).len() > r.b.shape(x).len() {
        return Ok(false);
    }
    r.b.set_origin(node.origin.clone());
    let scaled = r.b.mul(inner, factor)?;
    let y = swap_last(r, scaled)?;
    r.set(node.outputs[0], y);
    Ok(true)
}

/// Transposes the last two axes.
fn swap_last(r: &mut Rewriter, v: Value) -> Result<Value, BuildError> {
    let rank = r.b.shape(v).len();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    r.b.transpose(v, &perm)
}

/// The operand before a transpose of its last two axes, and whether there was one.
fn untransposed(graph: &Graph, v: Value) -> (Value, bool) {
    let Some(node) = graph.producer(v).filter(|n| n.op == "transpose") else { return (v, false) };
    let perm = node.attrs.sizes("perm");
    let n = perm.len();
    let swaps = n >= 2 && perm[n - 2..] == [n - 1, n - 2] && perm[..n - 2].iter().enumerate().all(|(i, &p)| i == p);
    if swaps { (node.inputs[0], true) } else { (v, false) }
}
