//! The ONNX file in memory. Whatever this module does not change is written back byte for byte.

use super::element::{ElementType, TensorView};
use super::external_data::ExternalFile;
use super::node::{NewNode, Node, typed_bytes};
use super::wire;
use onnx_protobuf::{GraphProto, Message, ModelProto, StringStringEntryProto, TensorProto};
use petgraph::graph::{DiGraph, NodeIndex};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes of a file, mapped.
pub(super) type Source = Arc<memmap2::Mmap>;

/// Only a hint: pages of a file that is mapped to be read hold nothing that the file does not.
fn forget(map: &memmap2::Mmap, range: &Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: nothing writes to the mapping, so that its pages are the same when they are read again.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}

/// Identifies a node within one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// Where an initializer's elements are.
#[derive(Clone, Debug)]
pub(super) enum Data {
    /// In `raw_data`, at these bytes of the file.
    Raw(Range<usize>),
    /// In one of the typed lists of the header, or nowhere (no elements).
    Typed,
    /// In another file.
    External { file: Arc<ExternalFile>, range: Range<usize> },
    /// In memory: new tensors, and replaced data.
    Memory(Vec<u8>),
}

/// An initializer.
#[derive(Clone, Debug)]
pub(super) struct Initializer {
    /// Its place in the file, or `None` for a new one.
    pub spans: Option<wire::Field>,
    /// The message without `raw_data`.
    pub header: TensorProto,
    pub data: Data,
    /// New elements for a tensor of the file; its place and form stay.
    pub replaced: Option<Vec<u8>>,
    /// Identifies the elements: it changes whenever they do.
    pub revision: u64,
}

/// A field of the file's GraphProto, in order.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Node(NodeId),
    Initializer(String),
    /// The graph input of an initializer, which IR versions before 4 ask for; `None` for one that is new.
    InitializerInput {
        name: String,
        span: Option<Range<usize>>,
    },
    /// A graph input that is new: its place in the signature says the rest.
    Input(String),
    /// A graph output that is new, or of another shape than in the file.
    Output(String),
    /// Any other field, tag and all.
    Other(Range<usize>),
}

/// Name, type and declared shape of a graph input or output.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    pub name: String,
    pub element: ElementType,
    /// `None` where the file gives no shape.
    pub dims: Option<Vec<Dim>>,
}

/// An axis of a declared shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    Fixed(usize),
    Named(String),
    Unknown,
}

/// A model read from a file.
#[derive(Clone, Debug)]
pub struct Model {
    pub(super) path: PathBuf,
    pub(super) source: Source,
    /// Fields of the ModelProto before and after the graph, tag and all.
    pub(super) before: Vec<Range<usize>>,
    pub(super) after: Vec<Range<usize>>,
    /// The graph field's tag and length.
    pub(super) graph_header: Range<usize>,
    pub(super) graph_len: usize,
    pub(super) items: Vec<Item>,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    /// The nodes in an order of execution, where the file has them in another.
    pub(super) sorted: Option<Vec<NodeId>>,
    /// The bytes of nodes that are as the file has them, tag and all.
    pub(super) node_spans: HashMap<NodeId, Range<usize>>,
    pub(super) initializers: HashMap<String, Initializer>,
    /// Constant nodes that hold a tensor, by the value they give.
    pub(super) constants: HashMap<String, NodeId>,
    pub(super) header: ModelProto,
    pub(super) signature: GraphProto,
    /// Entries added to or changed in `metadata_props`; `None` removes one.
    pub(super) metadata: BTreeMap<String, Option<String>>,
    pub(super) revision: u64,
}

/// A number that no other state of any model has.
pub(super) fn next_revision() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Model {
    pub fn path(&self) -> &Path {
        &self.path
    }

    // ---- reading

    /// Identifies the elements of a tensor: copies of a model share it until the tensor is changed in one of them.
    pub fn revision(&self, name: &str) -> u64 {
        self.initializers.get(name).map_or(self.revision, |t| t.revision)
    }

    /// Nodes in an order of execution: the file's own, if it is one.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        let in_file = self.items.iter().filter(|_| self.sorted.is_none()).filter_map(|item| match item {
            Item::Node(id) => Some(*id),
            _ => None,
        });
        let sorted = self.sorted.iter().flatten().copied();
        in_file.chain(sorted).map(|id| (id, &self.nodes[&id]))
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    /// Names of the initializers, in the file's order.
    pub fn initializers(&self) -> impl Iterator<Item = &str> {
        self.items.iter().filter_map(|item| match item {
            Item::Initializer(name) => Some(name.as_str()),
            _ => None,
        })
    }

    pub fn is_initializer(&self, name: &str) -> bool {
        self.initializers.contains_key(name)
    }

    /// Whether the file holds the value's elements: an initializer, or the tensor of a Constant node.
    pub fn is_constant(&self, name: &str) -> bool {
        self.is_initializer(name) || self.constants.contains_key(name)
    }

    /// The files beside the model's own that hold its tensors.
    pub fn external_files(&self) -> BTreeSet<PathBuf> {
        let file = |t: &Initializer| match &t.data {
            Data::External { file, .. } => Some(file.path().to_path_buf()),
            _ => None,
        };
        self.initializers.values().filter_map(file).collect()
    }

    /// Element type and shape of an initializer or of a Constant node's tensor.
    pub fn initializer_type(&self, name: &str) -> Option<(ElementType, Vec<usize>)> {
        let Some(t) = self.initializers.get(name) else {
            let view = self.node(*self.constants.get(name)?).attr_tensor("value")?;
            return Some((view.element, view.dims));
        };
        let t = &t.header;
        Some((ElementType::from_number(t.data_type), t.dims.iter().map(|&d| d.max(0) as usize).collect()))
    }

    /// An initializer, or the tensor of a Constant node.
    pub fn initializer(&self, name: &str) -> Option<TensorView<'_>> {
        let Some((key, t)) = self.initializers.get_key_value(name) else {
            let (key, id) = self.constants.get_key_value(name)?;
            return self.node(*id).attr_tensor("value").map(|view| TensorView { name: key, ..view });
        };
        let (element, dims) = self.initializer_type(name)?;
        let bytes = match (&t.replaced, &t.data) {
            (Some(bytes), _) | (None, Data::Memory(bytes)) => Cow::Borrowed(bytes.as_slice()),
            (None, Data::Raw(range)) => Cow::Borrowed(&self.source[range.clone()]),
            (None, Data::External { file, range }) => Cow::Borrowed(&file.bytes()[range.clone()]),
            (None, Data::Typed) => typed_bytes(&t.header, element),
        };
        Some(TensorView { name: key, element, dims, bytes })
    }

    /// Lets go of the memory that holds an initializer's pages; they are read from the file again where they are needed.
    pub fn release(&self, name: &str) {
        match self.initializers.get(name).map(|t| (&t.replaced, &t.data)) {
            Some((None, Data::Raw(range))) => forget(&self.source, range),
            Some((None, Data::External { file, range })) => forget(file.mapped(), range),
            _ => {}
        }
    }

    /// The version of a domain's operators; 0 if the model does not import it.
    pub fn opset(&self, domain: &str) -> i64 {
        let same = |d: &str| d == domain || domain.is_empty() && d == "ai.onnx";
        self.header.opset_import.iter().find(|o| same(&o.domain)).map_or(0, |o| o.version)
    }

    pub fn ir_version(&self) -> i64 {
        self.header.ir_version
    }

    /// Graph inputs that are not initializers.
    pub fn inputs(&self) -> Vec<Signature> {
        self.signature.input.iter().filter(|i| !self.is_initializer(&i.name)).map(signature).collect()
    }

    pub fn outputs(&self) -> Vec<Signature> {
        self.signature.output.iter().map(signature).collect()
    }

    /// A value of `metadata_props`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(value) => value.as_deref(),
            None => self.header.metadata_props.iter().find(|p| p.key == key).map(|p| p.value.as_str()),
        }
    }

    /// Which node computes each value.
    pub fn producers(&self) -> HashMap<&str, NodeId> {
        let outputs = self.nodes().flat_map(|(id, n)| n.outputs().iter().map(move |o| (o.as_str(), id)));
        outputs.filter(|o| !o.0.is_empty()).collect()
    }

    /// Which nodes read each value, in order, those that read it inside a graph of their own included.
    pub fn consumers(&self) -> HashMap<String, Vec<NodeId>> {
        let mut out: HashMap<String, Vec<NodeId>> = HashMap::new();
        for (id, n) in self.nodes() {
            let captured = if n.has_subgraph() { n.captured() } else { vec![] };
            for name in n.inputs().iter().cloned().chain(captured).filter(|i| !i.is_empty()) {
                let readers = out.entry(name).or_default();
                if readers.last() != Some(&id) {
                    readers.push(id);
                }
            }
        }
        out
    }

    /// The nodes as a graph: an edge carries the value that one computes and the other reads.
    pub fn graph(&self) -> DiGraph<NodeId, String> {
        let mut g = DiGraph::new();
        let index: HashMap<NodeId, NodeIndex> = self.nodes().map(|(id, _)| (id, g.add_node(id))).collect();
        let producers = self.producers();
        for (value, readers) in self.consumers() {
            if let Some(from) = producers.get(value.as_str()) {
                for reader in readers {
                    g.add_edge(index[from], index[&reader], value.clone());
                }
            }
        }
        g
    }

    /// SHA-256 over the file and every byte that its tensors take from other files, in hexadecimal. It is the digest of
    /// what was read: changes made since do not count.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.source[..]);
        for item in &self.items {
            if let Item::Initializer(name) = item
                && let Data::External { file, range } = &self.initializers[name].data
            {
                hash.update(&file.bytes()[range.clone()]);
            }
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    // ---- changing

    /// Puts new nodes right after `anchor`.
    pub fn insert_after(&mut self, anchor: NodeId, new: Vec<NewNode>) -> Vec<NodeId> {
        let place = self.items.iter().position(|i| matches!(i, Item::Node(id) if *id == anchor));
        let place = place.expect("the anchor is a node of this model") + 1;
        let first = self.nodes.keys().last().map_or(0, |id| id.0 + 1);
        let ids: Vec<NodeId> = (first..first + new.len()).map(NodeId).collect();
        for (&id, node) in ids.iter().zip(new) {
            self.nodes.insert(id, node.build());
        }
        self.items.splice(place..place, ids.iter().map(|&id| Item::Node(id)));
        self.sort_after(anchor, &ids);
        ids
    }

    /// Puts new nodes right before `anchor`.
    pub fn insert_before(&mut self, anchor: NodeId, new: Vec<NewNode>) -> Vec<NodeId> {
        let first = self.nodes.keys().last().map_or(0, |id| id.0 + 1);
        let ids: Vec<NodeId> = (first..first + new.len()).map(NodeId).collect();
        for (&id, node) in ids.iter().zip(new) {
            self.nodes.insert(id, node.build());
        }
        let place = self.items.iter().position(|i| matches!(i, Item::Node(id) if *id == anchor));
        let place = place.expect("the anchor is a node of this model");
        self.items.splice(place..place, ids.iter().map(|&id| Item::Node(id)));
        if let Some(sorted) = &mut self.sorted {
            let place = sorted.iter().position(|id| *id == anchor).unwrap_or(sorted.len());
            sorted.splice(place..place, ids.iter().copied());
        }
        ids
    }

    /// Puts new nodes after `anchor` in the order of execution.
    fn sort_after(&mut self, anchor: NodeId, new: &[NodeId]) {
        if let Some(sorted) = &mut self.sorted {
            let place = sorted.iter().position(|id| *id == anchor).map_or(sorted.len(), |i| i + 1);
            sorted.splice(place..place, new.iter().copied());
        }
    }

    pub fn remove_node(&mut self, id: NodeId) {
        self.nodes.remove(&id);
        self.sorted.iter_mut().for_each(|s| s.retain(|n| *n != id));
        self.node_spans.remove(&id);
        self.items.retain(|i| !matches!(i, Item::Node(n) if *n == id));
    }

    /// A node, to change: it will be written anew.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.node_spans.remove(&id);
        self.nodes.get_mut(&id).expect("a node of this model")
    }

    /// Adds a copy of a node right after it, under the name `output`, which is also its one output.
    pub fn twin(&mut self, id: NodeId, output: &str) -> NodeId {
        let mut node = self.nodes[&id].clone();
        let old = node.outputs()[0].clone();
        node.rename_output(&old, output);
        let name = node.name().to_string();
        node.rename_self(&name, output);
        let new = NodeId(self.nodes.keys().last().map_or(0, |id| id.0 + 1));
        self.nodes.insert(new, node);
        let place = self.items.iter().position(|i| matches!(i, Item::Node(n) if *n == id)).map_or(0, |i| i + 1);
        self.items.insert(place, Item::Node(new));
        self.sort_after(id, &[new]);
        new
    }

    /// Adds an initializer after the last one.
    pub fn add_initializer(&mut self, name: &str, element: ElementType, dims: &[usize], bytes: Vec<u8>) {
        let header = TensorProto {
            name: name.to_string(),
            data_type: element.number(),
            dims: dims.iter().map(|&d| d as i64).collect(),
            ..Default::default()
        };
        self.revision = next_revision();
        let new =
            Initializer { spans: None, header, data: Data::Memory(bytes), replaced: None, revision: self.revision };
        self.initializers.insert(name.to_string(), new);
        let last = self.items.iter().rposition(|i| matches!(i, Item::Initializer(_) | Item::Node(_)));
        let place = last.map_or(0, |i| i + 1);
        self.items.insert(place, Item::Initializer(name.to_string()));
        if self.ir_version() < 4 {
            self.items.insert(place + 1, Item::InitializerInput { name: name.to_string(), span: None });
        }
    }

    pub fn remove_initializer(&mut self, name: &str) {
        self.initializers.remove(name);
        let gone = |i: &Item| match i {
            Item::Initializer(n) | Item::InitializerInput { name: n, .. } => n == name,
            _ => false,
        };
        if self.items.iter().any(|i| matches!(i, Item::InitializerInput { name: n, .. } if n == name)) {
            self.signature.input.retain(|i| i.name != name);
        }
        self.items.retain(|i| !gone(i));
    }

    /// Gives an initializer other elements of the same type and number, in the form and place the file has them.
    /// Panics if there is no such initializer or the sizes differ.
    pub fn replace_data(&mut self, name: &str, bytes: Vec<u8>) {
        let old = self.initializer(name).expect("an initializer of this model").bytes;
        assert_eq!(old.len(), bytes.len(), "{name}: replaced data has another size");
        let unchanged = *old == *bytes;
        self.revision = next_revision();
        if let (false, Some(&id)) = (self.is_initializer(name), self.constants.get(name)) {
            if !unchanged {
                self.node_mut(id).replace_tensor("value", &bytes);
            }
            return;
        }
        let revision = self.revision;
        let t = self.initializers.get_mut(name).expect("an initializer of this model");
        t.revision = revision;
        match &mut t.data {
            Data::Memory(data) => *data = bytes,
            _ => t.replaced = Some(bytes),
        }
    }

    /// Sets an entry of `metadata_props`, or removes it.
    pub fn set_metadata(&mut self, key: &str, value: Option<String>) {
        self.metadata.insert(key.to_string(), value);
    }

    /// The keys of `metadata_props`.
    pub fn metadata_keys(&self) -> Vec<String> {
        let kept = self.header.metadata_props.iter().map(|p| p.key.clone()).filter(|k| self.metadata(k).is_some());
        let added = self.metadata.iter().filter(|(_, v)| v.is_some()).map(|(k, _)| k.clone());
        let mut keys: Vec<String> = kept.chain(added).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// `metadata_props` entries to write: new ones, and for each old one its bytes if it stays.
    pub(super) fn metadata_field(&self, field: &Range<usize>) -> Option<Cow<'_, [u8]>> {
        let bytes = &self.source[field.clone()];
        let entry = wire::fields(bytes, 0..bytes.len()).ok()?.into_iter().next()?;
        let entry = StringStringEntryProto::parse_from_bytes(&bytes[entry.payload]).ok()?;
        match self.metadata.get(&entry.key) {
            None => Some(Cow::Borrowed(bytes)),
            Some(Some(value)) if *value == entry.value => Some(Cow::Borrowed(bytes)),
            Some(_) => None,
        }
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn signature(info: &onnx_protobuf::ValueInfoProto) -> Signature {
    use onnx_protobuf::tensor_shape_proto::dimension::Value as DimValue;
    let tensor = info.type_.as_ref().filter(|t| t.has_tensor_type()).map(|t| t.tensor_type());
    let dims = tensor.and_then(|t| t.shape.as_ref()).map(|s| {
        let dim = |d: &onnx_protobuf::tensor_shape_proto::Dimension| match &d.value {
            Some(DimValue::DimValue(n)) if *n >= 0 => Dim::Fixed(*n as usize),
            Some(DimValue::DimParam(name)) if !name.is_empty() => Dim::Named(name.clone()),
            _ => Dim::Unknown,
        };
        s.dim.iter().map(dim).collect()
    });
    Signature { name: info.name.clone(), element: ElementType::from_number(tensor.map_or(0, |t| t.elem_type)), dims }
}
