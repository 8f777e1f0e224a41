//! Makes less of the products that adapters add.
//!
//! `B₁ A₁ x + B₂ A₂ x` is `[B₁ B₂] [A₁; A₂] x`: two products where there were four and a sum, which is how block-shortcut's terms
//! come to cost what one term of their joint rank does. And `s (B t)` is `B (s t)`, where t is the smaller.

use super::rewrite::each_node;
use crate::ir::{BuildError, Graph, Node, Shape, Value};

/// `B A x`: the input, both factors, and whether each is stored transposed.
#[derive(Clone, Copy, PartialEq)]
struct LowRank {
    x: Value,
    a: Value,
    b: Value,
    flags: [bool; 2],
}

/// The operands of a plain product of matrices, and whether the second is stored transposed.
fn product(g: &Graph, v: Value) -> Option<(Value, Value, bool)> {
    let node = g.producer(v).filter(|n| n.op == "matmul" && !n.attrs.flag("trans_a"))?;
    let two = node.inputs.iter().all(|&i| g.shape(i).len() == 2);
    two.then(|| (node.inputs[0], node.inputs[1], node.attrs.flag("trans_b")))
}

fn low_rank(g: &Graph, v: Value) -> Option<LowRank> {
    let (t, b, flag_b) = product(g, g.through_reshapes(v))?;
    let (x, a, flag_a) = product(g, g.through_reshapes(t))?;
    let rank = g.shape(a)[if flag_a { 0 } else { 1 }];
    let narrow = 2 * rank <= g.shape(x)[1];
    narrow.then_some(LowRank { x, a, b, flags: [flag_a, flag_b] })
}

/// What the operands of a sum are sums of; those that nothing else reads are taken apart.
pub fn terms(g: &Graph, uses: &[usize], v: Value, out: &mut Vec<Value>) {
    match g.inputs_of(v, "add") {
        Some(&[x, y]) if g.shape(x) == g.shape(y) => {
            for v in [x, y] {
                if uses[v.index()] == 1 {
                    terms(g, uses, v, out);
                } else {
                    out.push(v);
                }
            }
        }
        _ => out.push(v),
    }
}

/// Joins the terms of a sum that are low-rank products of one input.
pub fn join_low_rank(graph: &Graph) -> Result<Graph, BuildError> {
    let uses = graph.uses();
    each_node(graph, |r, node| {
        if node.op != "add" {
            return Ok(false);
        }
        let mut all = Vec::new();
        terms(r.old, &uses, node.outputs[0], &mut all);
        let found: Vec<Option<LowRank>> = all.iter().map(|&v| low_rank(r.old, v)).collect();
        let Some(first) = found.iter().flatten().next().copied() else { return Ok(false) };
        let alike = |l: &Option<LowRank>| l.is_some_and(|l| l.x == first.x && l.flags == first.flags);
        let joined: Vec<LowRank> = found.iter().filter(|l| alike(l)).flatten().copied().collect();
        if joined.len() < 2 {
            return Ok(false);
        }
        r.b.set_origin(node.origin.clone());
        let mut side = |pick: fn(&LowRank) -> Value, axis: usize| {
            let parts: Vec<Value> = joined.iter().map(|l| r.get(pick(l))).collect();
            r.b.concat(&parts, axis)
        };
        let a = side(|l| l.a, if first.flags[0] { 0 } else { 1 })?;
        let b = side(|l| l.b, if first.flags[1] { 1 } else { 0 })?;
        let x = r.get(first.x);
        let t = r.b.matmul(x, a, false, first.flags[0])?;
        let y = r.b.matmul(t, b, false, first.flags[1])?;
        let mut sum = r.b.reshape(y, r.old.shape(node.outputs[0]).clone())?;
        for (&v, _) in all.iter().zip(&found).filter(|(_, l)| !alike(l)) {
            let v = r.get(v);
            sum = r.b.add(sum, v)?;
        }
        r.set(node.outputs[0], sum);
        Ok(true)
    })
}

/// Moves a scalar factor of a product to its smaller operand.
pub fn sink_scales(graph: &Graph) -> Result<Graph, BuildError> {
    let uses = graph.uses();
    each_node(graph, |r, node| {
        let Some((p, c)) = scaled_product(r.old, node) else { return Ok(false) };
        // Every value from the product to the scale must have no other reader.
        let mut v = p;
        loop {
            if uses[v.index()] != 1 {
                return Ok(false);
            }
            match r.old.operand(v, "reshape") {
                Some(x) => v = x,
                None => break,
            }
        }
        let Some((t, b, flag)) = product(r.old, v) else { return Ok(false) };
        if 2 * r.old.shape(t).elements() > r.old.shape(v).elements() {
            return Ok(false);
        }
        r.b.set_origin(node.origin.clone());
        let (t, b, c) = (r.get(t), r.get(b), r.get(c));
        let c = r.b.reshape(c, Shape::from([]))?;
        let t = r.b.mul(t, c)?;
        let y = r.b.matmul(t, b, false, flag)?;
        let y = r.b.reshape(y, r.old.shape(node.outputs[0]).clone())?;
        r.set(node.outputs[0], y);
        Ok(true)
    })
}

/// The other factor, and the scalar, if a node is a product with one.
fn scaled_product(g: &Graph, node: &Node) -> Option<(Value, Value)> {
    let y = node.outputs[0];
    g.either(y, "mul").into_iter().find(|&(x, c)| g.shape(c).elements() == 1 && g.shape(x) == g.shape(y))
}
