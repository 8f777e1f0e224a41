//! What the primitives over the last axis of `(R, N)` share.

use super::assemble::{self, SUBGROUP_REDUCTIONS, WORKGROUP_REDUCTIONS};
use super::prelude::*;
use std::borrow::Cow;

/// Calls `f` with each row's number and elements, on all cores.
pub fn each<T: Send>(out: &mut [T], n: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    each_grain(out, n, n, f);
}

/// [`each`] for rows of `width` results that each cost `cost` elements of work.
pub fn each_grain<T: Send>(out: &mut [T], width: usize, cost: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if width == 0 {
        return;
    }
    let rows = out.len() / width;
    let out = Shared::new(out);
    parallel::ranges(rows, parallel::rows_grain(cost), |range| {
        for r in range {
            // SAFETY: one task a row.
            f(r, unsafe { out.part(r * width..(r + 1) * width) });
        }
    });
}

/// `Σ f(x)`, in sixteen lanes so that compilers vectorise it and rounding errors stay small.
#[inline(always)]
pub fn sum<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::zero(); 16];
    let whole = x.chunks_exact(16);
    let rest = whole.remainder();
    for chunk in whole {
        for (l, &v) in lanes.iter_mut().zip(chunk) {
            *l += f(v);
        }
    }
    let tail = rest.iter().fold(T::zero(), |s, &v| s + f(v));
    lanes.iter().fold(tail, |s, &l| s + l)
}

/// The largest element, in sixteen lanes as [`sum`]; NaN does not count.
#[inline(always)]
pub fn max<T: Real>(x: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [T::neg_infinity(); 16];
    let whole = x.chunks_exact(16);
    let rest = whole.remainder();
    for chunk in whole {
        for (l, &v) in lanes.iter_mut().zip(chunk) {
            *l = larger(*l, v);
        }
    }
    let tail = rest.iter().fold(T::neg_infinity(), |m, &v| larger(m, v));
    lanes.iter().fold(tail, |m, &l| larger(m, l))
}

/// `Σ f(x, y)`, as [`sum`].
#[inline(always)]
pub fn dot_by<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::zero(); 16];
    let (xs, ys) = (x.chunks_exact(16), y.chunks_exact(16));
    let tail = xs.remainder().iter().zip(ys.remainder()).fold(T::zero(), |s, (&a, &b)| s + f(a, b));
    for (a, b) in xs.zip(ys) {
        for ((l, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *l += f(a, b);
        }
    }
    lanes.iter().fold(tail, |s, &l| s + l)
}

/// `Σ f(x, y, z)`, as [`sum`].
#[inline(always)]
pub fn dot_of_three<T: Real>(x: &[T], y: &[T], z: &[T], f: impl Fn(T, T, T) -> T) -> T {
    let mut lanes = [T::zero(); 16];
    let (xs, ys, zs) = (x.chunks_exact(16), y.chunks_exact(16), z.chunks_exact(16));
    let tail = xs.remainder().iter().zip(ys.remainder()).zip(zs.remainder());
    let tail = tail.fold(T::zero(), |s, ((&a, &b), &c)| s + f(a, b, c));
    for ((a, b), c) in xs.zip(ys).zip(zs) {
        for (((l, &a), &b), &c) in lanes.iter_mut().zip(a).zip(b).zip(c) {
            *l += f(a, b, c);
        }
    }
    lanes.iter().fold(tail, |s, &l| s + l)
}

/// Whether what follows the operands of a gradient is nothing, or one that can be added to results of `x`'s type.
pub fn may_be_added(rest: &[&Type], x: &Type) -> bool {
    rest.is_empty() || rest.len() == 1 && rest[0] == x
}

/// What is added to the rows of a gradient.
#[derive(Clone, Copy)]
pub enum Added<'a, T> {
    Nothing,
    /// What the results' memory holds.
    Target,
    Rows(&'a [T]),
}

impl<'a, T: Real> Added<'a, T> {
    /// Input `i` of a call, if it has so many.
    pub fn of(c: &CpuCall<'a, T>, i: usize) -> Added<'a, T> {
        match c.ins.get(i) {
            None => Added::Nothing,
            Some(_) if c.in_place.iter().any(|p| p.0 == i) => Added::Target,
            Some(x) => Added::Rows(x.float()),
        }
    }

    /// Sets row `r` of the results to it.
    #[inline(always)]
    pub fn fill(self, r: usize, out: &mut [T]) {
        match self {
            Added::Nothing => out.fill(T::zero()),
            Added::Target => {}
            Added::Rows(rows) => out.copy_from_slice(&rows[r * out.len()..][..out.len()]),
        }
    }
}

/// `Σ x y`
#[inline(always)]
pub fn dot<T: Real>(x: &[T], y: &[T]) -> T {
    dot_by(x, y, |a, b| a * b)
}

/// A kernel that gives each row of input 0, `(R, N)`, to one workgroup. It binds every input, then every output; its
/// parameters are R, the grid's width, N, and up to five words of its own.
pub fn dispatch(c: &GpuCall, name: &'static str, source: &'static str, words: &[u32]) -> Vec<Dispatch> {
    let (rows, n) = (c.types_in[0].shape[0], c.types_in[0].shape[1]);
    let (workgroups, width) = grid(rows, 1, c.traits);
    let mut params = vec![rows as u32, width, n as u32];
    params.extend(words);
    params.resize(8, 0);
    let bindings =
        (0..c.types_in.len()).map(Binding::Input).chain((0..c.types_out.len()).map(Binding::Output)).collect();
    let size = row_workgroup(n, c.traits);
    let mut constants = vec![("SIZE", size as f64)];
    let source = in_subgroups(source, size, c.traits, &mut constants);
    vec![Dispatch { shader: Shader { name, source }, constants, bindings, params, workgroups }]
}

/// [`dispatch`] of a gradient, to which input `own` is added if the call has that; its kernel says so in the slot `result`.
pub fn dispatch_adding(c: &GpuCall, own: usize, name: &'static str, source: &'static str) -> Vec<Dispatch> {
    let mut all = dispatch(c, name, source, &[]);
    if c.types_in.len() > own {
        let result = format!(
            "@group(0) @binding({}) var<storage, read> also: array<f32>;\n\
             @group(0) @binding({}) var<storage, read_write> dx: array<f32>;\n\n\
             fn keep(i: u32, value: f32) {{\n    dx[i] = also[i] + value;\n}}\n",
            own + 1,
            own + 2
        );
        let shader = &mut all[0].shader;
        shader.source = assemble::fill(&shader.source, &[("result", &result)]).into();
    }
    all
}

/// The kernel with reductions in subgroups where the adapter has them, in place of trees with a barrier a step.
fn in_subgroups(
    source: &'static str,
    size: usize,
    traits: GpuTraits,
    constants: &mut Vec<(&'static str, f64)>,
) -> Cow<'static, str> {
    let width = traits.subgroup.filter(|&width| !traits.software && size.is_multiple_of(width as usize));
    let other = || assemble::import_instead(source, WORKGROUP_REDUCTIONS, SUBGROUP_REDUCTIONS);
    match width.and_then(|width| Some((width, other()?))) {
        Some((width, source)) => {
            constants.push(("SUBGROUP", width as f64));
            source.into()
        }
        None => source.into(),
    }
}

/// Invocations that share a row of `n` elements: one subgroup on software adapters, where barriers are dear.
pub fn row_workgroup(n: usize, traits: GpuTraits) -> usize {
    if traits.software { 8 } else { n.next_power_of_two().clamp(32, 256) }
}
