//! Finds rotary position embeddings in the slices and products that exporters and `lower` write them as. Where heads were put before
//! positions first, that moves behind the rotation, so that attention may read them as they were.

use super::differentiate::reached;
use super::rewrite::{Rewriter, each_node};
use crate::ir::{Attr, Attrs, BuildError, Graph, Node, Value};

pub fn recognise_rotary(graph: &Graph) -> Result<Graph, BuildError> {
    let trained = reached(graph);
    each_node(graph, |r, node| {
        let found = match node.op.as_str() {
            "add" => whole_angles(graph, node.outputs[0]),
            "concat" => half_angles(graph, node),
            "reshape" => neighbours(graph, node),
            _ => None,
        };
        match found {
            Some(f) if !trained[f.cos.index()] && !trained[f.sin.index()] => rewrite(r, node, &f),
            _ => Ok(false),
        }
    })
}

struct Rotation {
    x: Value,
    cos: Value,
    sin: Value,
    interleaved: bool,
}

/// The operand and the first of the elements that `v` takes from the last of its four axes.
fn part(g: &Graph, v: Value, len: usize) -> Option<(Value, usize)> {
    let node = g.producer(v).filter(|n| n.op == "slice")?;
    let a = &node.attrs;
    let fits = a.int("axis") == 3 && a.int("step") == 1 && a.int("len") == len as i64;
    fits.then(|| (node.inputs[0], a.int("start") as usize))
}

/// `x cos + (-x₂, x₁) sin`
fn whole_angles(g: &Graph, y: Value) -> Option<Rotation> {
    let [_, _, _, d] = g.shape(y)[..] else { return None };
    g.either(y, "add").into_iter().find_map(|(straight, crossed)| {
        let (swapped, sin) = g.either(crossed, "mul").into_iter().find(|&(c, _)| g.inputs_of(c, "concat").is_some())?;
        let &[second, first] = g.inputs_of(swapped, "concat")? else { return None };
        let (x, 0) = part(g, first, d / 2)? else { return None };
        if part(g, g.operand(second, "neg")?, d / 2)? != (x, d / 2) || *g.shape(x) != *g.shape(y) {
            return None;
        }
        let (_, cos) = g.either(straight, "mul").into_iter().find(|&(v, _)| v == x)?;
        Some(Rotation { x, cos, sin, interleaved: false })
    })
}

/// The operands `(a, b, cos, sin)` of `a cos - b sin` and `b cos + a sin`.
fn turned(g: &Graph, first: Value, second: Value) -> Option<[Value; 4]> {
    let &[ac, bs] = g.inputs_of(first, "sub")? else { return None };
    for (a, cos) in g.either(ac, "mul") {
        for (b, sin) in g.either(bs, "mul") {
            let is = |v: Value, x: Value, y: Value| g.either(v, "mul").contains(&(x, y));
            if g.either(second, "add").into_iter().any(|(bc, as_)| is(bc, b, cos) && is(as_, a, sin)) {
                return Some([a, b, cos, sin]);
            }
        }
    }
    None
}

/// `(x₁ cos - x₂ sin, x₂ cos + x₁ sin)`
fn half_angles(g: &Graph, node: &Node) -> Option<Rotation> {
    let [first, second] = node.inputs[..] else { return None };
    let [_, _, _, d] = g.shape(node.outputs[0])[..] else { return None };
    let [a, b, cos, sin] = turned(g, first, second)?;
    let (x, 0) = part(g, a, d / 2)? else { return None };
    let same = node.attrs.int("axis") == 3 && part(g, b, d / 2)? == (x, d / 2);
    (same && g.shape(x) == g.shape(node.outputs[0])).then_some(Rotation { x, cos, sin, interleaved: false })
}

/// The same of pairs of neighbours, which stand in an axis of their own meanwhile.
fn neighbours(g: &Graph, node: &Node) -> Option<Rotation> {
    let y = node.outputs[0];
    let [b, h, s, d] = g.shape(y)[..] else { return None };
    let pairs = g.producer(node.inputs[0]).filter(|n| n.op == "concat" && n.attrs.int("axis") == 4)?;
    let &[first, second] = pairs.inputs.as_slice() else { return None };
    if g.shape(node.inputs[0])[..] != [b, h, s, d / 2, 2] {
        return None;
    }
    let [a, b, cos, sin] = turned(g, g.operand(first, "reshape")?, g.operand(second, "reshape")?)?;
    let of = |v: Value, at: i64| {
        let n = g.producer(g.operand(v, "reshape")?).filter(|n| n.op == "slice")?;
        let fits = n.attrs.int("axis") == 4 && n.attrs.int("start") == at && n.attrs.int("len") == 1;
        fits.then(|| g.through_reshapes(n.inputs[0]))
    };
    let x = of(a, 0)?;
    (of(b, 1)? == x && g.shape(x) == g.shape(y)).then_some(Rotation { x, cos, sin, interleaved: true })
}

fn rewrite(r: &mut Rewriter, node: &Node, f: &Rotation) -> Result<bool, BuildError> {
    let shape = r.old.shape(node.outputs[0]).clone();
    let angles = |v: Value| {
        let own = r.old.shape(v);
        let lead = 4usize.checked_sub(own.len())?;
        Some([&[1; 4][..lead], &own[..]].concat())
    };
    let (Some(cos_shape), Some(sin_shape)) = (angles(f.cos), angles(f.sin)) else { return Ok(false) };
    let fits = |n: usize| n == shape[3] || n == shape[3] / 2;
    if cos_shape != sin_shape || !fits(cos_shape[3]) || (0..3).any(|i| ![1, shape[i]].contains(&cos_shape[i])) {
        return Ok(false);
    }
    r.b.set_origin(node.origin.clone());
    let (cos, sin) = (r.get(f.cos), r.get(f.sin));
    let (cos, sin) = (r.b.reshape(cos, cos_shape)?, r.b.reshape(sin, sin_shape)?);
    let mut attrs = Attrs::new();
    if f.interleaved {
        attrs = attrs.with("interleaved", Attr::Bool(true));
    }
    let before = r.old.producer(f.x).filter(|n| n.op == "transpose" && n.attrs.sizes("perm") == [0, 2, 1, 3]);
    let y = match before.map(|n| n.inputs[0]) {
        Some(x) => {
            let x = r.get(x);
            let y = r.b.emit("rotary", &[x, cos, sin], attrs.with("seq", Attr::Bool(true)))?;
            r.b.transpose(y, &[0, 2, 1, 3])?
        }
        None => {
            let x = r.get(f.x);
            r.b.emit("rotary", &[x, cos, sin], attrs)?
        }
    };
    r.set(node.outputs[0], y);
    Ok(true)
}
