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
mod operands;
mod pack;
mod packed;
mod task;
mod unit;

use super::matrix::{Matrix, Start, Target, Term};
use crate::ops::engine::parallel::Shared;
use std::sync::OnceLock;

pub use packed::pack_weight;
#[cfg(test)]
use packed::pack_whole;
pub use task::gemm;
pub use unit::Unit;

impl Unit {
    /// The unit that products run on: the fastest that gave the right sums when it was first asked for.
    pub fn here() -> Unit {
        static HERE: OnceLock<Unit> = OnceLock::new();
        *HERE.get_or_init(|| Unit::all().into_iter().find(|u| u.is_right()).unwrap_or(Unit::Model))
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

#[cfg(test)]
mod tests {
    use super::operands::{Segment, Sum};
    use super::pack::{Order, Source, one_by_one, pack};
    use super::unit::block;
    use super::*;
    use crate::ops::engine::packed::{DEPTH, PackedWeight, TILE};
    use crate::ops::engine::primitive::Elements;
    use crate::ops::matmul::matrix::Then;
    use half::bf16;
    use std::ops::Range;

    /// Numbers between -1 and 1.
    fn matrix(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    #[test]
    fn tiles_of_every_layout_and_tail_are_the_same_in_vectors() {
        let mut data = matrix(64 * 64, 3);
        // What rounds up, what is halfway between two, and what is no finite number.
        let edges = [f32::NAN, f32::INFINITY, -0.0, f32::MAX, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::from_bits(1)];
        edges.iter().enumerate().for_each(|(i, &x)| data[i * 65] = x);
        for order in [Order::Lines, Order::Pairs] {
            for (line, step) in [(64, 1), (1, 64), (2, 64), (1, 1)] {
                for extents in [[16, 32], [16, 31], [9, 32], [1, 1], [0, 32], [7, 17], [16, 16]] {
                    let from = Source { data: data.as_ptr(), line, step };
                    let (mut fast, mut slow) = ([7u16; TILE], [9u16; TILE]);
                    // SAFETY: the source has all of these.
                    unsafe {
                        pack(order, from, extents, fast.as_mut_ptr());
                        one_by_one(order, from, extents, slow.as_mut_ptr());
                    }
                    assert_eq!(fast, slow, "{order:?}, strides {line} and {step}, {extents:?}");
                }
            }
        }
    }

    /// A machine without units tests the packing and the tasks on the model alone.
    #[test]
    fn products_on_every_unit_are_sums_of_rounded_operands() {
        let rounded = |x: f32| bf16::from_f32(x).to_f64();
        for unit in Unit::all() {
            for [m, n, k] in
                [[1, 1, 1], [7, 5, 3], [16, 32, 33], [33, 17, 64], [70, 33, 1400], [3, 530, 40], [300, 40, 9]]
            {
                let (a, b) = (matrix(m * k, 1), matrix(k * n, 2));
                let (c, d) = (matrix(m * 5, 4), matrix(5 * n, 5));
                let start = matrix(m * n, 6);
                for (a_row, a_col, b_row, b_col) in [(k, 1, n, 1), (1, m, 1, k), (k, 1, 1, k), (1, m, n, 1)] {
                    for (s, threads) in [(0, true), (1, false), (2, true), (3, false)] {
                        let (left, right) = (Matrix::new(&a, a_row, a_col), Matrix::new(&b, b_row, b_col));
                        let mut weight = PackedWeight::default();
                        weight.put((b_row, b_col), pack_whole(right, [k, n]));
                        let packed = Matrix { data: Elements::Packed(&weight), ..right };
                        let (low, rank) = (Matrix::new(&c, 5, 1), Matrix::new(&d, 1, 5));
                        let second = (s % 2 == 1).then_some(Term { k: 5, a: low, b: rank });
                        let run = |b: Matrix<f32>| {
                            // Rows with a gap of two after each, which must stay as they are.
                            let mut y = vec![1.0f32; m * (n + 2)];
                            let shared = Shared::new(&mut y);
                            let target = Target { data: &shared, at: 0, row: n + 2 };
                            let all =
                                [Start::Zero, Start::Target, Start::Row(&start), Start::Rows { data: &start, row: n }];
                            let negate = |rows: Range<usize>, columns: Range<usize>| {
                                for i in rows {
                                    let part = i * (n + 2) + columns.start..i * (n + 2) + columns.end;
                                    // SAFETY: rectangles do not overlap.
                                    unsafe { shared.part(part) }.iter_mut().for_each(|y| *y = -*y);
                                }
                            };
                            let then: Option<Then> = if s < 2 { Some(&negate) } else { None };
                            let terms = [Some(Term { k, a: left, b }), second];
                            // SAFETY: nothing else uses y, and everything is of these extents.
                            unsafe { gemm(all[s], [m, n], terms, target, then, threads, unit) };
                            y
                        };
                        let y = run(right);
                        assert_eq!(y, run(packed), "{unit:?} {m} {n} {k}: a packed operand");
                        for i in 0..m {
                            assert_eq!(y[i * (n + 2) + n..][..2], [1.0, 1.0]);
                            for j in 0..n {
                                let at = |x: &[f32], at: usize| rounded(x[at]);
                                let mut sum: f64 =
                                    (0..k).map(|p| at(&a, i * a_row + p * a_col) * at(&b, p * b_row + j * b_col)).sum();
                                if second.is_some() {
                                    sum += (0..5).map(|p| at(&c, i * 5 + p) * at(&d, p + j * 5)).sum::<f64>();
                                }
                                sum += [0.0, 1.0, start[j] as f64, start[i * n + j] as f64][s];
                                let want = if s < 2 { -sum } else { sum };
                                let got = y[i * (n + 2) + j] as f64;
                                assert!(
                                    (got - want).abs() < 2e-5 * (k as f64).sqrt() + 1e-6,
                                    "{unit:?} {m} {n} {k} {s}: {got} {want}"
                                );
                            }
                        }
                    }
                }
            }
            assert!(unit.is_right());
        }
    }

    /// The sum of one tile as the instruction's description has it, worked out by hand.
    #[test]
    fn the_model_sums_even_and_odd_elements_apart() {
        let half = |x: f32| bf16::from_f32(x).to_bits();
        let (mut left, mut right) = ([0u16; 2 * TILE], [0u16; 2 * TILE]);
        // One row and column: even products 2^24, then 1, which is lost beside it; odd ones -2^24, then 1, which is not.
        let (big, one) = (half(4096.0), half(1.0));
        for (k, (a, b)) in [(big, big), (half(-4096.0), big), (one, one), (one, one)].into_iter().enumerate() {
            left[k] = a;
            right[k / 2 * DEPTH + k % 2] = b;
        }
        // A subnormal number counts as zero.
        left[4] = 1;
        right[2 * DEPTH] = half(1e38);
        let mut y = [0.5f32; 16 * 16];
        let first = Segment { tiles: 1, left: left.as_ptr(), right: right.as_ptr() };
        let none = Segment { tiles: 0, ..first };
        // SAFETY: two tiles of either side, and one of results.
        unsafe { block(Unit::Model, [1, 1], &[first, none], Sum { at: y.as_mut_ptr(), row: 16, add: true }) };
        assert_eq!(y[0], 1.5, "0.5 and the sum of 2^24 and 1 - 2^24");
        assert!(y[1..].iter().all(|&y| y == 0.5));
    }
}
