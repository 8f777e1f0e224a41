//! Attention, its gradient, and rotary embeddings.

pub mod forward;
mod gradient;
pub mod heads;
mod lanes;
mod rotary;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[forward::PRIMITIVE, gradient::PRIMITIVE, rotary::PRIMITIVE];
