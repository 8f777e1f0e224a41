//! A matmul with more in it, as passes make it after differentiation. Behind matmul's two operands there may be, in this order: two
//! more, whose product is added (the first stored as the first, the second as `trans_b2` says): an adapter's term, as if it were
//! further columns of K; one that is added, as matmul has it; and as many as `extras` says, which belong to `program`: elementwise
//! instructions that each sum ends in (see `ending`). There is a result for each of the program's, behind the sum itself if the node
//! `keeps` that.

use super::host::{HALVES, accumulates, cpu, work};
use super::plain::{flags, infer_any};
use super::{ending, product};
use crate::ir::Program;
use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "matmul_fused",
    attrs: &[
        flag("trans_a"),
        flag("trans_b"),
        flag("trans_b2"),
        flag("halves"),
        flag("bf16"),
        may("program", AttrKind::Program),
        may("extras", AttrKind::Int),
        flag("keeps"),
    ],
    infer: infer_any,
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Tuned { kernel: product::dispatches, candidates: product::candidates },
    results: Results::All,
    accumulates,
    halves: HALVES,
    windows: NO_WINDOWS,
    work,
    samples: || {
        vec![
            of_four([&[5, 7], &[7, 3], &[5, 2], &[2, 3]], [false; 3]),
            of_four([&[70, 32], &[136, 32], &[70, 8], &[136, 8]], [false, true, true]),
            of_four([&[70, 32], &[136, 32], &[70, 8], &[8, 136]], [false, true, false]),
            of_four([&[2, 36, 20], &[2, 36, 24], &[2, 4, 20], &[2, 4, 24]], [true, false, false]),
            of_four([&[6, 1100], &[1100, 12], &[6, 4], &[4, 12]], [false; 3]),
            ended(&[&[9, 8], &[8, 12], &[12]], false, "t0:f32=gelu(i0); return t0", 0),
            ended(&[&[9, 8], &[8, 11], &[9, 11]], true, "t0:f32=silu_grad(i0,i1); return t0", 1),
            ended(&[&[6, 40], &[40, 12], &[6, 12], &[12], &[]], true, CHAIN, 3),
            // What rounding leaves of long sums is as large as the sums are, so that its results must be as large.
            ended(&[&[6, 1100], &[1100, 12], &[6, 12], &[12], &[]], true, LONG_CHAIN, 3),
            ended(&[&[70, 32], &[32, 136], &[70, 8], &[8, 136], &[136], &[70, 136], &[136]], false, SHORT_CHAIN, 3),
            ended(&[&[2, 8, 32], &[2, 32, 16], &[2, 8, 4], &[2, 4, 16], &[2, 8, 16], &[2, 8, 16]], true, HALVED, 1),
        ]
    },
};

/// Two results of three extra operands.
const CHAIN: &str = "t0:f32=mul(i0,i1); t1:bool=less(t0,i2); t2:f32=select(t1,i3,t0); t3:f32=tanh(i0); return t2,t3";
const LONG_CHAIN: &str =
    "t0:f32=mul(i0,i1); t1:bool=less(t0,i2); t2:f32=select(t1,i3,t0); t3:f32=neg(i0); return t2,t3";
/// One of them: with a second term, as many buffers as every adapter binds.
const SHORT_CHAIN: &str = "t0:f32=mul(i0,i1); t1:bool=less(t0,i2); t2:f32=select(t1,i3,t0); return t2";
const HALVED: &str = "t0:f32=mul(i0,i1); return t0";

fn of_four(shapes: [&[usize]; 4], [trans_a, trans_b, trans_b2]: [bool; 3]) -> Sample {
    Sample::normal(&shapes).with(flags(trans_a, trans_b).with("trans_b2", Attr::Bool(trans_b2)))
}

fn ended(shapes: &[&[usize]], keeps: bool, program: &str, extras: i64) -> Sample {
    let program = Program::parse(program).expect("a sound program");
    let attrs = ending::attrs(flags(false, false), program, extras as usize, keeps);
    Sample::normal(shapes).with(attrs)
}
