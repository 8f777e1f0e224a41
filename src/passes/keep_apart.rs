//! Packed texts: keeps attention within each. Scores of a token for those of another text become -∞ before the softmax.
//!
//! The run's input [`SEGMENTS`] says which text each position belongs to. Everything else that mixes positions is left as it is:
//! whether that does any harm is tried on the data before training.

use super::rewrite::each_node;
use crate::ir::inputs::SEGMENTS;
use crate::ir::{BuildError, Graph, Type, Value};

pub fn keep_apart(graph: &Graph) -> Result<Graph, BuildError> {
    let ids = graph.inputs().find(|(name, _)| *name == "input_ids").map(|(_, ty)| ty.shape.to_vec());
    let Some(&[rows, length]) = ids.as_deref() else { return Ok(graph.clone()) };
    let mut mask: Option<Value> = None;
    each_node(graph, |r, node| {
        if node.op != "softmax" {
            return Ok(false);
        }
        // A softmax stands on rows; what they were before says whether they are of scores.
        let before = graph.shape(graph.through_reshapes(node.inputs[0]));
        let scores = before.len() >= 3 && before.ends_with(&[length, length]);
        let (shape, all) = (graph.shape(node.inputs[0]).clone(), before.elements());
        if !scores || !all.is_multiple_of(rows * length * length) {
            return Ok(false);
        }
        let mask = match mask {
            Some(mask) => mask,
            None => {
                let segments = r.b.input(SEGMENTS, Type::i32([rows, length]));
                let (of, others) =
                    (r.b.reshape(segments, [rows, length, 1])?, r.b.reshape(segments, [rows, 1, length])?);
                let same = r.b.binary("equal", of, others)?;
                let (zero, none) = (r.b.scalar(0.0), r.b.scalar(f64::NEG_INFINITY));
                let apart = r.b.select(same, zero, none)?;
                *mask.insert(r.b.reshape(apart, [rows, 1, length, length])?)
            }
        };
        let x = r.get(node.inputs[0]);
        let wide = r.b.reshape(x, [rows, all / (rows * length * length), length, length])?;
        let masked = r.b.add(wide, mask)?;
        let masked = r.b.reshape(masked, shape)?;
        r.replace(node, "softmax", &[masked], node.attrs.clone())?;
        Ok(true)
    })
}
