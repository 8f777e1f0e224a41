//! Products of matrices: `matmul`, with more in it, and in groups.

mod cooperative;
pub mod ending;
mod fused;
pub mod group;
pub mod multiply;
#[cfg(target_arch = "x86_64")]
pub mod multiply_avx512;
pub mod plain;
pub mod product;
mod product_software;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[plain::PRIMITIVE, fused::PRIMITIVE, group::PRIMITIVE];
