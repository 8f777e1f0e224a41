//! `(.., M, K) · (.., K, N)` to `(.., M, N)` with equal batch axes; `trans_a` stores the first as `(.., K, M)`, `trans_b` the
//! second as `(.., N, K)`. A third operand is added to the product: of the result's shape (its memory may become the result's), or
//! one row `(N)`. With `halves`, the first two are rounded to the nearest half (ties to even; infinite beyond its range) before they
//! are multiplied, and products added up in the element type. `matmul_fused` is this with more in it.

use super::ending::{self, Ending};
use super::group;
use super::multiply::{Matrix, Start, Target, Term, Then, gemm_terms, packs_rights};
use super::product;
use crate::ops::elementwise::program::SharedOut;
use crate::ops::engine::prelude::*;
use smallvec::SmallVec;
use std::ops::Range;

pub const PRIMITIVE: Primitive = Primitive {
    name: "matmul",
    attrs: &[flag("trans_a"), flag("trans_b"), flag("halves")],
    infer,
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Tuned { kernel: product::dispatches, candidates: product::candidates },
    results: Results::All,
    accumulates: |inputs, attrs| Operands::of(inputs, attrs).added,
    halves: HALVES,
    windows: NO_WINDOWS,
    work: work,
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

pub fn flags(trans_a: bool, trans_b: bool) -> Attrs {
    Attrs::new().with("trans_a", Attr::Bool(trans_a)).with("trans_b", Attr::Bool(trans_b))
}

/// The operands that products read as halves: on a device both, on the host the right one where products pack it; elsewhere
/// each would make a whole copy first.
pub const HALVES: Halves =
    Halves { host: |input, _| input == 1 && packs_rights::<f32>(), device: |input, _| input < 2 };

/// Two operations for each pair that is multiplied, of every form.
pub fn work(types_in: &[Type], types_out: &[Type], attrs: &Attrs) -> Work {
    let terms = [Some(dims(types_in, attrs)), more(types_in, attrs)];
    let flops = terms.iter().flatten().map(|d| 2.0 * (d.batch * d.m * d.n * d.k) as f64).sum();
    Work::new(flops, types_in, types_out)
}

/// What each input of a call is; the first is the left operand.
#[derive(Clone, Debug, PartialEq)]
pub struct Operands {
    /// Right operands, which stand side by side where there are several.
    pub rights: Range<usize>,
    /// Operands of the second term.
    pub second: Option<[usize; 2]>,
    /// What is added.
    pub added: Option<usize>,
    /// What the program reads.
    pub extras: Range<usize>,
}

impl Operands {
    /// Those of a call with this many inputs.
    pub fn of(inputs: usize, attrs: &Attrs) -> Operands {
        if let Some(n) = group::count(attrs) {
            return Operands { rights: 1..1 + n, second: None, added: None, extras: inputs..inputs };
        }
        let own = inputs.saturating_sub(attrs.get_int("extras").unwrap_or(0) as usize);
        Operands {
            rights: 1..2,
            second: (own >= 4).then_some([2, 3]),
            added: (own % 2 == 1).then(|| own - 1),
            extras: own..inputs,
        }
    }
}

fn infer(ins: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    match ins.len() {
        2 | 3 => infer_any(ins, attrs),
        _ => Err("takes two operands, and one to add".into()),
    }
}

/// The types of every form.
pub fn infer_any(ins: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    let operands = Operands::of(ins.len(), attrs);
    if !(2..=5).contains(&operands.extras.start) {
        return Err("takes two operands, or four, and one to add".into());
    }
    let (a, b) = (ins[0], ins[1]);
    let d = extents(a, b, attrs.flag("trans_a"), attrs.flag("trans_b"))?;
    let y = Type::f32([&a.shape[..a.rank() - 2], &[d.m, d.n]].concat());
    if let Some([a, b]) = operands.second {
        let more = extents(ins[a], ins[b], attrs.flag("trans_a"), attrs.flag("trans_b2"))?;
        if (more.batch, more.m, more.n) != (d.batch, d.m, d.n) || ins[a].rank() != ins[0].rank() {
            return Err("takes terms of one shape".into());
        }
    }
    if let Some(c) = operands.added.map(|i| ins[i])
        && *c != y
        && *c != Type::f32([d.n])
    {
        return Err(format!("{c} cannot be added to {y}"));
    }
    ending::infer(&y, &ins[operands.extras], attrs)
}

/// The extents of a term, if its operands have one.
fn extents(a: &Type, b: &Type, trans_a: bool, trans_b: bool) -> Result<Dims, String> {
    let rank = a.rank();
    if rank < 2 || b.rank() != rank || a.shape[..rank - 2] != b.shape[..rank - 2] || !a.is_float() || !b.is_float() {
        return Err("takes two float operands of two or more axes with equal batch axes".into());
    }
    let d = Dims::of(a, b, trans_a, trans_b);
    let inner = b.shape[if trans_b { rank - 1 } else { rank - 2 }];
    if inner == d.k { Ok(d) } else { Err(format!("inner extents differ: {} and {inner}", d.k)) }
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

impl Dims {
    fn of(a: &Type, b: &Type, trans_a: bool, trans_b: bool) -> Dims {
        let rank = a.rank();
        let (ar, ac) = (a.shape[rank - 2], a.shape[rank - 1]);
        let (br, bc) = (b.shape[rank - 2], b.shape[rank - 1]);
        let (m, k, a_strides) = if trans_a { (ac, ar, (1, ac)) } else { (ar, ac, (ac, 1)) };
        let (n, b_strides) = if trans_b { (br, (1, bc)) } else { (bc, (bc, 1)) };
        Dims { batch: a.shape[..rank - 2].iter().product(), m, n, k, a: a_strides, b: b_strides }
    }
}

/// Those of a call's first term; a group's right operands count as one.
pub fn dims(types_in: &[Type], attrs: &Attrs) -> Dims {
    let d = Dims::of(&types_in[0], &types_in[1], attrs.flag("trans_a"), attrs.flag("trans_b"));
    Dims { n: d.n * group::count(attrs).unwrap_or(1), ..d }
}

/// Those of its second.
pub fn more(types_in: &[Type], attrs: &Attrs) -> Option<Dims> {
    let [a, b] = Operands::of(types_in.len(), attrs).second?;
    Some(Dims::of(&types_in[a], &types_in[b], attrs.flag("trans_a"), attrs.flag("trans_b2")))
}

/// Every form on the host.
pub fn cpu<T: Element>(c: &mut CpuCall<T>) {
    let (ins, attrs) = (c.ins, c.attrs);
    let (d, more) = (dims(c.types_in, attrs), more(c.types_in, attrs));
    let operands = Operands::of(ins.len(), attrs);
    let y_type = &c.types_out[0];
    let outs: SmallVec<[SharedOut<T>; 4]> = c.outs.iter_mut().map(SharedOut::new).collect();
    let SharedOut::Float(y) = &outs[0] else { unreachable!("infer gives floats") };
    let read = |i: usize| operand(ins[i].elements(), attrs.flag("halves"));
    let first = [read(0), read(1)];
    let second = operands.second.map(|pair| pair.map(read));
    let in_place = c.in_place.iter().any(|p| Some(p.0) == operands.added);
    let start = |i: usize| match operands.added {
        None => Start::Zero,
        Some(_) if in_place => Start::Target,
        Some(row) if c.types_in[row].rank() == 1 => Start::Row(ins[row].float()),
        Some(rows) => Start::Rows { data: &ins[rows].float()[i * d.m * d.n..][..d.m * d.n], row: d.n },
    };
    let ending = Ending::of(attrs, c.types_in, ins, y_type, &outs);
    let product = |i: usize, threads: bool| {
        let y = Target { data: y, at: i * d.m * d.n, row: d.n };
        let second = second.as_ref().zip(more).map(|(pair, d)| term(pair, d, i));
        // SAFETY: one task a batch entry, and rectangles within it that are done.
        let then = |rows: Range<usize>, columns: Range<usize>| unsafe {
            let ending = ending.as_ref().expect("given only where there is one");
            ending.run(y.data, i * d.m + rows.start..i * d.m + rows.end, columns);
        };
        let then: Option<Then> = if ending.is_some() { Some(&then) } else { None };
        // SAFETY: as above.
        unsafe { gemm_terms(start(i), [d.m, d.n], [Some(term(&first, d, i)), second], y, then, threads) };
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
