//! One node of a model, and the values used to build new ones.

use super::element::{ElementType, TensorView};
use super::wire;
use onnx_protobuf::{
    AttributeProto, Message, NodeProto, StringStringEntryProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataLocation,
};
use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

/// The key of a node's metadata that says no gradient flows through it.
pub const DETACH_KEY: &str = "reslora.detach";

/// The key of a node's metadata that says it is an adapter's copy of a linear node.
pub(super) const COPY_KEY: &str = "reslora.copy";

/// A node: its bytes as the file has them, and the same parsed.
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) raw: Vec<u8>,
    proto: NodeProto,
    read: Marks,
}

/// Which attributes have been asked for, a bit each; those beyond the 64th count as read.
#[derive(Debug, Default)]
struct Marks(AtomicU64);

impl Clone for Marks {
    fn clone(&self) -> Marks {
        Marks::default()
    }
}

impl Node {
    /// Parses a `NodeProto` that [`wire::check`] has passed.
    pub(super) fn parse(raw: Vec<u8>) -> Result<Node, String> {
        let proto = NodeProto::parse_from_bytes(&raw).map_err(|e| e.to_string())?;
        Ok(Node { raw, proto, read: Marks::default() })
    }

    pub(super) fn from_proto(proto: NodeProto) -> Node {
        Node { raw: proto.write_to_bytes().expect("a parsed node serialises"), proto, read: Marks::default() }
    }

    pub(super) fn proto(&self) -> &NodeProto {
        &self.proto
    }

    fn reparse(&mut self) {
        self.proto = NodeProto::parse_from_bytes(&self.raw).expect("an edited node is still a node");
    }

    pub fn name(&self) -> &str {
        &self.proto.name
    }

    pub fn op_type(&self) -> &str {
        &self.proto.op_type
    }

    /// The operator's domain; empty for standard operators, which may also be called `ai.onnx`.
    pub fn domain(&self) -> &str {
        if self.proto.domain == "ai.onnx" { "" } else { &self.proto.domain }
    }

    /// The operator's name for messages, with its domain if it is not a standard one.
    pub fn operator(&self) -> String {
        if self.domain().is_empty() { self.op_type().into() } else { format!("{}:{}", self.domain(), self.op_type()) }
    }

    /// The node's name, or its operator and first output where it has none.
    pub fn label(&self) -> String {
        match self.name() {
            "" => format!("{}({})", self.op_type(), self.outputs().first().map_or("", |o| o)),
            name => name.to_string(),
        }
    }

    /// Names of the inputs; an empty name stands for one left out.
    pub fn inputs(&self) -> &[String] {
        &self.proto.input
    }

    /// The n-th input, unless it is left out.
    pub fn input(&self, n: usize) -> Option<&str> {
        self.proto.input.get(n).map(String::as_str).filter(|s| !s.is_empty())
    }

    pub fn outputs(&self) -> &[String] {
        &self.proto.output
    }

    /// A value of the node's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.proto.metadata_props.iter().find(|p| p.key == key).map(|p| p.value.as_str())
    }

    fn attr(&self, name: &str) -> Option<&AttributeProto> {
        let at = self.proto.attribute.iter().position(|a| a.name == name)?;
        if at < 64 {
            self.read.0.fetch_or(1 << at, Ordering::Relaxed);
        }
        Some(&self.proto.attribute[at])
    }

    /// Starts anew to take note of which attributes are asked for.
    pub fn forget_reads(&self) {
        self.read.0.store(0, Ordering::Relaxed);
    }

    /// The attributes that nothing has asked for since.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        let read = self.read.0.load(Ordering::Relaxed);
        let all = self.proto.attribute.iter().take(64).enumerate();
        all.filter(move |(i, _)| read >> i & 1 == 0).map(|(_, a)| a.name.as_str())
    }

    /// Whether an attribute has a value, given as JSON: a number, a string, or a list of numbers.
    pub fn attribute_is(&self, name: &str, value: &serde_json::Value) -> bool {
        let Some(a) = self.proto.attribute.iter().find(|a| a.name == name) else { return false };
        let near =
            |x: f32, y: &serde_json::Value| y.as_f64().is_some_and(|y| (f64::from(x) - y).abs() <= 1e-6 * y.abs());
        match a.type_.enum_value() {
            Ok(AttributeType::INT) => value.as_i64() == Some(a.i),
            Ok(AttributeType::FLOAT) => near(a.f, value),
            Ok(AttributeType::STRING) => value.as_str().is_some_and(|s| s.as_bytes() == a.s),
            Ok(AttributeType::INTS) => {
                value.as_array().is_some_and(|l| l.iter().map(|x| x.as_i64()).eq(a.ints.iter().map(|&x| Some(x))))
            }
            Ok(AttributeType::FLOATS) => value
                .as_array()
                .is_some_and(|l| l.len() == a.floats.len() && a.floats.iter().zip(l).all(|(x, y)| near(*x, y))),
            _ => false,
        }
    }

    pub fn attr_int(&self, name: &str) -> Option<i64> {
        self.attr(name).map(|a| a.i)
    }

    pub fn attr_float(&self, name: &str) -> Option<f32> {
        self.attr(name).map(|a| a.f)
    }

    pub fn attr_ints(&self, name: &str) -> Option<&[i64]> {
        self.attr(name).map(|a| a.ints.as_slice())
    }

    pub fn attr_floats(&self, name: &str) -> Option<&[f32]> {
        self.attr(name).map(|a| a.floats.as_slice())
    }

    pub fn attr_str(&self, name: &str) -> Option<Cow<'_, str>> {
        self.attr(name).map(|a| String::from_utf8_lossy(&a.s))
    }

    pub fn attr_strings(&self, name: &str) -> Option<Vec<String>> {
        self.attr(name).map(|a| a.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
    }

    pub fn attr_tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.attr(name).and_then(|a| a.t.as_ref()).map(view)
    }

    /// Gives the tensor of an attribute other elements, as raw data.
    pub(super) fn replace_tensor(&mut self, attribute: &str, bytes: &[u8]) {
        let tensor = |old: &[u8]| {
            // float, int32, string, int64, raw, double and uint64 data: whichever held the elements goes.
            let mut new = wire::edit(old, |f, _| match f.number {
                4..=7 | 9..=11 => wire::Edit::Drop,
                _ => wire::Edit::Keep,
            });
            wire::put_bytes(&mut new, 9, bytes);
            new
        };
        self.raw = wire::edit(&self.raw, |f, payload| {
            let named = f.number == 5
                && AttributeProto::parse_from_bytes(payload).is_ok_and(|a| a.name == attribute && a.t.is_some());
            if !named {
                return wire::Edit::Keep;
            }
            wire::Edit::Payload(wire::edit(payload, |f, inner| match f.number {
                5 => wire::Edit::Payload(tensor(inner)),
                _ => wire::Edit::Keep,
            }))
        });
        self.reparse();
    }

    /// The graph that an attribute holds.
    pub fn attr_graph(&self, name: &str) -> Option<Subgraph> {
        let graph = self.attr(name)?.g.as_ref()?;
        Some(Subgraph {
            inputs: graph.input.iter().map(|i| i.name.clone()).collect(),
            outputs: graph.output.iter().map(|o| o.name.clone()).collect(),
            initializers: graph.initializer.iter().map(|t| (t.name.clone(), OwnTensor(t.clone()))).collect(),
            nodes: graph.node.iter().cloned().map(Node::from_proto).collect(),
        })
    }

    /// Whether an attribute holds a graph, as those of If, Loop and Scan do.
    pub fn has_subgraph(&self) -> bool {
        self.proto.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty())
    }

    /// Names that the graphs inside this node may take from outside.
    pub fn captured(&self) -> Vec<String> {
        let mut names = Vec::new();
        let graphs = self.proto.attribute.iter().flat_map(|a| a.g.as_ref().into_iter().chain(&a.graphs));
        let mut open: Vec<_> = graphs.collect();
        while let Some(g) = open.pop() {
            for n in &g.node {
                names.extend(n.input.iter().filter(|i| !i.is_empty()).cloned());
                open.extend(n.attribute.iter().flat_map(|a| a.g.as_ref().into_iter().chain(&a.graphs)));
            }
            names.extend(g.output.iter().map(|o| o.name.clone()));
        }
        names
    }

    fn rename(&mut self, field: u32, old: &str, new: &str) {
        self.raw = wire::edit(&self.raw, |f, payload| match f.number == field && payload == old.as_bytes() {
            true => wire::Edit::Payload(new.as_bytes().to_vec()),
            false => wire::Edit::Keep,
        });
        self.reparse();
    }

    pub(super) fn rename_self(&mut self, old: &str, new: &str) {
        self.rename(3, old, new);
    }

    pub fn rename_input(&mut self, old: &str, new: &str) {
        self.rename(1, old, new);
    }

    pub fn rename_output(&mut self, old: &str, new: &str) {
        self.rename(2, old, new);
    }
}

/// A tensor among a node's attributes, or in the graphs inside it, whose elements are in another file.
pub(super) fn external_inside(node: &NodeProto) -> Option<&TensorProto> {
    let external = |t: &&TensorProto| t.data_location.enum_value() == Ok(DataLocation::EXTERNAL);
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        for a in &node.attribute {
            if let Some(t) = a.t.as_ref().into_iter().chain(&a.tensors).find(external) {
                return Some(t);
            }
            for g in a.g.as_ref().into_iter().chain(&a.graphs) {
                if let Some(t) = g.initializer.iter().find(external) {
                    return Some(t);
                }
                open.extend(&g.node);
            }
        }
    }
    None
}

/// A graph inside a node, as If, Loop and Scan have them.
#[derive(Clone, Debug)]
pub struct Subgraph {
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub initializers: Vec<(String, OwnTensor)>,
    /// In an order of execution.
    pub nodes: Vec<Node>,
}

/// A tensor inside a node.
#[derive(Clone, Debug)]
pub struct OwnTensor(TensorProto);

impl OwnTensor {
    pub fn view(&self) -> TensorView<'_> {
        view(&self.0)
    }
}

/// A view of a tensor inside a node.
pub(super) fn view(t: &TensorProto) -> TensorView<'_> {
    let element = ElementType::from_number(t.data_type);
    let dims: Vec<usize> = t.dims.iter().map(|&d| d.max(0) as usize).collect();
    TensorView { name: &t.name, element, dims, bytes: typed_bytes(t, element) }
}

/// The elements of a tensor as little-endian bytes, wherever the message keeps them (but outside the file).
pub(super) fn typed_bytes(t: &TensorProto, element: ElementType) -> Cow<'_, [u8]> {
    if !t.raw_data.is_empty() {
        return Cow::Borrowed(&t.raw_data);
    }
    // onnx.proto says which list holds which element type; narrow types stand one to an int32.
    let bytes = match element {
        ElementType::F32 => t.float_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::F64 => t.double_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::I64 => t.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::U64 => t.uint64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::U32 => t.uint64_data.iter().flat_map(|&x| (x as u32).to_le_bytes()).collect(),
        ElementType::I32 => t.int32_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::F16 | ElementType::Bf16 | ElementType::U16 | ElementType::I16 => {
            t.int32_data.iter().flat_map(|&x| (x as u16).to_le_bytes()).collect()
        }
        _ => t.int32_data.iter().map(|&x| x as u8).collect(),
    };
    Cow::Owned(bytes)
}

/// An attribute of a new node.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    /// An integer.
    Int(i64),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A number.
    Float(f32),
    /// A text.
    Str(String),
}

/// A new node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewNode {
    pub name: String,
    pub op_type: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attrs: Vec<(String, AttrValue)>,
    pub metadata: Vec<(String, String)>,
    pub domain: String,
    /// Attributes of the node that it is a copy of.
    copied: Vec<AttributeProto>,
}

impl NewNode {
    pub fn new(name: &str, op_type: &str, inputs: &[&str], output: &str) -> NewNode {
        NewNode {
            name: name.into(),
            op_type: op_type.into(),
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            outputs: vec![output.into()],
            ..NewNode::default()
        }
    }

    /// A copy of a linear node of another input, without a bias.
    pub fn copy_without_bias(node: &Node, name: &str, input: &str, output: &str) -> NewNode {
        let at = if node.op_type() == "MatMulNBits" { 5 } else { 2 };
        let mut inputs: Vec<String> = node.inputs().to_vec();
        inputs[0] = input.to_string();
        match node.op_type() {
            "Gemm" | "Conv" => inputs.truncate(at),
            "MatMulNBits" if inputs.len() > at => inputs[at].clear(),
            _ => {}
        }
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        NewNode {
            name: name.into(),
            op_type: node.op_type().into(),
            domain: node.domain().into(),
            inputs,
            outputs: vec![output.into()],
            copied: node.proto.attribute.clone(),
            metadata: vec![(COPY_KEY.into(), "1".into())],
            ..NewNode::default()
        }
    }

    pub fn attr(mut self, name: &str, value: AttrValue) -> NewNode {
        self.attrs.push((name.into(), value));
        self
    }

    pub(super) fn build(self) -> Node {
        let attribute = self.attrs.into_iter().map(|(name, value)| {
            let mut a = AttributeProto { name, ..Default::default() };
            let kind = match value {
                AttrValue::Int(i) => {
                    a.i = i;
                    AttributeType::INT
                }
                AttrValue::Ints(ints) => {
                    a.ints = ints;
                    AttributeType::INTS
                }
                AttrValue::Float(f) => {
                    a.f = f;
                    AttributeType::FLOAT
                }
                AttrValue::Str(s) => {
                    a.s = s.into_bytes();
                    AttributeType::STRING
                }
            };
            a.type_ = kind.into();
            a
        });
        let entry = |(key, value)| StringStringEntryProto { key, value, ..Default::default() };
        let proto = NodeProto {
            name: self.name,
            op_type: self.op_type,
            domain: self.domain,
            input: self.inputs,
            output: self.outputs,
            attribute: self.copied.into_iter().chain(attribute).collect(),
            metadata_props: self.metadata.into_iter().map(entry).collect(),
            ..Default::default()
        };
        let raw = proto.write_to_bytes().expect("a new node serialises");
        Node { raw, proto, read: Marks::default() }
    }
}
