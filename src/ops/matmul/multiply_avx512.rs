//! Products of f32 matrices for processors with AVX-512: panels of the right operand are packed where the second level of cache
//! holds them (halves become f32 then), the left operand is read where it stands, and tiles of eight rows by three vectors stay in registers.
//!
//! The order in which terms are summed depends on the extents alone, so results do not depend on how tasks are shared out.

use super::matrix::{Start, Target, Term, Then, left};
use super::stored::{LANES, Stored};
use super::transpose::exchange;
use crate::ops::engine::parallel::Shared;
use crate::ops::engine::primitive::Elements;
use half::{bf16, f16};
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::sync::OnceLock;

/// Vectors of a panel, rows of a tile.
const VECTORS: usize = 3;
const PANEL: usize = LANES * VECTORS;
const ROWS: usize = 8;
/// The most terms that are summed before results go to memory: a panel of them, and a tile's rows, fit the first level of cache.
const DEPTH: usize = 384;
/// The most panels of one task: packed, they fit the second level of cache.
const TASK_PANELS: usize = 4;
/// Steps of k that all panels of a task get before the next ones: rows as they are stored are read on and on, rather than a panel's
/// width of each.
const STRIP: usize = 16;
/// Rows that one visit of a task's panels multiplies: they stay in the second level of cache beside the panels.
const BLOCK: usize = 16 * ROWS;

thread_local! {
    /// Packed panels of the task at hand.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Whether this processor runs the kernels here.
pub fn available() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| is_x86_feature_detected!("avx512f"))
}

/// The operands of one term as pointers; none where `k` is zero.
#[derive(Clone, Copy)]
struct Side {
    k: usize,
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: Right,
    b_row: usize,
    b_col: usize,
}

/// Elements of a right operand.
#[derive(Clone, Copy)]
enum Right {
    Full(*const f32),
    Halves(*const f16),
    Bf16(*const bf16),
}

impl Right {
    /// # Safety
    /// Element `n` is within the operand.
    unsafe fn add(self, n: usize) -> Right {
        // SAFETY: by the caller.
        unsafe {
            match self {
                Right::Full(at) => Right::Full(at.add(n)),
                Right::Halves(at) => Right::Halves(at.add(n)),
                Right::Bf16(at) => Right::Bf16(at.add(n)),
            }
        }
    }
}

impl Side {
    fn of(term: Option<Term<f32>>) -> Side {
        let none = std::ptr::null();
        match term {
            None => Side { k: 0, a: none, a_row: 0, a_col: 0, b: Right::Full(none), b_row: 0, b_col: 0 },
            Some(Term { k, a, b }) => Side {
                k,
                a: left(&a).as_ptr(),
                a_row: a.row,
                a_col: a.col,
                b: match b.data {
                    Elements::Full(data) => Right::Full(data.as_ptr()),
                    Elements::Halves(data) => Right::Halves(data.as_ptr()),
                    Elements::Bf16(data) => Right::Bf16(data.as_ptr()),
                    Elements::Packed(_) => panic!("packed operands are for products of bf16"),
                },
                b_row: b.row,
                b_col: b.col,
            },
        }
    }
}

/// Operands as pointers that tasks share.
#[derive(Clone, Copy)]
struct Product<'f> {
    /// The second goes with the last steps of the first: it is for few terms.
    sides: [Side; 2],
    y: *mut f32,
    y_row: usize,
    /// What the results are added to: null for nothing; else rows `start_row` apart.
    start: *const f32,
    start_row: usize,
    then: Option<Then<'f>>,
}

// SAFETY: tasks read the operands and write rectangles of the result that do not overlap.
unsafe impl Send for Product<'_> {}
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    fn run(self, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) {
        // SAFETY: `gemm` has checked the processor and that every element is within its slice.
        unsafe { task(self, rows, columns) }
    }
}

/// As [`super::multiply::gemm_terms`], on a processor for which [`available`] holds.
///
/// # Safety
/// As there; operands and target are within their data.
pub unsafe fn gemm(
    start: Start<f32>,
    [m, n]: [usize; 2],
    terms: [Option<Term<f32>>; 2],
    y: Target<f32>,
    then: Option<Then>,
    threads: bool,
) {
    let shared: &Shared<f32> = y.data;
    let results = shared.pointer(y.at..y.at + (m - 1) * y.row + n);
    let (start, start_row) = match start {
        Start::Zero => (std::ptr::null(), 0),
        Start::Target => (results.cast_const(), y.row),
        Start::Row(data) => (data.as_ptr(), 0),
        Start::Rows { data, row } => (data.as_ptr(), row),
    };
    let sides = terms.map(Side::of);
    let product = Product { sides, y: results, y_row: y.row, start, start_row, then };
    let k = sides[0].k + sides[1].k;
    let parts = if threads { rayon::current_num_threads() } else { 1 };
    let (tall, wide) = if threads { split([m, n, k], parts) } else { (m, TASK_PANELS * PANEL) };
    let (rows, columns) = (m.div_ceil(tall), n.div_ceil(wide));
    let part = |t: usize| {
        let (i, j) = (t / columns * tall, t % columns * wide);
        product.run(i..(i + tall).min(m), j..(j + wide).min(n));
    };
    match (parts, rows * columns) {
        (1, tasks) | (_, tasks @ 1) => (0..tasks).for_each(part),
        (_, tasks) => (0..tasks).into_par_iter().with_max_len(1).for_each(part),
    }
}

/// Rows and columns of a task: those that end soonest by a rough count of cycles.
fn split([m, n, k]: [usize; 3], threads: usize) -> (usize, usize) {
    let panels = n.div_ceil(PANEL);
    let mut best = (f64::INFINITY, (m, n));
    let most = (4 * threads).max(panels.div_ceil(TASK_PANELS));
    for columns in panels.div_ceil(TASK_PANELS)..=panels.min(most) {
        let wide = panels.div_ceil(columns) * PANEL;
        for rows in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64] {
            let tall = m.div_ceil(rows).next_multiple_of(ROWS);
            if rows > 1 && (tall < 64 || rows > 8 * threads) {
                break;
            }
            let tasks = m.div_ceil(tall) * n.div_ceil(wide);
            let (tall_f, wide_f, k) = (tall as f64, wide.min(n.next_multiple_of(LANES)) as f64, k as f64);
            // Multiplying, packing, taking results out of registers, and handing a task out.
            let each = tall_f * wide_f * k / 30.0 + wide_f * k * 0.6 + tall_f * wide_f * 0.2 + 2000.0;
            let cost = tasks.div_ceil(threads) as f64 * each;
            if cost < best.0 {
                best = (cost, (tall, wide));
            }
        }
    }
    best.1
}

#[target_feature(enable = "avx512f")]
unsafe fn task(p: Product, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) {
    let (m, n) = (rows.len(), columns.len());
    let [first, second] = p.sides;
    let blocks = first.k.div_ceil(DEPTH).max(1);
    let depth = first.k.div_ceil(blocks);
    let panels = n.div_ceil(PANEL);
    // Elements of a packed panel.
    let each = PANEL * (depth + second.k);
    PACKED.with_borrow_mut(|buffer| {
        let need = panels * each + LANES;
        if buffer.len() < need {
            buffer.resize(need, 0.0);
        }
        let start = buffer.as_ptr().align_offset(64).min(LANES);
        let packed = buffer[start..].as_mut_ptr();
        let mut from = 0;
        loop {
            let deep = depth.min(first.k - from);
            let last = from + deep >= first.k;
            // Of the second term, all at the end.
            let more = if last { second.k } else { 0 };
            let width = |j: usize| PANEL.min(n - j * PANEL);
            let strip = if first.b_col == 1 && panels > 1 { STRIP } else { deep.max(1) };
            for (p, j) in (0..deep).step_by(strip).flat_map(|p| (0..panels).map(move |j| (p, j))) {
                let room = width(j).next_multiple_of(LANES);
                // SAFETY: the panel is within b, its packed form within the buffer.
                unsafe {
                    let b = first.b.add((from + p) * first.b_row + (columns.start + j * PANEL) * first.b_col);
                    let to = packed.add(j * each + p * room);
                    pack(strip.min(deep - p), width(j), b, first.b_row, first.b_col, to, room);
                }
            }
            for j in (0..panels).filter(|_| more > 0) {
                let room = width(j).next_multiple_of(LANES);
                // SAFETY: as above.
                unsafe {
                    let b = second.b.add((columns.start + j * PANEL) * second.b_col);
                    pack(more, width(j), b, second.b_row, second.b_col, packed.add(j * each + deep * room), room);
                }
            }
            for top in (0..m).step_by(BLOCK) {
                let tall = BLOCK.min(m - top);
                let row = rows.start + top;
                for j in 0..panels {
                    // SAFETY: the rows are within a and y.
                    unsafe {
                        let column = columns.start + j * PANEL;
                        let a = first.a.add(row * first.a_row + from * first.a_col);
                        let y = p.y.add(row * p.y_row + column);
                        let (start, start_row) = match from {
                            0 if p.start.is_null() => (p.start, 0),
                            0 => (p.start.add(row * p.start_row + column), p.start_row),
                            _ => (y.cast_const(), p.y_row),
                        };
                        let after = if more > 0 { second.a.add(row * second.a_row) } else { second.a };
                        let lefts = [
                            Left { depth: deep, a, row: first.a_row, col: first.a_col },
                            Left { depth: more, a: after, row: second.a_row, col: second.a_col },
                        ];
                        let strip = Strip { lefts, panel: packed.add(j * each), y, y_row: p.y_row, start, start_row };
                        match width(j).div_ceil(LANES) {
                            1 => strip.run::<1>(tall, width(j)),
                            2 => strip.run::<2>(tall, width(j)),
                            _ => strip.run::<3>(tall, width(j)),
                        }
                    }
                }
                if last && let Some(then) = p.then {
                    then(row..row + tall, columns.clone());
                }
            }
            from += deep;
            if last {
                break;
            }
        }
    });
}

/// Rows of a left operand, and how many of their elements are multiplied.
#[derive(Clone, Copy)]
struct Left {
    depth: usize,
    a: *const f32,
    row: usize,
    col: usize,
}

/// One packed panel, the rows it multiplies, and where the results go.
#[derive(Clone, Copy)]
struct Strip {
    lefts: [Left; 2],
    panel: *const f32,
    y: *mut f32,
    y_row: usize,
    start: *const f32,
    start_row: usize,
}

impl Strip {
    #[target_feature(enable = "avx512f")]
    unsafe fn run<const V: usize>(self, m: usize, width: usize) {
        let last = width - (V - 1) * LANES;
        let mask = ((1u32 << last) - 1) as __mmask16;
        let mut i = 0;
        // SAFETY: rows i.. of a and y, as the caller has them.
        unsafe {
            while i + ROWS <= m {
                self.tile::<ROWS, V>(i, mask);
                i += ROWS;
            }
            match m - i {
                1 => self.tile::<1, V>(i, mask),
                2 => self.tile::<2, V>(i, mask),
                3 => self.tile::<3, V>(i, mask),
                4 => self.tile::<4, V>(i, mask),
                5 => self.tile::<5, V>(i, mask),
                6 => self.tile::<6, V>(i, mask),
                7 => self.tile::<7, V>(i, mask),
                _ => {}
            }
        }
    }

    /// `R` rows from row `i`. `mask` has the lanes of the last vector that are within the result.
    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const R: usize, const V: usize>(self, i: usize, mask: __mmask16) {
        // SAFETY: as the caller.
        unsafe {
            let mut sum = [[_mm512_setzero_ps(); V]; R];
            let mut b = self.panel;
            for left in self.lefts {
                let mut a = left.a.wrapping_add(i * left.row);
                for _ in 0..left.depth {
                    let mut right = [_mm512_setzero_ps(); V];
                    for (v, right) in right.iter_mut().enumerate() {
                        *right = _mm512_loadu_ps(b.add(v * LANES));
                    }
                    for (r, sum) in sum.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*a.add(r * left.row));
                        for v in 0..V {
                            sum[v] = _mm512_fmadd_ps(x, right[v], sum[v]);
                        }
                    }
                    a = a.wrapping_add(left.col);
                    b = b.add(V * LANES);
                }
            }
            for (r, sum) in sum.iter().enumerate() {
                let y = self.y.add((i + r) * self.y_row);
                for (v, &sum) in sum.iter().enumerate() {
                    let y = y.add(v * LANES);
                    let mask = if v + 1 == V { mask } else { !0 };
                    let sum = match self.start.is_null() {
                        true => sum,
                        false => {
                            let start = self.start.add((i + r) * self.start_row + v * LANES);
                            _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, start))
                        }
                    };
                    _mm512_mask_storeu_ps(y, mask, sum);
                }
            }
        }
    }
}

/// Packs `width` columns of `(k, ..)` into rows of `room` elements, with zeros after the last column.
#[target_feature(enable = "avx512f")]
unsafe fn pack(k: usize, width: usize, b: Right, row: usize, col: usize, out: *mut f32, room: usize) {
    // SAFETY: as the caller.
    unsafe {
        match b {
            Right::Full(b) => pack_from(k, width, b, row, col, out, room),
            Right::Halves(b) => pack_from(k, width, b, row, col, out, room),
            Right::Bf16(b) => pack_from(k, width, b, row, col, out, room),
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn pack_from<E: Stored>(
    k: usize,
    width: usize,
    b: *const E,
    row: usize,
    col: usize,
    out: *mut f32,
    room: usize,
) {
    // SAFETY: the caller's panel is `k` by `width`, its packed form `k` by `room`.
    unsafe {
        for v in (0..room).step_by(LANES) {
            let left = (width - v).min(LANES);
            let mask = ((1u32 << left) - 1) as __mmask16;
            let mut p = 0;
            if col == 1 {
                while p < k {
                    let from = b.add(p * row + v);
                    let x = if left == LANES { E::load(from) } else { E::load_first(mask, from) };
                    _mm512_storeu_ps(out.add(p * room + v), x);
                    p += 1;
                }
            } else if row == 1 && left == LANES {
                while p + LANES <= k {
                    transpose(b.add(v * col + p), col, out.add(p * room + v), room);
                    p += LANES;
                }
            }
            while p < k {
                for j in 0..LANES {
                    let x = if j < left { (*b.add(p * row + (v + j) * col)).get() } else { 0.0 };
                    *out.add(p * room + v + j) = x;
                }
                p += 1;
            }
        }
    }
}

/// 16 x 16 elements, exchanged.
#[target_feature(enable = "avx512f")]
unsafe fn transpose<E: Stored>(from: *const E, from_row: usize, to: *mut f32, to_row: usize) {
    // SAFETY: the caller's blocks are 16 by 16.
    unsafe {
        let mut r = [_mm512_setzero_ps(); 16];
        for (i, r) in r.iter_mut().enumerate() {
            *r = E::load(from.add(i * from_row));
        }
        for (i, column) in exchange(r).into_iter().enumerate() {
            _mm512_storeu_ps(to.add(i * to_row), column);
        }
    }
}
