//! Data sets of tensors: `.safetensors` and `.npz`.

use super::{DataError, Source};
use crate::ir::{Shape, Tensor};
use ndarray::ShapeBuilder;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

/// A data set in a `.safetensors` file.
pub fn safetensors(path: &Path, bytes: &[u8]) -> Result<Source, DataError> {
    source(path, from_safetensors(path, bytes)?)
}

/// A data set in a `.npz` file.
pub fn npz(path: &Path, bytes: &[u8]) -> Result<Source, DataError> {
    source(path, from_npz(path, bytes)?)
}

/// The tensors of a file as they are, of whatever shapes.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::Open { path: path.to_path_buf(), error })?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => from_safetensors(path, &bytes),
        Some("npz") => from_npz(path, &bytes),
        _ => {
            let why = "tensors come in .safetensors and .npz files\nhint: numpy.savez(FILE, input_name=array)".into();
            Err(DataError::Format { path: path.to_path_buf(), why })
        }
    }
}

/// The tensors of a `.safetensors` file.
fn from_safetensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let file = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let t = from_view(&view).map_err(|why| bad(format!("tensor '{name}': {why}")))?;
        tensors.insert(name, t);
    }
    Ok(tensors)
}

/// The elements of little-endian bytes.
macro_rules! elements {
    ($bytes:expr, $t:ty) => {
        $bytes.as_chunks::<{ size_of::<$t>() }>().0.iter().map(|c| <$t>::from_le_bytes(*c))
    };
}

fn from_view(view: &TensorView) -> Result<Tensor, String> {
    let (d, shape) = (view.data(), view.shape().to_vec());
    Ok(match view.dtype() {
        Dtype::F32 => Tensor::f32(shape, elements!(d, f32).collect()),
        Dtype::F64 => Tensor::f32(shape, floats(elements!(d, f64))?),
        Dtype::F16 => Tensor::f32(shape, elements!(d, half::f16).map(half::f16::to_f32).collect()),
        Dtype::BF16 => Tensor::f32(shape, elements!(d, half::bf16).map(half::bf16::to_f32).collect()),
        Dtype::I64 => Tensor::i32(shape, integers(elements!(d, i64))?),
        Dtype::I32 => Tensor::i32(shape, elements!(d, i32).collect()),
        Dtype::I16 => Tensor::i32(shape, elements!(d, i16).map(i32::from).collect()),
        Dtype::I8 => Tensor::i32(shape, elements!(d, i8).map(i32::from).collect()),
        Dtype::U64 => Tensor::i32(shape, integers(elements!(d, u64))?),
        Dtype::U32 => Tensor::i32(shape, integers(elements!(d, u32))?),
        Dtype::U16 => Tensor::i32(shape, elements!(d, u16).map(i32::from).collect()),
        Dtype::U8 => Tensor::i32(shape, d.iter().map(|&b| b as i32).collect()),
        Dtype::BOOL => Tensor::bool(shape, d.iter().map(|&b| (b != 0) as u32).collect()),
        other => {
            return Err(format!(
                "its type {other:?} is not supported\nhint: save it as F32, F16, BF16 or an integer type"
            ));
        }
    })
}

/// Integers as 32-bit ones.
fn integers<T: Copy + std::fmt::Display + TryInto<i32>>(values: impl Iterator<Item = T>) -> Result<Vec<i32>, String> {
    let narrow = |x: T| {
        x.try_into().map_err(|_| {
            format!("{x} does not fit 32 bits\nhint: integers must lie between {} and {}", i32::MIN, i32::MAX)
        })
    };
    values.map(narrow).collect()
}

/// Doubles rounded to f32.
fn floats(values: impl Iterator<Item = f64>) -> Result<Vec<f32>, String> {
    let narrow = |x: f64| match (x as f32).is_infinite() && x.is_finite() {
        true => Err(format!("{x:e} does not fit 32 bits\nhint: the largest float of 32 bits is {:e}", f32::MAX)),
        false => Ok(x as f32),
    };
    values.map(narrow).collect()
}

/// The arrays of a `.npz` file, stored or deflated.
fn from_npz(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let mut file = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| bad(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for i in 0..file.len() {
        let entry = file.by_index(i).map_err(|e| bad(e.to_string()))?;
        let full = entry.name().map_err(|e| bad(e.to_string()))?.into_owned();
        let Some(name) = full.strip_suffix(".npy") else {
            return Err(bad(format!("'{full}' in it is no array\nhint: numpy.savez writes arrays alone")));
        };
        let have = entry.size();
        let array = npyz::NpyFile::new(entry).map_err(|e| bad(format!("array '{name}': {e}")))?;
        let t = from_npy(array, have).map_err(|why| bad(format!("array '{name}': {why}")))?;
        tensors.insert(name.to_string(), t);
    }
    Ok(tensors)
}

/// An array of either byte order and either order of elements, from a file of `have` bytes.
fn from_npy<R: std::io::Read>(array: npyz::NpyFile<R>, have: u64) -> Result<Tensor, String> {
    use npyz::TypeChar::{Bool, ByteStr, Float, Int, Object, Uint, UnicodeStr};
    let extents: Option<Vec<usize>> = array.shape().iter().map(|&d| d.try_into().ok()).collect();
    let shape = extents.ok_or("its shape is too large")?;
    let by_columns = array.order() == npyz::Order::Fortran && shape.len() > 1;
    let dtype = array.dtype();
    let plain = match &dtype {
        npyz::DType::Plain(ty) => Some((ty.type_char(), ty.size_field())),
        _ => None,
    };
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let bytes = elements.and_then(|n| n.checked_mul(dtype.num_bytes().unwrap_or(0) as u64));
    if bytes.is_none_or(|n| n > have) {
        return Err(format!("its shape {shape:?} wants more than its {have} bytes\nhint: save it again"));
    }
    macro_rules! read {
        ($t:ty) => {{
            let all: Vec<$t> = array.into_vec().map_err(|e| e.to_string())?;
            if by_columns { by_rows(&shape, all) } else { all }.into_iter()
        }};
    }
    Ok(match plain {
        Some((Float, 2)) => {
            let values = read!(half::f16).map(half::f16::to_f32).collect();
            Tensor::f32(shape, values)
        }
        Some((Float, 4)) => {
            let values = read!(f32).collect();
            Tensor::f32(shape, values)
        }
        Some((Float, 8)) => {
            let values = floats(read!(f64))?;
            Tensor::f32(shape, values)
        }
        Some((Int | Uint, size @ (1 | 2 | 4 | 8))) => {
            let values = match (plain, size) {
                (Some((Int, _)), 1) => integers(read!(i8)),
                (Some((Int, _)), 2) => integers(read!(i16)),
                (Some((Int, _)), 4) => integers(read!(i32)),
                (Some((Int, _)), _) => integers(read!(i64)),
                (_, 1) => integers(read!(u8)),
                (_, 2) => integers(read!(u16)),
                (_, 4) => integers(read!(u32)),
                (_, _) => integers(read!(u64)),
            };
            Tensor::i32(shape, values?)
        }
        Some((Bool, 1)) => {
            let values = read!(bool).map(u32::from).collect();
            Tensor::bool(shape, values)
        }
        Some((Object, _)) => {
            return Err("it holds Python objects, as lists of unequal length become\n\
                        hint: pad the rows to one length and give a type: numpy.array(rows, dtype=numpy.int64)"
                .into());
        }
        Some((UnicodeStr | ByteStr, _)) => {
            return Err("it holds text, not numbers\nhint: text goes into a .jsonl file".into());
        }
        _ => {
            let name = dtype.descr();
            return Err(format!(
                "its type {} is not supported\nhint: save it as float32, float16 or an integer type",
                name.trim_matches('\'')
            ));
        }
    })
}

/// Elements stored by columns (the first axis runs fastest) in row-major order.
fn by_rows<T: Clone>(shape: &[usize], values: Vec<T>) -> Vec<T> {
    let columns = ndarray::ArrayD::from_shape_vec(ndarray::IxDyn(shape).f(), values);
    columns.expect("as many elements as the shape holds").iter().cloned().collect()
}

/// Checks that all tensors hold the same number of examples along their first axis. One without axes is the same for all.
fn source(path: &Path, tensors: BTreeMap<String, Tensor>) -> Result<Source, DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let mut with_axes = tensors.iter().filter_map(|(name, t)| Some((name, *t.shape().first()?)));
    let Some((first, examples)) = with_axes.next() else {
        let why = match tensors.is_empty() {
            true => "it holds no tensor",
            false => "none of its tensors has an axis of examples",
        };
        return Err(bad(format!("{why}\nhint: one tensor for each graph input, examples along the first axis")));
    };
    if let Some((name, n)) = with_axes.find(|(_, n)| *n != examples) {
        return Err(bad(format!(
            "'{first}' holds {examples} examples, but '{name}' holds {n}\n\
             hint: examples stand along the first axis of every tensor, as many in each"
        )));
    }
    if tensors.get("labels").is_some_and(|t| t.shape().is_empty()) {
        return Err(bad(format!("'labels' is one number, but '{first}' holds {examples} examples")));
    }
    Ok(Source::Tensors { tensors, examples })
}

/// Some rows of a tensor along its first axis; a tensor without axes as it is.
pub fn rows(t: &Tensor, rows: &[usize]) -> Tensor {
    let mut ty = t.ty();
    if ty.shape.is_empty() {
        return t.clone();
    }
    let width = ty.shape[1..].iter().product::<usize>();
    let words = rows.iter().flat_map(|&r| &t.words()[r * width..(r + 1) * width]).copied().collect();
    ty.shape = Shape([&[rows.len()], &ty.shape[1..]].concat());
    Tensor::from_words(&ty, words)
}
