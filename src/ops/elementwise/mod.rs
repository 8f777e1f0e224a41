//! Element by element: programs of elementwise primitives, and these primitives by kind.

pub mod activation;
pub mod arithmetic;
mod dropout_mask;
mod fused;
mod instructions;
pub mod kernel;
pub mod logic;
pub mod program;

use crate::ops::engine::primitive::Primitive;

pub use program::{Access, accesses, program_attr, program_of, run};

/// The primitives of the folder itself, by name.
pub const PRIMITIVES: &[Primitive] = &[dropout_mask::PRIMITIVE, fused::PRIMITIVE];
