//! Products of operands rounded to bf16, with sums in f32, on the units that a processor has for them.
//!
//! Operands are packed in tiles (`pack`), which a `Unit` multiplies block by block (`task`). A frozen right operand is packed once
//! ([`pack_weight`]). The units: AMX tiles (`amx`), AVX512-BF16 (`dot`), and a model of the tile instruction in software (`model`), which
//! runs everywhere and takes the place of a unit in tests.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod dot;
mod model;
mod pack;
mod packed;
mod task;

use super::matrix::{Matrix, Start, Target, Term};
use crate::ops::engine::packed::LINES;
use crate::ops::engine::parallel::Shared;
use std::sync::OnceLock;

pub use packed::pack_weight;
#[cfg(test)]
use packed::pack_whole;
pub use task::gemm;

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

    /// The unit that products run on: the fastest that gave the right sums when it was first asked for.
    pub fn here() -> Unit {
        static HERE: OnceLock<Unit> = OnceLock::new();
        *HERE.get_or_init(|| Unit::all().into_iter().find(|u| u.is_right()).unwrap_or(Unit::Model))
    }

    /// Whether the processor has a unit.
    pub fn is_hardware(self) -> bool {
        self != Unit::Model
    }

    /// A product with rows, columns and a depth that end within a tile, beside its sums in f64.
    fn is_right(self) -> bool {
        let [m, n, k] = [45, 39, 83];
        let of = |count: usize, salt: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
        };
        let (a, b) = (of(m * k, 1), of(k * n, 2));
        let mut y = vec![0.0; m * n];
        let target = Target { data: &Shared::new(&mut y), at: 0, row: n };
        let term = Term { k, a: Matrix::new(&a, k, 1), b: Matrix::new(&b, n, 1) };
        // SAFETY: the operands and the result are of these extents.
        unsafe { gemm(Start::Zero, [m, n], [Some(term), None], target, None, false, self) };
        let rounded = |x: f32| half::bf16::from_f32(x).to_f64();
        (0..m * n).all(|at| {
            let (i, j) = (at / n, at % n);
            let sum: f64 = (0..k).map(|p| rounded(a[i * k + p]) * rounded(b[p * n + j])).sum();
            (sum - y[at] as f64).abs() < 1e-4
        })
    }
}

/// One part of a block's sum: so many tiles of either side, one behind the other, of two lines' worth each.
#[derive(Clone, Copy)]
pub struct Segment {
    pub tiles: usize,
    pub left: *const u16,
    pub right: *const u16,
}

/// Where a block of results is, and whether what is there is added.
#[derive(Clone, Copy)]
pub struct Sum {
    pub at: *mut f32,
    pub row: usize,
    pub add: bool,
}

/// Multiplies a block of so many tiles, one or two, by rows and columns.
///
/// # Safety
/// The processor has the unit; the segments and the block's `16 tall` by `16 wide` results are there.
unsafe fn block(unit: Unit, [tall, wide]: [usize; 2], segments: &[Segment; 2], sum: Sum) {
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
fn with_unit(unit: Unit, task: impl FnOnce()) {
    match unit {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Unit::Amx => amx::with_tiles(task),
        _ => task(),
    }
}

#[cfg(test)]
mod tests;
