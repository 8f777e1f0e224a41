//! Tensors in a `.safetensors` file.

use super::{Format, Reader, floats, integers};
use crate::file_kind::Kind;
use crate::ir::Tensor;
use crate::train::data::DataError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

pub const FORMAT: Format =
    Format { extensions: &["safetensors"], holds: |kind| *kind == Kind::Safetensors, reader: Reader::Tensors(tensors) };

/// The tensors of a `.safetensors` file.
fn tensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, DataError> {
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
        Dtype::F8_E4M3 => Tensor::f32(shape, d.iter().map(|&b| e4m3(b)).collect()),
        Dtype::F8_E5M2 => {
            Tensor::f32(shape, d.iter().map(|&b| half::f16::from_bits(u16::from(b) << 8).to_f32()).collect())
        }
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

/// A float of four bits of exponent (bias 7) and three of mantissa, without infinity.
fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if bits & 128 == 0 { size } else { -size }
}
