//! The tensors that a model reads: from the data, or made where that is usual, and checked against the model's inputs.

use super::{Axis, InputSpec};
use crate::ir::{DType, Tensor};
use std::collections::BTreeMap;

/// A tensor for each of the model's inputs: from the data, or made where that is usual.
pub fn complete(
    inputs: &[InputSpec],
    known: &mut BTreeMap<String, Tensor>,
    rows: usize,
    length: usize,
) -> Result<Vec<(String, Tensor)>, String> {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut out = Vec::new();
    for input in inputs {
        let t = match known.get(&input.name) {
            Some(t) => t.clone(),
            None => made(input, known, &names, rows, length)?,
        };
        let t = fit(input, t, &mut names)?;
        out.push((input.name.clone(), t));
    }
    Ok(out)
}

/// Inputs the data does not hold.
fn made(
    input: &InputSpec,
    known: &BTreeMap<String, Tensor>,
    names: &BTreeMap<String, usize>,
    rows: usize,
    length: usize,
) -> Result<Tensor, String> {
    if input.name.starts_with("past_key_values") || input.name.starts_with("past_") {
        let dims = input.dims.clone().unwrap_or_default();
        let extent = |(d, axis): (usize, &Axis)| match axis {
            Axis::Fixed(n) => *n,
            Axis::Named(name) if name.contains("past") => 0,
            Axis::Named(name) if names.contains_key(name) => names[name],
            _ if d == 0 => rows,
            _ => 0,
        };
        let shape: Vec<usize> = dims.iter().enumerate().map(extent).collect();
        let none = shape.iter().product::<usize>() == 0;
        let ty = crate::ir::Type::new(input.dtype, shape);
        return match none {
            true => Ok(Tensor::zeros(&ty)),
            false => Err(format!("input '{}' has no axis to leave empty, and the data does not hold it", input.name)),
        };
    }
    let ids = known.get("input_ids").is_some();
    match input.name.as_str() {
        // How many logits a language model gives for each row: 0 stands for all of them.
        "num_logits_to_keep" | "logits_to_keep" => {
            let extents = input.dims.iter().flatten().map(|_| 1).collect::<Vec<usize>>();
            Ok(Tensor::zeros(&crate::ir::Type::new(input.dtype, extents)))
        }
        "token_type_ids" if ids => Ok(Tensor::i32([rows, length], vec![0; rows * length])),
        "attention_mask" if ids => Ok(Tensor::i32([rows, length], vec![1; rows * length])),
        "position_ids" if ids => {
            let mask: Vec<i32> = match known.get("attention_mask") {
                Some(Tensor::F32(m)) => m.iter().map(|&x| i32::from(x == 1.0)).collect(),
                Some(mask) => mask.words().iter().map(|&x| i32::from(x != 0)).collect(),
                None => vec![1; rows * length],
            };
            let row = |m: &[i32]| {
                let mut seen = -1;
                let at = |&keep: &i32| {
                    seen += keep;
                    seen.max(0)
                };
                m.iter().map(at).collect::<Vec<i32>>()
            };
            Ok(Tensor::i32([rows, length], mask.chunks(length.max(1)).flat_map(row).collect()))
        }
        name => {
            let have: Vec<&str> = known.keys().map(String::as_str).collect();
            Err(format!(
                "the model reads '{name}', which the data does not hold; it has {}\n\
                 hint: name each tensor after the graph input it is for",
                have.join(", ")
            ))
        }
    }
}

/// Checks a tensor against an input: element type, number of axes, fixed extents, and names that occur twice.
fn fit(input: &InputSpec, t: Tensor, names: &mut BTreeMap<String, usize>) -> Result<Tensor, String> {
    let t = match (input.dtype, t) {
        (DType::Bool, Tensor::I32(a)) => Tensor::Bool(a.mapv(|x| (x != 0) as u32)),
        (DType::I32, Tensor::Bool(a)) => Tensor::I32(a.mapv(|x| x as i32)),
        (DType::F32, Tensor::I32(a)) => Tensor::F32(a.mapv(|x| x as f32)),
        (_, t) => t,
    };
    let declared = |dims: &Vec<Axis>| {
        let axis = |a: &Axis| match a {
            Axis::Fixed(n) => n.to_string(),
            Axis::Named(name) => name.clone(),
            Axis::Unknown => "?".into(),
        };
        format!("[{}]", dims.iter().map(axis).collect::<Vec<_>>().join(","))
    };
    let wrong = |what: String| {
        let shape = input.dims.as_ref().map(declared).unwrap_or_default();
        let ty = t.ty();
        format!("'{}' is {ty}, but {what}\nhint: the model declares it as {}{shape}", input.name, input.dtype)
    };
    if t.dtype() != input.dtype {
        return Err(wrong(format!("the model reads {}", input.dtype)));
    }
    let Some(dims) = &input.dims else { return Ok(t) };
    if dims.len() != t.shape().len() {
        return Err(wrong(format!("the model reads {} axes", dims.len())));
    }
    for (d, (axis, &have)) in dims.iter().zip(t.shape()).enumerate() {
        match axis {
            Axis::Fixed(want) if *want != have => return Err(wrong(format!("axis {d} must be {want}"))),
            // Exporters give unrelated axes one name at times; what an operator then refuses says more than this could.
            Axis::Named(name) => {
                names.entry(name.clone()).or_insert(have);
            }
            _ => {}
        }
    }
    Ok(t)
}
