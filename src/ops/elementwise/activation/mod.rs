//! Activation functions and their gradients.

mod erf;
mod gelu;
mod gelu_grad;
pub mod gelu_tanh;
mod gelu_tanh_grad;
mod sigmoid;
mod silu;
mod silu_grad;
mod tanh;

use crate::ops::engine::primitive::Primitive;

/// The primitives, by name.
pub const PRIMITIVES: &[Primitive] = &[
    erf::PRIMITIVE,
    gelu::PRIMITIVE,
    gelu_grad::PRIMITIVE,
    gelu_tanh::PRIMITIVE,
    gelu_tanh_grad::PRIMITIVE,
    sigmoid::PRIMITIVE,
    silu::PRIMITIVE,
    silu_grad::PRIMITIVE,
    tanh::PRIMITIVE,
];
