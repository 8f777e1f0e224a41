//! Finds RMSNorm and LayerNorm in the arithmetic that exporters write them as.

use super::rewrite::{Rewriter, each_node};
use crate::ir::{Attr, Attrs, BuildError, Graph, Node, Tensor, Value};

pub fn recognise_norm(graph: &Graph) -> Result<Graph, BuildError> {
    each_node(graph, |r, node| {
        let Some(found) = norm(r.old, node.outputs[0]) else { return Ok(false) };
        rewrite(r, node, &found)
    })
}

/// A norm over the last axis.
struct Norm {
    x: Value,
    gain: Option<Value>,
    bias: Option<Value>,
    eps: f32,
    /// LayerNorm rather than RMSNorm.
    centred: bool,
}

fn norm(graph: &Graph, y: Value) -> Option<Norm> {
    with_bias(graph, y).or_else(|| with_gain(graph, y)).or_else(|| plain(graph, y))
}

/// A value of one element for each element of the last axis of `like`.
fn is_row(graph: &Graph, v: Value, like: Value) -> bool {
    let (row, shape) = (graph.shape(v), graph.shape(like));
    row.last() == shape.last() && row.elements() == shape[shape.len() - 1] && row.len() <= shape.len()
}

fn with_bias(graph: &Graph, y: Value) -> Option<Norm> {
    graph.either(y, "add").into_iter().find_map(|(n, bias)| {
        let found = with_gain(graph, n).filter(|f| f.centred)?;
        is_row(graph, bias, y).then_some(Norm { bias: Some(bias), ..found })
    })
}

fn with_gain(graph: &Graph, y: Value) -> Option<Norm> {
    graph.either(y, "mul").into_iter().find_map(|(n, gain)| {
        let found = plain(graph, n)?;
        is_row(graph, gain, y).then_some(Norm { gain: Some(gain), ..found })
    })
}

/// `d / √(mean(d²) + eps)`, as a quotient or a product with a reciprocal; `d` is `x`, or `x - mean(x)`.
fn plain(graph: &Graph, y: Value) -> Option<Norm> {
    let quotient = graph.inputs_of(y, "div").map(|i| (i[0], i[1]));
    let product = graph.either(y, "mul").into_iter().find_map(|(d, r)| Some((d, graph.operand(r, "reciprocal")?)));
    let (d, root) = quotient.into_iter().chain(product).find(|&(_, r)| graph.operand(r, "sqrt").is_some())?;
    let (variance, eps) = graph.plus_constant(graph.operand(root, "sqrt")?)?;
    let square = graph.mean_of(variance)?;
    if graph.inputs_of(square, "mul") != Some(&[d, d]) {
        return None;
    }
    let centre = graph.inputs_of(d, "sub").filter(|i| graph.mean_of(i[1]) == Some(i[0])).map(|i| i[0]);
    let (x, centred) = centre.map_or((d, false), |x| (x, true));
    Some(Norm { x, gain: None, bias: None, eps, centred })
}

fn rewrite(r: &mut Rewriter, node: &Node, f: &Norm) -> Result<bool, BuildError> {
    r.b.set_origin(node.origin.clone());
    let shape = r.old.shape(node.outputs[0]).clone();
    let n = shape[shape.len() - 1];
    if shape != *r.old.shape(f.x) {
        return Ok(false);
    }
    let x = r.get(f.x);
    let flat = r.b.reshape(x, [shape.elements() / n, n])?;
    let mut row = |v: Option<Value>, fill: f32| match v {
        Some(v) => {
            let v = r.get(v);
            r.b.reshape(v, [n])
        }
        None => Ok(r.b.constant(Tensor::f32([n], vec![fill; n]))),
    };
    let gain = row(f.gain, 1.0)?;
    let bias = if f.centred { Some(row(f.bias, 0.0)?) } else { None };
    let attrs = Attrs::new().with("eps", Attr::Float(f.eps as f64));
    let y = match bias {
        Some(bias) => r.b.emit("layer_norm", &[flat, gain, bias], attrs)?,
        None => r.b.emit("rms_norm", &[flat, gain], attrs)?,
    };
    let y = r.b.reshape(y, shape)?;
    r.set(node.outputs[0], y);
    Ok(true)
}
