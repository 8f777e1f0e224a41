//! Integers that do not fit: indices beyond their tables, and 64-bit arithmetic that 32 bits cannot hold.
//!
//! Devices compute integers in 32 bits and read the nearest row for an index beyond a table. So what a graph computes
//! from the data alone is looked at before a device is: first by the ranges of its values, which settles nearly every
//! model at once, then, where a range does not, by working out the values themselves batch by batch.

use super::folding::evaluate;
use super::{Error, compile};
use crate::ir::{DType, Graph, Leaf, Node, Tensor, Type, Value};
use crate::onnx::Model;
use crate::train::Shapes;
use crate::train::data::{Batch, DataError, Dataset, Feed};
use std::collections::HashMap;
use std::sync::Arc;

/// The smallest and largest element of a value.
type Range = (i64, i64);

/// Beyond what 64 bits of a file's constant were cut to: what stands there is not the number that was written.
const CUT: Range = (i64::MIN / 4, i64::MAX / 4);

/// What may go wrong in a graph.
#[derive(Clone, Debug)]
enum Doubt {
    /// A gather, by its place in the graph.
    Index { node: usize, rows: usize },
    /// Arithmetic whose result may not fit.
    Overflow { node: usize },
}

/// Checks that every index computed from the data lies within its table, and that integer arithmetic fits 32 bits, for the
/// value `wanted` of a model over a whole data set.
pub fn check(
    model: &Arc<Model>,
    graph: &Graph,
    wanted: &str,
    data: &Dataset,
    feed: &Feed,
    size: usize,
) -> Result<(), Error> {
    let inputs = input_ranges(data, feed);
    if doubts(graph, &inputs).is_empty() {
        return Ok(());
    }
    let all: Vec<usize> = (0..data.len()).collect();
    let mut graphs: HashMap<Shapes, (Graph, Vec<Doubt>)> = HashMap::new();
    for examples in data.batches(feed, &all, size) {
        let batch = data.batch(feed, &examples)?;
        let shapes: Shapes = batch.inputs.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
        if !graphs.contains_key(&shapes) {
            let graph = compile::lowered_graph(model, &shapes, &[wanted.to_string()])?;
            let doubts = doubts(&graph, &inputs);
            graphs.insert(shapes.clone(), (graph, doubts));
        }
        let (graph, doubts) = &graphs[&shapes];
        for doubt in doubts {
            let found = match doubt {
                Doubt::Index { node, rows } => index(graph, &graph.nodes[*node], *rows, &batch),
                Doubt::Overflow { node } => overflow(graph, &graph.nodes[*node], &batch),
            };
            if let Some((why, row)) = found {
                let (file, path) = (model.path().display(), data.path.clone());
                let row =
                    row.and_then(|r| examples.get(r)).map(|e| format!(" (example {})", e + 1)).unwrap_or_default();
                return Err(DataError::Fit { path, why: format!("{file}: {why}{row}") }.into());
            }
        }
    }
    Ok(())
}

/// The same for a lowered graph and one batch of its inputs.
pub fn check_one(model: &Model, graph: &Graph, batch: &Batch) -> Result<(), Error> {
    let range = |t: &Tensor| Some((i64::from(*t.as_i32()?.iter().min()?), i64::from(*t.as_i32()?.iter().max()?)));
    let inputs: HashMap<String, Range> =
        batch.inputs.iter().filter_map(|(n, t)| Some((n.clone(), range(t)?))).collect();
    for doubt in doubts(graph, &inputs) {
        let found = match doubt {
            Doubt::Index { node, rows } => index(graph, &graph.nodes[node], rows, batch),
            Doubt::Overflow { node } => overflow(graph, &graph.nodes[node], batch),
        };
        if let Some((why, _)) = found {
            return Err(Error::Model(format!("{}: {why}", model.path().display())));
        }
    }
    Ok(())
}

/// An index that lies outside its table: what to say, and the row of the batch that it comes from.
fn index(graph: &Graph, node: &Node, rows: usize, batch: &Batch) -> Option<(String, Option<usize>)> {
    let t = evaluate(graph, node.inputs[1], &|name, _| given(batch, name))?;
    let values = t.as_i32()?;
    let n = rows as i64;
    let at = values.iter().position(|&x| i64::from(x) >= n || i64::from(x) < -n)?;
    let first = t.shape().first().copied().unwrap_or(1).max(1);
    let row =
        (batch.inputs.iter().any(|(_, x)| x.shape().first() == Some(&first))).then_some(at / (values.len() / first));
    let why = format!(
        "node '{}': index {} is outside its table of {rows} rows\n\
         hint: are these the tokenizer, labels and data that the model was made for?",
        node.origin, values[at]
    );
    Some((why, row))
}

/// Arithmetic that does not fit 32 bits, and the operands it does not fit for.
fn overflow(graph: &Graph, node: &Node, batch: &Batch) -> Option<(String, Option<usize>)> {
    let say = |what: String| {
        let why = format!(
            "node '{}' ({}): {what}, which needs 64-bit integers; devices compute in 32 bits\n\
             hint: leave the data that makes it so out, or compute these integers before the model",
            node.origin, node.op
        );
        Some((why, None))
    };
    let out = graph.ty(node.outputs[0]);
    let operand = |v: Value| -> Option<Vec<i64>> {
        let t = evaluate(graph, v, &|name, _| given(batch, name))?;
        let x = t.as_i32()?;
        if x.iter().any(|&x| x == i32::MAX || x == i32::MIN) {
            return None;
        }
        Some(spread(&t, x, out))
    };
    let operands: Option<Vec<Vec<i64>>> = node.inputs.iter().map(|&v| operand(v)).collect();
    let Some(operands) = operands else {
        return say("a constant of the file, or what comes from it, does not fit 32 bits".into());
    };
    let fits = |x: i64| i32::try_from(x).is_ok();
    let bad = match (node.op.as_str(), &operands[..]) {
        ("add", [a, b]) => a.iter().zip(b).find(|(a, b)| !fits(**a + **b)),
        ("sub", [a, b]) => a.iter().zip(b).find(|(a, b)| !fits(**a - **b)),
        ("mul", [a, b]) => a.iter().zip(b).find(|(a, b)| !fits(**a * **b)),
        // Sums: the range has said that they may not fit, and they are as large as that.
        ("cumsum" | "reduce_sum", [a]) => {
            let total: i64 = a.iter().sum();
            return if fits(total) { None } else { say(format!("the sum is {total}")) };
        }
        _ => None,
    };
    let (a, b) = bad?;
    let sign = match node.op.as_str() {
        "add" => "+",
        "sub" => "-",
        _ => "*",
    };
    say(format!("it computes {a} {sign} {b}"))
}

/// The elements of a tensor, broadcast to another type's shape.
fn spread(t: &Tensor, values: &[i32], out: &Type) -> Vec<i64> {
    let (shape, from) = (&out.shape, t.shape());
    if from.len() > shape.len() || values.len() == shape.elements() {
        return values.iter().map(|&x| i64::from(x)).collect();
    }
    let lead = shape.len() - from.len();
    let strides: Vec<usize> = (0..from.len()).map(|d| from[d + 1..].iter().product()).collect();
    (0..shape.elements())
        .map(|mut at| {
            let mut place = 0;
            for d in (0..shape.len()).rev() {
                let i = at % shape[d];
                at /= shape[d];
                if d >= lead && from[d - lead] > 1 {
                    place += i * strides[d - lead];
                }
            }
            i64::from(values[place])
        })
        .collect()
}

fn given(batch: &Batch, name: &str) -> Option<Tensor> {
    batch.inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone())
}

/// What can go wrong, as far as ranges of values tell.
fn doubts(graph: &Graph, inputs: &HashMap<String, Range>) -> Vec<Doubt> {
    let mut ranges: HashMap<Value, Range> = HashMap::new();
    for (i, info) in graph.values.iter().enumerate() {
        let v = Value(i as u32);
        let range = match graph.leaf(v) {
            Some(Leaf::Constant(t)) => constant(t),
            Some(Leaf::Weight(w)) if info.ty.dtype == DType::I32 && info.ty.elements() <= 1 << 22 => {
                constant(&w.load())
            }
            Some(Leaf::Input(name)) if info.ty.dtype == DType::I32 => inputs.get(name).copied(),
            _ if info.ty.dtype == DType::Bool => Some((0, 1)),
            _ => None,
        };
        ranges.extend(range.map(|r| (v, r)));
    }
    let mut out = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        let ins: Vec<Option<Range>> = node.inputs.iter().map(|v| ranges.get(v).copied()).collect();
        if node.op == "gather"
            && let Some((low, high)) = ins[1]
        {
            let rows = graph.shape(node.inputs[0])[node.attrs.int("axis") as usize];
            if low < -(rows as i64) || high >= rows as i64 {
                out.push(Doubt::Index { node: i, rows });
            }
        }
        if graph.ty(node.outputs[0]).dtype != DType::I32 {
            continue;
        }
        let Some(range) = result(graph, node, &ins) else { continue };
        let arithmetic = matches!(node.op.as_str(), "add" | "sub" | "mul" | "cumsum" | "reduce_sum");
        let cut = arithmetic && ins.iter().flatten().any(|r| r.0 <= CUT.0 || r.1 >= CUT.1);
        let wide = range.0 < i64::from(i32::MIN) || range.1 > i64::from(i32::MAX);
        if arithmetic && (wide || cut)
            || node.op == "modulo" && ins.iter().flatten().any(|r| r.1 >= CUT.1 || r.0 <= CUT.0)
        {
            out.push(Doubt::Overflow { node: i });
        }
        ranges.insert(node.outputs[0], range);
    }
    out
}

fn constant(t: &Tensor) -> Option<Range> {
    let x = t.as_i32()?;
    let (low, high) = (*x.iter().min()?, *x.iter().max()?);
    // A 64-bit constant that does not fit stands as the nearest that does.
    let low = if low == i32::MIN { CUT.0 } else { i64::from(low) };
    let high = if high == i32::MAX { CUT.1 } else { i64::from(high) };
    Some((low, high))
}

/// The range of a node's result, from those of its operands.
fn result(graph: &Graph, node: &Node, ins: &[Option<Range>]) -> Option<Range> {
    let one = |i: usize| ins.get(i).copied().flatten();
    let corners = |f: &dyn Fn(i64, i64) -> i64| -> Option<Range> {
        let ((a, b), (c, d)) = (one(0)?, one(1)?);
        let all = [f(a, c), f(a, d), f(b, c), f(b, d)];
        Some((*all.iter().min()?, *all.iter().max()?))
    };
    let hull = |parts: &[usize]| -> Option<Range> {
        let all: Option<Vec<Range>> = parts.iter().map(|&i| one(i)).collect();
        let all = all?;
        Some((all.iter().map(|r| r.0).min()?, all.iter().map(|r| r.1).max()?))
    };
    match node.op.as_str() {
        "add" => corners(&|a, b| a.saturating_add(b)),
        "sub" => corners(&|a, b| a.saturating_sub(b)),
        "mul" => corners(&|a, b| a.saturating_mul(b)),
        "min" => corners(&|a, b| a.min(b)),
        "max" => corners(&|a, b| a.max(b)),
        "neg" => one(0).map(|(a, b)| (-b, -a)),
        "abs" => one(0).map(|(a, b)| (if a <= 0 && b >= 0 { 0 } else { a.abs().min(b.abs()) }, a.abs().max(b.abs()))),
        "sign" => Some((-1, 1)),
        "modulo" => one(1).filter(|r| r.0 > 0 && r.1 < CUT.1).map(|r| (0, r.1 - 1)),
        "div" => {
            let ((a, b), (c, d)) = (one(0)?, one(1)?);
            (c > 0).then(|| ((a / c).min(a / d), (b / c).max(b / d)))
        }
        "select" => hull(&[1, 2]),
        "concat" => hull(&(0..ins.len()).collect::<Vec<_>>()),
        "reshape" | "broadcast" | "transpose" | "slice" | "reduce_max" | "reduce_min" | "gather" => one(0),
        "unslice" | "scatter_add" => hull(&[0]).map(|(a, b)| (a.min(0), b.max(0))),
        "cast" => match graph.ty(node.inputs[0]).dtype {
            DType::I32 | DType::Bool => one(0),
            DType::F32 => None,
        },
        "cumsum" => {
            let n = graph.shape(node.inputs[0])[1] as i64;
            one(0).map(|(a, b)| (a.min(0).saturating_mul(n), b.max(0).saturating_mul(n)))
        }
        "reduce_sum" => {
            let n = (graph.shape(node.inputs[0]).elements() / graph.shape(node.outputs[0]).elements().max(1)) as i64;
            one(0).map(|(a, b)| (a.saturating_mul(n), b.saturating_mul(n)))
        }
        "argmax" => Some((0, graph.shape(node.inputs[0])[1] as i64 - 1)),
        _ => None,
    }
}

/// The range of each integer input over a data set, padding and what is made for it included.
fn input_ranges(data: &Dataset, feed: &Feed) -> HashMap<String, Range> {
    let mut out: HashMap<String, Range> = HashMap::new();
    for input in feed.inputs.iter().filter(|i| i.dtype == DType::I32) {
        let range = match data.integers(&input.name) {
            Some(range) => Some(range),
            None => match input.name.as_str() {
                "attention_mask" => Some((0, 1)),
                "token_type_ids" => Some((0, 0)),
                "position_ids" => Some((0, data.positions().saturating_sub(1) as i64)),
                _ => None,
            },
        };
        out.extend(range.map(|r| (input.name.clone(), r)));
    }
    out
}
