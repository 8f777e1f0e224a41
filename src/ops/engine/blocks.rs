//! What elementwise primitives are written with: loops over one block of elements, and the types of results.

use super::math::Real;
use super::parallel;
use super::primitive::{Data, DataMut};
use crate::ir::{Attrs, DType, Shape, Type};

/// `out[i] = f(a[i])`
#[inline(always)]
pub fn map1<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, f: impl Fn(T) -> T) {
    parallel::simd_call(Map1 { x: a[0].float(), y: out.float(), f });
}

/// A loop as a value, so that it is compiled into the function that has the vector instructions; a closure as large as some
/// primitives' would be left a function of its own, without them.
struct Map1<'a, T, F> {
    x: &'a [T],
    y: &'a mut [T],
    f: F,
}

impl<T: Real, F: Fn(T) -> T> pulp::NullaryFnOnce for Map1<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (y, &x) in self.y.iter_mut().zip(self.x) {
            *y = (self.f)(x);
        }
    }
}

/// `out[i] = f(a[i], b[i])`
#[inline(always)]
pub fn map2<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, f: impl Fn(T, T) -> T) {
    parallel::simd_call(Map2 { x: a[0].float(), z: a[1].float(), y: out.float(), f });
}

struct Map2<'a, T, F> {
    x: &'a [T],
    z: &'a [T],
    y: &'a mut [T],
    f: F,
}

impl<T: Real, F: Fn(T, T) -> T> pulp::NullaryFnOnce for Map2<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((y, &x), &z) in self.y.iter_mut().zip(self.x).zip(self.z) {
            *y = (self.f)(x, z);
        }
    }
}

/// [`map2`] for floats or for integers, whichever the operands are.
#[inline(always)]
pub fn map2_number<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, f: impl Fn(T, T) -> T, g: impl Fn(i32, i32) -> i32) {
    match a[0] {
        Data::Float(_) => map2(a, out, f),
        x => out.int().iter_mut().zip(x.int()).zip(a[1].int()).for_each(|((y, &x), &z)| *y = g(x, z)),
    }
}

/// `out[i] = f(a[i], b[i])` of integers.
#[inline(always)]
pub fn map2_integer<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, f: impl Fn(i32, i32) -> i32) {
    out.int().iter_mut().zip(a[0].int()).zip(a[1].int()).for_each(|((y, &x), &z)| *y = f(x, z));
}

/// A comparison: the result is boolean.
#[inline(always)]
pub fn compare<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, f: impl Fn(T, T) -> bool, g: impl Fn(i32, i32) -> bool) {
    let y = out.int();
    match a[0] {
        Data::Float(x) => y.iter_mut().zip(x).zip(a[1].float()).for_each(|((y, &x), &z)| *y = f(x, z) as i32),
        x => y.iter_mut().zip(x.int()).zip(a[1].int()).for_each(|((y, &x), &z)| *y = g(x, z) as i32),
    }
}

/// Types of `float -> float`.
pub fn infer_float1(ins: &[&Type], _: &Attrs) -> Result<Vec<Type>, String> {
    match ins {
        [x] if x.is_float() => Ok(vec![(*x).clone()]),
        _ => Err("takes one float operand".into()),
    }
}

/// Types of `(float, float) -> float`, broadcasting.
pub fn infer_float2(ins: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    match infer_number2(ins, attrs)? {
        outs if outs[0].is_float() => Ok(outs),
        _ => Err("takes two float operands".into()),
    }
}

/// Types of `(number, number) -> number`, both floats or both integers, broadcasting.
pub fn infer_number2(ins: &[&Type], _: &Attrs) -> Result<Vec<Type>, String> {
    match ins {
        [x, y] if x.dtype == y.dtype && x.dtype != DType::Bool => Ok(vec![Type::new(x.dtype, broadcast(&[x, y])?)]),
        _ => Err("takes two numbers of one type".into()),
    }
}

/// Types of `(integer, integer) -> integer`, broadcasting.
pub fn infer_integer2(ins: &[&Type], _: &Attrs) -> Result<Vec<Type>, String> {
    match ins {
        [x, y] if x.dtype == DType::I32 && y.dtype == DType::I32 => Ok(vec![Type::i32(broadcast(&[x, y])?)]),
        _ => Err("takes two integer operands".into()),
    }
}

/// Types of a comparison of numbers.
pub fn infer_compare(ins: &[&Type], _: &Attrs) -> Result<Vec<Type>, String> {
    match ins {
        [x, y] if x.dtype == y.dtype => Ok(vec![Type::bool(broadcast(&[x, y])?)]),
        _ => Err("takes two operands of one type".into()),
    }
}

/// Types of `(bool, bool) -> bool`, broadcasting.
pub fn infer_bool2(ins: &[&Type], _: &Attrs) -> Result<Vec<Type>, String> {
    match ins {
        [x, y] if x.dtype == DType::Bool && y.dtype == DType::Bool => Ok(vec![Type::bool(broadcast(&[x, y])?)]),
        _ => Err("takes two boolean operands".into()),
    }
}

/// The shape all operands broadcast to.
pub fn broadcast(ins: &[&Type]) -> Result<Shape, String> {
    ins.iter().try_fold(Shape::default(), |s, t| {
        Shape::broadcast(&s, &t.shape).ok_or_else(|| format!("shapes do not broadcast: {s} and {}", t.shape))
    })
}
