//! Normalisations of rows: layer norm, RMS norm, softmax.

mod layer_norm;
mod layer_norm_grad;
mod rms_norm;
mod rms_norm_grad;
mod softmax;
mod softmax_grad;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[
    layer_norm::PRIMITIVE,
    layer_norm_grad::PRIMITIVE,
    rms_norm::PRIMITIVE,
    rms_norm_grad::PRIMITIVE,
    softmax::PRIMITIVE,
    softmax_grad::PRIMITIVE,
];
