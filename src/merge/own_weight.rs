//! Weights that several nodes read: a target whose weight another node needs as it was gets a copy of its own.

use crate::onnx::{Linear, Model, NodeId};
use std::collections::{HashMap, HashSet};

/// The nodes that read a weight, each with the nodes it leads to through changes of layout and type.
type Readers = Vec<(NodeId, Vec<NodeId>)>;

/// Who reads the weight of `l`, and the linear nodes that belong to its target.
fn readers(model: &Model, linear: &[Linear], l: &Linear) -> (Readers, HashSet<NodeId>) {
    let consumers = model.consumers();
    let readers = consumers.get(&l.weight).cloned().unwrap_or_default();
    let mine: HashSet<NodeId> =
        linear.iter().filter(|o| o.path == l.path && o.weight == l.weight).map(|o| o.node).collect();
    (readers.iter().map(|r| (*r, leads(model, &consumers, &mine, *r))).collect(), mine)
}

/// The nodes that a reader of a weight leads to through changes of layout and type.
fn leads(
    model: &Model,
    consumers: &HashMap<String, Vec<NodeId>>,
    mine: &HashSet<NodeId>,
    reader: NodeId,
) -> Vec<NodeId> {
    let (mut open, mut out) = (vec![reader], Vec::new());
    while let Some(id) = open.pop() {
        let node = model.node(id);
        match node.op_type() {
            "Transpose" | "Identity" | "Cast" | "DequantizeLinear" if !mine.contains(&id) => {
                open.extend(node.outputs().iter().flat_map(|o| consumers.get(o).cloned().unwrap_or_default()));
            }
            _ => out.push(id),
        }
    }
    out
}

/// Whether a node that is not the target's depends on its weight.
pub(super) fn is_shared(model: &Model, linear: &[Linear], l: &Linear) -> bool {
    let (ends, mine) = readers(model, linear, l);
    ends.iter().any(|(_, ends)| ends.iter().any(|id| !mine.contains(id)))
        || model.outputs().iter().any(|o| o.name == l.weight)
}

/// The initializer to change for a target: its weight, or a copy of that if another node reads the weight too and does
/// not belong to the target.
pub(super) fn own_weight(
    model: &mut Model,
    linear: &[Linear],
    l: &Linear,
    targets: &HashSet<&str>,
    notes: &mut Vec<String>,
) -> String {
    if !is_shared(model, linear, l) {
        return l.weight.clone();
    }
    let (ends, mine) = readers(model, linear, l);
    let copy = format!("{}.weight.merged", l.path);
    let view = model.initializer(&l.weight).expect("linear nodes read initializers");
    let (element, dims, bytes) = (view.element, view.dims.clone(), view.bytes.to_vec());
    model.add_initializer(&copy, element, &dims, bytes);
    let also = if targets.len() > 1 { " or to another target" } else { "" };
    notes.push(format!(
        "'{}' also belongs to a node that is not adapted{also}: '{}' got its own copy",
        l.weight, l.path
    ));
    // Point the target's own readers at the copy; a reader that leads elsewhere too is given a twin.
    for (reader, ends) in ends {
        if ends.iter().all(|id| mine.contains(id)) {
            model.node_mut(reader).rename_input(&l.weight, &copy);
        } else if ends.iter().any(|id| mine.contains(id)) {
            split_reader(model, reader, &l.weight, &copy, &mine);
        }
    }
    copy
}

/// A Transpose (or its like) of a shared weight feeds both the target and others: the target's nodes get one of their own, and so do
/// further nodes between the two that lead both ways.
fn split_reader(model: &mut Model, reader: NodeId, input: &str, copy: &str, mine: &HashSet<NodeId>) {
    let old = model.node(reader).outputs()[0].clone();
    let taken: HashSet<String> = model.producers().keys().map(|k| k.to_string()).collect();
    let names = (1..).map(|n| if n == 1 { format!("{old}.merged") } else { format!("{old}.merged_{n}") });
    let twin = names.into_iter().find(|n| !taken.contains(n)).expect("there are enough numbers");
    let id = model.twin(reader, &twin);
    model.node_mut(id).rename_input(input, copy);
    let consumers = model.consumers();
    for next in consumers.get(&old).cloned().unwrap_or_default() {
        let ends = leads(model, &consumers, mine, next);
        if ends.iter().all(|end| mine.contains(end)) {
            model.node_mut(next).rename_input(&old, &twin);
        } else if ends.iter().any(|end| mine.contains(end)) {
            split_reader(model, next, &old, &twin, mine);
        }
    }
}
