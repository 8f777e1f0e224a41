//! Inlines local functions, so that the nodes inside them can be seen and adapted.

use super::model::{Item, Model, NodeId};
use super::node::Node;
use onnx_protobuf::{FunctionProto, GraphProto, NodeProto};
use std::collections::{BTreeMap, HashMap};

/// The most nodes that a model may have after its functions are in place: functions may call functions.
const MAX_NODES: usize = 1_000_000;
/// The most names of values that their nodes may have together.
const MAX_NAMES: usize = 10_000_000;

/// Puts the nodes of local functions where they are called, until no call is left. The functions themselves stay in the file.
pub(super) fn inline(model: &mut Model) -> Result<(), String> {
    let functions: HashMap<(String, String), FunctionProto> =
        model.header.functions.iter().map(|f| ((domain(&f.domain), f.name.clone()), f.clone())).collect();
    if functions.is_empty() {
        return Ok(());
    }
    bound(model, &functions)?;
    let called = |n: &Node| functions.get(&(n.domain().to_string(), n.op_type().to_string()));
    // A function that calls itself would never end: each round goes one level deeper, and there are only so many.
    for _ in 0..=functions.len() {
        if !model.nodes.values().any(|n| called(n).is_some()) {
            return Ok(());
        }
        let mut items = Vec::with_capacity(model.items.len());
        let mut nodes = BTreeMap::new();
        let mut spans = HashMap::new();
        for item in std::mem::take(&mut model.items) {
            let Item::Node(id) = item else {
                items.push(item);
                continue;
            };
            let node = model.nodes.remove(&id).expect("every item has its node");
            let mut keep = |node: Node, span: Option<std::ops::Range<usize>>| {
                let id = NodeId(nodes.len());
                items.push(Item::Node(id));
                spans.extend(span.map(|s| (id, s)));
                nodes.insert(id, node);
            };
            match called(&node) {
                None => keep(node, model.node_spans.get(&id).cloned()),
                Some(f) => {
                    for proto in instance(f, &node) {
                        keep(Node::from_proto(proto), None);
                    }
                }
            }
            if nodes.len() > MAX_NODES {
                return Err(format!("its functions have more than {MAX_NODES} nodes once they are in place"));
            }
        }
        (model.items, model.nodes, model.node_spans) = (items, nodes, spans);
    }
    Err("one of its functions calls itself".into())
}

/// Refuses functions that would be too large once they are in place, before they are.
fn bound(model: &Model, functions: &HashMap<(String, String), FunctionProto>) -> Result<(), String> {
    // What a call puts in place: nodes, and names of values.
    let mut sizes: HashMap<&(String, String), [usize; 2]> = HashMap::new();
    let of = |sizes: &HashMap<&(String, String), [usize; 2]>, nodes: &mut dyn Iterator<Item = (&str, &str, usize)>| {
        nodes.fold([0usize; 2], |[n, names], (domain_, op, values)| {
            let [more, more_names] = sizes.get(&(domain(domain_), op.to_string())).copied().unwrap_or([1, values]);
            [n.saturating_add(more), names.saturating_add(more_names)]
        })
    };
    // As deep as functions may call each other, unless one calls itself.
    let mut settled = false;
    for _ in 0..=functions.len() {
        let mut changed = false;
        for (key, f) in functions {
            let mut nodes =
                f.node.iter().map(|n| (n.domain.as_str(), n.op_type.as_str(), n.input.len() + n.output.len()));
            let size = of(&sizes, &mut nodes);
            changed |= sizes.insert(key, size) != Some(size);
        }
        settled = !changed;
        if settled {
            break;
        }
    }
    if !settled {
        return Err("one of its functions calls itself".into());
    }
    let mut nodes = model.nodes.values().map(|n| (n.domain(), n.op_type(), n.inputs().len() + n.outputs().len()));
    let [nodes, names] = of(&sizes, &mut nodes);
    match nodes > MAX_NODES || names > MAX_NAMES {
        true => {
            Err(format!("its functions have more than {MAX_NODES} nodes, or {MAX_NAMES} names, once they are in place"))
        }
        false => Ok(()),
    }
}

fn domain(d: &str) -> String {
    if d == "ai.onnx" { String::new() } else { d.to_string() }
}

/// The nodes of `f` for one call.
fn instance(f: &FunctionProto, call: &Node) -> Vec<NodeProto> {
    let label = call.label();
    let bound = f.input.iter().enumerate().map(|(i, name)| (name, call.inputs().get(i).cloned().unwrap_or_default()));
    let given = f.output.iter().zip(call.outputs()).map(|(name, actual)| (name, actual.clone()));
    let names: HashMap<String, String> =
        bound.chain(given.filter(|(_, a)| !a.is_empty())).map(|(n, a)| (n.clone(), a)).collect();
    let rename = |name: &String| match names.get(name) {
        _ if name.is_empty() => String::new(),
        Some(actual) => actual.clone(),
        None => format!("{label}/{name}"),
    };
    let proto = call.proto();
    let attribute = |name: &str| {
        let own = proto.attribute.iter().find(|a| a.name == name);
        own.or_else(|| f.attribute_proto.iter().find(|a| a.name == name)).cloned()
    };
    let mut nodes = f.node.clone();
    let mut whole = GraphProto { node: std::mem::take(&mut nodes), ..GraphProto::default() };
    rewrite(&mut whole, &rename, &attribute);
    for n in &mut whole.node {
        if !n.name.is_empty() {
            n.name = format!("{label}/{}", n.name);
        }
    }
    whole.node
}

type Attribute<'a> = dyn Fn(&str) -> Option<onnx_protobuf::AttributeProto> + 'a;

/// Renames every value of a graph and the graphs in it, and fills in attributes that refer to the call's.
fn rewrite(graph: &mut GraphProto, rename: &dyn Fn(&String) -> String, attribute: &Attribute) {
    for n in &mut graph.node {
        n.input.iter_mut().chain(&mut n.output).for_each(|v| *v = rename(v));
        n.attribute.retain_mut(|a| {
            if a.ref_attr_name.is_empty() {
                return true;
            }
            let name = a.name.clone();
            let Some(actual) = attribute(&a.ref_attr_name) else { return false };
            *a = actual;
            a.name = name;
            true
        });
        for a in &mut n.attribute {
            a.g.as_mut().into_iter().chain(&mut a.graphs).for_each(|g| rewrite(g, rename, attribute));
        }
    }
    graph.input.iter_mut().chain(&mut graph.output).for_each(|v| v.name = rename(&v.name));
    graph.initializer.iter_mut().for_each(|t| t.name = rename(&t.name));
}
