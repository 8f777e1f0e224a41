//! Losses of rows of logits.

mod cross_entropy;
mod cross_entropy_grad;
pub mod linear_cross_entropy;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] =
    &[cross_entropy::PRIMITIVE, cross_entropy_grad::PRIMITIVE, linear_cross_entropy::PRIMITIVE];
