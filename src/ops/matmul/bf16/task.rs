//! A product as tasks: rectangles of the result, computed block by block along steps of k that the first level of cache holds.
//!
//! The order in which terms are summed depends on the extents alone, so results do not depend on how tasks are shared out.

use super::operands::{Segment, Sum};
use super::pack::{Order, Source};
use super::packed::{pack_panel, pack_two};
use super::unit::{BLOCK, Unit, block, with_unit};
use crate::ops::engine::packed::{DEPTH, LINES, PAIR, Packed};
use crate::ops::engine::primitive::Elements;
use crate::ops::matmul::matrix::{Matrix, Start, Target, Term, Then, left};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// The most steps of k that are summed before results go to memory: a panel of them fits the first level of cache beside the tiles of
/// the left operand that pass.
const DEEP: usize = 640;
/// Rows of the left operand that are packed at once: they stay in the second level of cache.
const TALL: usize = 256;
/// The most columns of a task whose right operand is packed on the way.
const WIDE: usize = 512;

thread_local! {
    /// Tiles of both operands of the task at hand, and a block that does not fit into the result.
    static TILES: RefCell<[Vec<u16>; 2]> = const { RefCell::new([vec![], vec![]]) };
}

/// The operands of one term.
#[derive(Clone, Copy)]
struct Side<'a> {
    k: usize,
    a: Matrix<'a, f32>,
    b: Matrix<'a, f32>,
    /// The right operand in tiles.
    packed: Option<&'a Packed>,
}

impl<'a> Side<'a> {
    fn of(term: Option<Term<'a, f32>>) -> Side<'a> {
        let none = Matrix::new(&[], 0, 0);
        let Some(Term { k, a, b }) = term else { return Side { k: 0, a: none, b: none, packed: None } };
        let packed = match b.data {
            Elements::Packed(p) => Some(p.of((b.row, b.col), k)),
            _ => None,
        };
        Side { k, a, b, packed }
    }

    /// Packs up to two tiles' rows from a row and a step on.
    ///
    /// # Safety
    /// They are within the operand, and the tiles fit at `out`.
    unsafe fn pack_rows(&self, row: usize, step: usize, extents: [usize; 2], out: *mut u16) {
        let rows = Source { data: left(&self.a).as_ptr(), line: self.a.row, step: self.a.col };
        // SAFETY: by the caller.
        unsafe { pack_two(Order::Lines, rows.from(row, step), extents, out) }
    }
}

/// What every task reads.
#[derive(Clone, Copy)]
struct Product<'a, 'f> {
    unit: Unit,
    /// The second goes with the last steps of the first: it is for few terms.
    sides: [Side<'a>; 2],
    y: *mut f32,
    y_row: usize,
    start: Start<'a, f32>,
    then: Option<Then<'f>>,
}

// SAFETY: tasks read the operands and write rectangles of the result that do not overlap.
unsafe impl Send for Product<'_, '_> {}
unsafe impl Sync for Product<'_, '_> {}

/// As [`gemm_terms`](crate::ops::matmul::multiply::gemm_terms), of operands rounded to bf16.
///
/// # Safety
/// As there; operands and target are within their data, and the processor has the unit.
#[allow(clippy::too_many_arguments)]
pub unsafe fn gemm(
    start: Start<f32>,
    [m, n]: [usize; 2],
    terms: [Option<Term<f32>>; 2],
    y: Target<f32>,
    then: Option<Then>,
    threads: bool,
    unit: Unit,
) {
    let results = y.data.pointer(y.at..y.at + (m - 1) * y.row + n);
    let product = Product { unit, sides: terms.map(Side::of), y: results, y_row: y.row, start, then };
    let parts = if threads { rayon::current_num_threads() } else { 1 };
    let [tall, wide] = split([m, n], parts, product.sides[0].packed.is_some());
    let (rows, columns) = (m.div_ceil(tall), n.div_ceil(wide));
    let part = |t: usize| {
        let (i, j) = (t / columns * tall, t % columns * wide);
        let (rows, columns) = (i..(i + tall).min(m), j..(j + wide).min(n));
        // SAFETY: by the caller; tasks have rectangles of their own.
        with_unit(unit, || unsafe { product.task(rows, columns) });
    };
    match (parts, rows * columns) {
        (1, tasks) | (_, tasks @ 1) => (0..tasks).for_each(part),
        (_, tasks) => (0..tasks).into_par_iter().with_max_len(1).for_each(part),
    }
}

/// Rows and columns of a task: two tasks a thread along the longer side, so that the operand of the shorter one is read once by each.
fn split([m, n]: [usize; 2], parts: usize, packed: bool) -> [usize; 2] {
    let most = if packed { n } else { WIDE };
    let share = |extent: usize, parts: usize| extent.div_ceil(parts).next_multiple_of(BLOCK);
    if parts == 1 {
        return [m, most.min(n)];
    }
    if m >= n {
        let columns = n.div_ceil(most.max(1));
        [share(m, (2 * parts).div_ceil(columns.max(1))), most.min(n)]
    } else {
        [m, share(n, 2 * parts).min(most.next_multiple_of(BLOCK))]
    }
}

impl Product<'_, '_> {
    /// One rectangle of the result.
    unsafe fn task(&self, rows: Range<usize>, columns: Range<usize>) {
        let [first, second] = self.sides;
        let blocks = first.k.div_ceil(DEEP).max(1);
        let deep = first.k.div_ceil(blocks).next_multiple_of(DEPTH);
        let more = second.k.div_ceil(DEPTH);
        let panels = columns.len().div_ceil(BLOCK);
        // Elements of a packed strip of either operand.
        let each = (deep / DEPTH + more) * PAIR;
        TILES.with_borrow_mut(|[lefts, rights]| {
            let lefts = aligned(lefts, TALL.min(rows.len()).div_ceil(BLOCK) * each);
            let rights = aligned(rights, panels * each);
            let mut from = 0;
            loop {
                let depth = deep.min(first.k - from);
                let last = from + depth >= first.k;
                let tiles = depth.div_ceil(DEPTH);
                let extra = if last { second.k } else { 0 };
                for panel in 0..panels {
                    let column = columns.start + panel * BLOCK;
                    let wide = BLOCK.min(columns.end - column);
                    // SAFETY: the columns are within the operands, their tiles within the buffer.
                    unsafe {
                        let to = rights.add(panel * each);
                        if first.packed.is_none() {
                            pack_panel(first.b, [column, from], [depth, wide], to);
                        }
                        if extra > 0 {
                            pack_panel(second.b, [column, 0], [extra, wide], to.add(tiles * PAIR));
                        }
                    }
                }
                for top in rows.clone().step_by(TALL) {
                    let bottom = (top + TALL).min(rows.end);
                    for (s, row) in (top..bottom).step_by(BLOCK).enumerate() {
                        let tall = BLOCK.min(bottom - row);
                        // SAFETY: as above.
                        unsafe {
                            let to = lefts.add(s * each);
                            first.pack_rows(row, from, [depth, tall], to);
                            if extra > 0 {
                                second.pack_rows(row, 0, [extra, tall], to.add(tiles * PAIR));
                            }
                        }
                    }
                    for panel in 0..panels {
                        let column = columns.start + panel * BLOCK;
                        let right = match first.packed {
                            Some(p) => p.panel(column / BLOCK, from),
                            None => rights.wrapping_add(panel * each).cast_const(),
                        };
                        let right2 = rights.wrapping_add(panel * each + tiles * PAIR);
                        for (s, row) in (top..bottom).step_by(BLOCK).enumerate() {
                            let left = lefts.wrapping_add(s * each);
                            let segments = [
                                Segment { tiles, left, right },
                                Segment {
                                    tiles: extra.div_ceil(DEPTH),
                                    left: left.wrapping_add(tiles * PAIR),
                                    right: right2,
                                },
                            ];
                            let (rows, columns) = (row..(row + BLOCK).min(bottom), column..columns.end);
                            // SAFETY: as above, and the block is within the task's rectangle.
                            unsafe { self.block(rows, columns, from == 0, &segments) };
                        }
                    }
                    if last && let Some(then) = self.then {
                        then(top..bottom, columns.clone());
                    }
                }
                from += depth;
                if last {
                    break;
                }
            }
        });
    }

    /// One block of the result, of which `rows` and the first of `columns` are there.
    unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>, fresh: bool, segments: &[Segment; 2]) {
        let (tall, wide) = (rows.len(), columns.len().min(BLOCK));
        let form = [tall.div_ceil(LINES), wide.div_ceil(LINES)];
        let add = !fresh || !matches!(self.start, Start::Zero);
        // SAFETY: by the caller.
        unsafe {
            let at = self.y.add(rows.start * self.y_row + columns.start);
            let copy = |from: &[f32], to: *mut f32| {
                std::ptr::copy_nonoverlapping(from[columns.start..columns.start + wide].as_ptr(), to, wide)
            };
            // What the results begin with.
            let begin = |to: *mut f32, row: usize| match self.start {
                Start::Row(data) if fresh => (0..tall).for_each(|r| copy(data, to.add(r * row))),
                Start::Rows { data, row: apart } if fresh => {
                    (0..tall).for_each(|r| copy(&data[(rows.start + r) * apart..], to.add(r * row)))
                }
                _ if to == at => {}
                _ => {
                    (0..tall).for_each(|r| std::ptr::copy_nonoverlapping(at.add(r * self.y_row), to.add(r * row), wide))
                }
            };
            if [tall, wide] == form.map(|f| f * LINES) {
                if add {
                    begin(at, self.y_row);
                }
                return block(self.unit, form, segments, Sum { at, row: self.y_row, add });
            }
            let mut whole = [0.0f32; BLOCK * BLOCK];
            if add {
                begin(whole.as_mut_ptr(), BLOCK);
            }
            block(self.unit, form, segments, Sum { at: whole.as_mut_ptr(), row: BLOCK, add });
            for (r, row) in whole.chunks_exact(BLOCK).enumerate().take(tall) {
                std::ptr::copy_nonoverlapping(row.as_ptr(), at.add(r * self.y_row), wide);
            }
        }
    }
}

/// So many elements of a buffer, the first at the start of a cache line.
fn aligned(buffer: &mut Vec<u16>, count: usize) -> *mut u16 {
    if buffer.len() < count + DEPTH {
        buffer.resize(count + DEPTH, 0);
    }
    let start = buffer.as_ptr().align_offset(64).min(DEPTH);
    buffer[start..start + count].as_mut_ptr()
}
