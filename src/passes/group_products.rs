//! Horizontal fusion: products of low rank that read one input become one node, which reads it once: what adapters on queries, keys and
//! values (or on a gate and its fellow) compute from it, and the gradients of their first factors. A scale goes along.

use super::rewrite::Rewriter;
use crate::ir::{Attr, Attrs, BuildError, Def, Graph, Node, Value};
use crate::ops::GROUP;
use std::collections::BTreeMap;

/// The most columns of one product.
const NARROW: usize = 64;

/// One product as a member of a group.
struct Member {
    node: usize,
    /// The scale that goes along, if there is one.
    scale: Option<usize>,
    other: Value,
    result: Value,
    /// The last node that it needs, and the first that needs it.
    after: Option<usize>,
    before: usize,
}

/// What members have in common: the operand that they share, the attributes of the group and the shape of the other operand.
type Kind = (Value, String, Vec<usize>);

/// The operand that members share, the attributes of their group, and them.
type Group<'a> = (Value, &'a Attrs, &'a [Member]);

/// Groups products.
pub fn group_products(graph: &Graph) -> Result<Graph, BuildError> {
    let (uses, readers) = (graph.uses(), readers(graph));
    let mut kinds: BTreeMap<Kind, (Attrs, Vec<Member>)> = BTreeMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some((kind, attrs, member)) = member(graph, &uses, &readers, i, node) {
            kinds.entry(kind).or_insert_with(|| (attrs, vec![])).1.push(member);
        }
    }
    // Groups by the node that they go before, and what they replace.
    let mut groups: BTreeMap<usize, Vec<Group>> = BTreeMap::new();
    let mut replaced = vec![false; graph.nodes.len()];
    for ((shared, ..), (attrs, members)) in &kinds {
        let mut rest = &members[..];
        while let Some(first) = rest.first() {
            let together = |n: &usize| place(&rest[..*n]).is_some();
            let n = (1..=rest.len().min(GROUP)).rev().find(together).unwrap_or(1);
            let (group, others) = rest.split_at(n);
            rest = others;
            if let (2.., Some(at)) = (n, place(group)) {
                groups.entry(at.max(first.node)).or_default().push((*shared, attrs, group));
                group.iter().flat_map(|m| [Some(m.node), m.scale]).flatten().for_each(|i| replaced[i] = true);
            }
        }
    }
    let mut r = Rewriter::new(graph);
    for (i, node) in graph.nodes.iter().enumerate() {
        for (shared, attrs, group) in groups.remove(&i).unwrap_or_default() {
            let inputs: Vec<Value> =
                std::iter::once(shared).chain(group.iter().map(|m| m.other)).map(|v| r.get(v)).collect();
            r.b.set_origin(graph.nodes[group[0].node].origin.clone());
            let attrs = attrs.clone().with("group", Attr::Int(group.len() as i64));
            let results = r.b.emit_all("matmul_group", &inputs, attrs)?;
            group.iter().zip(results).for_each(|(m, y)| r.set(m.result, y));
        }
        if !replaced[i] {
            r.copy(node);
        }
    }
    Ok(r.finish())
}

/// The first node that a group can go before, if there is such a one.
fn place(group: &[Member]) -> Option<usize> {
    let from = group.iter().map(|m| m.after.map_or(0, |i| i + 1)).max()?;
    let to = group.iter().map(|m| m.before).min()?;
    (from <= to).then_some(from)
}

/// For each value, the first node that reads it.
fn readers(graph: &Graph) -> Vec<usize> {
    let mut first = vec![graph.nodes.len(); graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        node.inputs.iter().for_each(|v| first[v.index()] = i);
    }
    first
}

fn member(graph: &Graph, uses: &[usize], readers: &[usize], i: usize, node: &Node) -> Option<(Kind, Attrs, Member)> {
    let (true, &[a, b]) = (node.op == "matmul", &node.inputs[..]) else { return None };
    let &[m, n] = &graph.shape(node.outputs[0])[..] else { return None };
    let (trans_a, trans_b) = (node.attrs.flag("trans_a"), node.attrs.flag("trans_b"));
    let narrow = |x: usize, y: usize| x <= NARROW && x.is_multiple_of(4) && 4 * x <= y;
    // A product of few rows is one of few columns the other way round.
    let (shared, other, flags) = match (narrow(n, m), narrow(m, n)) {
        (true, _) => (a, b, [trans_a, trans_b, false]),
        (_, true) => (b, a, [!trans_b, !trans_a, true]),
        _ => return None,
    };
    let mut result = node.outputs[0];
    let mut scale = None;
    let mut attrs = ["trans_a", "trans_b", "trans_y"]
        .into_iter()
        .zip(flags)
        .fold(Attrs::new(), |attrs, (name, flag)| attrs.with(name, Attr::Bool(flag)));
    if node.attrs.flag("halves") {
        attrs = attrs.with("halves", Attr::Bool(true));
    }
    let reader = readers[result.index()];
    if uses[result.index()] == 1
        && let Some(times) = graph.nodes.get(reader).filter(|n| n.op == "mul")
        && let Some((_, c)) = graph.either(times.outputs[0], "mul").into_iter().find(|(x, _)| *x == result)
        && let Some(c) = graph.splat(c)
        && graph.shape(times.outputs[0]) == graph.shape(result)
    {
        (result, scale) = (times.outputs[0], Some(reader));
        attrs = attrs.with("scale", Attr::Float(c as f64));
    }
    let made = |v: Value| match graph.values[v.index()].def {
        Def::Node { node, .. } => Some(node),
        Def::Leaf(_) => None,
    };
    let kind = (shared, format!("{attrs:?}"), graph.shape(other).to_vec());
    let (after, before) = ([a, b].into_iter().filter_map(made).max(), readers[result.index()]);
    Some((kind, attrs, Member { node: i, scale, other, result, after, before }))
}
