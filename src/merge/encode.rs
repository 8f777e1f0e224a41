//! Elements of tensors as a file stores them.

use super::MergeError;
use crate::onnx::{self, ElementType, Model};
use ndarray::ArrayD;

/// Puts a trained tensor, which was checked to fit, in the place of an initializer.
pub(super) fn place(model: &mut Model, name: &str, t: &ArrayD<f32>) -> Result<(), MergeError> {
    let element = model.initializer_type(name).expect("checked to be there").0;
    if element == ElementType::I64 {
        model.replace_data(name, t.iter().flat_map(|x| (*x as i64).to_le_bytes()).collect());
        return Ok(());
    }
    let values: Vec<f64> = t.iter().map(|&x| x as f64).collect();
    let bytes = encoded(element, &values, name, name)?;
    model.replace_data(name, bytes);
    Ok(())
}

/// The elements of a weight as a file stores them; refused where one is not a number, or too large for the type.
pub(super) fn encoded(element: ElementType, values: &[f64], weight: &str, path: &str) -> Result<Vec<u8>, MergeError> {
    let refused = |what| MergeError::NotFinite { weight: weight.to_string(), path: path.to_string(), element, what };
    let bytes = onnx::encode_floats(element, values).expect("checked to be floats");
    match onnx::not_finite(element, &bytes) {
        Some(what) => Err(refused(what)),
        None => Ok(bytes),
    }
}
