//! What a product on the host reads and writes: matrices in memory, and where it begins.

use crate::ops::engine::parallel::Shared;
use crate::ops::engine::primitive::Elements;
use std::ops::Range;

/// A read-only matrix in memory: the element at `(i, j)` stands at `i * row + j * col`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    pub data: Elements<'a, T>,
    pub row: usize,
    pub col: usize,
}

impl<'a, T> Matrix<'a, T> {
    pub fn new(data: &'a [T], row: usize, col: usize) -> Matrix<'a, T> {
        Matrix { data: Elements::Full(data), row, col }
    }

    /// Whether every element of an `(m, n)` matrix is within the data.
    pub fn holds(&self, m: usize, n: usize) -> bool {
        m * n == 0 || (m - 1) * self.row + (n - 1) * self.col < self.data.count()
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

/// One product of a sum of them: `(m, k)` by `(k, n)`, of which the second may be of halves.
#[derive(Clone, Copy)]
pub struct Term<'a, T> {
    pub k: usize,
    pub a: Matrix<'a, T>,
    pub b: Matrix<'a, T>,
}

/// What is done with results: it is given rectangles, their rows and columns, each when its elements are final, and none twice.
pub type Then<'f> = &'f (dyn Fn(Range<usize>, Range<usize>) + Sync);

/// The elements of a left operand.
pub fn left<'a, T>(a: &Matrix<'a, T>) -> &'a [T] {
    match a.data {
        Elements::Full(data) => data,
        _ => panic!("a left operand is of f32"),
    }
}
