//! Products of matrices: `matmul`, with more in it, and in groups.

pub mod bf16;
mod cooperative;
pub mod ending;
mod fused;
pub mod gemm;
pub mod group;
mod group_kernel;
pub mod host;
pub mod matrix;
pub mod multiply;
#[cfg(target_arch = "x86_64")]
mod multiply_avx512;
mod plain;
pub mod product;
mod product_software;
mod single;
mod storage;
mod stored;
#[cfg(target_arch = "x86_64")]
mod transpose;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[plain::PRIMITIVE, fused::PRIMITIVE, group::PRIMITIVE];
