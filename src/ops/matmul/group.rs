//! Products of one left operand: x `(M, K)` with each of some `(K, N)` to as many `(M, N)`; `trans_a` stores x as `(K, M)`, `trans_b`
//! the others as `(N, K)`, and `trans_y` the results as `(N, M)`. They are multiplied by `scale`, if there is one; `group` says how
//! many they are. A device kernel reads x once for all of them: it multiplies by the others side by side.

use super::gemm::{Dims, Gemm, Group};
use super::host::{operand, work};
use super::matrix::{Matrix, Target};
use super::multiply::gemm;
use super::product;
use crate::ops::engine::prelude::*;

/// The most products: with x they are seven buffers, of the eight that every adapter has.
pub const MOST: usize = 3;

pub const PRIMITIVE: Primitive = Primitive {
    name: "matmul_group",
    attrs: &[
        needs("group", AttrKind::Int),
        flag("trans_a"),
        flag("trans_b"),
        flag("trans_y"),
        flag("halves"),
        may("scale", AttrKind::Float),
    ],
    infer,
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Tuned { kernel: product::dispatches, candidates: product::candidates },
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work,
    samples: || {
        let of = |x: [usize; 2], w: [usize; 2], count: usize, flags: &[&str]| {
            let shapes: Vec<&[usize]> = std::iter::once(&x[..]).chain((0..count).map(|_| &w[..])).collect();
            let attrs = Attrs::new().with("group", Attr::Int(count as i64));
            Sample::normal(&shapes).with(flags.iter().fold(attrs, |a, f| a.with(f, Attr::Bool(true))))
        };
        let scaled = |mut s: Sample| {
            s.attrs = s.attrs.with("scale", Attr::Float(2.5));
            s
        };
        vec![
            of([37, 12], [8, 12], 3, &["trans_b"]),
            of([70, 33], [33, 4], 2, &[]),
            scaled(of([64, 64], [16, 64], 3, &["trans_b"])),
            of([40, 36], [40, 8], 2, &["trans_a", "trans_y"]),
            of([300, 48], [300, 4], 3, &["trans_a", "trans_y"]),
            // K in parts.
            scaled(of([12, 1100], [1100, 8], 2, &[])),
            of([1100, 12], [1100, 4], 3, &["trans_a", "trans_y"]),
        ]
    },
};

fn infer(ins: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    let (Some(n), [x, w, more @ ..]) = (Group::of(attrs).map(|g| g.count), ins) else {
        return Err("takes operands, and their number".into());
    };
    if !(1..=MOST).contains(&n) || more.len() + 1 != n || more.iter().any(|other| other != w) {
        return Err(format!("takes a left operand and {n} right ones alike, at most {MOST}"));
    }
    let (&[x0, x1], &[w0, w1]) = (&x.shape[..], &w.shape[..]) else { return Err("takes operands of two axes".into()) };
    let (m, k) = if attrs.flag("trans_a") { (x1, x0) } else { (x0, x1) };
    let (inner, columns) = if attrs.flag("trans_b") { (w1, w0) } else { (w0, w1) };
    if inner != k || !x.is_float() || !w.is_float() || !columns.is_multiple_of(4) {
        return Err(format!("{x} and {w} have no product of columns in fours"));
    }
    let y = if attrs.flag("trans_y") { [columns, m] } else { [m, columns] };
    Ok(vec![Type::f32(y); n])
}

/// One after the other: packing and blocks of a host's products leave nothing to gain by doing them together.
fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let call = Gemm::decode(c.types_in, c.attrs);
    let group = call.group.expect("a group says how many it has");
    let Dims { m, k, a, b, .. } = call.base.dims;
    let n = call.base.dims.n / group.count;
    let left = operand(c.ins[call.base.lhs].elements(), call.halves);
    let left = left.matrix(0..m * k, a);
    for (w, y) in c.ins[call.base.rhs..].iter().zip(c.outs.iter_mut()) {
        let right = operand(w.elements(), call.halves);
        let right = right.matrix(0..k * n, b);
        let y = y.float();
        let out = Shared::new(y);
        let target = |row: usize| Target { data: &out, at: 0, row };
        let turned = [&right, &left].map(|m| Matrix { row: m.col, col: m.row, ..*m });
        let threads = m * n * k >= 64 * 64 * 64;
        match group.trans_y {
            // SAFETY: nothing else uses the result.
            false => unsafe { gemm([m, n, k], left, right, target(n), false, threads, false) },
            // SAFETY: as above.
            true => unsafe { gemm([n, m, k], turned[0], turned[1], target(m), false, threads, false) },
        }
        if let Some(scale) = group.scale.map(T::of) {
            y.iter_mut().for_each(|y| *y *= scale);
        }
    }
}
