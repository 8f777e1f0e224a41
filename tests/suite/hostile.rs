//! Files that ask for more than any machine has: an error that names the node, and no allocation.

use crate::build::{A, F32, Net, tensor};
use crate::cli::cli;
use std::time::{Duration, Instant};

/// A model with a linear node and something beside it.
fn beside(f: impl FnOnce(Net) -> Net) -> Net {
    let net = Net::new(17)
        .input("x", F32, &["batch", "4"])
        .initializer(tensor("w", &[4, 3], &[0.5; 12]))
        .node("layers.0.q", "MatMul", &["x", "w"], &["y"], &[])
        .output("y", F32, &["batch", "3"]);
    f(net)
}

#[test]
fn sizes_beyond_any_machine_are_refused() {
    let image = |dims: &'static [&'static str]| move |net: Net| net.input("image", F32, dims);
    let huge = |mut t: onnx_protobuf::TensorProto, dims: &[i64]| {
        t.dims = dims.to_vec();
        t.raw_data.clear();
        t
    };
    let cases: Vec<(&str, Net)> = vec![
        ("an image of more channels than memory", {
            let pool = [("kernel_shape", A::Is(vec![2, 2])), ("pads", A::Is(vec![1, 1, 1, 1]))];
            let net = beside(image(&["1", "8589934592", "2", "2"]));
            net.node("pool", "MaxPool", &["image"], &["p"], &pool).output("p", F32, &["a", "b", "c", "d"])
        }),
        ("a mean over a plane of 2^34 places", {
            let pool = [("kernel_shape", A::Is(vec![2, 2]))];
            let net = beside(image(&["1", "1", "131072", "131072"]));
            net.node("pool", "AveragePool", &["image"], &["p"], &pool).output("p", F32, &["a", "b", "c", "d"])
        }),
        ("an empty initializer with axes that overflow", {
            let empty = huge(tensor("e", &[0], &[]), &[0, i64::MAX, 1 << 32, 65536]);
            beside(|net| net.initializer(empty)).node("n", "Shape", &["e"], &["s"], &[]).output("s", 7, &["4"])
        }),
        ("a constant of 2^40 elements", {
            let shape = crate::build::ints("shape", &[2], &[1 << 20, 1 << 20]);
            let net = beside(|net| net.initializer(shape));
            net.node("fill", "ConstantOfShape", &["shape"], &["f"], &[]).output("f", F32, &["a", "b"])
        }),
        ("quantised weights of a negative extent", {
            let bits = [("K", A::I(4)), ("N", A::I(-7)), ("bits", A::I(4)), ("block_size", A::I(16))];
            let net = beside(|net| {
                net.initializer(tensor("packed", &[1], &[0.0])).initializer(tensor("scales", &[1], &[1.0]))
            });
            let inputs = ["x", "packed", "scales"];
            net.node("layers.0.k", "com.microsoft:MatMulNBits", &inputs, &["z"], &bits).output("z", F32, &["a", "b"])
        }),
    ];
    for (what, net) in cases {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        net.write(&d.join("m.onnx"));
        for command in
            [&["inspect", "m.onnx", "--device", "cpu"][..], &["inject", "m.onnx", "--rank", "2", "--target", "."]]
        {
            let start = Instant::now();
            let ran = cli(d, command);
            assert!(ran.code == 0 || ran.code == 1, "{what}: {command:?} ended with {}\n{}", ran.code, ran.err);
            assert!(start.elapsed() < Duration::from_secs(60), "{what}: {command:?} took too long");
        }
    }
}

#[test]
fn small_files_that_unfold_without_end_are_refused() {
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/inputs/hostile");
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::copy(from.join("data.npz"), d.join("data.npz")).unwrap();
    for name in ["bits-negative", "conv-padding", "empty-and-huge", "functions-doubling", "loops-nested", "pool-rows"] {
        let file = from.join(format!("{name}.onnx"));
        let file = file.to_str().unwrap();
        let injected = format!("{name}.i.onnx");
        let train =
            ["train", &injected, "--data", "data.npz", "--device", "cpu", "--max-steps", "1", "--batch-size", "2"];
        let start = Instant::now();
        let inspected = cli(d, &["inspect", file, "--device", "cpu"]);
        let ran = cli(d, &["inject", file, "-o", &injected, "--rank", "2", "--target", "."]);
        for ran in [&inspected, &ran] {
            assert!(ran.code == 0 || ran.code == 1, "{name}: {}\n{}", ran.code, ran.err);
        }
        if ran.code == 0 {
            let ran = cli(d, &[&train[..], &["-o", name]].concat());
            assert!(ran.code <= 1, "{name}: {}\n{}", ran.code, ran.err);
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{name} took {:?}", start.elapsed());
    }
}
