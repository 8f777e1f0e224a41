//! Changes of what a graph gives: new outputs, outputs of other shapes, and nodes whose results have other shapes.

use super::ElementType;
use super::model::{Dim, Item, Model, declared, declares};
use std::collections::HashSet;

impl Model {
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
