//! Arithmetic on numbers.

mod abs;
mod add;
mod atan;
mod ceil;
mod cos;
mod detach;
mod div;
mod exp;
mod floor;
mod log;
mod max;
mod min;
mod modulo;
mod mul;
mod neg;
mod pow;
mod reciprocal;
mod round;
mod sign;
mod sin;
mod sqrt;
mod sub;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[
    abs::PRIMITIVE,
    add::PRIMITIVE,
    atan::PRIMITIVE,
    ceil::PRIMITIVE,
    cos::PRIMITIVE,
    detach::PRIMITIVE,
    div::PRIMITIVE,
    exp::PRIMITIVE,
    floor::PRIMITIVE,
    log::PRIMITIVE,
    max::PRIMITIVE,
    min::PRIMITIVE,
    modulo::PRIMITIVE,
    mul::PRIMITIVE,
    neg::PRIMITIVE,
    pow::PRIMITIVE,
    reciprocal::PRIMITIVE,
    round::PRIMITIVE,
    sign::PRIMITIVE,
    sin::PRIMITIVE,
    sqrt::PRIMITIVE,
    sub::PRIMITIVE,
];
