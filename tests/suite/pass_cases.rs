//! Programs for each pass.

/// Pass, what the case shows, program.
pub const CASES: &[(&str, &str, &str)] = &[
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
        "row_major_operands",
        "queries times keys, and values gathered the other way round",
        r#"%0: f32[2,12,4] = input "q"
           %1: f32[2,16,4] = input "k"
           %2: f32[2,12,16] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %3: f32[2,12,8] = input "g"
           %4: f32[2,16,8] = matmul(%2, %3) {trans_a=true, trans_b=false}
           return "y" = %4"#,
    ),
    (
        "group_products",
        "adapters on queries, keys and values, their scales, and the gradients of their first factors; a gate that comes too late",
        r#"%0: f32[64,32] = input "x"
           %1: f32[4,32] = input "a_q"
           %2: f32[4,32] = input "a_k"
           %3: f32[4,32] = input "a_v"
           %4: f32[] = constant [2.0]
           %5: f32[64,4] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %6: f32[64,4] = mul(%5, %4)
           %7: f32[64,4] = matmul(%0, %2) {trans_a=false, trans_b=true}
           %8: f32[64,4] = mul(%7, %4)
           %9: f32[64,4] = exp(%6)
           %10: f32[64,4] = matmul(%0, %3) {trans_a=false, trans_b=true}
           %11: f32[64,4] = mul(%4, %10)
           %12: f32[4,32] = matmul(%9, %0) {trans_a=true, trans_b=false}
           %13: f32[4,32] = matmul(%8, %0) {trans_a=true, trans_b=false}
           %14: f32[4,32] = add(%12, %2)
           %15: f32[64,4] = matmul(%0, %14) {trans_a=false, trans_b=true}
           %16: f32[64,4] = mul(%15, %4)
           return "y" = %11
           return "da" = %13
           return "z" = %14
           return "late" = %16"#,
    ),
    (
        "push_slices",
        "the first position of a layer: its queries, a row for all, a norm and what follows; keys and values stay whole",
        r#"%0: f32[2,5,8] = input "h"
           %1: f32[10,8] = reshape(%0) {shape=[10,8]}
           %2: f32[8,8] = input "w_q"
           %3: f32[10,8] = matmul(%1, %2) {trans_a=false, trans_b=true}
           %4: f32[2,5,2,4] = reshape(%3) {shape=[2,5,2,4]}
           %5: f32[8,8] = input "w_k"
           %6: f32[10,8] = matmul(%1, %5) {trans_a=false, trans_b=true}
           %7: f32[2,5,2,4] = reshape(%6) {shape=[2,5,2,4]}
           %8: f32[1,1,5,5] = input "bias"
           %9: f32[2,5,2,4], %10: f32[2,2,5,2] = attention(%4, %7, %7, %8) {scale=0.5, seq_k=true, seq_q=true, seq_v=true, seq_y=true}
           %11: f32[2,5,8] = reshape(%9) {shape=[2,5,8]}
           %12: f32[2,5,8] = add(%11, %0)
           %13: f32[10,8] = reshape(%12) {shape=[10,8]}
           %14: f32[8] = input "scale"
           %15: f32[8] = input "shift"
           %16: f32[10,8], %17: f32[10], %18: f32[10] = layer_norm(%13, %14, %15) {eps=0.001}
           %19: f32[10,8] = gelu(%16)
           %20: f32[2,5,8] = reshape(%19) {shape=[2,5,8]}
           %21: f32[5,1] = input "position"
           %22: f32[2,5,8] = add(%20, %21)
           %23: f32[2,1,8] = slice(%22) {axis=1, len=1, start=3, step=1}
           return "y" = %23"#,
    ),
    (
        "push_slices",
        "rotated rows and a transpose; what others read as well is computed whole",
        r#"%0: f32[2,3,5,4] = input "x"
           %1: f32[1,1,5,4] = input "cos"
           %2: f32[1,1,5,4] = input "sin"
           %3: f32[2,3,5,4] = exp(%0)
           %4: f32[2,3,5,4] = rotary(%3, %1, %2)
           %5: f32[2,5,3,4] = transpose(%4) {perm=[0,2,1,3]}
           %6: f32[2,1,3,4] = slice(%5) {axis=1, len=1, start=4, step=1}
           %7: f32[6,20] = reshape(%3) {shape=[6,20]}
           return "y" = %6
           return "z" = %7"#,
    ),
    (
        "order_terms",
        "a gradient of two products and what comes by the residual",
        r#"%0: f32[6,4] = input "g"
           %1: f32[5,4] = input "w"
           %2: f32[6,3] = input "h"
           %3: f32[5,3] = input "v"
           %4: f32[6,5] = input "residual"
           %5: f32[6,5] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %6: f32[6,5] = matmul(%2, %3) {trans_a=false, trans_b=true}
           %7: f32[6,5] = add(%5, %6)
           %8: f32[6,5] = add(%7, %4)
           return "y" = %8"#,
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
        "autocast",
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
    (
        "fuse_terms",
        "an adapter's term on its base, stored the other way round, and one whose base is read elsewhere",
        r#"%0: f32[6,16] = input "x"
           %1: f32[8,16] = input "w"
           %2: f32[6,4] = input "t"
           %3: f32[4,8] = input "b"
           %4: f32[8] = input "bias"
           %5: f32[6,8] = matmul(%0, %1, %4) {trans_a=false, trans_b=true}
           %6: f32[6,8] = matmul(%2, %3, %5) {trans_a=false, trans_b=false}
           %7: f32[6,8] = matmul(%0, %1) {trans_a=false, trans_b=true}
           %8: f32[6,8] = matmul(%2, %3, %7) {trans_a=false, trans_b=false}
           return "y" = %6
           return "z" = %7
           return "u" = %8"#,
    ),
    (
        "fuse_epilogues",
        "an activation whose argument is kept, and a gate of two products, the later of which it goes with",
        r#"%0: f32[6,16] = input "x"
           %1: f32[16,8] = input "w1"
           %2: f32[16,8] = input "w2"
           %3: f32[6,8] = matmul(%0, %1) {trans_a=false, trans_b=false}
           %4: f32[2,3,8] = reshape(%3) {shape=[2,3,8]}
           %5: f32[6,8] = matmul(%0, %2) {trans_a=false, trans_b=false}
           %6: f32[2,3,8] = reshape(%5) {shape=[2,3,8]}
           %7: f32[2,3,8] = silu(%4)
           %8: f32[2,3,8] = mul(%7, %6)
           return "y" = %8
           return "up" = %6"#,
    ),
    (
        "fuse_epilogues",
        "two readers at once, a row, a scalar and a mask; a sum over rows stays where it is",
        r#"%0: f32[6,16] = input "x"
           %1: f32[16,8] = input "w"
           %2: f32[8] = input "row"
           %3: f32[] = input "one"
           %4: f32[6,8] = input "other"
           %5: f32[6,8] = matmul(%0, %1) {trans_a=false, trans_b=false}
           %6: f32[6,8] = fused(%5, %3, %4, %2) {program=`t0:f32=mul(i0,i1); t1:bool=less(t0,i2); t2:f32=select(t1,i3,t0); return t2`}
           %7: f32[6,8] = tanh(%5)
           %8: f32[1,6,8] = reshape(%6) {shape=[1,6,8]}
           %9: f32[1,8] = reduce_sum(%8)
           return "y" = %7
           return "z" = %9"#,
    ),
    (
        "fuse_epilogues",
        "what is not there yet where the product is first read, or has another row for each result, stays apart",
        r#"%0: f32[6,16] = input "x"
           %1: f32[16,8] = input "w"
           %2: f32[6,1] = input "column"
           %3: f32[6,8] = matmul(%0, %1) {trans_a=false, trans_b=false}
           %4: f32[6,8] = gelu(%3)
           %5: f32[8,8] = matmul(%4, %4) {trans_a=true, trans_b=false}
           %6: f32[6,8] = matmul(%4, %5) {trans_a=false, trans_b=false}
           %7: f32[6,8] = gelu_grad(%3, %6)
           %8: f32[6,8] = mul(%6, %2)
           return "y" = %7
           return "z" = %8"#,
    ),
    (
        "fuse_residual",
        "a norm's gradient and what comes by its residual; a gradient that is read elsewhere stays as it is",
        r#"%0: f32[6,8] = input "x"
           %1: f32[8] = input "gain"
           %2: f32[6] = input "rstd"
           %3: f32[6,8] = input "g"
           %4: f32[2,3,8] = input "residual"
           %5: f32[6,8] = rms_norm_grad(%0, %1, %2, %3)
           %6: f32[2,3,8] = reshape(%5) {shape=[2,3,8]}
           %7: f32[2,3,8] = add(%4, %6)
           %8: f32[6,8] = layer_norm_grad(%0, %1, %2, %2, %3)
           %9: f32[6,8] = add(%8, %3)
           return "y" = %7
           return "z" = %8
           return "u" = %9"#,
    ),
];
