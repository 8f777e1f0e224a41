//! Epilogue fusion: elementwise operations on a product become what the product ends in, while its sums are in registers or a near
//! cache: activations, gates, their gradients, scales. Every reader that can join does; where others remain, the product itself is a
//! result too.

use super::rewrite::Rewriter;
use crate::ir::{Arg, BuildError, Def, Graph, Node, Program, Shape, Type, Value};
use crate::ops;
use crate::ops::elementwise::program_of;
use crate::ops::ending;
use std::collections::{BTreeMap, BTreeSet};

/// Buffers that one kernel may read and write, within the eight storage buffers that every adapter has.
const MAX_BUFFERS: usize = 8;
/// Instructions of one ending, which bounds registers.
const MAX_INSTRS: usize = 48;

/// A product with what it ends in.
struct Group {
    product: usize,
    /// Elementwise nodes, in order; the product is computed where the first of them stands.
    readers: Vec<usize>,
    extras: Vec<Value>,
    program: Program,
    keeps: bool,
}

/// Gives products their endings. `places` below says where each node is computed: where it stands, or where its group is.
pub fn fuse_epilogues(graph: &Graph) -> Result<Graph, BuildError> {
    let groups = groups(graph);
    let at: BTreeMap<usize, &Group> = groups.iter().map(|g| (g.readers[0], g)).collect();
    let joined: BTreeSet<usize> = groups.iter().flat_map(|g| g.readers.iter().copied()).collect();
    // Products that are not computed where they stand, and the reshapes of them before the place where they are.
    let mut late: BTreeMap<Value, Vec<&Node>> =
        groups.iter().map(|g| (graph.nodes[g.product].outputs[0], vec![])).collect();
    let mut r = Rewriter::new(graph);
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some(group) = at.get(&i) {
            let reshapes = emit(&mut r, group)?.then(|| late.remove(&product_of(graph, group)));
            reshapes.into_iter().flatten().flatten().for_each(|n| r.copy(n));
        } else if joined.contains(&i) || late.contains_key(&node.outputs[0]) {
            // Elsewhere.
        } else if node.op == "reshape"
            && let Some(waiting) = late.get_mut(&graph.through_reshapes(node.inputs[0]))
        {
            waiting.push(node);
        } else {
            r.copy(node);
        }
    }
    Ok(r.finish())
}

fn product_of(graph: &Graph, group: &Group) -> Value {
    graph.nodes[group.product].outputs[0]
}

fn groups(graph: &Graph) -> Vec<Group> {
    // Who reads each value, whatever it was reshaped to.
    let mut readers: Vec<Vec<usize>> = vec![vec![]; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate().filter(|(_, n)| n.op != "reshape") {
        node.inputs.iter().for_each(|&v| readers[graph.through_reshapes(v).index()].push(i));
    }
    let fetched: BTreeSet<Value> = graph.outputs.iter().map(|o| graph.through_reshapes(o.value)).collect();
    let mut places: Vec<usize> = (0..graph.nodes.len()).collect();
    let mut taken = BTreeSet::new();
    let mut all = Vec::new();
    // The later of two products that one operation reads takes it.
    for (m, node) in graph.nodes.iter().enumerate().rev() {
        if matches!(node.op.as_str(), "matmul" | "matmul_fused") && node.attrs.get_program().is_none() {
            let mut of = readers[node.outputs[0].index()].clone();
            of.sort_by_key(|&i| places[i]);
            of.dedup();
            if let Some(group) = group(graph, m, &of, &fetched, &taken, &places) {
                taken.extend(group.readers.iter().copied());
                let place = group.readers[0];
                group.readers.iter().chain([&m]).for_each(|&i| places[i] = place);
                all.push(group);
            }
        }
    }
    all
}

/// What product `m` ends in, if anything.
fn group(
    graph: &Graph,
    m: usize,
    readers: &[usize],
    fetched: &BTreeSet<Value>,
    taken: &BTreeSet<usize>,
    places: &[usize],
) -> Option<Group> {
    let (y, &place) = (graph.nodes[m].outputs[0], readers.first()?);
    let keeps = fetched.contains(&y);
    let mut group = Group { product: m, readers: vec![], extras: vec![], program: Program::default(), keeps };
    for &i in readers {
        let more = if taken.contains(&i) { None } else { join(graph, &group, i, place, places) };
        match more {
            Some((extras, program)) => {
                (group.extras, group.program) = (extras, program);
                group.readers.push(i);
            }
            // The product is computed no earlier than there.
            None if i == place => return None,
            None => group.keeps = true,
        }
    }
    let buffers = |g: &Group| graph.nodes[m].inputs.len() + g.extras.len() + g.program.outputs.len() + g.keeps as usize;
    (buffers(&group) <= MAX_BUFFERS).then_some(group)
}

/// The extra operands and the program with those of node `i` behind them, if it reads product `y` element by element and all else at
/// `place` already.
fn join(graph: &Graph, group: &Group, i: usize, place: usize, places: &[usize]) -> Option<(Vec<Value>, Program)> {
    let (node, y) = (&graph.nodes[i], product_of(graph, group));
    let alike = |v: Value| {
        let (s, t) = (graph.shape(v), graph.shape(y));
        s.elements() == t.elements() && s.last() == t.last() && graph.ty(v).is_float()
    };
    if !ops::is_elementwise(&node.op) || !node.outputs.iter().all(|&v| alike(v)) {
        return None;
    }
    let (mut extras, mut program) = (group.extras.clone(), group.program.clone());
    let mut numbers = Vec::new();
    for &v in &node.inputs {
        let root = graph.through_reshapes(v);
        if root == y && graph.shape(v).elements() == graph.shape(y).elements() {
            numbers.push(0);
            continue;
        }
        let early = match graph.values[root.index()].def {
            Def::Node { node, .. } => places[node] < place && root != y,
            Def::Leaf(_) => true,
        };
        shape_of(graph, v, y, graph.shape(node.outputs[0])).filter(|_| early)?;
        let at = extras.iter().position(|&e| e == v).unwrap_or(extras.len());
        if at == extras.len() {
            extras.push(v);
        }
        numbers.push(1 + at);
    }
    let own = program_of(&node.op, &node.attrs, node.inputs.len(), graph.ty(node.outputs[0]));
    let before = program.instrs.len();
    for instr in &own.instrs {
        let arg = |a: &Arg| match *a {
            Arg::Input(i) => Arg::Input(numbers[i]),
            Arg::Instr(k) => Arg::Instr(before + k),
        };
        let args = instr.args.iter().map(arg).collect();
        program.instrs.push(crate::ir::Instr { args, ..instr.clone() });
    }
    program.outputs.extend(own.outputs.iter().map(|k| before + k));
    let buffers = graph.nodes[group.product].inputs.len() + extras.len() + program.outputs.len();
    (program.instrs.len() <= MAX_INSTRS && buffers < MAX_BUFFERS).then_some((extras, program))
}

/// The shape in which an ending of product `y` reads `v`, which is broadcast to results of shape `out`: as the product, one row, or one
/// element.
fn shape_of(graph: &Graph, v: Value, y: Value, out: &Shape) -> Option<Shape> {
    let (own, full) = (graph.shape(v), graph.shape(y));
    let row = Shape::from([*full.last()?]);
    match own.elements() {
        1 => Some(Shape::from([])),
        n if n == full.elements() && own.last() == out.last() => Some(full.clone()),
        n if n == row.elements() && own.last() == out.last() => Some(row),
        _ => None,
    }
}

/// Adds a product with its ending. Whether the product itself is there afterwards.
fn emit(r: &mut Rewriter, group: &Group) -> Result<bool, BuildError> {
    let graph = r.old;
    let node = &graph.nodes[group.product];
    let y = node.outputs[0];
    r.b.set_origin(node.origin.clone());
    let mut inputs: Vec<Value> = node.inputs.iter().map(|&v| r.get(v)).collect();
    for &v in &group.extras {
        let shape =
            shape_of(graph, v, y, graph.shape(graph.nodes[group.readers[0]].outputs[0])).expect("it was found so");
        let new = r.get(v);
        inputs.push(r.b.reshape(new, shape)?);
    }
    let attrs = ending::attrs(node.attrs.clone(), group.program.clone(), group.extras.len(), group.keeps);
    let mut results = r.b.emit_all("matmul_fused", &inputs, attrs)?.into_iter();
    if group.keeps {
        r.set(y, results.next().expect("the product is kept"));
    }
    for &i in &group.readers {
        for &old in &graph.nodes[i].outputs {
            let ty: &Type = graph.ty(old);
            let new = r.b.reshape(results.next().expect("a result for each"), ty.shape.clone())?;
            r.set(old, new);
        }
    }
    Ok(group.keeps)
}
