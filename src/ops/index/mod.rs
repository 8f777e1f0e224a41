//! Rows by number: `gather` and its gradient.

pub mod gather;
mod scatter_add;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[gather::PRIMITIVE, scatter_add::PRIMITIVE];
