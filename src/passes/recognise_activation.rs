//! Finds GELU (exact and tanh) and SiLU in the arithmetic that exporters write them as.

use super::rewrite::each_node;
use crate::ir::{BuildError, Graph, Node, Value};

pub fn recognise_activation(graph: &Graph) -> Result<Graph, BuildError> {
    each_node(graph, |r, node| {
        let Some((op, x)) = activation(r.old, node) else { return Ok(false) };
        let x = r.get(x);
        r.replace(node, op, &[x], Default::default())?;
        Ok(true)
    })
}

fn activation(graph: &Graph, node: &Node) -> Option<(&'static str, Value)> {
    let y = node.outputs[0];
    if node.op != "mul" {
        return None;
    }
    silu(graph, y).map(|x| ("silu", x)).or_else(|| gelu(graph, y))
}

/// `x σ(x)`
fn silu(graph: &Graph, y: Value) -> Option<Value> {
    graph.either(y, "mul").into_iter().find(|&(x, s)| graph.operand(s, "sigmoid") == Some(x)).map(|(x, _)| x)
}

/// `x · 1/2 · (1 + inner)` in any order, `inner` being `erf(x / √2)` or `tanh(√(2/π) (x + 0.044715 x³))`.
fn gelu(graph: &Graph, y: Value) -> Option<(&'static str, Value)> {
    let halved = graph.scaled_by(y, 0.5).into_iter().flat_map(|p| graph.either(p, "mul"));
    let inside = graph.either(y, "mul").into_iter().flat_map(|(a, b)| {
        let first = graph.scaled_by(a, 0.5).map(|x| (x, b));
        let second = graph.scaled_by(b, 0.5).map(|s| (a, s));
        first.into_iter().chain(second)
    });
    halved.chain(inside).find_map(|(x, s)| {
        let (inner, one) = graph.plus_constant(s)?;
        if one != 1.0 {
            return None;
        }
        if let Some(u) = graph.operand(inner, "erf") {
            return (graph.scaled_by(u, std::f64::consts::FRAC_1_SQRT_2)? == x).then_some(("gelu", x));
        }
        let u = graph.scaled_by(graph.operand(inner, "tanh")?, 0.797_884_560_8)?;
        let cubic = graph
            .either(u, "add")
            .into_iter()
            .any(|(a, c)| a == x && graph.scaled_by(c, 0.044715).is_some_and(|cube| is_cube(graph, cube, x)));
        cubic.then_some(("gelu_tanh", x))
    })
}

fn is_cube(graph: &Graph, v: Value, x: Value) -> bool {
    let square = |v: Value| graph.inputs_of(v, "mul") == Some(&[x, x]);
    graph.either(v, "mul").into_iter().any(|(a, b)| a == x && square(b))
}
