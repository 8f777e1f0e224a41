//! The primitives that programs are made of, by name.

use super::{activation, arithmetic, logic};
use crate::ops::engine::primitive::{self, Primitive};
use std::sync::LazyLock;

/// Every elementwise primitive, in order of names.
static INSTRUCTIONS: LazyLock<Vec<&'static Primitive>> =
    LazyLock::new(|| primitive::sorted(&[activation::PRIMITIVES, arithmetic::PRIMITIVES, logic::PRIMITIVES]));

/// The elementwise primitive of this name.
pub fn find(name: &str) -> Option<&'static Primitive> {
    primitive::find(&INSTRUCTIONS, name)
}
