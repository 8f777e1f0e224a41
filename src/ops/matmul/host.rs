//! Products on the host, of every form.

use super::ending::Ending;
use super::gemm::{Dims, Gemm, Init, Operands, Pair};
use super::matrix::{Matrix, Start, Target, Term, Then};
use super::multiply::{gemm_terms, packs_rights};
use crate::ops::elementwise::program::SharedOut;
use crate::ops::engine::prelude::*;
use smallvec::SmallVec;
use std::ops::Range;

/// The operands that products read as halves: on a device both, on the host the right one where products pack it; elsewhere
/// each would make a whole copy first.
pub const HALVES: Halves =
    Halves { host: |input, _| input == 1 && packs_rights::<f32>(), device: |input, _| input < 2, tiles };

/// The right operand of a product of bf16 that is one matrix.
fn tiles(types_in: &[Type], attrs: &Attrs) -> Vec<Tiled> {
    let g = Gemm::decode(types_in, attrs);
    let Pair { rhs, dims, .. } = g.base;
    let one = g.bf16 && g.group.is_none() && dims.batch == 1;
    one.then_some(Tiled { input: rhs, extents: [dims.k, dims.n], strides: dims.b }).into_iter().collect()
}

/// Two operations for each pair that is multiplied, of every form.
pub fn work(types_in: &[Type], types_out: &[Type], attrs: &Attrs) -> Work {
    let g = Gemm::decode(types_in, attrs);
    let flops = g.terms().map(|p| 2.0 * (p.dims.batch * p.dims.m * p.dims.n * p.dims.k) as f64).sum();
    Work::new(flops, types_in, types_out)
}

/// What a product is added to, which may share the result's memory.
pub fn accumulates(inputs: usize, attrs: &Attrs) -> Option<usize> {
    Operands::of(inputs, attrs).ok()?.init
}

/// Every form on the host.
pub fn cpu<T: Element>(c: &mut CpuCall<T>) {
    let ins = c.ins;
    let g = Gemm::decode(c.types_in, c.attrs);
    let d = g.base.dims;
    let y_type = &c.types_out[0];
    let outs: SmallVec<[SharedOut<T>; 4]> = c.outs.iter_mut().map(SharedOut::new).collect();
    let SharedOut::Float(y) = &outs[0] else { unreachable!("infer gives floats") };
    let read = |p: &Pair| [p.lhs, p.rhs].map(|i| operand(ins[i].elements(), g.halves));
    let first = read(&g.base);
    let second = g.low_rank.as_ref().map(read);
    let in_place = g.init.is_some_and(|init| c.in_place.iter().any(|p| p.0 == init.input));
    let start = |i: usize| match g.init {
        None => Start::Zero,
        Some(_) if in_place => Start::Target,
        Some(Init { input, row: true }) => Start::Row(ins[input].float()),
        Some(Init { input, .. }) => Start::Rows { data: &ins[input].float()[i * d.m * d.n..][..d.m * d.n], row: d.n },
    };
    let ending = Ending::of(&g.epilogue, c.types_in, ins, y_type, &outs);
    let product = |i: usize, threads: bool| {
        let y = Target { data: y, at: i * d.m * d.n, row: d.n };
        let second = second.as_ref().zip(g.low_rank).map(|(pair, p)| term(pair, p.dims, i));
        // SAFETY: one task a batch entry, and rectangles within it that are done.
        let then = |rows: Range<usize>, columns: Range<usize>| unsafe {
            let ending = ending.as_ref().expect("given only where there is one");
            ending.run(y.data, i * d.m + rows.start..i * d.m + rows.end, columns);
        };
        let then: Option<Then> = if ending.is_some() { Some(&then) } else { None };
        // SAFETY: as above.
        unsafe { gemm_terms(start(i), [d.m, d.n], [Some(term(&first, d, i)), second], y, then, threads, g.bf16) };
    };
    if d.batch >= rayon::current_num_threads() && d.batch > 1 {
        let grain = parallel::GRAIN * 8 / (d.m * d.n * d.k).max(1);
        parallel::ranges(d.batch, grain.max(1), |range| range.for_each(|i| product(i, false)));
    } else {
        let threads = d.m * d.n * d.k >= 64 * 64 * 64;
        (0..d.batch).for_each(|i| product(i, threads));
    }
}

/// The operands of batch entry `i`.
fn term<'a, T: Real>([a, b]: &'a [Operand<'_, T>; 2], d: Dims, i: usize) -> Term<'a, T> {
    let (a_size, b_size) = (d.m * d.k, d.k * d.n);
    Term { k: d.k, a: a.matrix(i * a_size..(i + 1) * a_size, d.a), b: b.matrix(i * b_size..(i + 1) * b_size, d.b) }
}

/// What a product multiplies: an operand as it is stored, or the nearest half of each of its elements.
pub enum Operand<'a, T> {
    Stored(Elements<'a, T>),
    Rounded(Vec<T>),
}

impl<T> Operand<'_, T> {
    pub fn elements(&self) -> Elements<'_, T> {
        match self {
            Operand::Stored(x) => *x,
            Operand::Rounded(x) => Elements::Full(x),
        }
    }

    /// The elements of a range as a matrix of these strides.
    pub fn matrix(&self, range: Range<usize>, (row, col): (usize, usize)) -> Matrix<'_, T> {
        Matrix { data: self.elements().part(range), row, col }
    }
}

/// What a product multiplies: with `halves`, the nearest half of each element.
pub fn operand<T: Real>(x: Elements<T>, halves: bool) -> Operand<T> {
    let x = match x {
        Elements::Full(x) if halves => x,
        stored => return Operand::Stored(stored),
    };
    let mut out = vec![T::zero(); x.len()];
    let to = Shared::new(&mut out);
    parallel::ranges(x.len(), parallel::GRAIN, |range| {
        // SAFETY: one task a range.
        let to = unsafe { to.part(range.clone()) };
        let nearest = |v: T| T::of(half::f16::from_f32(Real::to_f64(v) as f32).to_f64());
        to.iter_mut().zip(&x[range]).for_each(|(y, &v)| *y = nearest(v));
    });
    Operand::Rounded(out)
}
