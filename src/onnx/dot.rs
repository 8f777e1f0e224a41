//! A model as a Graphviz graph.

use super::Model;
use petgraph::visit::EdgeRef;

/// Nodes by operator and name; adapters are filled, and edges that lead from one block's adapter to another's are bold.
pub fn dot(model: &Model) -> String {
    let graph = model.graph();
    let mut out = String::from("digraph model {\n  node [shape=box, fontsize=10];\n");
    let block = |id| {
        let name = model.node(id).name().to_string();
        ADAPTER_NODES.iter().find_map(|part| name.find(part).map(|at| name[..at].to_string()))
    };
    for n in graph.node_indices() {
        let id = graph[n];
        let node = model.node(id);
        let style = if block(id).is_some() { ", style=filled, fillcolor=lightblue" } else { "" };
        out += &format!("  n{} [label=\"{}\\n{}\"{style}];\n", id.0, node.operator(), escape(node.name()));
    }
    for e in graph.edge_references() {
        let (from, to) = (graph[e.source()], graph[e.target()]);
        let residual = match (block(from), block(to)) {
            (Some(a), Some(b)) => a != b,
            _ => model.node(to).name().ends_with(".residual"),
        };
        let style = if residual { " [color=red, penwidth=2]" } else { "" };
        out += &format!("  n{} -> n{}{style};\n", from.0, to.0);
    }
    out + "}\n"
}

/// Parts of the names that injection gives its nodes.
const ADAPTER_NODES: &[&str] = &[".lora_", ".residual"];

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
