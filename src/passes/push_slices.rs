//! What a slice leaves out is not computed: a slice of one position moves up through whatever computes each position by itself, to
//! where others are read too. A classifier that reads its first token alone leaves most of the last layer to that token: its
//! queries, its projections, its feed-forward network, and their gradients.

use super::rewrite::Rewriter;
use crate::ir::{BuildError, Def, Graph, Node, Shape, Value};
use crate::ops::{self, Cpu};

/// Index `at` of the middle axis of a value seen as `(outer, extent, inner)`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Take {
    outer: usize,
    extent: usize,
    inner: usize,
    at: usize,
}

/// Where that middle axis is in a shape: the middle of `(pre, extent, post)`, which one axis is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Along {
    axis: usize,
    pre: usize,
    post: usize,
}

impl Take {
    /// What a slice of one index takes.
    fn of_slice(graph: &Graph, node: &Node) -> Option<Take> {
        let one = node.op == "slice" && node.attrs.int("len") == 1;
        let shape = graph.shape(*node.inputs.first()?);
        let axis = one.then(|| node.attrs.int("axis") as usize)?;
        (shape[axis] > 1)
            .then(|| Along { axis, pre: 1, post: 1 }.take(shape, shape[axis], node.attrs.int("start") as usize))
    }

    /// `None` where it is spread over several axes.
    fn along(&self, shape: &[usize]) -> Option<Along> {
        let mut before = 1;
        for (axis, &d) in shape.iter().enumerate() {
            if before * d >= self.outer * self.extent {
                let whole = self.outer.is_multiple_of(before) && (before * d).is_multiple_of(self.outer * self.extent);
                let (pre, post) = (self.outer / before, before * d / (self.outer * self.extent));
                return whole.then_some(Along { axis, pre, post });
            }
            before *= d;
        }
        None
    }

    /// The shape of what is taken of a value of this shape.
    fn narrowed(&self, shape: &[usize]) -> Option<Shape> {
        let along = self.along(shape)?;
        let mut narrow = shape.to_vec();
        narrow[along.axis] /= self.extent;
        Some(narrow.into())
    }
}

impl Along {
    fn take(self, shape: &[usize], extent: usize, at: usize) -> Take {
        let outer = shape[..self.axis].iter().product::<usize>() * self.pre;
        let inner = shape[self.axis + 1..].iter().product::<usize>() * self.post;
        Take { outer, extent, inner, at }
    }
}

/// What the readers of a value read of it.
#[derive(Clone, Copy, PartialEq)]
enum Demand {
    Nothing,
    Part(Take),
    All,
}

/// What a node needs of each input to give what is taken of its first output, `None` being all; nothing if it does not compute each
/// position by itself.
fn needs(graph: &Graph, node: &Node, take: Take) -> Option<Vec<Option<Take>>> {
    let y = graph.shape(node.outputs[0]);
    let along = take.along(y)?;
    // The same part of an axis as long as y's.
    let of = |v: Value, axis: usize| {
        let shape = graph.shape(v);
        debug_assert_eq!(shape[axis], y[along.axis]);
        Some(Along { axis, ..along }.take(shape, take.extent, take.at))
    };
    let all = |n: usize| vec![None; n];
    let whole = (along.pre, along.post) == (1, 1);
    let x = *node.inputs.first()?;
    let flag = |name: &str| node.attrs.flag(name);
    match node.op.as_str() {
        "reshape" => Some(vec![Some(take)]),
        "transpose" => Some(vec![of(x, node.attrs.ints("perm")[along.axis] as usize)]),
        "matmul" => {
            let rows = y.len() - 2;
            match along.axis {
                axis if axis < rows => Some(node.inputs.iter().map(|&v| of(v, axis)).collect()),
                axis if axis == rows => Some(vec![of(x, if flag("trans_a") { rows + 1 } else { rows }), None]),
                _ => None,
            }
            .filter(|needs| needs.len() == node.inputs.len())
        }
        "layer_norm" | "rms_norm" | "softmax" if along.axis + 1 < y.len() => {
            let mut needs = all(node.inputs.len());
            needs[0] = of(x, along.axis);
            Some(needs)
        }
        "rotary" if whole && along.axis == if flag("seq") { 1 } else { 2 } => {
            let angles = |v: Value| if graph.shape(v)[2] == 1 { None } else { of(v, 2) };
            Some(vec![of(x, along.axis), angles(node.inputs[1]), angles(node.inputs[2])])
        }
        "attention" if whole && along.axis == if flag("seq_y") { 1 } else { 2 } => {
            let mut needs = all(node.inputs.len());
            needs[0] = of(x, if flag("seq_q") { 1 } else { 2 });
            if let Some(&bias) = node.inputs.get(3) {
                needs[3] = if graph.shape(bias)[2] == 1 { None } else { of(bias, 2) };
            }
            Some(needs)
        }
        op if ops::find(op).is_some_and(|p| matches!(p.cpu, Cpu::Elementwise { .. })) => {
            let operand = |&v: &Value| {
                let shape = graph.shape(v);
                let axis = (along.axis + shape.len()).checked_sub(y.len())?;
                if shape[axis] == 1 { None } else { of(v, axis) }
            };
            Some(node.inputs.iter().map(operand).collect())
        }
        _ => None,
    }
}

/// Moves slices up.
pub fn push_slices(graph: &Graph) -> Result<Graph, BuildError> {
    let mut demands = vec![Demand::Nothing; graph.values.len()];
    graph.outputs.iter().for_each(|o| demands[o.value.index()] = Demand::All);
    let mut narrowed: Vec<Option<(Take, Vec<Option<Take>>)>> = vec![None; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        let others = node.outputs[1..].iter().all(|o| demands[o.index()] == Demand::Nothing);
        if let (Demand::Part(take), true) = (demands[node.outputs[0].index()], others) {
            narrowed[i] = needs(graph, node, take).map(|needs| (take, needs));
        }
        let own = || vec![Take::of_slice(graph, node); node.inputs.len()];
        let needs = narrowed[i].as_ref().map_or_else(own, |(_, needs)| needs.clone());
        for (v, need) in node.inputs.iter().zip(needs) {
            let demand = &mut demands[v.index()];
            *demand = match (*demand, need) {
                (Demand::Nothing, Some(take)) => Demand::Part(take),
                (Demand::Part(before), Some(take)) if before == take => *demand,
                _ => Demand::All,
            };
        }
    }
    let is_narrow = |v: Value, take: Take| match graph.values[v.index()].def {
        Def::Node { node, .. } => narrowed[node].as_ref().is_some_and(|(own, _)| *own == take),
        _ => false,
    };
    let mut r = Rewriter::new(graph);
    for (i, node) in graph.nodes.iter().enumerate() {
        let y = node.outputs[0];
        let Some((take, needs)) = &narrowed[i] else {
            match Take::of_slice(graph, node) {
                Some(take) => {
                    r.b.set_origin(node.origin.clone());
                    let x = part(&mut r, node.inputs[0], take, is_narrow)?;
                    let x = r.b.reshape(x, graph.shape(y).clone())?;
                    r.set(y, x);
                }
                None => r.copy(node),
            }
            continue;
        };
        r.b.set_origin(node.origin.clone());
        let mut inputs = Vec::new();
        for (&v, need) in node.inputs.iter().zip(needs) {
            inputs.push(match need {
                Some(take) => part(&mut r, v, *take, is_narrow)?,
                None => r.get(v),
            });
        }
        if node.op == "reshape" {
            let shape = take.narrowed(graph.shape(y)).expect("it was found to be along an axis");
            let x = r.b.reshape(inputs[0], shape)?;
            r.set(y, x);
        } else {
            r.replace(node, &node.op, &inputs, node.attrs.clone())?;
        }
    }
    Ok(r.finish())
}

/// What is taken of a value: itself if no more of it is computed, else a slice of it.
fn part(r: &mut Rewriter, v: Value, take: Take, is_narrow: impl Fn(Value, Take) -> bool) -> Result<Value, BuildError> {
    if is_narrow(v, take) {
        return Ok(r.get(v));
    }
    let shape = r.old.shape(v).clone();
    // Of the value before its reshapes, so that all slices of it are the same.
    let root = r.old.through_reshapes(v);
    let root = r.get(root);
    let x = r.b.reshape(root, [take.outer, take.extent, take.inner])?;
    let x = r.b.slice(x, 1, take.at, 1, 1)?;
    match take.narrowed(&shape) {
        Some(narrow) => r.b.reshape(x, narrow),
        None => Ok(x),
    }
}
