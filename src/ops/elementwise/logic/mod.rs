//! Comparisons, booleans, bits, and changes of type.

mod and;
mod bit_and;
mod bit_or;
mod bit_xor;
mod cast;
mod equal;
mod is_nan;
mod less;
mod less_equal;
mod not;
mod or;
mod select;
mod shift_left;
mod shift_right;
mod xor;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[
    and::PRIMITIVE,
    bit_and::PRIMITIVE,
    bit_or::PRIMITIVE,
    bit_xor::PRIMITIVE,
    cast::PRIMITIVE,
    equal::PRIMITIVE,
    is_nan::PRIMITIVE,
    less::PRIMITIVE,
    less_equal::PRIMITIVE,
    not::PRIMITIVE,
    or::PRIMITIVE,
    select::PRIMITIVE,
    shift_left::PRIMITIVE,
    shift_right::PRIMITIVE,
    xor::PRIMITIVE,
];
