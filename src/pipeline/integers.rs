//! Finds integers that do not fit: indices beyond their tables, and 64-bit arithmetic that exceeds 32 bits.
//!
//! Devices compute integers in 32 bits and clamp an index to its table. Integer values that depend only on the data are therefore checked
//! before the device runs: first by value ranges, which settles nearly every model, and where a range is not enough, by evaluating the
//! values batch by batch.

use super::folding::evaluate;
use super::{Error, compile};
use crate::ir::{Builder, DType, Graph, Leaf, Node, Sink, Tensor, Type, Value, outputs};
use crate::onnx::Model;
use crate::train::Shapes;
use crate::train::data::{Batch, DataError, Dataset, Feed};
use std::collections::HashMap;
use std::sync::Arc;

/// The smallest and largest element of a value.
type Range = (f64, f64);

/// Beyond what 64 bits of a file's constant were cut to: what stands there is not the number that was written.
const CUT: Range = (-1e18, 1e18);

/// The largest whole number up to which floats of 32 bits hold every one.
const EXACT: f64 = 16_777_216.0;

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
        let shapes = batch.shapes();
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
                let (what, hint) = why.split_once('\n').unwrap_or((&why, ""));
                return Err(DataError::Fit { path, why: format!("{file}: {what}{row}\n{hint}") }.into());
            }
        }
    }
    Ok(())
}

/// The same for a lowered graph and one batch of its inputs.
pub fn check_one(model: &Model, graph: &Graph, batch: &Batch) -> Result<(), Error> {
    let inputs: HashMap<String, Range> =
        batch.inputs.iter().filter_map(|(n, t)| Some((n.clone(), range_of(t)?))).collect();
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

/// Has the device give back every index that only it can work out, the model's weights having a part in it, unless ranges show that
/// it lies within its table.
pub fn watch(b: &mut Builder) {
    let graph = &b.graph;
    let ranges = ranges(graph, &HashMap::new());
    let weighted = weighted(graph);
    // For each index the smallest of its tables.
    let mut found: HashMap<Value, (usize, String)> = HashMap::new();
    for node in &graph.nodes {
        let (table, index) = (node.inputs.first(), node.inputs.get(1));
        if let ("gather", Some(table), Some(index)) = (node.op.as_str(), table, index)
            && weighted[index.index()]
        {
            let rows = graph.shape(*table)[node.attrs.int("axis") as usize];
            let within = |r: &Range| r.0 >= -(rows as f64) && r.1 < rows as f64;
            if !ranges.get(index).is_some_and(within) {
                let smallest = found.entry(*index).or_insert_with(|| (rows, node.origin.to_string()));
                if rows < smallest.0 {
                    *smallest = (rows, node.origin.to_string());
                }
            }
        }
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|(index, _)| *index);
    for (index, (rows, node)) in found {
        b.output(format!("{}{rows}/{node}", outputs::INDEX), index, Sink::Fetch);
    }
}

/// Which values the model's weights have a part in.
fn weighted(graph: &Graph) -> Vec<bool> {
    let leaf = |i: usize| matches!(graph.leaf(Value(i as u32)), Some(Leaf::Weight(_) | Leaf::Parameter(_)));
    let mut weighted: Vec<bool> = (0..graph.values.len()).map(leaf).collect();
    for node in &graph.nodes {
        let any = node.inputs.iter().any(|v| weighted[v.index()]);
        node.outputs.iter().for_each(|o| weighted[o.index()] = any);
    }
    weighted
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
    if node.op == "cast" {
        let t = evaluate(graph, node.inputs[0], &|name, _| given(batch, name))?;
        let large = t.as_f32()?.iter().find(|x| x.is_nan() || f64::from(x.abs()) > EXACT)?;
        return say(format!("the float {large} becomes an integer, and floats of 32 bits are not exact there"));
    }
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
        return say("a number of the file that does not fit 32 bits enters it, or its result may not fit them".into());
    };
    let fits = |x: i64| i32::try_from(x).is_ok();
    let bad = match (node.op.as_str(), &operands[..]) {
        ("add", [a, b]) => a.iter().zip(b).find(|(a, b)| !fits(**a + **b)),
        ("sub", [a, b]) => a.iter().zip(b).find(|(a, b)| !fits(**a - **b)),
        ("shift_left", [a, b]) => {
            a.iter().zip(b).find(|(a, b)| !fits((**a as i128).checked_shl(**b as u32).map_or(i64::MAX, |x| x as i64)))
        }
        ("mul", [a, b]) => a.iter().zip(b).find(|(a, b)| !fits(**a * **b)),
        ("pow", [a, b]) => a.iter().zip(b).find(|(a, b)| (**a as f64).powf(**b as f64).abs() > f64::from(i32::MAX)),
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
        "pow" => "to the power of",
        "shift_left" => "<<",
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

/// The ranges of a graph's values, as far as those of its inputs decide them.
fn ranges(graph: &Graph, inputs: &HashMap<String, Range>) -> HashMap<Value, Range> {
    let mut ranges: HashMap<Value, Range> = HashMap::new();
    for (i, info) in graph.values.iter().enumerate() {
        let v = Value(i as u32);
        let range = match graph.leaf(v) {
            Some(Leaf::Constant(t)) => constant(t),
            Some(Leaf::Weight(w)) if info.ty.dtype == DType::I32 && info.ty.elements() <= 1 << 22 => {
                constant(&w.load())
            }
            Some(Leaf::Input(name)) if info.ty.dtype != DType::Bool => inputs.get(name).copied(),
            _ if info.ty.dtype == DType::Bool => Some((0.0, 1.0)),
            _ => None,
        };
        ranges.extend(range.map(|r| (v, r)));
    }
    for node in &graph.nodes {
        let ins: Vec<Option<Range>> = node.inputs.iter().map(|v| ranges.get(v).copied()).collect();
        let range = result(graph, node, &ins).filter(|r| !r.0.is_nan() && !r.1.is_nan());
        ranges.extend(range.map(|r| (node.outputs[0], r)));
    }
    ranges
}

/// What can go wrong, as far as ranges of values tell.
fn doubts(graph: &Graph, inputs: &HashMap<String, Range>) -> Vec<Doubt> {
    let (ranges, weighted) = (ranges(graph, inputs), weighted(graph));
    let mut out = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        let ins: Vec<Option<Range>> = node.inputs.iter().map(|v| ranges.get(v).copied()).collect();
        // Of what has no range, all that inputs and constants decide can be worked out.
        let unknown = |index: Value| (!weighted[index.index()]).then_some((f64::NEG_INFINITY, f64::INFINITY));
        if node.op == "gather"
            && let Some((low, high)) = ins[1].or_else(|| unknown(node.inputs[1]))
        {
            let rows = graph.shape(node.inputs[0])[node.attrs.int("axis") as usize];
            if low < -(rows as f64) || high > rows as f64 - 1.0 {
                out.push(Doubt::Index { node: i, rows });
            }
        }
        let Some(&range) = ranges.get(&node.outputs[0]) else { continue };
        if ins.iter().flatten().any(|r| r.0.is_infinite() || r.1.is_infinite()) {
            continue;
        }
        if graph.ty(node.outputs[0]).dtype != DType::I32 {
            continue;
        }
        // A float that becomes an integer stands for itself only as far as floats are exact.
        if node.op == "cast" && graph.ty(node.inputs[0]).dtype == DType::F32 {
            if range.0 < -EXACT || range.1 > EXACT {
                out.push(Doubt::Overflow { node: i });
            }
            continue;
        }
        let arithmetic =
            matches!(node.op.as_str(), "add" | "sub" | "mul" | "pow" | "shift_left" | "cumsum" | "reduce_sum");
        let cut = arithmetic && ins.iter().flatten().any(|r| r.0 <= CUT.0 || r.1 >= CUT.1);
        let wide = range.0 < f64::from(i32::MIN) || range.1 > f64::from(i32::MAX);
        if arithmetic && (wide || cut)
            || node.op == "modulo" && ins.iter().flatten().any(|r| r.1 >= CUT.1 || r.0 <= CUT.0)
        {
            out.push(Doubt::Overflow { node: i });
        }
    }
    out
}

fn constant(t: &Tensor) -> Option<Range> {
    let (low, high) = range_of(t)?;
    // A 64-bit constant that does not fit stands as the nearest that does.
    let cut = t.dtype() == DType::I32;
    let low = if cut && low == f64::from(i32::MIN) { CUT.0 } else { low };
    let high = if cut && high == f64::from(i32::MAX) { CUT.1 } else { high };
    Some((low, high))
}

/// The smallest and largest element of a tensor of numbers.
fn range_of(t: &Tensor) -> Option<Range> {
    let hull = |mut xs: Box<dyn Iterator<Item = f64> + '_>| {
        let first = xs.next()?;
        Some(xs.fold((first, first), |(a, b), x| (a.min(x), b.max(x))))
    };
    match t {
        Tensor::I32(x) => hull(Box::new(x.iter().map(|&x| f64::from(x)))),
        Tensor::F32(x) => hull(Box::new(x.iter().map(|&x| f64::from(x)))),
        Tensor::Bool(_) => None,
    }
}

/// The range of a node's result, from those of its operands.
fn result(graph: &Graph, node: &Node, ins: &[Option<Range>]) -> Option<Range> {
    let one = |i: usize| ins.get(i).copied().flatten();
    let whole = graph.ty(node.outputs[0]).dtype == DType::I32;
    let corners = |f: &dyn Fn(f64, f64) -> f64| -> Option<Range> {
        let ((a, b), (c, d)) = (one(0)?, one(1)?);
        let all = [f(a, c), f(a, d), f(b, c), f(b, d)];
        Some((all.iter().copied().fold(f64::INFINITY, f64::min), all.iter().copied().fold(f64::NEG_INFINITY, f64::max)))
    };
    let hull = |parts: &[usize]| -> Option<Range> {
        let all: Option<Vec<Range>> = parts.iter().map(|&i| one(i)).collect();
        all?.into_iter().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    };
    match node.op.as_str() {
        "add" => corners(&|a, b| a + b),
        "sub" => corners(&|a, b| a - b),
        "mul" => corners(&|a, b| a * b),
        "shift_left" => corners(&|a, b| a * b.clamp(0.0, 64.0).exp2()),
        "shift_right" | "bit_and" if one(0).is_some_and(|(a, _)| a >= 0.0) => one(0).map(|(_, b)| (0.0, b)),
        // One bound is enough for half a range.
        "min" | "max" => {
            let open = Some((f64::NEG_INFINITY, f64::INFINITY));
            let (a, b) = (one(0).or(open)?, one(1).or(open)?);
            let pick = if node.op == "min" { f64::min } else { f64::max };
            Some((pick(a.0, b.0), pick(a.1, b.1)))
        }
        "pow" => one(1).filter(|e| e.0 == e.1 && e.0 >= 0.0).and_then(|_| {
            let (low, high) = corners(&f64::powf)?;
            let zero = one(0)?.0 <= 0.0;
            Some((if zero { low.min(0.0) } else { low }, high))
        }),
        "neg" => one(0).map(|(a, b)| (-b, -a)),
        "abs" => {
            one(0).map(|(a, b)| (if a <= 0.0 && b >= 0.0 { 0.0 } else { a.abs().min(b.abs()) }, a.abs().max(b.abs())))
        }
        "sign" => Some((-1.0, 1.0)),
        "modulo" if whole => one(1).and_then(|(c, d)| {
            let most = c.abs().max(d.abs());
            (most < CUT.1 && (c > 0.0 || d < 0.0)).then_some(if c > 0.0 {
                (0.0, most - 1.0)
            } else {
                (1.0 - most, 0.0)
            })
        }),
        "div" => {
            let (_, (c, d)) = (one(0)?, one(1)?);
            let range = corners(&|a, b| a / b)?;
            (c > 0.0 || d < 0.0).then_some(if whole { (range.0.trunc(), range.1.trunc()) } else { range })
        }
        "floor" | "ceil" | "round" => one(0).map(|(a, b)| (a.floor(), b.ceil())),
        "exp" => one(0).map(|(a, b)| (a.exp(), b.exp())),
        "sqrt" => one(0).filter(|r| r.0 >= 0.0).map(|(a, b)| (a.sqrt(), b.sqrt())),
        "sigmoid" => Some((0.0, 1.0)),
        "tanh" | "sin" | "cos" => Some((-1.0, 1.0)),
        "select" => hull(&[1, 2]),
        "concat" => hull(&(0..ins.len()).collect::<Vec<_>>()),
        "reshape" | "broadcast" | "transpose" | "slice" | "reduce_max" | "reduce_min" | "gather" => one(0),
        "unslice" | "scatter_add" => one(0).map(|(a, b)| (a.min(0.0), b.max(0.0))),
        "cast" => one(0).map(|(a, b)| if whole { (a.trunc(), b.trunc()) } else { (a, b) }),
        "cumsum" => {
            let n = graph.shape(node.inputs[0])[1] as f64;
            one(0).map(|(a, b)| (a.min(0.0) * n, b.max(0.0) * n))
        }
        "reduce_sum" => {
            let n = (graph.shape(node.inputs[0]).elements() / graph.shape(node.outputs[0]).elements().max(1)) as f64;
            one(0).map(|(a, b)| (a.min(a * n), b.max(b * n)))
        }
        "argmax" | "argsort" => Some((0.0, graph.shape(node.inputs[0])[1] as f64 - 1.0)),
        _ => None,
    }
}

/// The range of each input over a data set, padding and what is made for it included.
fn input_ranges(data: &Dataset, feed: &Feed) -> HashMap<String, Range> {
    let mut out: HashMap<String, Range> = HashMap::new();
    for input in &feed.inputs {
        let range = match (data.integers(&input.name), data.tensor(&input.name)) {
            (Some((low, high)), _) => Some((low as f64, high as f64)),
            (None, Some(t)) => range_of(t),
            (None, None) => match input.name.as_str() {
                "attention_mask" => Some((0.0, 1.0)),
                "token_type_ids" => Some((0.0, 0.0)),
                "position_ids" => Some((0.0, data.positions().saturating_sub(1) as f64)),
                _ => None,
            },
        };
        out.extend(range.map(|r| (input.name.clone(), r)));
    }
    out
}
