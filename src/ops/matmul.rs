//! `(.., M, K) · (.., K, N)` to `(.., M, N)` with equal batch axes; `trans_a` stores the first as `(.., K, M)`, `trans_b` the
//! second as `(.., N, K)`. A third operand is added to the product: of the result's shape (its memory may become the result's), or
//! one row `(N)`. With `halves`, the first two are rounded to the nearest half (ties to even; infinite beyond its range) before they
//! are multiplied, and products added up in the element type.

use super::gemm::{Matrix, Start, Target, gemm_from};
use super::prelude::*;
use super::product;
use std::borrow::Cow;

pub const PRIMITIVE: Primitive = Primitive {
    name: "matmul",
    infer: |ins, attrs| {
        let ([a, b] | [a, b, _]) = ins else { return Err("takes two operands, and one to add".into()) };
        let rank = a.rank();
        if rank < 2 || b.rank() != rank || a.shape[..rank - 2] != b.shape[..rank - 2] || !a.is_float() || !b.is_float()
        {
            return Err("takes two float operands of two or more axes with equal batch axes".into());
        }
        let d = dims(a, b, attrs);
        let inner = b.shape[if attrs.flag("trans_b") { rank - 1 } else { rank - 2 }];
        if inner != d.k {
            return Err(format!("inner extents differ: {} and {inner}", d.k));
        }
        let y = Type::f32([&a.shape[..rank - 2], &[d.m, d.n]].concat());
        match ins.get(2) {
            Some(c) if **c != y && **c != Type::f32([d.n]) => Err(format!("{c} cannot be added to {y}")),
            _ => Ok(vec![y]),
        }
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Tuned { kernel: product::dispatches, candidates: product::candidates },
    samples: || {
        let of = |a: &[usize], b: &[usize], ta, tb| Sample::normal(&[a, b]).with(flags(ta, tb));
        vec![
            of(&[5, 7], &[7, 3], false, false),
            of(&[7, 5], &[7, 3], true, false),
            of(&[5, 7], &[3, 7], false, true),
            of(&[7, 5], &[3, 7], true, true),
            of(&[2, 3, 5, 4], &[2, 3, 4, 6], false, false),
            of(&[2, 3, 5, 4], &[2, 3, 6, 4], false, true),
            of(&[70, 33], &[33, 130], false, false),
            of(&[64, 128], &[64, 128], false, true),
            of(&[64, 96], &[64, 128], true, false),
            of(&[13, 36], &[36, 140], false, false),
            of(&[3, 9, 8], &[3, 8, 12], false, false),
            Sample::normal(&[&[5, 7], &[7, 3], &[5, 3]]).with(flags(false, false)),
            Sample::normal(&[&[9, 8], &[12, 8], &[12]]).with(flags(false, true)),
            Sample::normal(&[&[2, 8, 9], &[2, 8, 12], &[2, 9, 12]]).with(flags(true, false)),
            Sample::normal(&[&[70, 32], &[32, 136], &[70, 136]]).with(flags(false, false)),
            of(&[6, 1100], &[1100, 9], false, false),
            of(&[2, 1024, 12], &[2, 1024, 16], true, false),
        ]
    },
};

fn flags(trans_a: bool, trans_b: bool) -> Attrs {
    Attrs::new().with("trans_a", Attr::Bool(trans_a)).with("trans_b", Attr::Bool(trans_b))
}

/// Extents of a product, and the strides of its operands' rows and columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: (usize, usize),
    pub b: (usize, usize),
}

pub fn dims(a: &Type, b: &Type, attrs: &Attrs) -> Dims {
    let rank = a.rank();
    let (ar, ac) = (a.shape[rank - 2], a.shape[rank - 1]);
    let (br, bc) = (b.shape[rank - 2], b.shape[rank - 1]);
    let (m, k, a_strides) = if attrs.flag("trans_a") { (ac, ar, (1, ac)) } else { (ar, ac, (ac, 1)) };
    let (n, b_strides) = if attrs.flag("trans_b") { (br, (1, bc)) } else { (bc, (bc, 1)) };
    Dims { batch: a.shape[..rank - 2].iter().product(), m, n, k, a: a_strides, b: b_strides }
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let d = dims(&c.types_in[0], &c.types_in[1], c.attrs);
    let halves = c.attrs.flag("halves");
    let (a, b) = (operand(c.ins[0].float(), halves), operand(c.ins[1].float(), halves));
    let y = Shared::new(c.outs[0].float());
    let added = c.ins.get(2).map(|x| x.float());
    let in_place = c.in_place.iter().any(|p| p.0 == 2);
    let start = |i: usize| match added {
        None => Start::Zero,
        Some(_) if in_place => Start::Target,
        Some(row) if c.types_in[2].rank() == 1 => Start::Row(row),
        Some(rows) => Start::Rows { data: &rows[i * d.m * d.n..][..d.m * d.n], row: d.n },
    };
    let product = |i: usize, threads: bool| {
        let a = Matrix::new(&a[i * d.m * d.k..][..d.m * d.k], d.a.0, d.a.1);
        let b = Matrix::new(&b[i * d.k * d.n..][..d.k * d.n], d.b.0, d.b.1);
        let y = Target { data: &y, at: i * d.m * d.n, row: d.n };
        // SAFETY: one task a batch entry.
        unsafe { gemm_from(start(i), [d.m, d.n, d.k], a, b, y, threads) };
    };
    if d.batch >= rayon::current_num_threads() && d.batch > 1 {
        let grain = parallel::GRAIN * 8 / (d.m * d.n * d.k).max(1);
        parallel::ranges(d.batch, grain.max(1), |range| range.for_each(|i| product(i, false)));
    } else {
        let threads = d.m * d.n * d.k >= 64 * 64 * 64;
        (0..d.batch).for_each(|i| product(i, threads));
    }
}

/// What a product multiplies: with `halves`, the nearest half of each element.
pub fn operand<T: Real>(x: &[T], halves: bool) -> Cow<'_, [T]> {
    if !halves {
        return Cow::Borrowed(x);
    }
    let mut out = vec![T::zero(); x.len()];
    let to = Shared::new(&mut out);
    parallel::ranges(x.len(), parallel::GRAIN, |range| {
        // SAFETY: one task a range.
        let to = unsafe { to.part(range.clone()) };
        let nearest = |v: T| T::of(half::f16::from_f32(Real::to_f64(v) as f32).to_f64());
        to.iter_mut().zip(&x[range]).for_each(|(y, &v)| *y = nearest(v));
    });
    Cow::Owned(out)
}

/// With `Y = A B`: `dA = G Bᵀ`, `dB = Aᵀ G`; each stored as its operand is. What was added has the gradient of the sum.
fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (ta, tb) = (c.node.attrs.flag("trans_a"), c.node.attrs.flag("trans_b"));
    let (a, b, g) = (c.x(0), c.x(1), c.g());
    let da = match (c.wants[0], ta) {
        (false, _) => None,
        (true, false) => Some(c.b.matmul(g, b, false, !tb)?),
        (true, true) => Some(c.b.matmul(b, g, tb, true)?),
    };
    let db = match (c.wants[1], tb) {
        (false, _) => None,
        (true, false) => Some(c.b.matmul(a, g, !ta, false)?),
        (true, true) => Some(c.b.matmul(g, a, true, ta)?),
    };
    let mut all = vec![da, db];
    if c.node.inputs.len() > 2 {
        all.push(c.sum_to(2, g)?);
    }
    Ok(all)
}
