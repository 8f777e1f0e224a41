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

/// `y = a b`, or `y += a b` with `add`: `(m, k)` by `(k, n)`. With `threads` on all cores, else on the calling one.
///
/// # Safety
/// No other task may use the target's elements meanwhile.
pub unsafe fn gemm<T: Real>([m, n, k]: [usize; 3], a: Matrix<T>, b: Matrix<T>, y: Target<T>, add: bool, threads: bool) {
    if m * n == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n), "operands of a product are within their data");
    let y_data = y.data.pointer(y.at..y.at + (m - 1) * y.row + n);
    let threads = if threads { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: in bounds by the assertions above; the caller lends the target.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y_data,
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
