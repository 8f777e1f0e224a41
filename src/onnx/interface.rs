//! Changes of what a graph takes and gives: new inputs and outputs, and outputs of other shapes.

use super::ElementType;
use super::model::{Dim, Item, Model};
use super::wire;
use onnx_protobuf::{Message, TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
use std::collections::HashSet;

impl Model {
    /// Adds a graph input of one axis, the batch, as `batch` names it.
    pub fn add_input(&mut self, name: &str, element: ElementType, batch: &Dim) {
        let info = declared(name, element, std::slice::from_ref(batch));
        self.signature.input.push(info);
        self.items.push(Item::Input(name.into()));
    }

    /// Takes out a graph input that [`Model::add_input`] added, in this model or in the one that was written to the file.
    pub fn remove_input(&mut self, name: &str) {
        self.signature.input.retain(|i| i.name != name);
        let source = self.source.clone();
        self.items.retain(|item| match item {
            Item::Input(n) => n != name,
            Item::Other(range) => !declares(&source[range.clone()], 11, name),
            _ => true,
        });
    }

    /// Adds a graph output, a value that the graph computes.
    pub fn add_output(&mut self, name: &str, element: ElementType, dims: &[Dim]) {
        self.signature.output.push(declared(name, element, dims));
        self.items.push(Item::Output(name.into()));
    }

    /// Gives a graph output another shape. Its place among the outputs stays.
    pub fn reshape_output(&mut self, name: &str, element: ElementType, dims: &[Dim]) {
        if let Some(output) = self.signature.output.iter_mut().find(|o| o.name == name) {
            *output = declared(name, element, dims);
        }
        let source = self.source.clone();
        for item in &mut self.items {
            if matches!(item, Item::Other(range) if declares(&source[range.clone()], 12, name)) {
                *item = Item::Output(name.into());
            }
        }
    }

    /// Takes out what the file says of the shapes of values inside the graph.
    pub fn forget_shapes(&mut self, names: &HashSet<String>) {
        self.signature.value_info.retain(|v| !names.contains(&v.name));
        let source = self.source.clone();
        self.items.retain(|item| match item {
            Item::Other(range) => !names.iter().any(|n| declares(&source[range.clone()], 13, n)),
            _ => true,
        });
    }
}

/// Whether a field of a GraphProto, by its number (11 of inputs, 12 of outputs, 13 of values), declares this name.
fn declares(field: &[u8], number: u32, name: &str) -> bool {
    let Some(f) = wire::fields(field, 0..field.len()).ok().and_then(|f| f.into_iter().next()) else { return false };
    f.number == number && ValueInfoProto::parse_from_bytes(&field[f.payload]).is_ok_and(|i| i.name == name)
}

/// The declaration of an input or output.
fn declared(name: &str, element: ElementType, dims: &[Dim]) -> ValueInfoProto {
    use onnx_protobuf::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
    let dim = |d: &Dim| {
        let value = match d {
            Dim::Fixed(n) => Some(DimValue::DimValue(*n as i64)),
            Dim::Named(name) => Some(DimValue::DimParam(name.clone())),
            Dim::Unknown => None,
        };
        Dimension { value, ..Default::default() }
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: element.number(), shape: Some(shape).into(), ..Default::default() };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(kind).into(), ..Default::default() }
}
