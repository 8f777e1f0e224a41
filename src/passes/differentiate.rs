//! Reverse-mode differentiation on the graph: adds the gradient of one scalar output in every parameter.
//!
//! A gradient is built only along paths from that output to a parameter; nothing is built for frozen weights, and the
//! backward pass ends at the lowest parameter.

use crate::ir::{BuildError, Builder, Graph, Leaf, Sink, Value};
use crate::ops::{self, RULES, Vjp, VjpCall};

/// Why a graph cannot be differentiated.
#[derive(Debug, thiserror::Error)]
pub enum DifferentiateError {
    #[error("the graph has no output '{0}' to differentiate")]
    NoLoss(String),
    #[error("the loss '{0}' is {1}, not one float")]
    NotScalar(String, String),
    #[error("{0} operations have no second derivative")]
    SecondOrder(String),
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Adds an output `grad.{parameter}` for every parameter that the output `loss` depends on.
pub fn differentiate(graph: Graph, loss: &str) -> Result<Graph, DifferentiateError> {
    let target = graph.output(loss).ok_or_else(|| DifferentiateError::NoLoss(loss.to_string()))?;
    let ty = graph.ty(target).clone();
    if !ty.is_float() || ty.elements() != 1 {
        return Err(DifferentiateError::NotScalar(loss.to_string(), ty.to_string()));
    }
    let needs = reached(&graph);
    let nodes = graph.nodes.clone();
    let mut b = Builder::on(graph, RULES);
    let mut grads: Vec<Option<Value>> = vec![None; b.graph.values.len()];
    let one = b.scalar(1.0);
    grads[target.index()] = Some(b.reshape(one, ty.shape)?);

    for node in nodes.iter().rev() {
        let outs: Vec<Option<Value>> = node.outputs.iter().map(|v| grads[v.index()]).collect();
        let wants: Vec<bool> = node.inputs.iter().map(|v| needs[v.index()]).collect();
        if outs.iter().all(Option::is_none) || !wants.contains(&true) {
            continue;
        }
        let primitive = ops::find(&node.op).expect("verified graphs hold known primitives only");
        b.set_origin(format!("grad {}", node.origin));
        let inputs = match primitive.vjp {
            Vjp::Zero => continue,
            Vjp::Never => return Err(DifferentiateError::SecondOrder(node.op.clone())),
            Vjp::Emit(emit) => emit(&mut VjpCall { b: &mut b, node, grads: outs, wants: wants.clone() })?,
        };
        for ((&x, g), wanted) in node.inputs.iter().zip(inputs).zip(wants) {
            if let (Some(g), true) = (g, wanted) {
                grads[x.index()] = Some(match grads[x.index()] {
                    Some(sum) => b.add(sum, g)?,
                    None => g,
                });
            }
        }
    }

    for (i, g) in grads.iter().enumerate() {
        if let (Some(Leaf::Parameter(name)), Some(g)) = (b.graph.leaf(Value(i as u32)), *g) {
            let name = name.clone();
            b.output(format!("grad.{name}"), g, Sink::Gradient(name));
        }
    }
    Ok(b.graph)
}

/// For every value, whether it depends on a parameter through operations that pass gradients.
pub fn reached(graph: &Graph) -> Vec<bool> {
    let mut needs: Vec<bool> =
        (0..graph.values.len()).map(|i| matches!(graph.leaf(Value(i as u32)), Some(Leaf::Parameter(_)))).collect();
    for node in &graph.nodes {
        let passes = ops::find(&node.op).is_some_and(|p| !matches!(p.vjp, Vjp::Zero));
        if passes && node.inputs.iter().any(|v| needs[v.index()]) {
            for &v in &node.outputs {
                needs[v.index()] = graph.ty(v).is_float();
            }
        }
    }
    needs
}
