//! Data sets of tensors: `.safetensors` and `.npz`.

use super::{DataError, Source};
use crate::ir::{Shape, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

pub fn safetensors(path: &Path, bytes: &[u8]) -> Result<Source, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let file = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let t = from_view(&view).map_err(|why| bad(format!("tensor '{name}': {why}")))?;
        tensors.insert(name, t);
    }
    source(path, tensors)
}

fn from_view(view: &TensorView) -> Result<Tensor, String> {
    let (d, shape) = (view.data(), view.shape().to_vec());
    let eight = |c: &[u8]| i64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]);
    Ok(match view.dtype() {
        Dtype::F32 => {
            Tensor::f32(shape, d.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
        }
        Dtype::F64 => Tensor::f32(shape, d.chunks_exact(8).map(|c| f64::from_bits(eight(c) as u64) as f32).collect()),
        Dtype::F16 => {
            Tensor::f32(shape, d.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f32()).collect())
        }
        Dtype::BF16 => {
            Tensor::f32(shape, d.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect())
        }
        Dtype::I64 => Tensor::i32(shape, narrow(d.chunks_exact(8).map(eight))?),
        Dtype::I32 => {
            Tensor::i32(shape, d.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
        }
        Dtype::I16 => Tensor::i32(shape, d.chunks_exact(2).map(|c| i16::from_le_bytes([c[0], c[1]]) as i32).collect()),
        Dtype::I8 => Tensor::i32(shape, d.iter().map(|&b| b as i8 as i32).collect()),
        Dtype::U8 => Tensor::i32(shape, d.iter().map(|&b| b as i32).collect()),
        Dtype::BOOL => Tensor::bool(shape, d.iter().map(|&b| (b != 0) as u32).collect()),
        other => return Err(format!("{other:?} is not supported")),
    })
}

/// 64-bit integers as 32-bit ones.
fn narrow(values: impl Iterator<Item = i64>) -> Result<Vec<i32>, String> {
    values.map(|x| i32::try_from(x).map_err(|_| format!("{x} does not fit 32 bits"))).collect()
}

pub fn npz(path: &Path, bytes: &[u8]) -> Result<Source, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let mut file = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| bad(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for i in 0..file.len() {
        let entry = file.by_index(i).map_err(|e| bad(e.to_string()))?;
        let name = entry.name().map_err(|e| bad(e.to_string()))?.trim_end_matches(".npy").to_string();
        let array = npyz::NpyFile::new(entry).map_err(|e| bad(format!("array '{name}': {e}")))?;
        let t = from_npy(array).map_err(|why| bad(format!("array '{name}': {why}")))?;
        tensors.insert(name, t);
    }
    source(path, tensors)
}

fn from_npy<R: std::io::Read>(array: npyz::NpyFile<R>) -> Result<Tensor, String> {
    if array.order() != npyz::Order::C && array.shape().len() > 1 {
        return Err("it is stored by columns\nhint: save numpy.ascontiguousarray(x)".into());
    }
    let shape: Vec<usize> = array.shape().iter().map(|&d| d as usize).collect();
    let dtype = array.dtype().descr();
    macro_rules! read {
        ($t:ty) => {
            array.into_vec::<$t>().map_err(|e| e.to_string())?
        };
    }
    Ok(match dtype.trim_matches('\'') {
        "<f4" => Tensor::f32(shape, read!(f32)),
        "<f8" => Tensor::f32(shape, read!(f64).into_iter().map(|x| x as f32).collect()),
        "<i8" => Tensor::i32(shape, narrow(read!(i64).into_iter())?),
        "<i4" => Tensor::i32(shape, read!(i32)),
        "<i2" => Tensor::i32(shape, read!(i16).into_iter().map(i32::from).collect()),
        "|i1" => Tensor::i32(shape, read!(i8).into_iter().map(i32::from).collect()),
        "|u1" => Tensor::i32(shape, read!(u8).into_iter().map(i32::from).collect()),
        "|b1" => Tensor::bool(shape, read!(bool).into_iter().map(u32::from).collect()),
        other => return Err(format!("{other} is not supported")),
    })
}

fn source(path: &Path, tensors: BTreeMap<String, Tensor>) -> Result<Source, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let examples = tensors.values().next().and_then(|t| t.shape().first().copied()).unwrap_or(0);
    if let Some((name, t)) = tensors.iter().find(|(_, t)| t.shape().first() != Some(&examples)) {
        return Err(bad(format!(
            "'{name}' is {}: its first axis is not the {examples} examples of the others",
            t.ty()
        )));
    }
    Ok(Source::Tensors { tensors, examples })
}

/// Some rows of a tensor along its first axis.
pub fn rows(t: &Tensor, rows: &[usize]) -> Tensor {
    let mut ty = t.ty();
    let width = ty.shape[1..].iter().product::<usize>();
    let words = rows.iter().flat_map(|&r| &t.words()[r * width..(r + 1) * width]).copied().collect();
    ty.shape = Shape([&[rows.len()], &ty.shape[1..]].concat());
    Tensor::from_words(&ty, words)
}
