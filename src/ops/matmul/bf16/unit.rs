//! The units that multiply blocks.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
#[cfg(target_arch = "x86_64")]
use super::dot;
use super::model;
use super::operands::{Segment, Sum};
use crate::ops::engine::packed::LINES;

/// Rows and columns of a block of results: two tiles by two.
pub const BLOCK: usize = 2 * LINES;

/// What multiplies blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `tdpbf16ps`: tiles of 16 rows by 32 products.
    Amx,
    /// `vdpbf16ps`: vectors of 32 products.
    Dot,
    /// The tile instruction in software, to the bit.
    Model,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Amx => "AMX-BF16",
            Unit::Dot => "AVX512-BF16",
            Unit::Model => "none",
        }
    }

    /// The units that this processor has, the fastest first, and the model.
    pub fn all() -> Vec<Unit> {
        let mut all = vec![];
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        all.extend(amx::available().then_some(Unit::Amx));
        #[cfg(target_arch = "x86_64")]
        all.extend(dot::available().then_some(Unit::Dot));
        all.push(Unit::Model);
        all
    }

    /// Whether the processor has a unit.
    pub fn is_hardware(self) -> bool {
        self != Unit::Model
    }
}

/// Multiplies a block of so many tiles, one or two, by rows and columns.
///
/// # Safety
/// The processor has the unit; the segments and the block's `16 tall` by `16 wide` results are there.
pub unsafe fn block(unit: Unit, [tall, wide]: [usize; 2], segments: &[Segment; 2], sum: Sum) {
    // SAFETY: by the caller.
    unsafe {
        match unit {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Unit::Amx => amx::block([tall, wide], segments, sum),
            #[cfg(target_arch = "x86_64")]
            Unit::Dot => dot::block([tall, wide], segments, sum),
            _ => model::block([tall, wide], segments, sum),
        }
    }
}

/// Runs a task with the unit made ready for this thread.
pub fn with_unit(unit: Unit, task: impl FnOnce()) {
    match unit {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Unit::Amx => amx::with_tiles(task),
        _ => task(),
    }
}
