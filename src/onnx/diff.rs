//! Compares two ONNX files.

use super::model::{Item, Model};
use super::node::Node;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A tensor that both files have, with other elements or another form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorChange {
    pub name: String,
    /// The module path of the linear node that reads it, in the first file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Element type and shape, in each file.
    pub types: [String; 2],
    /// Elements (of quantised tensors, bytes) that differ; `None` where the shapes differ.
    pub changed: Option<usize>,
    pub elements: usize,
    /// `‖b - a‖ / ‖a‖`, of floats that are not all zero.
    pub relative: Option<f64>,
    /// The largest difference of an element, of floats.
    pub largest: Option<f64>,
    /// NaN and infinities that one file has and the other has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_finite: Option<String>,
}

/// Everything that differs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FileDiff {
    pub tensors: Vec<TensorChange>,
    pub tensors_removed: Vec<String>,
    pub tensors_added: Vec<String>,
    pub tensors_equal: usize,
    /// Nodes that both have, with other inputs, outputs or attributes.
    pub nodes: Vec<String>,
    pub nodes_removed: Vec<String>,
    pub nodes_added: Vec<String>,
    pub nodes_equal: usize,
    /// Nodes that both have stand in another order.
    pub reordered: bool,
    /// Keys of `metadata_props` whose values differ.
    pub metadata: Vec<String>,
    /// Whether anything else of the graph differs: inputs, outputs, annotations.
    pub signature: bool,
    /// Operator sets, in each file, where they differ.
    pub opsets: Option<[String; 2]>,
    /// What else the two files say of themselves: IR version, producer, doc strings.
    pub header: Vec<String>,
}

impl FileDiff {
    /// Whether the files differ in nothing but tensors' elements and metadata.
    pub fn same_graph(&self) -> bool {
        let named = [&self.tensors_removed, &self.tensors_added, &self.nodes, &self.nodes_removed, &self.nodes_added];
        named.iter().all(|n| n.is_empty()) && !self.reordered && !self.signature && self.opsets.is_none()
    }
}

/// Compares two files, elements bit by bit, wherever they are kept.
pub fn diff(a: &Model, b: &Model) -> FileDiff {
    let mut out = FileDiff::default();
    let names = |m: &Model| -> BTreeSet<String> { m.initializers().map(String::from).collect() };
    let (in_a, in_b) = (names(a), names(b));
    out.tensors_removed = in_a.difference(&in_b).cloned().collect();
    out.tensors_added = in_b.difference(&in_a).cloned().collect();
    let linear = super::linear_nodes(a);
    for name in in_a.intersection(&in_b) {
        match tensor(a, b, name) {
            Some(mut change) => {
                change.module = linear.iter().find(|l| l.weight == *name).map(|l| l.path.clone());
                out.tensors.push(change);
            }
            None => out.tensors_equal += 1,
        }
    }
    let nodes = |m: &Model| -> (Vec<String>, HashMap<String, Node>) {
        // Nodes without a name go by their first output.
        let all: Vec<(String, Node)> = m.nodes().map(|(_, n)| (n.label(), n.clone())).collect();
        (all.iter().map(|n| n.0.clone()).collect(), all.into_iter().collect())
    };
    let ((order_a, nodes_a), (order_b, nodes_b)) = (nodes(a), nodes(b));
    out.nodes_removed = order_a.iter().filter(|n| !nodes_b.contains_key(*n)).cloned().collect();
    out.nodes_added = order_b.iter().filter(|n| !nodes_a.contains_key(*n)).cloned().collect();
    let common: Vec<&String> = order_a.iter().filter(|n| nodes_b.contains_key(*n)).collect();
    for name in &common {
        match nodes_a[*name].raw == nodes_b[*name].raw {
            true => out.nodes_equal += 1,
            false => out.nodes.push((*name).clone()),
        }
    }
    out.reordered = order_b.iter().filter(|n| nodes_a.contains_key(*n)).ne(common.iter().copied());
    let keys: BTreeSet<String> = a.metadata_keys().into_iter().chain(b.metadata_keys()).collect();
    out.metadata = keys.into_iter().filter(|k| a.metadata(k) != b.metadata(k)).collect();
    out.signature = others(a) != others(b);
    let (opsets_a, opsets_b) = (opsets(a), opsets(b));
    out.opsets = (opsets_a != opsets_b).then_some([opsets_a, opsets_b]);
    out.header = header(a, b);
    out
}

/// What two files say of themselves, where they differ.
fn header(a: &Model, b: &Model) -> Vec<String> {
    let said = |m: &Model| {
        let h = &m.header;
        [
            ("IR version", h.ir_version.to_string()),
            ("producer", format!("{} {}", h.producer_name, h.producer_version).trim().to_string()),
            ("domain", h.domain.clone()),
            ("model version", h.model_version.to_string()),
            ("the model's doc string", h.doc_string.clone()),
            ("the graph's doc string", m.signature.doc_string.clone()),
            ("the graph's name", m.signature.name.clone()),
        ]
    };
    let both = said(a).into_iter().zip(said(b)).filter(|(x, y)| x.1 != y.1);
    both.map(|((what, x), (_, y))| format!("{what} '{x}', then '{y}'")).collect()
}

fn tensor(a: &Model, b: &Model, name: &str) -> Option<TensorChange> {
    let (x, y) = (a.initializer(name)?, b.initializer(name)?);
    if x.element == y.element && x.dims == y.dims && x.bytes == y.bytes {
        return None;
    }
    let form = |t: &super::TensorView| format!("{} {:?}", t.element, t.dims);
    let mut change = TensorChange {
        name: name.into(),
        module: None,
        types: [form(&x), form(&y)],
        changed: None,
        elements: x.elements(),
        relative: None,
        largest: None,
        not_finite: None,
    };
    if x.dims != y.dims {
        return Some(change);
    }
    match (x.element.is_float() && y.element.is_float(), x.to_f64(), y.to_f64()) {
        (true, Some(p), Some(q)) => {
            let off = |(p, q): (&f64, &f64)| if p == q || p.is_nan() && q.is_nan() { 0.0 } else { q - p };
            let differences: Vec<f64> = p.iter().zip(&q).map(off).collect();
            let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
            change.changed = Some(differences.iter().filter(|d| **d != 0.0).count());
            // Of a tensor of zeros there is no relative change.
            let size = norm(&p.iter().copied().filter(|x| x.is_finite()).collect::<Vec<_>>());
            change.relative = (size != 0.0).then(|| norm(&differences) / size);
            let larger = |m: f64, d: &f64| if m.is_nan() || d.is_nan() { f64::NAN } else { m.max(d.abs()) };
            change.largest = Some(differences.iter().fold(0.0, larger));
            change.not_finite = not_finite(&p, &q);
        }
        _ => change.changed = Some(x.bytes.iter().zip(y.bytes.iter()).filter(|(p, q)| p != q).count()),
    }
    Some(change)
}

/// How many elements are NaN or infinite, of two tensors in which they are not the same.
fn not_finite(p: &[f64], q: &[f64]) -> Option<String> {
    let alike = |(x, y): (&f64, &f64)| x.is_finite() && y.is_finite() || x == y || x.is_nan() && y.is_nan();
    if p.iter().zip(q).all(alike) {
        return None;
    }
    let count = |v: &[f64]| [v.iter().filter(|x| x.is_nan()).count(), v.iter().filter(|x| x.is_infinite()).count()];
    let ([nan_a, inf_a], [nan_b, inf_b]) = (count(p), count(q));
    let said = |what: &str, a: usize, b: usize| (a != b).then(|| format!("{what}: {a} elements, then {b}"));
    let all: Vec<String> = [said("NaN", nan_a, nan_b), said("infinite", inf_a, inf_b)].into_iter().flatten().collect();
    Some(if all.is_empty() { "NaN or infinity in other places".into() } else { all.join("; ") })
}

/// The graph's other fields, in order, as bytes.
fn others(m: &Model) -> Vec<&[u8]> {
    let other = |item: &Item| match item {
        Item::Other(range) => Some(range.clone()),
        _ => None,
    };
    m.items.iter().filter_map(other).map(|r| &m.source[r]).collect()
}

fn opsets(m: &Model) -> String {
    let all: BTreeMap<&str, i64> = m.header.opset_import.iter().map(|o| (o.domain.as_str(), o.version)).collect();
    all.iter()
        .map(|(d, v)| format!("{}{v}", if d.is_empty() { String::new() } else { format!("{d}:") }))
        .collect::<Vec<_>>()
        .join(" ")
}
