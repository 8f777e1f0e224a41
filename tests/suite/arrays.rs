//! Data files of tensors as numpy and safetensors write them: the same numbers in every type and order, and clear errors.

use crate::build::{F32, Net, perceptron};
use crate::cli::{cli, json};
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::train::data::{self, DataError, Options, Source};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn at(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/inputs/arrays").join(name)
}

fn tensors(name: &str) -> Result<BTreeMap<String, Tensor>, DataError> {
    match data::read(&at(name), &Options::default())?.source {
        Source::Tensors { tensors, .. } => Ok(tensors),
        Source::Text { .. } => panic!("{name} is no text"),
    }
}

#[test]
fn every_type_and_order_holds_the_same_numbers() {
    let x = Tensor::f32([3, 4], vec![1., -2., 3., 4., 5., 6., -7., 8., 0., 1., 2., -3.]);
    let whole = Tensor::i32([3, 4], x.as_f32().unwrap().iter().map(|&v| v as i32).collect());
    for name in [
        "stored.npz",
        "deflated.npz",
        "half.npz",
        "columns.npz",
        "columns_double.npz",
        "big_endian.npz",
        "big_endian_half.npz",
        "big_endian_double.npz",
        "unsigned.npz",
        "integers.npz",
        "u16.safetensors",
        "u32.safetensors",
        "u64.safetensors",
    ] {
        let got = tensors(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(got["x"], if name == "integers.npz" { whole.clone() } else { x.clone() }, "{name}");
        assert_eq!(got["labels"], Tensor::i32([3], vec![0, 2, 1]), "{name}");
    }
}

#[test]
fn what_cannot_be_read_says_which_tensor_and_why() {
    let cases: &[(&str, &[&str])] = &[
        ("wide_integer.npz", &["'labels'", "1099511627776 does not fit 32 bits"]),
        ("wide_integer.safetensors", &["'labels'", "1099511627776 does not fit 32 bits"]),
        ("wide_unsigned.npz", &["'labels'", "9223372036854775808 does not fit 32 bits"]),
        ("wide_float.npz", &["'x'", "1e300 does not fit 32 bits"]),
        ("objects.npz", &["'x'", "Python objects", "hint: pad the rows"]),
        ("strings.npz", &["'labels'", "text, not numbers", "hint: "]),
        ("complex.npz", &["'x'", "<c8 is not supported", "hint: "]),
        ("other_length.npz", &["'labels' holds 2 examples", "'x' holds 3"]),
        ("other_length.safetensors", &["'labels' holds 2 examples", "'x' holds 3"]),
        ("one_label.npz", &["'labels' is one number", "'x' holds 3 examples"]),
        ("empty.npz", &["holds no tensor", "hint: "]),
        ("alone.npy", &["a single numpy array", "numpy.savez"]),
    ];
    for (name, says) in cases {
        let error = tensors(name).err().unwrap_or_else(|| panic!("{name} is read")).to_string();
        says.iter().for_each(|part| assert!(error.contains(part), "{name}: no '{part}' in: {error}"));
    }
}

/// A tensor that is cut short or claims a shape beyond its bytes is an error, not a panic or a huge allocation.
#[test]
fn damaged_arrays_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(at("stored.npz")).unwrap();
    let path = dir.path().join("a.npz");
    for end in [30, 100, 200, whole.len() / 2, whole.len() - 10] {
        std::fs::write(&path, &whole[..end]).unwrap();
        assert!(data::read(&path, &Options::default()).is_err(), "cut at {end}");
    }
    let text = b"'shape': (3, 4), ";
    let start = whole.windows(text.len()).position(|w| w == text).expect("the header of x");
    let mut large = whole.clone();
    large[start..start + text.len()].copy_from_slice(b"'shape': (9999,),");
    std::fs::write(&path, &large).unwrap();
    assert!(data::read(&path, &Options::default()).is_err());
}

/// A tensor without axes goes to every batch as it is.
#[test]
fn one_number_serves_all_examples() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let net = Net::new(17)
        .input("x", F32, &["batch", "4"])
        .input("scale", F32, &[])
        .output("logits", F32, &["batch", "4"])
        .node("/Mul", "Mul", &["x", "scale"], &["logits"], &[]);
    net.write(&d.join("scaled.onnx"));
    let data = at("scalar.npz").display().to_string();
    let of = |size: &str| {
        json(d, &["eval", "scaled.onnx", "--data", &data, "--batch-size", size, "--device", "cpu"])["loss"].as_f64()
    };
    // Cross-entropy of x / 2 under labels 0, 2 and 1, by numpy.
    let want = 3.7722325;
    for size in ["1", "2", "8"] {
        let loss = of(size).unwrap();
        assert!((loss - want).abs() < 1e-5, "batches of {size}: {loss}");
    }
    // Where the model wants an axis of examples, it says so.
    perceptron().write(&d.join("mlp.onnx"));
    let ran = cli(d, &["eval", "scaled.onnx", "--data", &at("stored.npz").display().to_string(), "--device", "cpu"]);
    assert!(ran.code == 1 && ran.err.contains("'scale'"), "{}", ran.err);
}
