//! Finds how a model's own loss weighs the rows of a batch, so that the losses of several batches can be averaged.
//!
//! A mean over a batch is a sum divided by the number of rows, by the number of labelled rows, or by the sum of their class weights. That
//! divisor is the batch's weight in a mean over several batches. A sum has no weight: sums are added.

use super::folding::{Given, evaluate};
use super::{Error, compile};
use crate::ir::{Graph, Tensor, Type, Value};
use crate::onnx::Model;
use crate::train::{Shapes, Weight};
use std::sync::Arc;

/// What the sum over rows in a loss is divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divisor {
    pub by: f64,
    /// Whether it depends on the data, as a number of labels that count does.
    pub computed: bool,
}

const ONE: Divisor = Divisor { by: 1.0, computed: false };

/// The divisor of a loss in a lowered graph, whose inputs are `given`; `None` where it is not a sum over rows divided by
/// something that the inputs alone decide.
pub fn divisor(graph: &Graph, loss: Value, given: &Given) -> Option<Divisor> {
    let node = graph.producer(loss)?;
    let inputs = &node.inputs;
    match node.op.as_str() {
        "reshape" | "neg" | "cast" | "broadcast" | "transpose" => divisor(graph, inputs[0], given),
        "div" => Some(divisor(graph, inputs[0], given)?.times(counted(graph, inputs[1], given)?)),
        "mul" => {
            let (factor, rest) = match (scalar(graph, inputs[1], given), scalar(graph, inputs[0], given)) {
                (Some(f), _) => (f, inputs[0]),
                (_, Some(f)) => (f, inputs[1]),
                _ => return None,
            };
            Some(divisor(graph, rest, given)?.times(factor.inverse()?))
        }
        "reduce_sum" => Some(divisor(graph, inputs[0], given).unwrap_or_else(|| inner(graph, inputs[0], given))),
        // Two terms that count alike.
        "add" | "sub" => {
            let (a, b) = (divisor(graph, inputs[0], given)?, divisor(graph, inputs[1], given)?);
            ((a.by.abs() - b.by.abs()).abs() <= 1e-6 * a.by.abs() && a.computed == b.computed).then_some(a)
        }
        _ => None,
    }
}

/// What a mean is divided by; nothing where a count of zero was only kept from dividing by zero.
fn counted(graph: &Graph, v: Value, given: &Given) -> Option<Divisor> {
    let clamped = graph.producer(v).filter(|n| n.op == "max");
    let none = clamped
        .is_some_and(|n| n.inputs.iter().any(|&i| scalar(graph, i, given).is_some_and(|s| s.computed && s.by == 0.0)));
    let all = scalar(graph, v, given)?;
    Some(if none { Divisor { by: 0.0, computed: true } } else { all })
}

/// What each term of a sum is divided by.
fn inner(graph: &Graph, v: Value, given: &Given) -> Divisor {
    let Some(node) = graph.producer(v) else { return ONE };
    let inputs = &node.inputs;
    let constant = |v: Value| scalar(graph, v, given).filter(|s| !s.computed);
    match node.op.as_str() {
        "reshape" | "neg" | "cast" | "broadcast" | "transpose" => inner(graph, inputs[0], given),
        "div" => match constant(inputs[1]) {
            Some(s) => inner(graph, inputs[0], given).times(s),
            None => ONE,
        },
        "mul" => match (constant(inputs[1]), constant(inputs[0])) {
            (Some(s), _) => s.inverse().map_or(ONE, |s| inner(graph, inputs[0], given).times(s)),
            (_, Some(s)) => s.inverse().map_or(ONE, |s| inner(graph, inputs[1], given).times(s)),
            _ => ONE,
        },
        _ => ONE,
    }
}

/// A value whose elements are all one number that the inputs decide.
fn scalar(graph: &Graph, v: Value, given: &Given) -> Option<Divisor> {
    let t = evaluate(graph, v, given)?;
    let values = t.as_f32()?;
    let first = *values.first()?;
    let computed = evaluate(graph, v, &|_, _| None).is_none();
    values.iter().all(|x| *x == first).then_some(Divisor { by: f64::from(first), computed })
}

impl Divisor {
    fn times(self, other: Divisor) -> Divisor {
        Divisor { by: self.by * other.by, computed: self.computed || other.computed }
    }

    fn inverse(self) -> Option<Divisor> {
        (self.by != 0.0).then(|| Divisor { by: 1.0 / self.by, ..self })
    }
}

/// How the model's own loss counts batches of one shape.
pub struct OwnLoss {
    graph: Graph,
    loss: Value,
    /// The weight of every batch, where the data has no part in it.
    fixed: Option<Weight>,
    /// Batches hold one row, in whose program a sum over rows cannot be told from a value: the graph is that of the row twice.
    twice: bool,
}

impl OwnLoss {
    pub fn find(model: &Arc<Model>, shapes: &Shapes, output: &str) -> Result<OwnLoss, Error> {
        let rows = shapes.values().filter_map(|s| s.first()).max().copied().unwrap_or(1);
        let grown = |by: usize| {
            let mut grown = shapes.clone();
            grown.values_mut().filter_map(|s| s.first_mut()).filter(|n| **n == rows).for_each(|n| *n += by);
            compile::lowered_value(model, &grown, output)
        };
        let (twice, (graph, loss)) = match grown(1) {
            Ok(more) if rows == 1 => (true, more),
            _ => (false, compile::lowered_value(model, shapes, output)?),
        };
        let here = divisor(&graph, loss, &|_, _| None);
        let fixed = here.map(|here| {
            // A constant that grows with the rows divides by them; one that stays belongs to a sum.
            let more = grown(if twice { 2 } else { 1 }).ok();
            match more.and_then(|(graph, loss)| divisor(&graph, loss, &|_, _| None)) {
                Some(more) if more.by == here.by => Weight::Sum,
                Some(_) => Weight::Mean(here.by.abs() / if twice { 2.0 } else { 1.0 }),
                None => Weight::Mean(rows as f64),
            }
        });
        Ok(OwnLoss { graph, loss, fixed, twice })
    }

    /// What one batch counts.
    pub fn weight(&self, inputs: &[(String, Tensor)]) -> Weight {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let given = |name: &str, ty: &Type| {
            let t = inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t)?;
            let doubled = self.twice && t.ty() != *ty;
            Some(if doubled { Tensor::from_words(ty, [t.words(), t.words()].concat()) } else { t.clone() })
        };
        let by = divisor(&self.graph, self.loss, &given).map(|d| d.by.abs());
        by.map_or(Weight::Unknown, |by| Weight::Mean(if self.twice { by / 2.0 } else { by }))
    }
}
