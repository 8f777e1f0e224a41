//! `(.., M, K) · (.., K, N)` to `(.., M, N)` with equal batch axes; `trans_a` stores the first as `(.., K, M)`, `trans_b` the
//! second as `(.., N, K)`. A third operand is added to the product: of the result's shape (its memory may become the result's), or
//! one row `(N)`. With `halves`, the first two are rounded to the nearest half (ties to even; infinite beyond its range) before they
//! are multiplied, and products added up in the element type; with `bf16`, which only the host knows, to the nearest bf16.
//! `matmul_fused` is this with more in it.

use super::ending;
use super::gemm::{Dims, Operands};
use super::host::{HALVES, accumulates, cpu, work};
use super::product;
use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "matmul",
    attrs: &[flag("trans_a"), flag("trans_b"), flag("halves"), flag("bf16")],
    infer,
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Tuned { kernel: product::dispatches, candidates: product::candidates },
    results: Results::All,
    accumulates,
    halves: HALVES,
    windows: NO_WINDOWS,
    work,
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

fn infer(ins: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    match ins.len() {
        2 | 3 => infer_any(ins, attrs),
        _ => Err("takes two operands, and one to add".into()),
    }
}

/// The types of every form.
pub fn infer_any(ins: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    let operands = Operands::of(ins.len(), attrs)?;
    let (a, b) = (ins[0], ins[1]);
    let d = extents(a, b, attrs.flag("trans_a"), attrs.flag("trans_b"))?;
    let y = Type::f32([&a.shape[..a.rank() - 2], &[d.m, d.n]].concat());
    if let Some([a, b]) = operands.low_rank {
        let more = extents(ins[a], ins[b], attrs.flag("trans_a"), attrs.flag("trans_b2"))?;
        if (more.batch, more.m, more.n) != (d.batch, d.m, d.n) || ins[a].rank() != ins[0].rank() {
            return Err("takes terms of one shape".into());
        }
    }
    if let Some(c) = operands.init.map(|i| ins[i])
        && *c != y
        && *c != Type::f32([d.n])
    {
        return Err(format!("{c} cannot be added to {y}"));
    }
    ending::infer(&y, &ins[operands.epilogue], attrs)
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
