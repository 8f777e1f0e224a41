//! For devices whose products are fastest where both operands are stored row by row: frozen weights that are stored transposed are
//! stored once more the other way. The host transposes them when they are loaded.

use super::rewrite::{Rewriter, each_node};
use crate::ir::{Attr, Attrs, BuildError, Graph, Leaf, Node, Type, Value, Weight};
use crate::ops;

/// Gives products of divisible extents frozen weights stored by rows.
pub fn row_major_operands(graph: &Graph) -> Result<Graph, BuildError> {
    each_node(graph, |r, node| {
        if node.op == "linear_cross_entropy" {
            return head(r, node);
        }
        let (ta, tb) = (node.attrs.flag("trans_a"), node.attrs.flag("trans_b"));
        let frozen = |v: Value| matches!(r.old.leaf(v), Some(Leaf::Weight(_))) && r.old.shape(v).len() == 2;
        if node.op != "matmul" {
            return Ok(false);
        }
        let (turn_a, turn_b) = (ta && frozen(node.inputs[0]), tb && frozen(node.inputs[1]));
        if !turn_a && !turn_b {
            return Ok(false);
        }
        let shape = r.old.shape(node.outputs[0]);
        let (m, n) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let a = r.old.shape(node.inputs[0]);
        let k = a[if ta { a.len() - 2 } else { a.len() - 1 }];
        // A product of few rows or columns does not repay the memory.
        if !k.is_multiple_of(4) || !n.is_multiple_of(4) || turn_b && m < 8 || turn_a && n < 8 {
            return Ok(false);
        }
        r.b.set_origin(node.origin.clone());
        let a = if turn_a { turned(r, node.inputs[0])? } else { r.get(node.inputs[0]) };
        let b = if turn_b { turned(r, node.inputs[1])? } else { r.get(node.inputs[1]) };
        let y = r.b.matmul(a, b, ta && !turn_a, tb && !turn_b)?;
        r.set(node.outputs[0], y);
        Ok(true)
    })
}

/// A loss that multiplies by its weights one way and then the other gets them both ways.
fn head(r: &mut Rewriter, node: &Node) -> Result<bool, BuildError> {
    let (trans, bias) = (node.attrs.flag("trans"), node.attrs.flag("bias"));
    let weights = &node.inputs[2..node.inputs.len() - bias as usize];
    let divisible = |&w: &Value| r.old.shape(w).iter().all(|n| n.is_multiple_of(4));
    if node.attrs.flag("both") || !weights.iter().all(divisible) {
        return Ok(false);
    }
    r.b.set_origin(node.origin.clone());
    let own: Vec<Value> = weights.iter().map(|&w| r.get(w)).collect();
    let turned = weights.iter().map(|&w| turned(r, w)).collect::<Result<Vec<Value>, BuildError>>()?;
    let [forth, back] = if trans { [turned, own] } else { [own, turned] };
    let mut inputs: Vec<Value> = node.inputs[..2].iter().map(|&v| r.get(v)).collect();
    inputs.extend(forth.into_iter().chain(back));
    inputs.extend(node.inputs.last().filter(|_| bias).map(|&v| r.get(v)));
    let attrs = node.attrs.clone().with("trans", Attr::Bool(false)).with("both", Attr::Bool(true));
    r.replace(node, &node.op, &inputs, attrs)?;
    Ok(true)
}

/// The last two axes of a value exchanged.
fn turned(r: &mut Rewriter, v: Value) -> Result<Value, BuildError> {
    let ty = r.old.ty(v).clone();
    let rank = ty.rank();
    if let (Some(Leaf::Weight(w)), 2) = (r.old.leaf(v), rank) {
        let whole = w.clone();
        let load = move || ops::eval("transpose", &[&whole.load()], &perm(&[1, 0])).remove(0);
        let turned = Weight::new(format!("{} transposed", w.name), w.source, load);
        return Ok(r.b.weight(turned, Type::new(ty.dtype, [ty.shape[1], ty.shape[0]])));
    }
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(rank - 2, rank - 1);
    let v = r.get(v);
    r.b.transpose(v, &order)
}

fn perm(order: &[i64]) -> Attrs {
    Attrs::new().with("perm", Attr::Ints(order.to_vec()))
}
