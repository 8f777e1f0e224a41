//! Control flow, resolved at compile time: branches are chosen and loops unrolled, so that none remains.

use super::{Context, Reason};
use crate::ir::{DType, Tensor, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// The most times that a body is unrolled.
const MAX_TRIPS: usize = 10_000;

/// A condition known while compiling.
fn known_bool(c: &Context, v: Value) -> Option<bool> {
    c.b.constant_of(v).and_then(|t| t.words().first().map(|&w| w != 0))
}

/// The branch that a known condition takes; both of them, and a choice between their results, where it depends on the data.
pub fn if_(c: &mut Context) -> Lowered {
    let condition = c.x(0)?;
    if let Some(taken) = known_bool(c, condition) {
        return c.body(if taken { "then_branch" } else { "else_branch" }, &[]);
    }
    let (yes, no) = (c.body("then_branch", &[])?, c.body("else_branch", &[])?);
    let choose = |(&a, &b): (&Value, &Value)| {
        if c.ty(a) != c.ty(b) {
            return Err(Reason::Why(format!(
                "its condition depends on the data, and its branches give {} and {}",
                c.ty(a),
                c.ty(b)
            )));
        }
        let shape = c.shape(a);
        let wide = c.b.reshape(condition, vec![1; shape.len()])?;
        let wide = c.b.broadcast(wide, shape)?;
        Ok(c.b.select(wide, a, b)?)
    };
    yes.iter().zip(&no).map(choose).collect()
}

/// A loop whose number of rounds is known, round by round.
pub fn loop_(c: &mut Context) -> Lowered {
    let limit = match c.opt(0) {
        Some(_) => c.known_ints(0)?.first().copied().unwrap_or(0).max(0) as usize,
        None => usize::MAX,
    };
    let unknown = || Reason::from("its condition depends on the data: how often it runs must be known while compiling");
    let mut go = match c.opt(1) {
        Some(v) => known_bool(c, v).ok_or_else(unknown)?,
        None => true,
    };
    let mut carried: Vec<Value> = (2..c.inputs.len()).map(|i| c.x(i)).collect::<Result<_, _>>()?;
    let rounds = carried.len();
    let scans = c.node.outputs().len().saturating_sub(rounds);
    let mut collected: Vec<Vec<Value>> = vec![vec![]; scans];
    let mut round = 0;
    while go && round < limit {
        if round == MAX_TRIPS {
            return Err(format!("it runs more than {MAX_TRIPS} times").into());
        }
        let number = c.b.constant(Tensor::i32([], vec![round as i32]));
        let on = c.b.constant(Tensor::bool([], vec![1]));
        let out = c.body("body", &[&[number, on], &carried[..]].concat())?;
        go = known_bool(c, *out.first().ok_or("its body gives nothing")?).ok_or_else(unknown)?;
        carried = out[1..1 + rounds].to_vec();
        out[1 + rounds..].iter().zip(&mut collected).for_each(|(v, all)| all.push(*v));
        round += 1;
    }
    for all in collected {
        carried.push(stack(c, &all, 0)?);
    }
    Ok(carried)
}

/// A scan over the elements of its inputs along one axis each, element by element.
pub fn scan(c: &mut Context) -> Lowered {
    let scanned = c.int("num_scan_inputs", 0).max(0) as usize;
    let states = c.inputs.len().checked_sub(scanned).ok_or("fewer inputs than num_scan_inputs")?;
    let list = |c: &Context, name: &str| c.node.attr_ints(name).map(<[i64]>::to_vec).unwrap_or_default();
    let (axes, backwards) = (list(c, "scan_input_axes"), list(c, "scan_input_directions"));
    let (out_axes, out_backwards) = (list(c, "scan_output_axes"), list(c, "scan_output_directions"));
    let mut carried: Vec<Value> = (0..states).map(|i| c.x(i)).collect::<Result<_, _>>()?;
    let sources: Vec<Value> = (states..c.inputs.len()).map(|i| c.x(i)).collect::<Result<_, _>>()?;
    let mut sliced = Vec::new();
    for (i, &x) in sources.iter().enumerate() {
        let rank = c.shape(x).len();
        sliced.push((x, c.axis(axes.get(i).copied().unwrap_or(0), rank)?));
    }
    let length = sliced.first().map_or(0, |&(x, axis)| c.shape(x)[axis]);
    if length > MAX_TRIPS {
        return Err(format!("it runs more than {MAX_TRIPS} times").into());
    }
    let mut collected: Vec<Vec<Value>> = vec![vec![]; c.node.outputs().len().saturating_sub(states)];
    for step in 0..length {
        let mut arguments = carried.clone();
        for (i, &(x, axis)) in sliced.iter().enumerate() {
            let at = if backwards.get(i) == Some(&1) { length - 1 - step } else { step };
            let one = c.b.slice(x, axis, at, 1, 1)?;
            let mut shape = c.shape(one);
            shape.0.remove(axis);
            arguments.push(c.b.reshape(one, shape)?);
        }
        let out = c.body("body", &arguments)?;
        carried = out[..states].to_vec();
        out[states..].iter().zip(&mut collected).for_each(|(v, all)| all.push(*v));
    }
    for (i, mut all) in collected.into_iter().enumerate() {
        if out_backwards.get(i) == Some(&1) {
            all.reverse();
        }
        carried.push(stack(c, &all, out_axes.get(i).copied().unwrap_or(0))?);
    }
    Ok(carried)
}

/// Values of one shape, side by side along a new axis.
fn stack(c: &mut Context, all: &[Value], axis: i64) -> Result<Value, Reason> {
    let Some(&first) = all.first() else {
        return Ok(c.b.constant(Tensor::zeros(&crate::ir::Type::new(DType::F32, vec![0]))));
    };
    let mut shape = c.shape(first);
    let axis = c.axis(axis, shape.len() + 1)?;
    shape.0.insert(axis, 1);
    let wide: Vec<Value> = all.iter().map(|&v| c.b.reshape(v, shape.clone())).collect::<Result<_, _>>()?;
    Ok(c.b.concat(&wide, axis)?)
}
