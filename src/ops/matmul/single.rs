//! Operands known to be f32, when their generic type is that.

use super::matrix::{Matrix, Start, Target, Term};
use crate::ops::engine::math::Real;
use crate::ops::engine::parallel::Shared;
use crate::ops::engine::primitive::Elements;
use std::any::TypeId;

pub fn is_f32<T: Real>() -> bool {
    TypeId::of::<T>() == TypeId::of::<f32>()
}

fn slice<T: Real>(data: &[T]) -> Option<&[f32]> {
    // SAFETY: the types are the same.
    is_f32::<T>().then(|| unsafe { &*(std::ptr::from_ref(data) as *const [f32]) })
}

pub fn terms<T: Real>(terms: [Option<Term<T>>; 2]) -> Option<[Option<Term<f32>>; 2]> {
    fn one<T: Real>(m: Matrix<'_, T>) -> Option<Matrix<'_, f32>> {
        let data = match m.data {
            Elements::Full(data) => Elements::Full(slice(data)?),
            Elements::Halves(data) => Elements::Halves(data),
            Elements::Bf16(data) => Elements::Bf16(data),
            Elements::Packed(data) => Elements::Packed(data),
        };
        Some(Matrix { data, row: m.row, col: m.col })
    }
    is_f32::<T>().then(|| terms.map(|t| t.and_then(|t| Some(Term { k: t.k, a: one(t.a)?, b: one(t.b)? }))))
}

impl<'a, T: Real> Start<'a, T> {
    pub fn as_f32(self) -> Option<Start<'a, f32>> {
        Some(match self {
            Start::Zero => Start::Zero,
            Start::Target => Start::Target,
            Start::Row(data) => Start::Row(slice(data)?),
            Start::Rows { data, row } => Start::Rows { data: slice(data)?, row },
        })
    }
}

impl<'s, 'a, T: Real> Target<'s, 'a, T> {
    pub fn as_f32(self) -> Option<Target<'s, 'a, f32>> {
        // SAFETY: the types are the same.
        let data = is_f32::<T>().then(|| unsafe { &*std::ptr::from_ref(self.data).cast::<Shared<'a, f32>>() })?;
        Some(Target { data, at: self.at, row: self.row })
    }
}
