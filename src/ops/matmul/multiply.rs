//! Products of matrices on the host: the one place where the host multiplies.

use super::matrix::{Matrix, Start, Target, Term, Then, left};
use super::{bf16, single};
use crate::ops::engine::math::Real;
use crate::ops::engine::parallel;
use crate::ops::engine::primitive::Elements;

/// Whether products copy their right operand side by side as they go, wherever its rows are.
pub fn packs_rights<T: Real>() -> bool {
    #[cfg(target_arch = "x86_64")]
    return single::is_f32::<T>() && super::multiply_avx512::available();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// `y = a b`, or `y += a b` with `add`: `(m, k)` by `(k, n)`. With `threads` on all cores, else on the calling one; with `bf16` of
/// operands rounded to the nearest bf16.
///
/// # Safety
/// No other task may use the target's elements meanwhile.
pub unsafe fn gemm<T: Real>(
    [m, n, k]: [usize; 3],
    a: Matrix<T>,
    b: Matrix<T>,
    y: Target<T>,
    add: bool,
    threads: bool,
    bf16: bool,
) {
    let start = if add { Start::Target } else { Start::Zero };
    // SAFETY: by the caller.
    unsafe { gemm_terms(start, [m, n], [Some(Term { k, a, b }), None], y, None, threads, bf16) };
}

/// `y = start + the sum of the terms`, the first of which is there; then `then`. Otherwise as [`gemm`].
///
/// # Safety
/// As there, but for `then`, which may use the elements of its rectangle.
pub unsafe fn gemm_terms<T: Real>(
    start: Start<T>,
    [m, n]: [usize; 2],
    terms: [Option<Term<T>>; 2],
    y: Target<T>,
    then: Option<Then>,
    threads: bool,
    bf16: bool,
) {
    if m * n == 0 {
        return;
    }
    for t in terms.iter().flatten() {
        assert!(t.a.holds(m, t.k) && t.b.holds(t.k, n), "operands of a product are within their data");
    }
    match start {
        Start::Row(row) => assert!(row.len() >= n, "a row to start from is as long as the result's"),
        Start::Rows { data, row } => {
            assert!(data.len() >= (m - 1) * row + n, "rows to start from are within their data")
        }
        _ => {}
    }
    let results = y.data.pointer(y.at..y.at + (m - 1) * y.row + n);
    if bf16 {
        if let (Some(terms), Some(y), Some(start)) = (single::terms(terms), y.as_f32(), start.as_f32()) {
            // SAFETY: by the caller and the assertions above.
            unsafe { bf16::gemm(start, [m, n], terms, y, then, threads, bf16::Unit::here()) };
            return;
        }
        let rounded = terms.map(|t| t.map(|t| (t, nearest(t.a.data), nearest(t.b.data))));
        let terms = rounded.each_ref().map(|t| {
            t.as_ref().map(|(t, a, b)| Term {
                a: Matrix { data: Elements::Full(a), ..t.a },
                b: Matrix { data: Elements::Full(b), ..t.b },
                ..*t
            })
        });
        // SAFETY: by the caller.
        return unsafe { gemm_terms(start, [m, n], terms, y, then, threads, false) };
    }
    #[cfg(target_arch = "x86_64")]
    if super::multiply_avx512::available()
        && let (Some(terms), Some(y), Some(start)) = (single::terms(terms), y.as_f32(), start.as_f32())
    {
        // SAFETY: by the caller and the assertions above.
        unsafe { super::multiply_avx512::gemm(start, [m, n], terms, y, then, threads) };
        return;
    }
    // SAFETY: rows of the target, which the caller lends.
    let fill =
        |i: usize, from: &[T]| unsafe { y.data.part(y.at + i * y.row..y.at + i * y.row + n) }.copy_from_slice(from);
    match start {
        Start::Row(row) => (0..m).for_each(|i| fill(i, &row[..n])),
        Start::Rows { data, row } => (0..m).for_each(|i| fill(i, &data[i * row..i * row + n])),
        _ => {}
    }
    let mut add = !matches!(start, Start::Zero);
    for t in terms.iter().flatten() {
        let parallelism = if threads { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
        // SAFETY: in bounds by the assertions above; the caller lends the target.
        let multiply = |b: &[T]| unsafe {
            gemm::gemm(
                m,
                n,
                t.k,
                results,
                1,
                y.row as isize,
                add,
                left(&t.a).as_ptr(),
                t.a.col as isize,
                t.a.row as isize,
                b.as_ptr(),
                t.b.col as isize,
                t.b.row as isize,
                if add { T::one() } else { T::zero() },
                T::one(),
                false,
                false,
                false,
                parallelism,
            );
        };
        match t.b.data {
            Elements::Full(b) => multiply(b),
            Elements::Halves(b) => parallel::scratch(b.len(), |full: &mut [T]| {
                full.iter_mut().zip(b).for_each(|(to, from)| *to = T::of(from.to_f64()));
                multiply(full);
            }),
            Elements::Bf16(b) => parallel::scratch(b.len(), |full: &mut [T]| {
                full.iter_mut().zip(b).for_each(|(to, from)| *to = T::of(from.to_f64()));
                multiply(full);
            }),
            Elements::Packed(_) => panic!("packed operands are for products of bf16"),
        }
        add = true;
    }
    if let Some(then) = then {
        let grain = if threads { parallel::rows_grain(n) } else { m };
        parallel::ranges(m, grain, |rows| then(rows, 0..n));
    }
}

/// The nearest bf16 of each element, in the element type.
fn nearest<T: Real>(data: Elements<T>) -> Vec<T> {
    let of = |x: half::bf16| T::of(x.to_f64());
    match data {
        Elements::Full(x) => x.iter().map(|&x| of(half::bf16::from_f32(Real::to_f64(x) as f32))).collect(),
        Elements::Halves(x) => x.iter().map(|x| of(half::bf16::from_f32(x.to_f32()))).collect(),
        Elements::Bf16(x) => x.iter().map(|&x| of(x)).collect(),
        Elements::Packed(_) => panic!("operands are packed for products of f32"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::engine::parallel::Shared;
    use std::ops::Range;

    fn at(x: &Matrix<f32>, i: usize, j: usize) -> f64 {
        let at = i * x.row + j * x.col;
        match x.data {
            Elements::Full(data) => data[at] as f64,
            Elements::Halves(data) => data[at].to_f64(),
            _ => panic!("the test has no others"),
        }
    }

    /// Whole numbers, whose products and sums are exact.
    fn matrix(n: usize, salt: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + salt) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn products_of_all_layouts_and_edges() {
        for &[m, n, k] in &[[1, 1, 1], [7, 5, 3], [8, 48, 16], [9, 49, 17], [70, 33, 800], [130, 250, 40], [3, 500, 1]]
        {
            let (a, b) = (matrix(m * k, 1), matrix(k * n, 2));
            let halves: Vec<half::f16> = b.iter().map(|&x| half::f16::from_f32(x)).collect();
            // A second term of five.
            let (c, d) = (matrix(m * 5, 4), matrix(5 * n, 5));
            for (a_row, a_col) in [(k, 1), (1, m)] {
                for (b_row, b_col) in [(n, 1), (1, k)] {
                    for (s, threads) in [(0, true), (1, false), (2, true), (3, false)] {
                        let (a, b) = (Matrix::new(&a, a_row, a_col), Matrix::new(&b, b_row, b_col));
                        let b = if threads { b } else { Matrix { data: Elements::Halves(&halves), ..b } };
                        let (c, d) = (Matrix::new(&c, 5, 1), Matrix::new(&d, 1, 5));
                        let second = (s % 2 == 1).then_some(Term { k: 5, a: c, b: d });
                        // Rows with a gap of two after each, which must stay as they are.
                        let mut y = vec![1.0f32; m * (n + 2)];
                        let shared = Shared::new(&mut y);
                        let target = Target { data: &shared, at: 0, row: n + 2 };
                        let other = matrix(m * n, 3);
                        let all =
                            [Start::Zero, Start::Target, Start::Row(&other), Start::Rows { data: &other, row: n }];
                        // Final results, each negated once.
                        let negate = |rows: Range<usize>, columns: Range<usize>| {
                            for i in rows {
                                // SAFETY: rectangles do not overlap.
                                let row =
                                    unsafe { shared.part(i * (n + 2) + columns.start..i * (n + 2) + columns.end) };
                                row.iter_mut().for_each(|y| *y = -*y);
                            }
                        };
                        let then: Option<Then> = if s < 2 { Some(&negate) } else { None };
                        // SAFETY: nothing else uses y.
                        unsafe {
                            gemm_terms(all[s], [m, n], [Some(Term { k, a, b }), second], target, then, threads, false)
                        };
                        for i in 0..m {
                            for j in 0..n + 2 {
                                let sum = |j| {
                                    let first = (0..k).map(|p| at(&a, i, p) * at(&b, p, j)).sum::<f64>();
                                    let more = || (0..5).map(|p| at(&c, i, p) * at(&d, p, j)).sum::<f64>();
                                    first + if second.is_some() { more() } else { 0.0 }
                                };
                                let want = match s {
                                    _ if j >= n => 1.0,
                                    0 => -sum(j),
                                    1 => -(sum(j) + 1.0),
                                    2 => sum(j) + other[j] as f64,
                                    _ => sum(j) + other[i * n + j] as f64,
                                };
                                assert_eq!(y[i * (n + 2) + j] as f64, want, "{m} {n} {k} at {i} {j}");
                            }
                        }
                    }
                }
            }
        }
    }
}
