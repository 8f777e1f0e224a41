//! Arrays in a `.npz` file, as numpy.savez writes them.

use super::{Format, Reader, floats, integers};
use crate::file_kind::Kind;
use crate::ir::Tensor;
use crate::train::data::DataError;
use ndarray::ShapeBuilder;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

pub const FORMAT: Format = Format {
    extensions: &["npz"],
    holds: |kind| matches!(kind, Kind::Npz | Kind::Zip(_)),
    reader: Reader::Tensors(arrays),
};

/// The arrays of a `.npz` file, stored or deflated.
fn arrays(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, DataError> {
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
