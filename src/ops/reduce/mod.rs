//! Along the middle axis of three: sums, maxima, running sums, orders.

mod argmax;
mod argsort;
mod cumsum;
pub mod kernels;
mod reduce_max;
mod reduce_sum;
mod reduce_sum_square;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[
    argmax::PRIMITIVE,
    argsort::PRIMITIVE,
    cumsum::PRIMITIVE,
    reduce_max::PRIMITIVE,
    reduce_sum::PRIMITIVE,
    reduce_sum_square::PRIMITIVE,
];
