//! ONNX element types, and tensors as stored in the file.

use half::{bf16, f16};
use std::borrow::Cow;
use std::fmt;

/// Element types that tensors of a model may have (`TensorProto.DataType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 8-bit unsigned integer.
    U8,
    /// 8-bit integer.
    I8,
    /// 16-bit unsigned integer.
    U16,
    /// 16-bit integer.
    I16,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// One byte, 0 or 1.
    Bool,
    /// 16-bit float (binary16).
    F16,
    /// 64-bit float.
    F64,
    /// 32-bit unsigned integer.
    U32,
    /// 64-bit unsigned integer.
    U64,
    /// bfloat16.
    Bf16,
    /// 4-bit unsigned integer, two to a byte.
    U4,
    /// 4-bit integer, two to a byte.
    I4,
    /// 8-bit float with four bits of exponent, without infinity.
    F8E4M3,
    /// 8-bit float with five bits of exponent.
    F8E5M2,
    /// One that only passes through, by its number.
    Other(i32),
}

const TYPES: &[(i32, ElementType, &str, usize)] = &[
    (1, ElementType::F32, "float32", 32),
    (2, ElementType::U8, "uint8", 8),
    (3, ElementType::I8, "int8", 8),
    (4, ElementType::U16, "uint16", 16),
    (5, ElementType::I16, "int16", 16),
    (6, ElementType::I32, "int32", 32),
    (7, ElementType::I64, "int64", 64),
    (9, ElementType::Bool, "bool", 8),
    (10, ElementType::F16, "float16", 16),
    (11, ElementType::F64, "float64", 64),
    (12, ElementType::U32, "uint32", 32),
    (13, ElementType::U64, "uint64", 64),
    (16, ElementType::Bf16, "bfloat16", 16),
    (17, ElementType::F8E4M3, "float8e4m3fn", 8),
    (19, ElementType::F8E5M2, "float8e5m2", 8),
    (21, ElementType::U4, "uint4", 4),
    (22, ElementType::I4, "int4", 4),
];

impl ElementType {
    /// The type of a number of `TensorProto.DataType`.
    pub fn from_number(n: i32) -> ElementType {
        TYPES.iter().find(|t| t.0 == n).map_or(ElementType::Other(n), |t| t.1)
    }

    /// Its number in `TensorProto.DataType`.
    pub fn number(self) -> i32 {
        match self {
            ElementType::Other(n) => n,
            _ => TYPES.iter().find(|t| t.1 == self).expect("every named type is in the table").0,
        }
    }

    /// Bits of an element in `raw_data`; `None` for types that only pass through.
    pub fn bits(self) -> Option<usize> {
        TYPES.iter().find(|t| t.1 == self).map(|t| t.3)
    }

    /// Whether it is one of the float types.
    pub fn is_float(self) -> bool {
        use ElementType::*;
        matches!(self, F32 | F16 | Bf16 | F64 | F8E4M3 | F8E5M2)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TYPES.iter().find(|t| t.1 == *self) {
            Some(t) => f.write_str(t.2),
            None => write!(f, "element type {}", self.number()),
        }
    }
}

/// A tensor's elements as little-endian bytes, as `raw_data` has them.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub element: ElementType,
    pub dims: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

impl TensorView<'_> {
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// The elements as f32 (rounded if they are wider), or `None` if they are no numbers we know.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        if self.element == ElementType::F32 {
            return Some(self.bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect());
        }
        Some(self.to_f64()?.into_iter().map(|x| x as f32).collect())
    }

    /// The elements as f64.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        let b = &self.bytes;
        let two = |c: &[u8]| u16::from_le_bytes([c[0], c[1]]);
        let four = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
        Some(match self.element {
            ElementType::F32 => b.chunks_exact(4).map(|c| f32::from_bits(four(c)) as f64).collect(),
            ElementType::F16 => b.chunks_exact(2).map(|c| f16::from_bits(two(c)).to_f64()).collect(),
            ElementType::Bf16 => b.chunks_exact(2).map(|c| bf16::from_bits(two(c)).to_f64()).collect(),
            ElementType::F64 => b.chunks_exact(8).map(|c| f64::from_bits(eight(c))).collect(),
            ElementType::F8E4M3 => b.iter().map(|&x| e4m3(x)).collect(),
            ElementType::F8E5M2 => b.iter().map(|&x| e5m2(x)).collect(),
            _ => self.to_i64()?.into_iter().map(|x| x as f64).collect(),
        })
    }

    /// The elements as i64 (u64 saturates), or `None` if they are not integers or booleans.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let b = &self.bytes;
        let two = |c: &[u8]| u16::from_le_bytes([c[0], c[1]]);
        let four = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
        Some(match self.element {
            ElementType::U8 | ElementType::Bool => b.iter().map(|&x| x as i64).collect(),
            ElementType::I8 => b.iter().map(|&x| x as i8 as i64).collect(),
            ElementType::U16 => b.chunks_exact(2).map(|c| two(c) as i64).collect(),
            ElementType::I16 => b.chunks_exact(2).map(|c| two(c) as i16 as i64).collect(),
            ElementType::I32 => b.chunks_exact(4).map(|c| four(c) as i32 as i64).collect(),
            ElementType::U32 => b.chunks_exact(4).map(|c| four(c) as i64).collect(),
            ElementType::I64 => b.chunks_exact(8).map(|c| eight(c) as i64).collect(),
            ElementType::U64 => b.chunks_exact(8).map(|c| i64::try_from(eight(c)).unwrap_or(i64::MAX)).collect(),
            ElementType::U4 => nibbles(b, self.elements()).map(|x| x as i64).collect(),
            ElementType::I4 => nibbles(b, self.elements()).map(|x| ((x << 4) as i8 >> 4) as i64).collect(),
            _ => return None,
        })
    }
}

/// A float of four bits of exponent (bias 7) and three of mantissa; all ones are NaN.
pub fn e4m3(bits: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * 2f64.powi(-9),
        _ => (8.0 + mantissa) * 2f64.powi(exponent - 10),
    };
    if bits & 128 == 0 { size } else { -size }
}

/// A float of five bits of exponent and two of mantissa: the upper half of a half-precision one.
pub fn e5m2(bits: u8) -> f64 {
    f16::from_bits(u16::from(bits) << 8).to_f64()
}

/// The code of a number that a format of eight bits holds.
fn code(x: f64, decode: fn(u8) -> f64) -> Option<u8> {
    (0..=255).find(|&c| {
        (decode(c) == x && decode(c).is_sign_negative() == x.is_sign_negative()) || (decode(c).is_nan() && x.is_nan())
    })
}

fn eight(c: &[u8]) -> u64 {
    u64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]])
}

/// Four-bit elements, the first of each byte in its low half.
fn nibbles(bytes: &[u8], n: usize) -> impl Iterator<Item = u8> {
    bytes.iter().flat_map(|b| [b & 15, b >> 4]).take(n)
}

/// Encodes floats in a float element type, rounding once to the nearest; `None` for other types, and for numbers that a float of
/// eight bits does not hold: rounding to those has more than one rule.
pub fn encode_floats(element: ElementType, values: &[f64]) -> Option<Vec<u8>> {
    Some(match element {
        ElementType::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        ElementType::F64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::F16 => values.iter().flat_map(|&x| f16::from_f64(x).to_le_bytes()).collect(),
        ElementType::Bf16 => values.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
        ElementType::F8E4M3 => return values.iter().map(|&x| code(x, e4m3)).collect(),
        ElementType::F8E5M2 => return values.iter().map(|&x| code(x, e5m2)).collect(),
        _ => return None,
    })
}

/// Integers or booleans as the little-endian elements of a type; the error is the first that it cannot hold.
pub fn encode_integers(element: ElementType, values: &[i64]) -> Result<Vec<u8>, i64> {
    fn all<T: TryFrom<i64>, const N: usize>(values: &[i64], bytes: fn(T) -> [u8; N]) -> Result<Vec<u8>, i64> {
        let mut out = Vec::with_capacity(values.len() * N);
        for &x in values {
            out.extend(bytes(T::try_from(x).map_err(|_| x)?));
        }
        Ok(out)
    }
    match element {
        ElementType::I64 => all(values, i64::to_le_bytes),
        ElementType::I32 => all(values, i32::to_le_bytes),
        ElementType::I16 => all(values, i16::to_le_bytes),
        ElementType::I8 => all(values, i8::to_le_bytes),
        ElementType::U64 => all(values, u64::to_le_bytes),
        ElementType::U32 => all(values, u32::to_le_bytes),
        ElementType::U16 => all(values, u16::to_le_bytes),
        ElementType::U8 => all(values, u8::to_le_bytes),
        ElementType::Bool => Ok(values.iter().map(|&x| u8::from(x != 0)).collect()),
        _ => Err(values.first().copied().unwrap_or(0)),
    }
}

/// What the first element that is not finite is called, of a tensor of floats.
pub fn not_finite(element: ElementType, bytes: &[u8]) -> Option<&'static str> {
    let view = TensorView { name: "", element, dims: vec![], bytes: Cow::Borrowed(bytes) };
    let values = element.is_float().then(|| view.to_f64()).flatten()?;
    values.into_iter().find(|x| !x.is_finite()).map(called)
}

/// A number that is not finite, in words.
pub fn called(x: f64) -> &'static str {
    match x {
        x if x.is_nan() => "NaN",
        x if x > 0.0 => "infinity",
        _ => "minus infinity",
    }
}
