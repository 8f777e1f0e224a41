//! Passes: text in, text out, and the same numbers before and after.

use crate::oracle;
use reslora_compile::device::{Cpu, Device};
use reslora_compile::ir::{Attr, Attrs, Builder, DType, Graph, Leaf, Sink, Tensor, Type, Weight};
use reslora_compile::ops::host::Buffer;
use reslora_compile::ops::{self, Fill, RULES, draw};
use reslora_compile::passes::{self, ATTEND, BACKWARD, BY_ROWS, FORWARD, FUSE, JOIN, MIXED, Pass};
use reslora_compile::pipeline;
use reslora_compile::train::Purpose;
use std::collections::{BTreeMap, BTreeSet};

/// Pass, what the case shows, program.
const CASES: &[(&str, &str, &str)] = &[
    (
        "join_low_rank",
        "two adapters on one input, and a third that stays apart",
        r#"%0: f32[6,16] = input "x"
           %1: f32[6,16] = input "z"
           %2: f32[2,16] = input "a1"
           %3: f32[5,2] = input "b1"
           %4: f32[3,16] = input "a2"
           %5: f32[5,3] = input "b2"
           %6: f32[6,2] = matmul(%0, %2) {trans_a=false, trans_b=true}
           %7: f32[6,5] = matmul(%6, %3) {trans_a=false, trans_b=true}
           %8: f32[6,3] = matmul(%0, %4) {trans_a=false, trans_b=true}
           %9: f32[6,5] = matmul(%8, %5) {trans_a=false, trans_b=true}
           %10: f32[6,5] = add(%7, %9)
           %11: f32[6,2] = matmul(%1, %2) {trans_a=false, trans_b=true}
           %12: f32[6,5] = matmul(%11, %3) {trans_a=false, trans_b=true}
           %13: f32[6,5] = add(%10, %12)
           return "y" = %13"#,
    ),
    (
        "lay_out_by_rows",
        "queries times keys, and values gathered the other way round",
        r#"%0: f32[2,12,4] = input "q"
           %1: f32[2,16,4] = input "k"
           %2: f32[2,12,16] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %3: f32[2,12,8] = input "g"
           %4: f32[2,16,8] = matmul(%2, %3) {trans_a=true, trans_b=false}
           return "y" = %4"#,
    ),
    (
        "sink_scales",
        "the scale of an adapter's term",
        r#"%0: f32[6,2] = input "t"
           %1: f32[5,2] = input "b"
           %2: f32[] = constant [2.0]
           %3: f32[6,5] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %4: f32[2,3,5] = reshape(%3) {shape=[2,3,5]}
           %5: f32[2,3,5] = mul(%4, %2)
           return "y" = %5"#,
    ),
    (
        "fold_layout",
        "a transposed right side is the matmul's own flag",
        r#"%0: f32[5,4] = input "x"
           %1: f32[3,4] = input "w"
           %2: f32[4,3] = transpose(%1) {perm=[1,0]}
           %3: f32[5,3] = matmul(%0, %2) {trans_a=false, trans_b=false}
           return "y" = %3"#,
    ),
    (
        "fold_layout",
        "two transposes that undo each other",
        r#"%0: f32[2,3,4] = input "x"
           %1: f32[4,2,3] = transpose(%0) {perm=[2,0,1]}
           %2: f32[2,3,4] = transpose(%1) {perm=[1,2,0]}
           %3: f32[2,3,4] = exp(%2)
           return "y" = %3"#,
    ),
    (
        "fold_layout",
        "a reshape of a reshape",
        r#"%0: f32[2,6] = input "x"
           %1: f32[12] = reshape(%0) {shape=[12]}
           %2: f32[3,4] = reshape(%1) {shape=[3,4]}
           %3: f32[3,4] = exp(%2)
           return "y" = %3"#,
    ),
    (
        "common_subexpressions",
        "one exponential instead of two",
        r#"%0: f32[4] = input "x"
           %1: f32[4] = exp(%0)
           %2: f32[4] = exp(%0)
           %3: f32[4] = add(%1, %2)
           return "y" = %3"#,
    ),
    (
        "common_subexpressions",
        "other attributes are another value",
        r#"%0: f32[2,3] = input "x"
           %1: f32[3,2] = transpose(%0) {perm=[1,0]}
           %2: f32[3,2] = reshape(%0) {shape=[3,2]}
           %3: f32[3,2] = add(%1, %2)
           return "y" = %3"#,
    ),
    (
        "recognise_softmax",
        "a softmax guarded against rows of NaN",
        r#"%0: f32[2,5] = input "x"
           %1: f32[2,5] = softmax(%0) {safe=false}
           %2: bool[2,5] = is_nan(%1)
           %3: f32[2,5] = constant [0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0]
           %4: f32[2,5] = select(%2, %3, %1)
           return "y" = %4"#,
    ),
    (
        "recognise_attention",
        "masked, of heads that stand inside positions; keys and result too",
        r#"%0: f32[2,5,3,4] = input "q"
           %1: f32[2,6,3,4] = input "k"
           %2: f32[2,6,3,4] = input "v"
           %3: f32[2,1,1,6] = input "mask"
           %4: f32[2,3,5,4] = transpose(%0) {perm=[0,2,1,3]}
           %5: f32[2,3,4,6] = transpose(%1) {perm=[0,2,3,1]}
           %6: f32[2,3,6,4] = transpose(%2) {perm=[0,2,1,3]}
           %7: f32[2,3,5,6] = matmul(%4, %5) {trans_a=false, trans_b=false}
           %8: f32[] = constant [2.0]
           %9: f32[2,3,5,6] = div(%7, %8)
           %10: f32[2,3,5,6] = add(%9, %3)
           %11: f32[30,6] = reshape(%10) {shape=[30,6]}
           %12: f32[30,6] = softmax(%11) {safe=false}
           %13: f32[2,3,5,6] = reshape(%12) {shape=[2,3,5,6]}
           %14: f32[2,3,5,4] = matmul(%13, %6) {trans_a=false, trans_b=false}
           %15: f32[2,5,3,4] = transpose(%14) {perm=[0,2,1,3]}
           return "y" = %15"#,
    ),
    (
        "recognise_attention",
        "two heads of keys for six of queries, a scale on both sides, a guarded softmax",
        r#"%0: f32[2,6,5,4] = input "q"
           %1: f32[2,2,5,4] = input "k"
           %2: f32[2,2,5,4] = input "v"
           %3: f32[] = constant [0.5]
           %4: f32[2,6,5,4] = mul(%0, %3)
           %5: f32[2,2,1,5,4] = reshape(%1) {shape=[2,2,1,5,4]}
           %6: f32[2,2,3,5,4] = broadcast(%5) {shape=[2,2,3,5,4]}
           %7: f32[12,5,4] = reshape(%6) {shape=[12,5,4]}
           %8: f32[2,6,5,4] = reshape(%7) {shape=[2,6,5,4]}
           %9: f32[2,6,5,4] = mul(%8, %3)
           %10: f32[2,2,1,5,4] = reshape(%2) {shape=[2,2,1,5,4]}
           %11: f32[2,2,3,5,4] = broadcast(%10) {shape=[2,2,3,5,4]}
           %12: f32[2,6,5,4] = reshape(%11) {shape=[2,6,5,4]}
           %13: f32[2,6,5,5] = matmul(%4, %9) {trans_a=false, trans_b=true}
           %14: f32[60,5] = reshape(%13) {shape=[60,5]}
           %15: f32[60,5] = softmax(%14) {safe=true}
           %16: f32[2,6,5,5] = reshape(%15) {shape=[2,6,5,5]}
           %17: f32[2,6,5,4] = matmul(%16, %12) {trans_a=false, trans_b=false}
           return "y" = %17"#,
    ),
    (
        "recognise_attention",
        "a soft cap, then hidden keys, then a bias; heads and examples in one axis",
        r#"%0: f32[6,5,4] = input "q"
           %1: f32[6,5,4] = input "k"
           %2: f32[6,5,4] = input "v"
           %3: f32[5,5] = input "a"
           %4: f32[5,5] = input "b"
           %5: f32[2,1,5,5] = input "bias"
           %6: f32[6,5,5] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %7: f32[] = constant [0.25]
           %8: f32[6,5,5] = mul(%6, %7)
           %9: f32[6,5,5] = tanh(%8)
           %10: f32[] = constant [3.0]
           %11: f32[6,5,5] = mul(%9, %10)
           %12: bool[5,5] = less(%3, %4)
           %13: f32[] = constant [-3.4028235e38]
           %14: f32[6,5,5] = select(%12, %11, %13)
           %15: f32[2,3,5,5] = reshape(%14) {shape=[2,3,5,5]}
           %16: f32[2,3,5,5] = add(%5, %15)
           %17: f32[30,5] = reshape(%16) {shape=[30,5]}
           %18: f32[30,5] = softmax(%17) {safe=false}
           %19: f32[6,5,5] = reshape(%18) {shape=[6,5,5]}
           %20: f32[6,5,4] = matmul(%19, %2) {trans_a=false, trans_b=false}
           %21: f32[2,3,5,4] = reshape(%20) {shape=[2,3,5,4]}
           %22: f32[2,5,3,4] = transpose(%21) {perm=[0,2,1,3]}
           return "y" = %22"#,
    ),
    (
        "recognise_attention",
        "probabilities that are read elsewhere stay",
        r#"%0: f32[1,2,3,4] = input "q"
           %1: f32[1,2,3,4] = input "k"
           %2: f32[1,2,3,3] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %3: f32[6,3] = reshape(%2) {shape=[6,3]}
           %4: f32[6,3] = softmax(%3) {safe=false}
           %5: f32[1,2,3,3] = reshape(%4) {shape=[1,2,3,3]}
           %6: f32[1,2,3,4] = matmul(%5, %1) {trans_a=false, trans_b=false}
           return "y" = %6
           return "p" = %5"#,
    ),
    (
        "recognise_attention",
        "a trained bias stays",
        r#"%0: f32[1,2,3,4] = input "q"
           %1: f32[1,2,3,4] = input "k"
           %2: f32[2,3,3] = parameter "bias"
           %3: f32[1,2,3,3] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %4: f32[1,2,3,3] = add(%3, %2)
           %5: f32[6,3] = reshape(%4) {shape=[6,3]}
           %6: f32[6,3] = softmax(%5) {safe=false}
           %7: f32[1,2,3,3] = reshape(%6) {shape=[1,2,3,3]}
           %8: f32[1,2,3,4] = matmul(%7, %1) {trans_a=false, trans_b=false}
           return "y" = %8"#,
    ),
    (
        "recognise_rotary",
        "angles for every element, before the transpose of the heads",
        r#"%0: f32[2,5,3,4] = input "x"
           %1: f32[2,1,5,4] = input "cos"
           %2: f32[2,1,5,4] = input "sin"
           %3: f32[2,3,5,4] = transpose(%0) {perm=[0,2,1,3]}
           %4: f32[2,3,5,4] = mul(%3, %1)
           %5: f32[2,3,5,2] = slice(%3) {axis=3, len=2, start=0, step=1}
           %6: f32[2,3,5,2] = slice(%3) {axis=3, len=2, start=2, step=1}
           %7: f32[2,3,5,2] = neg(%6)
           %8: f32[2,3,5,4] = concat(%7, %5) {axis=3}
           %9: f32[2,3,5,4] = mul(%8, %2)
           %10: f32[2,3,5,4] = add(%4, %9)
           return "y" = %10"#,
    ),
    (
        "recognise_rotary",
        "angles for pairs, of the front of each row",
        r#"%0: f32[2,3,5,6] = input "x"
           %1: f32[5,2] = input "cos"
           %2: f32[5,2] = input "sin"
           %3: f32[2,3,5,4] = slice(%0) {axis=3, len=4, start=0, step=1}
           %4: f32[2,3,5,2] = slice(%3) {axis=3, len=2, start=0, step=1}
           %5: f32[2,3,5,2] = slice(%3) {axis=3, len=2, start=2, step=1}
           %6: f32[2,3,5,2] = mul(%4, %1)
           %7: f32[2,3,5,2] = mul(%5, %2)
           %8: f32[2,3,5,2] = mul(%5, %1)
           %9: f32[2,3,5,2] = mul(%4, %2)
           %10: f32[2,3,5,2] = sub(%6, %7)
           %11: f32[2,3,5,2] = add(%8, %9)
           %12: f32[2,3,5,4] = concat(%10, %11) {axis=3}
           return "y" = %12"#,
    ),
    (
        "recognise_rotary",
        "pairs of neighbours",
        r#"%0: f32[2,3,5,4] = input "x"
           %1: f32[1,1,5,2] = input "cos"
           %2: f32[1,1,5,2] = input "sin"
           %3: f32[2,3,5,2,2] = reshape(%0) {shape=[2,3,5,2,2]}
           %4: f32[2,3,5,2,1] = slice(%3) {axis=4, len=1, start=0, step=1}
           %5: f32[2,3,5,2,1] = slice(%3) {axis=4, len=1, start=1, step=1}
           %6: f32[2,3,5,2] = reshape(%4) {shape=[2,3,5,2]}
           %7: f32[2,3,5,2] = reshape(%5) {shape=[2,3,5,2]}
           %8: f32[2,3,5,2] = mul(%6, %1)
           %9: f32[2,3,5,2] = mul(%7, %2)
           %10: f32[2,3,5,2] = mul(%7, %1)
           %11: f32[2,3,5,2] = mul(%6, %2)
           %12: f32[2,3,5,2] = sub(%8, %9)
           %13: f32[2,3,5,2] = add(%10, %11)
           %14: f32[2,3,5,2,1] = reshape(%12) {shape=[2,3,5,2,1]}
           %15: f32[2,3,5,2,1] = reshape(%13) {shape=[2,3,5,2,1]}
           %16: f32[2,3,5,2,2] = concat(%14, %15) {axis=4}
           %17: f32[2,3,5,4] = reshape(%16) {shape=[2,3,5,4]}
           return "y" = %17"#,
    ),
    (
        "recognise_rotary",
        "a rotation the other way stays",
        r#"%0: f32[2,3,5,4] = input "x"
           %1: f32[1,1,5,4] = input "cos"
           %2: f32[1,1,5,4] = input "sin"
           %3: f32[2,3,5,4] = mul(%0, %1)
           %4: f32[2,3,5,2] = slice(%0) {axis=3, len=2, start=0, step=1}
           %5: f32[2,3,5,2] = slice(%0) {axis=3, len=2, start=2, step=1}
           %6: f32[2,3,5,2] = neg(%4)
           %7: f32[2,3,5,4] = concat(%5, %6) {axis=3}
           %8: f32[2,3,5,4] = mul(%7, %2)
           %9: f32[2,3,5,4] = add(%3, %8)
           return "y" = %9"#,
    ),
    (
        "recognise_activation",
        "x times its sigmoid",
        r#"%0: f32[2,5] = input "x"
           %1: f32[2,5] = sigmoid(%0)
           %2: f32[2,5] = mul(%1, %0)
           return "y" = %2"#,
    ),
    (
        "recognise_activation",
        "the exact GELU, halved last",
        r#"%0: f32[4] = input "x"
           %1: f32[] = constant [0.70710678]
           %2: f32[4] = mul(%0, %1)
           %3: f32[4] = erf(%2)
           %4: f32[] = constant [1.0]
           %5: f32[4] = add(%3, %4)
           %6: f32[4] = mul(%0, %5)
           %7: f32[] = constant [0.5]
           %8: f32[4] = mul(%6, %7)
           return "y" = %8"#,
    ),
    (
        "recognise_activation",
        "an erf of something else stays",
        r#"%0: f32[4] = input "x"
           %1: f32[4] = erf(%0)
           %2: f32[] = constant [1.0]
           %3: f32[4] = add(%1, %2)
           %4: f32[4] = mul(%0, %3)
           %5: f32[] = constant [0.5]
           %6: f32[4] = mul(%4, %5)
           return "y" = %6"#,
    ),
    (
        "recognise_norm",
        "x over the root of its mean square",
        r#"%0: f32[3,4] = input "x"
           %1: f32[3,4] = mul(%0, %0)
           %2: f32[3,4,1] = reshape(%1) {shape=[3,4,1]}
           %3: f32[3,1] = reduce_sum(%2)
           %4: f32[] = constant [0.25]
           %5: f32[3,1] = mul(%3, %4)
           %6: f32[] = constant [1e-5]
           %7: f32[3,1] = add(%5, %6)
           %8: f32[3,1] = sqrt(%7)
           %9: f32[3,4] = div(%0, %8)
           return "y" = %9"#,
    ),
    (
        "halve_operands",
        "products, and nothing else",
        r#"%0: f32[2,3] = input "x"
           %1: f32[4,3] = input "w"
           %2: f32[2,4] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %3: f32[2,4] = tanh(%2)
           return "y" = %3"#,
    ),
    (
        "sink_bias",
        "a row on top of a linear node and its adapter's term",
        r#"%0: f32[6,4] = input "x"
           %1: f32[4,5] = input "w"
           %2: f32[6,2] = input "t"
           %3: f32[2,5] = input "b"
           %4: f32[5] = input "bias"
           %5: f32[6,5] = matmul(%0, %1) {trans_a=false, trans_b=false}
           %6: f32[2,3,5] = reshape(%5) {shape=[2,3,5]}
           %7: f32[6,5] = matmul(%2, %3) {trans_a=false, trans_b=false}
           %8: f32[2,3,5] = reshape(%7) {shape=[2,3,5]}
           %9: f32[2,3,5] = add(%6, %8)
           %10: f32[2,3,5] = add(%4, %9)
           return "y" = %10"#,
    ),
    (
        "fuse_addend",
        "a bias, an adapter's term that goes on from it, and a residual that is read elsewhere too",
        r#"%0: f32[6,5] = input "x"
           %1: f32[5,5] = input "w"
           %2: f32[6,2] = input "t"
           %3: f32[2,5] = input "b"
           %4: f32[5] = input "bias"
           %5: f32[6,5] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %6: f32[6,5] = add(%5, %4)
           %7: f32[6,5] = matmul(%2, %3) {trans_a=false, trans_b=false}
           %8: f32[6,5] = add(%6, %7)
           %9: f32[6,5] = matmul(%8, %1) {trans_a=false, trans_b=false}
           %10: f32[6,5] = add(%0, %9)
           %11: f32[6,5] = tanh(%0)
           return "y" = %10
           return "z" = %11"#,
    ),
    (
        "fuse_addend",
        "a product that something else reads stays as it is",
        r#"%0: f32[6,5] = input "x"
           %1: f32[5,5] = input "w"
           %2: f32[6,5] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %3: f32[6,5] = add(%2, %0)
           %4: f32[6,5] = tanh(%2)
           return "y" = %3
           return "z" = %4"#,
    ),
    (
        "recompute",
        "a gate's activation beside its argument, but not an exponential whose argument nothing else needs",
        r#"%0: f32[4] = input "x"
           %1: f32[4] = parameter "a"
           %2: f32[4] = mul(%0, %1)
           %3: f32[4] = silu(%2)
           %4: f32[4] = exp(%1)
           %5: f32[4] = sin(%4)
           %6: f32[4] = exp(%5)
           %7: f32[4] = mul(%3, %6)
           %8: f32[1,4,1] = reshape(%7) {shape=[1,4,1]}
           %9: f32[1,1] = reduce_sum(%8)
           %10: f32[] = reshape(%9) {shape=[]}
           %11: f32[2,2] = reshape(%3) {shape=[2,2]}
           %12: f32[2,2] = tanh(%11)
           %13: f32[4] = silu_grad(%2, %6)
           return "reslora.loss" = %10
           return "gate" = %12
           return "g" = %13"#,
    ),
    (
        "dead_code",
        "what no output needs",
        r#"%0: f32[4] = input "x"
           %1: f32[4] = exp(%0)
           %2: f32[4] = sqrt(%1)
           return "y" = %1"#,
    ),
    (
        "fuse_elementwise",
        "a chain is one pass over memory",
        r#"%0: f32[2,3] = input "x"
           %1: f32[2,3] = input "z"
           %2: f32[2,3] = exp(%0)
           %3: f32[2,3] = mul(%2, %1)
           %4: f32[2,3] = tanh(%3)
           return "y" = %4"#,
    ),
    (
        "fuse_elementwise",
        "a matmul between the two keeps them apart",
        r#"%0: f32[3,3] = input "x"
           %1: f32[3,3] = exp(%0)
           %2: f32[3,3] = matmul(%1, %0) {trans_a=false, trans_b=false}
           %3: f32[3,3] = tanh(%2)
           return "y" = %3"#,
    ),
];

fn all() -> impl Iterator<Item = &'static Pass> {
    FORWARD.iter().chain(ATTEND).chain(JOIN).chain(BACKWARD).chain(BY_ROWS).chain(MIXED).chain(FUSE)
}

fn find(name: &str) -> &'static Pass {
    all().find(|p| p.name == name).unwrap_or_else(|| panic!("no pass '{name}'"))
}

/// Every output on drawn inputs, in f64.
fn outputs(graph: &Graph) -> BTreeMap<String, Vec<f64>> {
    let seed = |name: &str| name.bytes().map(u64::from).sum();
    let feed = |leaf: &Leaf, ty: &Type| match leaf {
        Leaf::Input(name) | Leaf::Parameter(name) => Buffer::<f64>::of(&draw(ty, Fill::Normal, seed(name))),
        _ => panic!("no other leaves here"),
    };
    let values = ops::interpret::<f64>(graph, &feed);
    let of = |b: &Buffer<f64>| match b {
        Buffer::Float(x) => x.clone(),
        Buffer::Int(x) => x.iter().map(|&i| i as f64).collect(),
    };
    graph.outputs.iter().map(|o| (o.name.clone(), of(&values[o.value.index()]))).collect()
}

fn assert_same(before: &Graph, after: &Graph, what: &str) {
    let (before, after) = (outputs(before), outputs(after));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{what}");
    for (name, x) in &before {
        for (a, b) in x.iter().zip(&after[name]) {
            // Patterns know their constants (1/√2, 0.044715) to f32's precision.
            assert!((a - b).abs() < 1e-6 * (1.0 + a.abs()), "{what}: {name}: {a} and {b}");
        }
    }
}

fn parsed(text: &str) -> Graph {
    let graph = Graph::parse(text).unwrap_or_else(|e| panic!("{e}"));
    passes::check(&graph, "parse").unwrap_or_else(|e| panic!("{e}\n{graph}"));
    graph
}

#[test]
fn passes_rewrite_what_they_find() {
    let mut shown = String::new();
    for (name, what, text) in CASES {
        let graph = parsed(text);
        let done =
            passes::run(graph.clone(), std::slice::from_ref(find(name))).unwrap_or_else(|e| panic!("{what}: {e}"));
        // Rounding is what that pass is for.
        if *name != "halve_operands" {
            assert_same(&graph, &done, what);
        }
        // Without what the rewrite left behind, so that the shape of the result shows.
        let shape = passes::run(done, std::slice::from_ref(find("dead_code"))).unwrap();
        shown += &format!("# {name}: {what}\n{graph}=>\n{shape}\n");
    }
    insta::assert_snapshot!(shown);
    let covered: BTreeSet<&str> = CASES.iter().map(|c| c.0).collect();
    let missing: Vec<&str> = all().map(|p| p.name).filter(|n| !covered.contains(n)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn text_reads_back() {
    for (name, what, text) in CASES {
        let graph = parsed(text);
        let printed = graph.to_string();
        assert_eq!(parsed(&printed).to_string(), printed, "{name}: {what}");
        let done = passes::run(graph, std::slice::from_ref(find(name))).unwrap().to_string();
        assert_eq!(parsed(&done).to_string(), done, "{name}: {what}");
    }
    for (wrong, why) in
        [("%0: f32[2] = input", "string"), ("%0: f99[2] = input \"x\"", "f99"), ("return \"y\" %0", "'='")]
    {
        let error = Graph::parse(wrong).unwrap_err();
        assert!(error.contains(why), "{wrong}: {error}");
    }
}

/// Attention of every fixture is one operation a layer, none of its transposes is left, and `--no-fuse` leaves it apart.
#[test]
fn attention_is_found_as_every_exporter_writes_it() {
    for case in oracle::fixtures() {
        let model = pipeline::read(&case.dir.join("model.onnx")).unwrap();
        let shapes = pipeline::sample_shapes(&model.inputs());
        let limits = Cpu::new(None).limits();
        let count = |fuse: bool, op: &str| {
            let all = pipeline::inferring(&model);
            // Keys and values, which some exporters give as outputs too, are wanted with heads first.
            let program = pipeline::Program { fuse, outputs: all.outputs[..1].to_vec(), ..all };
            let graph = program.graph(&shapes, Purpose::Infer, limits).unwrap();
            graph.nodes.iter().filter(|n| n.op == op).count()
        };
        let layers = count(false, "softmax");
        assert!(layers > 0 && count(false, "attention") == 0, "{}", case.name());
        assert_eq!(count(true, "attention"), layers, "{}", case.name());
        assert_eq!(count(true, "softmax"), 0, "{}", case.name());
        assert_eq!(count(true, "transpose"), 0, "{}", case.name());
    }
}

/// Gradients reach parameters only, and only those that the loss depends on.
#[test]
fn differentiation_stops_at_what_is_frozen() {
    let graph = parsed(
        r#"%0: f32[4,3] = input "x"
           %1: f32[3,3] = input "frozen"
           %2: f32[3,2] = parameter "a"
           %3: f32[3,2] = parameter "unused"
           %4: f32[4,3] = matmul(%0, %1) {trans_a=false, trans_b=false}
           %5: f32[4,2] = matmul(%4, %2) {trans_a=false, trans_b=false}
           %6: f32[4,2] = matmul(%0, %3) {trans_a=false, trans_b=false}
           %7: f32[1,8,1] = reshape(%5) {shape=[1,8,1]}
           %8: f32[1,1] = reduce_sum(%7)
           %9: f32[] = reshape(%8) {shape=[]}
           return "loss" = %9
           return "other" = %6"#,
    );
    let done = passes::differentiate(graph, "loss").unwrap();
    let names: Vec<&str> = done.outputs.iter().map(|o| o.name.as_str()).collect();
    assert!(names.contains(&"grad.a") && !names.contains(&"grad.frozen") && !names.contains(&"grad.x"), "{names:?}");
    insta::assert_snapshot!(done);
}

/// A loss over a language model's head: `lines` compute the logits, their last value, from the rows `%0: f32[6,4]` and the weight
/// `%2: f32[12,4]`.
fn with_head(weight: &str, lines: &str) -> Graph {
    let logits = 2 + lines.lines().count();
    let [loss, lse, wide, sum, flat] = [1, 2, 3, 4, 5].map(|i| logits + i);
    parsed(&format!(
        r#"%0: f32[6,4] = parameter "x"
           %1: i32[6] = constant [0, 8, -1, 3, -1, 5]
           %2: f32[12,4] = {weight} "w"
           {lines}
           %{loss}: f32[6], %{lse}: f32[6] = cross_entropy(%{logits}, %1)
           %{wide}: f32[1,6,1] = reshape(%{loss}) {{shape=[1,6,1]}}
           %{sum}: f32[1,1] = reduce_sum(%{wide})
           %{flat}: f32[] = reshape(%{sum}) {{shape=[]}}
           return "loss" = %{flat}"#
    ))
}

const PRODUCT: &str = "%3: f32[6,12] = matmul(%0, %2) {trans_a=false, trans_b=true}";

/// Projection and loss become one operation, four rows at a time, with the gradients of the two.
#[test]
fn a_projection_and_its_loss_are_one_operation() {
    let biased = format!(
        r#"%4: f32[12] = input "bias"
           {PRODUCT}
           %5: f32[2,3,12] = reshape(%3) {{shape=[2,3,12]}}
           %6: f32[2,3,12] = add(%5, %4)
           %7: f32[6,12] = reshape(%6) {{shape=[6,12]}}"#
    );
    let parts = r#"%3: f32[8,4] = input "v"
           %4: f32[6,12] = matmul(%0, %2) {trans_a=false, trans_b=true}
           %5: f32[6,8] = matmul(%0, %3) {trans_a=false, trans_b=true}
           %6: f32[6,20] = concat(%4, %5) {axis=1}"#;
    let cases = [("plain", PRODUCT), ("with a bias", &biased), ("in parts", parts)];
    let mut shown = String::new();
    for (what, lines) in cases {
        let graph = with_head("input", lines);
        let fused = passes::recognise_loss(graph.clone(), 4, 1000).unwrap();
        let fused = passes::run(fused, std::slice::from_ref(find("dead_code"))).unwrap();
        shown += &format!("# {what}\n{graph}=>\n{fused}\n");
        let gradients = |g: Graph| passes::run(passes::differentiate(g, "loss").unwrap(), BACKWARD).unwrap();
        let (apart, fused) = (gradients(graph), gradients(fused));
        assert_same(&apart, &fused, what);
        // The same with every weight both ways, as some devices want it.
        let even = passes::run(fused, BY_ROWS).unwrap();
        assert_same(&apart, &even, what);
    }
    insta::assert_snapshot!(shown);
}

/// Where the logits serve something else, or more than x has a gradient, the parts stay.
#[test]
fn a_projection_that_is_trained_or_read_stays_apart() {
    let adapter = format!(
        r#"%4: f32[2,4] = parameter "a"
           %5: f32[12,2] = parameter "b"
           {PRODUCT}
           %6: f32[6,2] = matmul(%0, %4) {{trans_a=false, trans_b=true}}
           %7: f32[6,12] = matmul(%6, %5) {{trans_a=false, trans_b=true}}
           %8: f32[6,12] = add(%3, %7)"#
    );
    let bias = format!(
        r#"%4: f32[12] = parameter "bias"
           {PRODUCT}
           %5: f32[6,12] = add(%3, %4)"#
    );
    let mut read = with_head("input", PRODUCT);
    let logits = read.nodes[0].outputs[0];
    read.outputs.push(reslora_compile::ir::Output { name: "logits".into(), value: logits, sink: Sink::Fetch });
    let cases = [
        ("a trained weight", with_head("parameter", PRODUCT)),
        ("an adapter", with_head("input", &adapter)),
        ("a trained bias", with_head("input", &bias)),
        ("logits that are an output", read),
    ];
    for (what, graph) in cases {
        let done = passes::recognise_loss(graph, 4, 1000).unwrap();
        assert!(done.nodes.iter().all(|n| n.op != "linear_cross_entropy"), "{what}: {done}");
    }
}

/// A weight of more words than the limit is read in parts, with the numbers unchanged.
#[test]
fn large_weights_are_read_in_parts() {
    let (w, table) = (draw(&Type::f32([6, 10]), Fill::Normal, 1), draw(&Type::f32([10, 6]), Fill::Normal, 2));
    let mut b = Builder::new(RULES);
    let ids = b.constant(Tensor::i32([4], vec![0, 9, 3, 7]));
    let held = |name: &str, t: &Tensor| {
        let t = t.clone();
        Weight::new(name, 1, move || t.clone())
    };
    let table = b.weight(held("table", &table), Type::f32([10, 6]));
    let w = b.weight(held("w", &w), Type::f32([6, 10]));
    let rows = b.emit("gather", &[table, ids], Attrs::new().with("axis", Attr::Int(0))).unwrap();
    let y = b.matmul(rows, w, false, false).unwrap();
    let back = b.matmul(y, w, false, true).unwrap();
    b.output("y", y, Sink::Fetch);
    b.output("back", back, Sink::Fetch);
    let largest = |g: &Graph| {
        let words = |v: &reslora_compile::ir::ValueInfo| match &v.def {
            reslora_compile::ir::Def::Leaf(Leaf::Weight(_)) => v.ty.elements(),
            _ => 0,
        };
        g.values.iter().map(words).max().unwrap()
    };
    let done =
        passes::run(passes::shard(b.graph.clone(), 24).unwrap(), std::slice::from_ref(find("dead_code"))).unwrap();
    assert_eq!(largest(&b.graph), 60);
    assert!(largest(&done) <= 24, "{done}");
    assert_same(&b.graph, &done, "shards");
    assert_eq!(done.ty(done.output("y").unwrap()).dtype, DType::F32);
}

#[test]
fn attention_of_few_scores_stays_apart_where_products_are_faster() {
    let mut found = 0;
    for (_, what, text) in CASES.iter().filter(|c| c.0 == "recognise_attention") {
        let fused = |run: fn(&Graph) -> Result<Graph, reslora_compile::ir::BuildError>| {
            run(&parsed(text)).unwrap_or_else(|e| panic!("{what}: {e}")).nodes.iter().any(|n| n.op == "attention")
        };
        found += fused(passes::recognise_attention::recognise_attention) as usize;
        assert!(!fused(passes::recognise_attention::recognise_large_attention), "{what}");
    }
    assert!(found > 0, "no case has attention");
}
