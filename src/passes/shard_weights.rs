//! Splits frozen weights that exceed what a device binds at once. A matmul's weight is split along its columns and the
//! products are joined; a table that rows are gathered from is split along its rows, and each row comes from the part that
//! has it.

use super::rewrite::Rewriter;
use crate::ir::{Attr, Attrs, BuildError, DType, Graph, Leaf, Node, Shape, Tensor, Type, Value, Weight};
use crate::ops;

/// Splits every weight of more than `limit` words that only matmuls (as their right side) and gathers (along the first
/// axis) read. Others are left for the device to refuse.
pub fn shard_weights(graph: &Graph, limit: usize) -> Result<Graph, BuildError> {
    let large = |v: Value| match graph.leaf(v) {
        Some(Leaf::Weight(w)) if graph.ty(v).elements() > limit => Some(w.clone()),
        _ => None,
    };
    if !(0..graph.values.len() as u32).any(|i| large(Value(i)).is_some()) {
        return Ok(graph.clone());
    }
    let mut r = Rewriter::new(graph);
    for node in &graph.nodes {
        let done = match node.op.as_str() {
            "matmul" => match large(node.inputs[1]).filter(|_| graph.ty(node.inputs[1]).rank() == 2) {
                Some(w) => Some(matmul(&mut r, node, &w, limit)?),
                None => None,
            },
            "gather" if node.attrs.int("axis") == 0 => match large(node.inputs[0]) {
                Some(w) => Some(gather(&mut r, node, &w, limit)?),
                None => None,
            },
            _ => None,
        };
        match done {
            Some(y) => r.set(node.outputs[0], y),
            None => r.copy(node),
        }
    }
    Ok(r.finish())
}

/// Ranges of an axis of extent `n`, each of as many indices as fit `limit` words at `width` words an index.
fn ranges(n: usize, width: usize, limit: usize) -> Vec<(usize, usize)> {
    let each = (limit / width.max(1)).max(1);
    (0..n).step_by(each).map(|start| (start, each.min(n - start))).collect()
}

/// The part of a weight that has indices `start..start + len` of `axis`.
fn part(r: &mut Rewriter, w: &Weight, ty: &Type, axis: usize, start: usize, len: usize) -> Value {
    let mut shape = ty.shape.clone();
    shape.0[axis] = len;
    let name = format!("{}[axis {axis}, {start}..{}]", w.name, start + len);
    let whole = w.clone();
    let load = move || {
        let attrs = [("axis", axis), ("start", start), ("len", len), ("step", 1)]
            .into_iter()
            .fold(Attrs::new(), |a, (name, v)| a.with(name, Attr::Int(v as i64)));
        ops::eval("slice", &[&whole.load()], &attrs).remove(0)
    };
    r.b.weight(Weight::new(name, w.source, load), Type::new(ty.dtype, shape))
}

fn matmul(r: &mut Rewriter, node: &Node, w: &Weight, limit: usize) -> Result<Value, BuildError> {
    let ty = r.old.ty(node.inputs[1]).clone();
    let (ta, tb) = (node.attrs.flag("trans_a"), node.attrs.flag("trans_b"));
    let columns = if tb { 0 } else { 1 };
    let a = r.get(node.inputs[0]);
    r.b.set_origin(node.origin.clone());
    let mut products = Vec::new();
    for (start, len) in ranges(ty.shape[columns], ty.shape[1 - columns], limit) {
        let part = part(r, w, &ty, columns, start, len);
        products.push(r.b.matmul(a, part, ta, tb)?);
    }
    r.b.concat(&products, 1)
}

fn gather(r: &mut Rewriter, node: &Node, w: &Weight, limit: usize) -> Result<Value, BuildError> {
    let ty = r.old.ty(node.inputs[0]).clone();
    let (n, width) = (ty.shape[0], ty.elements() / ty.shape[0].max(1));
    let index = r.get(node.inputs[1]);
    r.b.set_origin(node.origin.clone());
    let int = |r: &mut Rewriter, x: usize| r.b.constant(Tensor::i32([], vec![x as i32]));
    let extent = int(r, n);
    // Negative indices count from the end.
    let index = r.b.binary("modulo", index, extent)?;
    let mut wide = r.b.shape(index).0.clone();
    wide.resize(wide.len() + ty.rank() - 1, 1);
    let mut sum: Option<Value> = None;
    for (start, len) in ranges(n, width, limit) {
        let part = part(r, w, &ty, 0, start, len);
        let (first, end) = (int(r, start), int(r, start + len));
        let own = r.b.sub(index, first)?;
        let rows = r.b.gather(part, own, 0)?;
        let (below, above) = (r.b.binary("less", index, first)?, r.b.binary("less", index, end)?);
        let from = r.b.unary("not", below)?;
        let here = r.b.binary("and", from, above)?;
        let here = r.b.reshape(here, Shape(wide.clone()))?;
        let zero = match ty.dtype {
            DType::F32 => r.b.scalar(0.0),
            _ => int(r, 0),
        };
        let kept = r.b.select(here, rows, zero)?;
        sum = Some(match sum {
            Some(s) => r.b.add(s, kept)?,
            None => kept,
        });
    }
    Ok(sum.expect("a table has rows"))
}
