//! TopK.

use super::layout::element_places;
use super::{Context, Reason};
use crate::ir::{Attr, Attrs, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// The order of the elements along an axis, as indices; equal ones stay in order.
fn order(c: &mut Context, x: Value, axis: usize, ascending: bool) -> Result<Value, Reason> {
    let shape = c.shape(x);
    let flat = c.around(x, axis)?;
    let attrs = Attrs::new().with("ascending", Attr::Bool(ascending));
    let order = c.b.emit("argsort", &[flat], attrs)?;
    Ok(c.b.reshape(order, shape)?)
}

/// The k largest (or smallest) elements along an axis, in order, and their indices. A gradient goes to the elements that were taken.
pub fn top_k(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let axis = c.axis(c.int("axis", -1), shape.len())?;
    let k = match c.node.attr_int("k") {
        Some(k) => k,
        None => c.known_ints(1)?.first().copied().unwrap_or(0),
    };
    if k < 0 || k as usize > shape[axis] {
        return Err(format!("{k} of {} elements", shape[axis]).into());
    }
    // Unsorted results may come in any order.
    c.int("sorted", 1);
    let ascending = c.int("largest", 1) == 0;
    if k == 0 {
        let mut empty = shape.clone();
        empty.0[axis] = 0;
        return Ok(vec![c.filled(x, empty.clone(), 0.0), c.integers(empty, vec![])]);
    }
    let order = order(c, x, axis, ascending)?;
    let index = c.b.slice(order, axis, 0, k as usize, 1)?;
    let places = element_places(c, index, &shape, axis)?;
    let flat = c.b.reshape(x, [shape.elements()])?;
    Ok(vec![c.b.gather(flat, places, 0)?, index])
}
