//! Sums with a product become the product's own third operand, which it starts from: biases, residuals, an adapter's term on
//! top of its base, and gradients that several products add up to. Where that operand ends there, the sum is in place. An adapter's term
//! on a base that nothing else reads becomes further columns of that product's K.

use super::join_low_rank::terms;
use super::rewrite::{Rewriter, each_node};
use crate::ir::{Attr, BuildError, Graph, Node, Shape, Value};

/// Moves a row that is added to a sum with a product, and to nothing else, to that product: `(x w + t) + b` is `(x w + b) + t`.
pub fn sink_bias(graph: &Graph) -> Result<Graph, BuildError> {
    let uses = graph.uses();
    each_node(graph, |r, node| {
        let y = node.outputs[0];
        let found = r.old.either(y, "add").into_iter().find_map(|(sum, bias)| {
            row_of(r.old, bias, r.old.shape(y))?;
            let sum = alone(r.old, &uses, sum)?;
            let (product, other) = r.old.either(sum, "add").into_iter().max_by_key(|&(p, _)| depth(r.old, &uses, p))?;
            depth(r.old, &uses, product)?;
            let apart = [product, other].iter().all(|&v| r.old.shape(v) == r.old.shape(sum));
            (apart && r.old.shape(sum).last() == r.old.shape(y).last()).then_some((sum, product, other, bias))
        });
        let Some((sum, product, other, bias)) = found else { return Ok(false) };
        r.b.set_origin(node.origin.clone());
        let (product, other, bias) = (r.get(product), r.get(other), row(r, bias)?);
        let biased = r.b.add(product, bias)?;
        let all = r.b.add(biased, other)?;
        debug_assert_eq!(r.b.shape(all), r.old.shape(sum));
        let all = r.b.reshape(all, r.old.shape(y).clone())?;
        r.set(y, all);
        Ok(true)
    })
}

/// Adds what is no product first where a sum is of several products and one other: `((p + q) + r)` is `((p + r) + q)`, in which each
/// product starts from a sum.
pub fn order_terms(graph: &Graph) -> Result<Graph, BuildError> {
    let uses = graph.uses();
    // Sums that are a term of another's.
    let mut inner = vec![false; graph.values.len()];
    for node in graph.nodes.iter().filter(|n| n.op == "add") {
        let alike = |v: &&Value| graph.shape(**v) == graph.shape(node.outputs[0]) && uses[v.index()] == 1;
        node.inputs.iter().filter(alike).for_each(|v| inner[v.index()] = true);
    }
    each_node(graph, |r, node| {
        let y = node.outputs[0];
        let mut all = Vec::new();
        if node.op != "add" || inner[y.index()] {
            return Ok(false);
        }
        terms(r.old, &uses, y, &mut all);
        let is_product = |v: &&Value| depth(r.old, &uses, **v).is_some();
        let (products, others): (Vec<&Value>, Vec<&Value>) = all.iter().partition(is_product);
        let (2.., &[&other]) = (products.len(), &others[..]) else { return Ok(false) };
        if r.old.shape(other) != r.old.shape(y) {
            return Ok(false);
        }
        r.b.set_origin(node.origin.clone());
        let mut sum = r.get(other);
        // Each of few terms behind one of many, which it goes along with.
        let few = |v: &&Value| depth(r.old, &uses, **v).is_some_and(|k| k <= FEW);
        let (few, many): (Vec<&Value>, Vec<&Value>) = products.into_iter().partition(few);
        let mut few = few.into_iter();
        let pairs: Vec<&Value> = many.into_iter().flat_map(|v| [Some(v), few.next()]).flatten().collect();
        for &product in pairs.into_iter().chain(few) {
            let product = r.get(product);
            sum = r.b.add(product, sum)?;
        }
        r.set(y, sum);
        Ok(true)
    })
}

/// Gives sums to the products in them. Of two products, the one of fewer terms goes on from the other.
pub fn fuse_addend(graph: &Graph) -> Result<Graph, BuildError> {
    let uses = graph.uses();
    each_node(graph, |r, node| {
        let y = node.outputs[0];
        let shape = r.old.shape(y).clone();
        let terms = r.old.either(y, "add").into_iter();
        let candidates = terms.filter(|&(p, c)| {
            let full = r.old.shape(c) == &shape || row_of(r.old, c, &shape).is_some();
            full && r.old.shape(p) == &shape && r.old.ty(y).is_float()
        });
        let best = candidates.filter_map(|(p, c)| Some((depth(r.old, &uses, p)?, p, c))).min_by_key(|t| t.0);
        let Some((_, product, added)) = best else { return Ok(false) };
        let root = alone(r.old, &uses, product).expect("it was found so");
        let matmul = r.old.producer(root).expect("a product").clone();
        let full = r.old.shape(root).clone();
        r.b.set_origin(matmul.origin.clone());
        let (a, b) = (r.get(matmul.inputs[0]), r.get(matmul.inputs[1]));
        let c = match r.old.shape(added) == &shape {
            true => {
                let c = r.get(added);
                r.b.reshape(c, full)?
            }
            false => row(r, added)?,
        };
        let sum = r.b.emit("matmul", &[a, b, c], matmul.attrs.clone())?;
        let sum = r.b.reshape(sum, shape)?;
        r.set(y, sum);
        Ok(true)
    })
}

/// Gives a gradient of a norm what is added to it: what comes by the residual around that.
pub fn fuse_residual(graph: &Graph) -> Result<Graph, BuildError> {
    let uses = graph.uses();
    each_node(graph, |r, node| {
        let y = node.outputs[0];
        let found = r.old.either(y, "add").into_iter().find_map(|(grad, other)| {
            let root = alone(r.old, &uses, grad)?;
            let norm = r.old.producer(root)?;
            let plain = matches!((norm.op.as_str(), norm.inputs.len()), ("rms_norm_grad", 4) | ("layer_norm_grad", 5));
            let full = r.old.shape(grad) == r.old.shape(y) && r.old.shape(other) == r.old.shape(y);
            (plain && full).then(|| (norm.clone(), r.old.shape(root).clone(), other))
        });
        let Some((norm, full, other)) = found else { return Ok(false) };
        r.b.set_origin(norm.origin.clone());
        let mut inputs: Vec<Value> = norm.inputs.iter().map(|&v| r.get(v)).collect();
        let other = r.get(other);
        inputs.push(r.b.reshape(other, full)?);
        let sum = r.b.emit(&norm.op, &inputs, norm.attrs.clone())?;
        let sum = r.b.reshape(sum, r.old.shape(y).clone())?;
        r.set(y, sum);
        Ok(true)
    })
}

/// The most terms of a product that goes along with another.
const FEW: usize = 64;

/// Joins a product of few terms (of any number, with `long`) with the one it goes on from, so that both are summed in registers.
pub fn fuse_terms(graph: &Graph, long: bool) -> Result<Graph, BuildError> {
    let uses = graph.uses();
    each_node(graph, |r, node| {
        let g = r.old;
        let (true, &[a2, b2, c]) = (node.op == "matmul", &node.inputs[..]) else { return Ok(false) };
        let base = alone(g, &uses, c).filter(|&v| g.shape(v) == g.shape(node.outputs[0])).and_then(|v| g.producer(v));
        let Some(base) = base.filter(|n| n.op == "matmul") else { return Ok(false) };
        let same = |flag: &str| base.attrs.flag(flag) == node.attrs.flag(flag);
        let (k, k2) = (steps(g, base), steps(g, node));
        // Kernels read vec4s of it, and a term is worth joining to one that is long.
        let alike = if long { k % 4 == 0 } else { k2 <= FEW && k >= 4 * k2 };
        if !same("trans_a") || !same("halves") || !same("bf16") || k2 % 4 != 0 || !alike {
            return Ok(false);
        }
        let mut inputs = vec![base.inputs[0], base.inputs[1], a2, b2];
        inputs.extend(base.inputs.get(2));
        let inputs: Vec<Value> = inputs.into_iter().map(|v| r.get(v)).collect();
        let attrs = base.attrs.clone().with("trans_b2", Attr::Bool(node.attrs.flag("trans_b")));
        r.replace(node, "matmul_fused", &inputs, attrs)?;
        Ok(true)
    })
}

/// The number of terms that a product sums.
fn steps(g: &Graph, node: &Node) -> usize {
    let a = g.shape(node.inputs[0]);
    a[a.len() - if node.attrs.flag("trans_a") { 2 } else { 1 }]
}

/// `v` before the reshapes it went through, if nothing else reads it on the way.
fn alone(g: &Graph, uses: &[usize], mut v: Value) -> Option<Value> {
    loop {
        if uses[v.index()] != 1 {
            return None;
        }
        match g.operand(v, "reshape") {
            Some(x) => v = x,
            None => return Some(v),
        }
    }
}

/// The number of terms that a product without an addend sums, if `v` is one that nothing else reads and that keeps its columns.
fn depth(g: &Graph, uses: &[usize], v: Value) -> Option<usize> {
    let root = alone(g, uses, v)?;
    let node: &Node = g.producer(root).filter(|n| n.op == "matmul" && n.inputs.len() == 2)?;
    (g.shape(root).last() == g.shape(v).last()).then(|| steps(g, node))
}

/// The extent of the last axis, if `v` has that one alone, and gives every row of `shape` the same.
fn row_of(g: &Graph, v: Value, shape: &Shape) -> Option<usize> {
    let n = *shape.last()?;
    let own = g.shape(v);
    (own.last() == Some(&n) && own.elements() == n && g.ty(v).is_float() && shape.elements() > n).then_some(n)
}

/// A row as a value of one axis.
fn row(r: &mut Rewriter, v: Value) -> Result<Value, BuildError> {
    let n = r.old.shape(v).elements();
    let v = r.get(v);
    r.b.reshape(v, [n])
}
