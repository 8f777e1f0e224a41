//! Products of matrices on the host: the one place where the host multiplies.

use super::math::Real;
use super::parallel::Shared;

/// A read-only matrix in memory: the element at `(i, j)` stands at `i * row + j * col`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub col: usize,
}

impl<'a, T> Matrix<'a, T> {
    pub fn new(data: &'a [T], row: usize, col: usize) -> Matrix<'a, T> {
        Matrix { data, row, col }
    }

    /// Whether every element of an `(m, n)` matrix is within the data.
    fn holds(&self, m: usize, n: usize) -> bool {
        m * n == 0 || (m - 1) * self.row + (n - 1) * self.col < self.data.len()
    }
}

/// Where a product goes: element `(i, j)` stands at `at + i * row + j` of a result that several tasks may share.
#[derive(Clone, Copy)]
pub struct Target<'s, 'a, T> {
    pub data: &'s Shared<'a, T>,
    pub at: usize,
    pub row: usize,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a, T> {
    Zero,
    /// What the target holds.
    Target,
    /// One row, the same for all.
    Row(&'a [T]),
    /// Rows of `row` elements of another matrix, which the target does not overlap.
    Rows {
        data: &'a [T],
        row: usize,
    },
}

/// `y = a b`, or `y += a b` with `add`: `(m, k)` by `(k, n)`. With `threads` on all cores, else on the calling one.
///
/// # Safety
/// No other task may use the target's elements meanwhile.
pub unsafe fn gemm<T: Real>(dims: [usize; 3], a: Matrix<T>, b: Matrix<T>, y: Target<T>, add: bool, threads: bool) {
    let start = if add { Start::Target } else { Start::Zero };
    // SAFETY: by the caller.
    unsafe { gemm_from(start, dims, a, b, y, threads) };
}

/// `y = start + a b`, otherwise as [`gemm`].
///
/// # Safety
/// As there.
pub unsafe fn gemm_from<T: Real>(
    start: Start<T>,
    [m, n, k]: [usize; 3],
    a: Matrix<T>,
    b: Matrix<T>,
    y: Target<T>,
    threads: bool,
) {
    if m * n == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n), "operands of a product are within their data");
    match start {
        Start::Row(row) => assert!(row.len() >= n, "a row to start from is as long as the result's"),
        Start::Rows { data, row } => {
            assert!(data.len() >= (m - 1) * row + n, "rows to start from are within their data")
        }
        _ => {}
    }
    let results = y.data.pointer(y.at..y.at + (m - 1) * y.row + n);
    #[cfg(target_arch = "x86_64")]
    if super::gemm_avx512::available()
        && let (Some(a), Some(b), Some(y), Some(start)) = (a.as_f32(), b.as_f32(), y.as_f32(), start.as_f32())
    {
        // SAFETY: by the caller and the assertions above.
        unsafe { super::gemm_avx512::gemm(start, [m, n, k], a, b, y, threads) };
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
    let add = !matches!(start, Start::Zero);
    let threads = if threads { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: in bounds by the assertions above; the caller lends the target.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            results,
            1,
            y.row as isize,
            add,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            if add { T::one() } else { T::zero() },
            T::one(),
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(target_arch = "x86_64")]
mod single {
    //! Operands known to be f32, when their generic type is that.

    use super::{Matrix, Real, Shared, Start, Target};
    use std::any::TypeId;

    fn is_f32<T: Real>() -> bool {
        TypeId::of::<T>() == TypeId::of::<f32>()
    }

    fn slice<T: Real>(data: &[T]) -> Option<&[f32]> {
        // SAFETY: the types are the same.
        is_f32::<T>().then(|| unsafe { &*(std::ptr::from_ref(data) as *const [f32]) })
    }

    impl<'a, T: Real> Matrix<'a, T> {
        pub(super) fn as_f32(self) -> Option<Matrix<'a, f32>> {
            Some(Matrix { data: slice(self.data)?, row: self.row, col: self.col })
        }
    }

    impl<'a, T: Real> Start<'a, T> {
        pub(super) fn as_f32(self) -> Option<Start<'a, f32>> {
            Some(match self {
                Start::Zero => Start::Zero,
                Start::Target => Start::Target,
                Start::Row(data) => Start::Row(slice(data)?),
                Start::Rows { data, row } => Start::Rows { data: slice(data)?, row },
            })
        }
    }

    impl<'s, 'a, T: Real> Target<'s, 'a, T> {
        pub(super) fn as_f32(self) -> Option<Target<'s, 'a, f32>> {
            // SAFETY: the types are the same.
            let data = is_f32::<T>().then(|| unsafe { &*std::ptr::from_ref(self.data).cast::<Shared<'a, f32>>() })?;
            Some(Target { data, at: self.at, row: self.row })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(x: &Matrix<f32>, i: usize, j: usize) -> f64 {
        x.data[i * x.row + j * x.col] as f64
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
            for (a_row, a_col) in [(k, 1), (1, m)] {
                for (b_row, b_col) in [(n, 1), (1, k)] {
                    for (s, threads) in [(0, true), (1, false), (2, true), (3, false)] {
                        let (a, b) = (Matrix::new(&a, a_row, a_col), Matrix::new(&b, b_row, b_col));
                        // Rows with a gap of two after each, which must stay as they are.
                        let mut y = vec![1.0f32; m * (n + 2)];
                        let shared = Shared::new(&mut y);
                        let target = Target { data: &shared, at: 0, row: n + 2 };
                        let other = matrix(m * n, 3);
                        let all =
                            [Start::Zero, Start::Target, Start::Row(&other), Start::Rows { data: &other, row: n }];
                        // SAFETY: nothing else uses y.
                        unsafe { gemm_from(all[s], [m, n, k], a, b, target, threads) };
                        for i in 0..m {
                            for j in 0..n + 2 {
                                let sum = |j| (0..k).map(|p| at(&a, i, p) * at(&b, p, j)).sum::<f64>();
                                let want = match s {
                                    _ if j >= n => 1.0,
                                    0 => sum(j),
                                    1 => sum(j) + 1.0,
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
