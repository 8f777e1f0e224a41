//! Packs strips of operands: two tiles' lines, and all steps of k.

use super::pack::{Order, Source, pack};
use crate::ops::engine::packed::{DEPTH, LINES, Line, Packed, TILE};
use crate::ops::engine::parallel::{self, Shared};
use crate::ops::engine::primitive::{Elements, Tiled};
use crate::ops::matmul::matrix::Matrix;
use crate::ops::matmul::stored::Stored;

/// Packs a frozen right operand of these extents and strides, on all cores.
pub fn pack_weight(data: &[f32], t: &Tiled) -> Packed {
    pack_whole(Matrix::new(data, t.strides.0, t.strides.1), t.extents)
}

/// Packs a right operand `(k, n)`, on all cores.
pub fn pack_whole(b: Matrix<f32>, [k, n]: [usize; 2]) -> Packed {
    assert!(b.holds(k, n), "the operand is within its data");
    let (panels, each) = (n.div_ceil(2 * LINES), Packed::panel_lines(k));
    let mut lines = vec![Line([0; DEPTH]); panels * each];
    let out = Shared::new(&mut lines);
    parallel::ranges(panels, 1, |range| {
        for panel in range {
            let first = panel * 2 * LINES;
            // SAFETY: one task a panel; the operand holds its columns.
            unsafe {
                let to = out.part(panel * each..(panel + 1) * each).as_mut_ptr().cast();
                pack_panel(b, [first, 0], [k, (n - first).min(2 * LINES)], to);
            }
        }
    });
    Packed::new([k, n], lines)
}

/// Packs up to two tiles' columns of `k` rows of a right operand, from a column and a row on.
///
/// # Safety
/// They are within the operand, and the tiles fit at `out`.
pub unsafe fn pack_panel(b: Matrix<f32>, [column, row]: [usize; 2], extents: [usize; 2], out: *mut u16) {
    // SAFETY: by the caller.
    unsafe {
        match b.data {
            Elements::Full(data) => pack_two(Order::Pairs, columns(data, b).from(column, row), extents, out),
            Elements::Halves(data) => pack_two(Order::Pairs, columns(data, b).from(column, row), extents, out),
            Elements::Bf16(data) => pack_two(Order::Pairs, columns(data, b).from(column, row), extents, out),
            Elements::Packed(_) => panic!("a packed operand is not packed again"),
        }
    }
}

/// Columns as lines of tiles.
fn columns<E>(data: &[E], b: Matrix<f32>) -> Source<E> {
    Source { data: data.as_ptr(), line: b.col, step: b.row }
}

/// Packs up to two tiles' lines of `k` elements.
///
/// # Safety
/// They are within the source, and the tiles fit at `out`.
pub unsafe fn pack_two<E: Stored>(order: Order, from: Source<E>, [k, lines]: [usize; 2], out: *mut u16) {
    for (t, step) in (0..k).step_by(DEPTH).enumerate() {
        for side in 0..2 {
            let first = (side * LINES).min(lines);
            let extents = [(lines - first).min(LINES), (k - step).min(DEPTH)];
            // SAFETY: by the caller.
            unsafe { pack(order, from.from(first, step), extents, out.add((2 * t + side) * TILE)) };
        }
    }
}
