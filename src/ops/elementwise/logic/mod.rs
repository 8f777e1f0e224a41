//! Comparisons, booleans, and changes of type.

mod and;
mod cast;
mod equal;
mod is_nan;
mod less;
mod less_equal;
mod not;
mod or;
mod select;
mod xor;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[
    and::PRIMITIVE,
    cast::PRIMITIVE,
    equal::PRIMITIVE,
    is_nan::PRIMITIVE,
    less::PRIMITIVE,
    less_equal::PRIMITIVE,
    not::PRIMITIVE,
    or::PRIMITIVE,
    select::PRIMITIVE,
    xor::PRIMITIVE,
];
