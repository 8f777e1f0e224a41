//! Operators on shapes and constants. All of them fold.

use super::{Context, Reason, load};
use crate::ir::{DType, Tensor, Type, Value};

type Lowered = Result<Vec<Value>, Reason>;

pub fn shape(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let shape = c.shape(x);
    let rank = shape.len() as i64;
    let clamp = |i: i64| if i < 0 { i + rank } else { i }.clamp(0, rank) as usize;
    let (start, end) = (clamp(c.int("start", 0)), clamp(c.int("end", rank)));
    let dims: Vec<i32> = shape[start..end.max(start)].iter().map(|&d| d as i32).collect();
    Ok(vec![c.b.constant(Tensor::i32([dims.len()], dims))])
}

pub fn size(c: &mut Context) -> Lowered {
    let x = c.x(0)?;
    let n = c.shape(x).elements() as i32;
    Ok(vec![c.b.constant(Tensor::i32([], vec![n]))])
}

pub fn constant(c: &mut Context) -> Lowered {
    let node = c.node;
    let tensor = if let Some(view) = node.attr_tensor("value") {
        // A graph inside a node has constants of its own, which the model does not list.
        let name = node.outputs().first().map_or("", String::as_str);
        if c.model.is_constant(name) {
            return Ok(vec![super::constant(c.b, c.model, name, view.element, view.dims)?]);
        }
        load(&view)?
    } else if let Some(x) = node.attr_float("value_float") {
        Tensor::scalar(x)
    } else if let Some(xs) = node.attr_floats("value_floats") {
        Tensor::f32([xs.len()], xs.to_vec())
    } else if let Some(x) = node.attr_int("value_int") {
        Tensor::i32([], vec![clamp(x)])
    } else if let Some(xs) = node.attr_ints("value_ints") {
        Tensor::i32([xs.len()], xs.iter().map(|&x| clamp(x)).collect())
    } else {
        return Err("holds no number".into());
    };
    Ok(vec![c.b.constant(tensor)])
}

fn clamp(x: i64) -> i32 {
    x.clamp(i32::MIN as i64, i32::MAX as i64) as i32
}

pub fn constant_of_shape(c: &mut Context) -> Lowered {
    let shape: Vec<usize> = c.known_ints(0)?.into_iter().map(|n| n.max(0) as usize).collect();
    let one = match c.node.attr_tensor("value") {
        Some(view) => load(&view)?,
        None => Tensor::f32([1], vec![0.0]),
    };
    let n = super::hosted(super::sized(&shape)?)?;
    let word = *one.words().first().ok_or("its value is empty")?;
    let ty = Type::new(one.dtype(), shape);
    Ok(vec![c.b.constant(Tensor::from_words(&ty, vec![word; n]))])
}

pub fn range(c: &mut Context) -> Lowered {
    let parts: Vec<_> = (0..3).map(|i| c.known(i)).collect::<Result<_, _>>()?;
    let tensor = if parts[0].dtype() == DType::F32 {
        let at = |i: usize| parts[i].as_f32().and_then(|x| x.first()).map(|&x| x as f64).ok_or("one number each");
        let (start, limit, step) = (at(0)?, at(1)?, at(2)?);
        let n = if step == 0.0 { 0.0 } else { ((limit - start) / step).ceil().max(0.0) } as usize;
        let n = super::hosted(n)?;
        Tensor::f32([n], (0..n).map(|i| (start + i as f64 * step) as f32).collect())
    } else {
        let at = |i: usize| parts[i].as_i32().and_then(|x| x.first()).map(|&x| x as i64).ok_or("one number each");
        let (start, limit, step) = (at(0)?, at(1)?, at(2)?);
        if step == 0 {
            return Err("step 0".into());
        }
        let distance = if step > 0 { limit - start } else { start - limit };
        let n = (distance.max(0) as u64).div_ceil(step.unsigned_abs()) as usize;
        Tensor::i32([n], (0..n as i64).map(|i| (start + i * step) as i32).collect())
    };
    Ok(vec![c.b.constant(tensor)])
}

pub fn non_zero(c: &mut Context) -> Lowered {
    let t = c.known(0)?;
    let shape = crate::ir::Shape::from(t.shape());
    let zero_bits = |w: u32| w == 0 || t.dtype() == DType::F32 && w == 0x8000_0000;
    let hits: Vec<usize> = (0..t.elements()).filter(|&i| !zero_bits(t.words()[i])).collect();
    let strides = shape.strides();
    let mut out = Vec::with_capacity(hits.len() * shape.len());
    for d in 0..shape.len() {
        out.extend(hits.iter().map(|&i| (i / strides[d] % shape[d]) as i32));
    }
    Ok(vec![c.b.constant(Tensor::i32([shape.len(), hits.len()], out))])
}
