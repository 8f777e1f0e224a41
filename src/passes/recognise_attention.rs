//! Finds attention in the products, masks and softmax that exporters and `lower` write it as, and makes it one operation that
//! keeps no scores. Heads of keys that were written out once for each head of queries are read as they were; transposes of the
//! operands and of the result become flags of the layout.
//!
//! Left apart: attention whose scores or probabilities something else reads, or whose bias depends on a parameter.

use super::differentiate::reached;
use super::rewrite::{Rewriter, each_node};
use crate::ir::{Attr, Attrs, BuildError, Graph, Node, Shape, Tensor, Type, Value};
use crate::ops;

pub fn recognise_attention(graph: &Graph) -> Result<Graph, BuildError> {
    recognise(graph, 0)
}

/// Scores of this many words and more are too much to keep, whatever the kernels' speed.
const MANY_SCORES: usize = 1 << 24;

/// As [`recognise_attention`], but leaves attention of few scores in its parts.
pub fn recognise_large_attention(graph: &Graph) -> Result<Graph, BuildError> {
    recognise(graph, MANY_SCORES)
}

fn recognise(graph: &Graph, least: usize) -> Result<Graph, BuildError> {
    let known = Known::of(graph);
    // What the product with the values has on its left.
    let large = |node: &Node| graph.shape(node.inputs[0]).elements() >= least;
    each_node(graph, |r, node| match attention(graph, &known, node).filter(|_| large(node)) {
        Some(found) => rewrite(r, node, &found),
        None => Ok(false),
    })
}

/// What a pattern asks of the whole graph.
struct Known {
    /// Whether a value depends on a parameter.
    trained: Vec<bool>,
    /// The nodes that read a value, and how often it is an output.
    readers: Vec<Vec<usize>>,
    outputs: Vec<usize>,
}

impl Known {
    fn of(graph: &Graph) -> Known {
        let mut outputs = vec![0; graph.values.len()];
        graph.outputs.iter().for_each(|o| outputs[o.value.index()] += 1);
        Known { trained: reached(graph), readers: graph.consumers(), outputs }
    }

    fn read_once(&self, v: Value) -> bool {
        self.readers[v.index()].len() + self.outputs[v.index()] == 1
    }
}

/// An operand as `(B, H, S, D)`: axis i is axis `perm[i]` of `value`, reshaped first where a shape is given, times `scale`.
#[derive(Clone)]
struct View {
    value: Value,
    shape: Option<[usize; 4]>,
    perm: [usize; 4],
    scale: f64,
}

/// `q kᵀ` with what was done to it before the softmax.
struct Scores {
    q: (Value, bool),
    k: (Value, bool),
    scale: f64,
    cap: Option<f64>,
    /// Each with its shape, of four axes, in the order in which they come to the scores.
    biases: Vec<(Bias, Shape)>,
    /// `(B, H, S, T)`, once an axis for B and one for H were seen.
    apart: Option<[usize; 4]>,
}

enum Bias {
    Added(Value),
    /// This number where the condition is as told.
    Where(Value, bool, f32),
}

struct Found {
    q: View,
    k: View,
    v: View,
    scores: Scores,
    safe: bool,
    /// The result's only reader, or the reader of its reshape, exchanges heads and positions.
    turned: bool,
}

/// A number so low that a finite score is lost in it, or -∞.
const HIDDEN: f32 = -1e30;

fn attention(g: &Graph, known: &Known, node: &Node) -> Option<Found> {
    if node.op != "matmul" || node.attrs.flag("trans_a") {
        return None;
    }
    let (mut p, v) = (node.inputs[0], node.inputs[1]);
    let mut apart = four(g.shape(p));
    while let Some(x) = g.operand(p, "reshape") {
        if !known.read_once(p) {
            return None;
        }
        p = x;
        apart = apart.or(four(g.shape(p)));
    }
    let softmax = g.producer(p).filter(|n| n.op == "softmax" && known.read_once(p))?;
    let mut scores = scores(g, known, softmax.inputs[0], apart)?;
    let dims = scores.apart?;
    let [batch, heads, queries, keys] = dims;
    let view = |operand: (Value, bool), rows: usize, shares: bool| view(g, operand, [batch, heads, rows], shares);
    let (q, k) = (view(scores.q, queries, false)?, view(scores.k, keys, true)?);
    let v = view((v, node.attrs.flag("trans_b")), keys, true)?;
    scores.scale *= q.scale * k.scale;
    // A factor of the values is one of the result.
    if v.scale != 1.0 {
        return None;
    }
    Some(Found { q, k, v, scores, safe: softmax.attrs.flag("safe"), turned: turned(g, known, node.outputs[0], dims) })
}

fn four(shape: &Shape) -> Option<[usize; 4]> {
    shape[..].try_into().ok()
}

/// The value, and its factor, if `v` is a product with or a quotient by one number.
fn scaled(g: &Graph, v: Value) -> Option<(Value, f64)> {
    let number = |c: Value| g.splat(c).filter(|_| g.shape(c).elements() == 1).map(f64::from);
    let product = g.either(v, "mul").into_iter().find_map(|(x, c)| Some((x, number(c)?)));
    let quotient = || g.inputs_of(v, "div").and_then(|i| Some((i[0], 1.0 / number(i[1])?)));
    product.or_else(quotient).filter(|(x, _)| g.shape(*x) == g.shape(v))
}

/// The scores that end in `v`, whose only reader has asked.
fn scores(g: &Graph, known: &Known, v: Value, apart: Option<[usize; 4]>) -> Option<Scores> {
    if !known.read_once(v) {
        return None;
    }
    let apart = apart.or(four(g.shape(v)).filter(|_| g.producer(v).is_some()));
    if let Some(x) = g.operand(v, "reshape") {
        // Rows stay rows.
        return scores(g, known, x, apart).filter(|_| g.shape(x).last() == g.shape(v).last());
    }
    if let Some(found) = product(g, known, v, apart) {
        return Some(found);
    }
    let biased = |x: Value, bias: Bias, of: Value| {
        let shape = widened(g.shape(v), g.shape(of), apart)?;
        let mut found =
            scores(g, known, x, apart).filter(|_| g.shape(x) == g.shape(v) && !known.trained[of.index()])?;
        found.biases.push((bias, shape));
        Some(found)
    };
    if let Some(&[condition, a, b]) = g.inputs_of(v, "select") {
        let low = |c: Value| g.splat(c).filter(|&c| c <= HIDDEN);
        return match (low(a), low(b)) {
            (Some(low), None) => biased(b, Bias::Where(condition, true, low), condition),
            (None, Some(low)) => biased(a, Bias::Where(condition, false, low), condition),
            _ => None,
        };
    }
    g.either(v, "add").into_iter().find_map(|(x, bias)| biased(x, Bias::Added(bias), bias))
}

/// A bias's shape with four axes, where scores of `shape` stand for `(B, H, S, T)`.
fn widened(shape: &Shape, bias: &Shape, apart: Option<[usize; 4]>) -> Option<Shape> {
    let lead = shape.len().checked_sub(bias.len())?;
    let mut own: Vec<usize> = vec![1; lead];
    own.extend(&bias[..]);
    match (&own[..], apart) {
        (&[_, _, _, _], _) => Some(Shape(own)),
        (&[1, s, t], _) => Some(Shape(vec![1, 1, s, t])),
        (&[n, s, t], Some([b, h, ..])) if n == b * h => Some(Shape(vec![b, h, s, t])),
        _ => None,
    }
}

/// `scale · q kᵀ`, or that under a cap.
fn product(g: &Graph, known: &Known, v: Value, apart: Option<[usize; 4]>) -> Option<Scores> {
    let (mut v, mut scale, mut cap) = (v, 1.0, None);
    loop {
        if !known.read_once(v) {
            return None;
        }
        if let Some((x, factor)) = scaled(g, v) {
            (v, scale) = (x, scale * factor);
        } else if let (Some(x), None) = (g.operand(v, "tanh"), cap) {
            (v, cap, scale) = (x, Some(scale), 1.0);
        } else {
            break;
        }
    }
    let node = g.producer(v).filter(|n| n.op == "matmul")?;
    let shape = g.shape(v);
    let apart = match (&shape[..], apart) {
        (&[b, h, s, t], _) => [b, h, s, t],
        (&[n, s, t], Some(a)) if n == a[0] * a[1] && [s, t] == a[2..] => a,
        (&[n, s, t], None) => [n, 1, s, t],
        _ => return None,
    };
    Some(Scores {
        q: (node.inputs[0], node.attrs.flag("trans_a")),
        // Keys stand in rows where the product reads them transposed.
        k: (node.inputs[1], !node.attrs.flag("trans_b")),
        scale: scale * cap.unwrap_or(1.0),
        cap,
        biases: vec![],
        apart: Some(apart),
    })
}

/// How an operand of a product lies in memory, rows being the last axis if `swapped`; with `shares`, before its heads were
/// written out.
fn view(g: &Graph, (value, swapped): (Value, bool), [batch, heads, rows]: [usize; 3], shares: bool) -> Option<View> {
    let shape = g.shape(value);
    let width = shape[shape.len() - if swapped { 2 } else { 1 }];
    let perm = if swapped { [0, 1, 3, 2] } else { [0, 1, 2, 3] };
    let whole = if swapped { [batch, heads, width, rows] } else { [batch, heads, rows, width] };
    if shape.elements() != batch * heads * rows * width {
        return None;
    }
    let mut view = View { value, shape: (shape.len() != 4).then_some(whole), perm, scale: 1.0 };
    let mut shares = shares;
    loop {
        if let Some((x, factor)) = scaled(g, view.value) {
            view.value = x;
            view.scale *= factor;
            continue;
        }
        if let Some((x, fewer)) = before_reshapes(g, &view, shares) {
            (view.value, view.shape) = (x, fewer);
            shares &= fewer.is_none();
            continue;
        }
        match g.producer(view.value) {
            Some(n) if n.op == "transpose" && view.shape.is_none() => {
                let inner = n.attrs.sizes("perm");
                view.perm = view.perm.map(|p| inner[p]);
                view.value = n.inputs[0];
            }
            _ => return Some(view),
        }
    }
}

/// What a view's value was before it was reshaped: with the same four axes, or with fewer heads and this shape.
fn before_reshapes(g: &Graph, view: &View, shares: bool) -> Option<(Value, Option<[usize; 4]>)> {
    let whole = view.shape.or(four(g.shape(view.value)))?;
    let mut v = view.value;
    while let Some(x) = g.operand(v, "reshape") {
        if g.shape(x)[..] == whole {
            return Some((x, None));
        }
        if let (Some((x, fewer)), true) = (repeated(g, x, whole, view.perm[1]), shares) {
            return Some((x, Some(fewer)));
        }
        v = x;
    }
    None
}

/// The operand, and its shape of four axes, if `v` writes each head of `axis` out several times in a row.
fn repeated(g: &Graph, v: Value, wide: [usize; 4], axis: usize) -> Option<(Value, [usize; 4])> {
    let x = g.operand(v, "broadcast")?;
    let (heads, times) = (*g.shape(v).get(axis)?, *g.shape(v).get(axis + 1)?);
    let split = |times: usize| {
        let mut axes = wide.to_vec();
        axes.splice(axis..axis + 1, [heads, times]);
        axes
    };
    let mut fewer = wide;
    fewer[axis] = heads;
    (g.shape(v)[..] == split(times) && g.shape(x)[..] == split(1)).then_some((x, fewer))
}

fn turned(g: &Graph, known: &Known, y: Value, [b, h, s, _]: [usize; 4]) -> bool {
    let reader = |v: Value| known.readers[v.index()].first().filter(|_| known.read_once(v)).map(|&n| &g.nodes[n]);
    let next = match reader(y) {
        Some(n) if n.op == "reshape" && g.shape(n.outputs[0])[..].starts_with(&[b, h, s]) => reader(n.outputs[0]),
        other => other,
    };
    next.is_some_and(|n| n.op == "transpose" && n.attrs.sizes("perm") == [0, 2, 1, 3])
}

fn rewrite(r: &mut Rewriter, node: &Node, f: &Found) -> Result<bool, BuildError> {
    r.b.set_origin(node.origin.clone());
    let mut attrs = Attrs::new().with("scale", Attr::Float(f.scores.scale));
    if let Some(cap) = f.scores.cap {
        attrs = attrs.with("cap", Attr::Float(cap));
    }
    if f.safe {
        attrs = attrs.with("safe", Attr::Bool(true));
    }
    let mut inputs = Vec::new();
    for (view, flag) in [(&f.q, "seq_q"), (&f.k, "seq_k"), (&f.v, "seq_v")] {
        let mut x = r.get(view.value);
        if let Some(shape) = view.shape {
            x = r.b.reshape(x, shape)?;
        }
        match view.perm {
            [0, 1, 2, 3] => {}
            [0, 2, 1, 3] => attrs = attrs.with(flag, Attr::Bool(true)),
            perm => x = r.b.transpose(x, &perm)?,
        }
        inputs.push(x);
    }
    if f.turned {
        attrs = attrs.with("seq_y", Attr::Bool(true));
    }
    let mut bias: Option<Value> = None;
    for (one, shape) in &f.scores.biases {
        bias = Some(match *one {
            Bias::Added(v) if r.old.splat(v) == Some(0.0) => continue,
            Bias::Added(v) => {
                let v = r.get(v);
                let one = r.b.reshape(v, shape.clone())?;
                bias.map_or(Ok(one), |sum| r.b.add(one, sum))?
            }
            // What was added before is gone where this number is.
            Bias::Where(condition, held, low) => {
                let condition = r.get(condition);
                let condition = r.b.reshape(condition, shape.clone())?;
                let rest = bias.unwrap_or_else(|| r.b.scalar(0.0));
                let low = r.b.constant(Tensor::scalar(low));
                let (yes, no) = if held { (low, rest) } else { (rest, low) };
                r.b.select(condition, yes, no)?
            }
        });
    }
    inputs.extend(bias);
    let types: Vec<&Type> = inputs.iter().map(|&v| r.b.ty(v)).collect();
    let primitive = ops::find("attention").expect("a primitive");
    if (primitive.infer)(&types, &attrs).is_err() {
        return Ok(false);
    }
    let mut y = r.b.emit("attention", &inputs, attrs)?;
    if f.turned {
        y = r.b.transpose(y, &[0, 2, 1, 3])?;
    }
    let y = r.b.reshape(y, r.old.shape(node.outputs[0]).clone())?;
    r.set(node.outputs[0], y);
    Ok(true)
}
