//! Rounding to floats of eight bits, of values known while compiling.

use super::{Context, Reason};
use crate::ir::{Tensor, Value};
use crate::onnx::ElementType;

/// A format of eight bits, by bits of the mantissa and largest finite number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    mantissa: i32,
    least_exponent: i32,
    largest: f64,
    infinity: bool,
}

/// Four bits of exponent, three of mantissa, no infinity.
const E4M3: Format = Format { mantissa: 3, least_exponent: -6, largest: 448.0, infinity: false };
/// Five bits of exponent, two of mantissa, as IEEE has them.
const E5M2: Format = Format { mantissa: 2, least_exponent: -14, largest: 57_344.0, infinity: true };

impl Format {
    /// The format of an element type that is one of them.
    pub fn of(element: ElementType) -> Option<Format> {
        match element {
            ElementType::F8E4M3 => Some(E4M3),
            ElementType::F8E5M2 => Some(E5M2),
            _ => None,
        }
    }

    /// The nearest number of the format, of two equally near the even one. What is too large becomes the largest if `saturate`, else
    /// infinity, or NaN where there is no infinity.
    pub fn round(self, x: f64, saturate: bool) -> f64 {
        if x.is_nan() || x == 0.0 {
            return x;
        }
        let exponent = (x.abs().log2().floor() as i32).max(self.least_exponent);
        let unit = 2f64.powi(exponent - self.mantissa);
        let rounded = if x.is_finite() { (x / unit).round_ties_even() * unit } else { x };
        if rounded.abs() <= self.largest {
            return rounded;
        }
        match (saturate, self.infinity) {
            (true, _) => self.largest.copysign(x),
            (false, true) => f64::INFINITY.copysign(x),
            (false, false) => f64::NAN,
        }
    }
}

/// A value rounded to a format of eight bits.
pub fn rounded(c: &mut Context, x: Value, format: Format, saturate: bool) -> Result<Value, Reason> {
    let t = c.b.constant_of(x).cloned();
    let t = t.ok_or("rounding to floats of eight bits takes a value that is known while compiling")?;
    let values: Vec<f64> = match t.as_f32() {
        Some(x) => x.iter().map(|&x| f64::from(x)).collect(),
        None => t.as_i32().unwrap_or_default().iter().map(|&x| f64::from(x)).collect(),
    };
    let values = values.into_iter().map(|x| format.round(x, saturate) as f32).collect();
    Ok(c.b.constant(Tensor::f32(t.shape(), values)))
}
