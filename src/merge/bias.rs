//! Biases of linear nodes: read with their weights, and stored again or added where a merge needs one.

use super::MergeError;
use super::encode::encoded;
use crate::onnx::{Bias, ElementType, Linear, Model, NewNode, NodeId};
use ndarray::Array1;
use std::collections::HashMap;

/// The bias as it is added to the product, `[out]`.
pub(super) fn read(model: &Model, l: &Linear, consumers: &HashMap<String, Vec<NodeId>>) -> Option<Array1<f64>> {
    let (Bias::Own { name } | Bias::Added { name, .. }) = l.bias(model, consumers)?;
    Some(Array1::from(model.initializer(&name)?.to_f64()?))
}

/// Stores a bias `[out]` in the place of the node's own; a node without one gets an Add.
pub(super) fn store(
    model: &mut Model,
    l: &Linear,
    bias: &Array1<f64>,
    notes: &mut Vec<String>,
) -> Result<(), MergeError> {
    let consumers = model.consumers();
    let (name, reader) = match l.bias(model, &consumers) {
        Some(Bias::Own { name }) => (name, l.node),
        Some(Bias::Added { name, node, .. }) => (name, node),
        None => return add(model, l, bias, notes),
    };
    let (element, dims) = model.initializer_type(&name).expect("a bias is an initializer");
    let bytes = encoded(element, &bias.to_vec(), &name, &l.path)?;
    let alone = consumers.get(&name).is_some_and(|readers| readers[..] == [reader]);
    if alone {
        model.replace_data(&name, bytes);
        return Ok(());
    }
    let copy = format!("{}.bias.merged", l.path);
    if !model.is_initializer(&copy) {
        model.add_initializer(&copy, element, &dims, bytes);
        notes.push(format!("'{name}' also belongs to another node: '{copy}' is a copy of its own for '{}'", l.path));
    }
    model.node_mut(reader).rename_input(&name, &copy);
    Ok(())
}

fn add(model: &mut Model, l: &Linear, bias: &Array1<f64>, notes: &mut Vec<String>) -> Result<(), MergeError> {
    let name = format!("{}.bias.merged", l.path);
    let values: Vec<f64> = bias.to_vec();
    let element = if l.element.is_float() { l.element } else { ElementType::F32 };
    if !model.is_initializer(&name) {
        let bytes = encoded(element, &values, &name, &l.path)?;
        // The channels of an image are its second axis.
        let axes = l.strides.as_ref().map_or(0, Vec::len);
        let dims = [vec![values.len()], vec![1; axes]].concat();
        model.add_initializer(&name, element, &dims, bytes);
        notes.push(format!("'{}' has no bias: an Add of '{name}' follows it now", l.path));
    }
    let product = format!("{}.product", l.y);
    model.node_mut(l.node).rename_output(&l.y, &product);
    let label = format!("{}.bias_add", l.y);
    model.insert_after(l.node, vec![NewNode::new(&label, "Add", &[&product, &name], &l.y)]);
    Ok(())
}
