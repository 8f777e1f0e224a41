//! The same elements in other places.

mod broadcast;
mod concat;
mod fold;
mod reshape;
pub mod slice;
mod transpose;
pub mod unfold;
mod unslice;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[
    broadcast::PRIMITIVE,
    concat::PRIMITIVE,
    fold::PRIMITIVE,
    reshape::PRIMITIVE,
    slice::PRIMITIVE,
    transpose::PRIMITIVE,
    unfold::PRIMITIVE,
    unslice::PRIMITIVE,
];
