//! Checks that hold after every pass, in release builds too. All violations are reported, with node names:
//!
//! 1. every value is a leaf or the output of the node that says so, and every node's outputs point back at it;
//! 2. a node reads only leaves and outputs of earlier nodes (static single assignment order);
//! 3. each node's operation exists and its output types are the ones its rule infers from its inputs;
//! 4. a node has the attributes that its operation needs and no unknown ones, each of its type;
//! 5. constants have the type of their value;
//! 6. every output names a value of the graph; no two outputs share a name or a sink;
//! 7. a gradient has the type of its parameter, and a state output the type of that state.

use super::{Def, Graph, Leaf, Rules, Sink, Type, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Checks `graph`; `Err` lists every violation.
pub fn verify(graph: &Graph, rules: &Rules) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    let known = |v: Value| v.index() < graph.values.len();

    for (i, info) in graph.values.iter().enumerate() {
        match &info.def {
            Def::Leaf(Leaf::Constant(t)) if t.ty() != info.ty => {
                errors.push(format!("%{i} is declared {} but its constant is {}", info.ty, t.ty()));
            }
            Def::Leaf(_) => {}
            Def::Node { node, output } => {
                let back = graph.nodes.get(*node).and_then(|n| n.outputs.get(*output));
                if back.map(|v| v.index()) != Some(i) {
                    errors.push(format!("%{i} says it is output {output} of node {node}, which does not produce it"));
                }
            }
        }
    }

    for (i, node) in graph.nodes.iter().enumerate() {
        let at = format!("node {i} {}{}", node.op, place(&node.origin));
        let mut sound = true;
        for &v in &node.inputs {
            let early = known(v)
                && match graph.values[v.index()].def {
                    Def::Leaf(_) => true,
                    Def::Node { node, .. } => node < i,
                };
            if !early {
                errors.push(format!("{at} reads {v} before it is defined"));
                sound = false;
            }
        }
        for (k, &v) in node.outputs.iter().enumerate() {
            if !known(v) || graph.values[v.index()].def != (Def::Node { node: i, output: k }) {
                errors.push(format!("{at}: output {v} does not belong to it"));
                sound = false;
            }
        }
        let attrs = (rules.attrs)(&node.op, &node.attrs);
        sound &= attrs.is_empty();
        errors.extend(attrs.into_iter().map(|why| format!("{at}: {why}")));
        if !sound {
            continue;
        }
        let ins: Vec<&Type> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
        match (rules.infer)(&node.op, &ins, &node.attrs) {
            Err(e) => errors.push(format!("{at}: {e}")),
            Ok(outs) => {
                let have: Vec<&Type> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
                if have.iter().copied().ne(outs.iter()) {
                    let list = |ts: Vec<String>| ts.join(", ");
                    let want = list(outs.iter().map(Type::to_string).collect());
                    errors.push(format!(
                        "{at}: types are {} but the operation gives {want}",
                        list(have.iter().map(|t| t.to_string()).collect())
                    ));
                }
            }
        }
    }

    let mut leaves: BTreeMap<&str, &Type> = BTreeMap::new();
    for info in &graph.values {
        if let Def::Leaf(Leaf::Parameter(name) | Leaf::State(name)) = &info.def {
            leaves.insert(name, &info.ty);
        }
    }
    let (mut names, mut sinks) = (BTreeSet::new(), BTreeSet::new());
    for out in &graph.outputs {
        if !known(out.value) {
            errors.push(format!("output '{}' is {}, which does not exist", out.name, out.value));
            continue;
        }
        if !names.insert(&out.name) {
            errors.push(format!("two outputs are named '{}'", out.name));
        }
        if let Sink::Gradient(name) | Sink::State(name) = &out.sink {
            if !sinks.insert((matches!(out.sink, Sink::State(_)), name)) {
                errors.push(format!("two outputs go to '{name}'"));
            }
            match leaves.get(name.as_str()) {
                Some(ty) if *ty != graph.ty(out.value) => {
                    errors.push(format!("output '{}' is {} but '{name}' is {ty}", out.name, graph.ty(out.value)))
                }
                _ => {}
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn place(origin: &str) -> String {
    if origin.is_empty() { String::new() } else { format!(" (from '{origin}')") }
}
