//! Reads a model. The whole file is checked before any part of it is trusted.

use super::element::ElementType;
use super::external_data::Opener;
use super::model::{Data, Initializer, Item, Model, NodeId, next_revision};
use super::node::Node;
use super::wire::{self, Message as Kind, WireError};
use crate::file_kind::{self, Wanted};
use onnx_protobuf::{GraphProto, Message, ModelProto, TensorProto, tensor_proto::DataLocation};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a file cannot be read as a model.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot open {}: {error}\nhint: check the path", path.display())]
    Open { path: PathBuf, error: std::io::Error },
    #[error("{} is not an ONNX model: {why}\nhint: export one with torch.onnx.export, or check the path", path.display())]
    NotOnnx { path: PathBuf, why: String },
    #[error("{} is not an ONNX model but {kind}\nhint: {}", path.display(), kind.hint(Wanted::Model))]
    Other { path: PathBuf, kind: file_kind::Kind },
    #[error("cannot open {}: {holds}", path.display())]
    Folder { path: PathBuf, holds: String },
    #[error("{} is truncated: {error}\nhint: copy or download the file again", path.display())]
    Truncated { path: PathBuf, error: WireError },
    #[error("{} is damaged: {why}\nhint: export it again, or copy or download the file again", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error(
        "{}: tensor '{tensor}' keeps its data in {}: {error}\nhint: put the data file beside the model under that name",
        model.display(), file.display()
    )]
    ExternalFile { model: PathBuf, tensor: String, file: PathBuf, error: std::io::Error },
    #[error("{}: the external data of tensor '{tensor}' is unusable: {why}", model.display())]
    External { model: PathBuf, tensor: String, why: String },
}

/// Reads a model. External data is mapped, not loaded.
pub fn read(path: &Path) -> Result<Model, ReadError> {
    let open = |error| ReadError::Open { path: path.to_path_buf(), error };
    if path.is_dir() {
        return Err(ReadError::Folder { path: path.to_path_buf(), holds: file_kind::folder(path) });
    }
    let file = std::fs::File::open(path).map_err(open)?;
    // SAFETY: a mapped file must not shrink while in use. Our own outputs never overwrite a file in place (they are
    // renamed over it, which leaves this mapping whole); another program that cuts a model short while it is being read
    // would end this process, which is the accepted price of not copying gigabytes of weights.
    let source = Arc::new(unsafe { memmap2::Mmap::map(&file) }.map_err(open)?);
    parse(path, source.clone()).map_err(|error| match (error, file_kind::kind(&source)) {
        // What is damaged or cut short may still begin as a model does.
        (error, None | Some(file_kind::Kind::Onnx)) => error,
        (ReadError::NotOnnx { .. } | ReadError::Truncated { .. } | ReadError::Damaged { .. }, Some(kind)) => {
            ReadError::Other { path: path.to_path_buf(), kind }
        }
        (error, Some(_)) => error,
    })
}

fn parse(path: &Path, source: Arc<memmap2::Mmap>) -> Result<Model, ReadError> {
    let bytes: &[u8] = &source;
    let damaged = |why: String| ReadError::Damaged { path: path.to_path_buf(), why };
    let not_onnx = |why: String| ReadError::NotOnnx { path: path.to_path_buf(), why };
    let wire_error = |error: WireError| match error {
        WireError::Truncated { .. } | WireError::Varint { .. } if looks_like_onnx(bytes) => {
            ReadError::Truncated { path: path.to_path_buf(), error }
        }
        _ if looks_like_onnx(bytes) => damaged(error.to_string()),
        _ => not_onnx(error.to_string()),
    };
    wire::check(bytes, 0..bytes.len(), Kind::Model).map_err(wire_error)?;
    let top = wire::fields(bytes, 0..bytes.len()).map_err(wire_error)?;
    let graphs: Vec<_> = top.iter().filter(|f| f.number == 7 && f.wire == wire::BYTES).collect();
    let [graph] = graphs[..] else {
        return Err(not_onnx(format!("it holds {} graphs, not one", graphs.len())));
    };
    let others: Vec<Range<usize>> = top.iter().filter(|f| *f != graph).map(|f| f.all.clone()).collect();
    let header = join(bytes, &others);
    let header = ModelProto::parse_from_bytes(&header).map_err(|e| not_onnx(e.to_string()))?;
    if header.opset_import.is_empty() {
        return Err(not_onnx("it imports no operator set".into()));
    }

    let (mut items, mut rest) = (Vec::new(), Vec::new());
    let (mut nodes, mut node_spans) = (BTreeMap::new(), HashMap::new());
    let mut initializers = HashMap::new();
    let mut external = Opener::new(path);
    for f in wire::fields(bytes, graph.payload.clone()).map_err(wire_error)? {
        match f.number {
            1 => {
                let id = NodeId(nodes.len());
                let node = Node::parse(bytes[f.payload.clone()].to_vec());
                nodes.insert(id, node.map_err(|e| damaged(format!("node {}: {e}", id.0)))?);
                node_spans.insert(id, f.all);
                items.push(Item::Node(id));
            }
            5 => {
                let (name, t) = initializer(bytes, f, &mut external, &damaged)?;
                if initializers.insert(name.clone(), t).is_some() {
                    return Err(damaged(format!("two initializers are called '{name}'")));
                }
                items.push(Item::Initializer(name));
            }
            _ => {
                rest.push(f.all.clone());
                items.push(Item::Other(f.all));
            }
        }
    }
    let signature = GraphProto::parse_from_bytes(&join(bytes, &rest)).map_err(|e| damaged(e.to_string()))?;
    if header.ir_version < 4 {
        // Before IR version 4 an initializer is a graph input too: the two go together.
        for item in &mut items {
            if let Item::Other(range) = item
                && let Some(field) = wire::fields(bytes, range.clone()).ok().and_then(|f| f.into_iter().next())
                && field.number == 11
                && let Ok(info) = onnx_protobuf::ValueInfoProto::parse_from_bytes(&bytes[field.payload])
                && initializers.contains_key(&info.name)
            {
                *item = Item::InitializerInput { name: info.name, span: Some(range.clone()) };
            }
        }
    }
    let (before, after) = others.into_iter().partition(|r| r.start < graph.all.start);
    let mut model = Model {
        path: path.to_path_buf(),
        source: source.clone(),
        before,
        after,
        graph_header: graph.all.start..graph.payload.start,
        graph_len: graph.payload.len(),
        items,
        nodes,
        sorted: None,
        node_spans,
        initializers,
        constants: HashMap::new(),
        header,
        signature,
        metadata: BTreeMap::new(),
        revision: next_revision(),
    };
    elsewhere(&model)?;
    super::inline::inline(&mut model).map_err(damaged)?;
    model.sorted = order(&model).map_err(damaged)?;
    let held = model.nodes().filter(|(_, n)| n.op_type() == "Constant" && n.attr_tensor("value").is_some());
    model.constants = held.filter_map(|(id, n)| Some((n.outputs().first()?.clone(), id))).collect();
    Ok(model)
}

/// Tensors whose elements are where nothing here looks for them: sparse initializers, and tensors inside nodes that keep their
/// data in another file. An error names the first.
fn elsewhere(model: &Model) -> Result<(), ReadError> {
    let refuse = |tensor: &str, why: String| {
        Err(ReadError::External { model: model.path.clone(), tensor: tensor.to_string(), why })
    };
    if let Some(sparse) = model.signature.sparse_initializer.first() {
        let name = sparse.values.as_ref().map_or("", |v| v.name.as_str());
        let why = "it is a sparse initializer, which is not supported\n\
                   hint: write it as a dense initializer (onnx.numpy_helper.from_array) and save the model again";
        return refuse(name, why.into());
    }
    let functions = model.header.functions.iter().flat_map(|f| &f.node);
    for proto in model.nodes.values().map(Node::proto).chain(functions) {
        let Some(t) = super::node::external_inside(proto) else { continue };
        let label = if proto.name.is_empty() { proto.output.first() } else { Some(&proto.name) };
        let why = format!(
            "it is inside node '{}' ({}), where external data is not supported\n\
             hint: load and save the model with onnx.load and onnx.save, which put the data inside the file",
            label.map_or("", String::as_str),
            proto.op_type
        );
        return refuse(if t.name.is_empty() { "value" } else { &t.name }, why);
    }
    Ok(())
}

fn join(bytes: &[u8], ranges: &[Range<usize>]) -> Vec<u8> {
    ranges.iter().flat_map(|r| &bytes[r.clone()]).copied().collect()
}

/// A ModelProto begins with its IR version (`08` and a small number) in every exporter's files.
fn looks_like_onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, version, ..] if (1..=32).contains(version)) || matches!(bytes, [0x3a, ..])
}

fn initializer(
    bytes: &[u8],
    field: wire::Field,
    external: &mut Opener,
    damaged: &dyn Fn(String) -> ReadError,
) -> Result<(String, Initializer), ReadError> {
    let fields = wire::fields(bytes, field.payload.clone()).map_err(|e| damaged(e.to_string()))?;
    let kept: Vec<Range<usize>> = fields.iter().filter(|f| f.number != 9).map(|f| f.all.clone()).collect();
    let raw = fields.iter().rfind(|f| f.number == 9).map(|f| f.payload.clone());
    let header = TensorProto::parse_from_bytes(&join(bytes, &kept)).map_err(|e| damaged(e.to_string()))?;
    let name = header.name.clone();
    let data = if header.data_location.enum_value() == Ok(DataLocation::EXTERNAL) {
        let (file, range) = external.open(&header)?;
        Data::External { file, range }
    } else {
        raw.map_or(Data::Typed, Data::Raw)
    };
    let element = ElementType::from_number(header.data_type);
    if header.dims.iter().any(|&d| d < 0) {
        return Err(damaged(format!("tensor '{name}' has a negative extent")));
    }
    let elements = header.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d as usize));
    let want = elements.and_then(|n| Some(n.checked_mul(element.bits()?)?.div_ceil(8)));
    let have = match &data {
        Data::Raw(r) | Data::External { range: r, .. } => Some(r.len()),
        _ => Some(super::node::typed_bytes(&header, element).len()),
    };
    if element.bits().is_some() && want != have {
        return Err(damaged(format!(
            "tensor '{name}' of {element} {:?} should have {} bytes but has {}",
            header.dims,
            want.map_or("too many".into(), |n| n.to_string()),
            have.unwrap_or(0)
        )));
    }
    Ok((name, Initializer { spans: Some(field), header, data, replaced: None, revision: next_revision() }))
}

/// An order of execution, where the file's own is none. ONNX wants nodes sorted, each reading only what stands before it, but
/// builders write files that are not, and ONNX Runtime takes them.
fn order(model: &Model) -> Result<Option<Vec<NodeId>>, String> {
    let mut known: HashSet<&str> = model.initializers.keys().map(String::as_str).collect();
    known.extend(model.signature.input.iter().map(|i| i.name.as_str()));
    known.extend(model.signature.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name.as_str()));
    let mut makers: HashMap<&str, NodeId> = HashMap::new();
    for (id, node) in model.nodes() {
        for output in node.outputs().iter().filter(|o| !o.is_empty()) {
            if known.contains(output.as_str()) || makers.insert(output, id).is_some() {
                return Err(format!("value '{output}' of node '{}' is defined twice", node.label()));
            }
        }
    }
    if let Some(o) = model
        .signature
        .output
        .iter()
        .find(|o| !known.contains(o.name.as_str()) && !makers.contains_key(o.name.as_str()))
    {
        return Err(format!("output '{}' is not computed by any node", o.name));
    }
    let mut reads: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
    for (id, node) in model.nodes() {
        for input in node.inputs().iter().filter(|i| !i.is_empty() && !known.contains(i.as_str())) {
            let Some(&maker) = makers.get(input.as_str()) else {
                return Err(format!("node '{}' reads '{input}', which nothing before it computes", node.label()));
            };
            reads.entry(id).or_default().push(maker);
        }
        // What graphs inside the node read from outside; names of their own may well be found in no maker.
        let captured = if node.has_subgraph() { node.captured() } else { vec![] };
        reads.entry(id).or_default().extend(captured.iter().filter_map(|c| makers.get(c.as_str())));
    }
    // Each node as soon as what it reads is there, in the file's order otherwise.
    let ids: Vec<NodeId> = model.nodes().map(|(id, _)| id).collect();
    let place: HashMap<NodeId, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let in_order = ids.iter().all(|id| reads[id].iter().all(|m| place[m] < place[id]));
    if in_order {
        return Ok(None);
    }
    let mut waits: HashMap<NodeId, usize> = HashMap::new();
    let mut readers: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
    for id in &ids {
        let mut makers = reads[id].clone();
        makers.sort();
        makers.dedup();
        waits.insert(*id, makers.len());
        makers.into_iter().for_each(|m| readers.entry(m).or_default().push(*id));
    }
    let mut ready: BTreeSet<usize> = ids.iter().filter(|id| waits[id] == 0).map(|id| place[id]).collect();
    let mut sorted = Vec::new();
    while let Some(first) = ready.pop_first() {
        let id = ids[first];
        sorted.push(id);
        for reader in readers.get(&id).into_iter().flatten() {
            let left = waits.get_mut(reader).expect("every node waits for some number");
            *left -= 1;
            if *left == 0 {
                ready.insert(place[reader]);
            }
        }
    }
    match ids.iter().find(|id| waits[id] > 0) {
        Some(stuck) => Err(format!("node '{}' depends on its own output", model.node(*stuck).label())),
        None => Ok(Some(sorted)),
    }
}
