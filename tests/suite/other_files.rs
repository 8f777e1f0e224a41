//! Files that are given for something else: every command says what they are and what to do.

use crate::build::perceptron;
use crate::cli::{cli, perceptron_data};
use std::path::{Path, PathBuf};

pub const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 267967963\n";

fn fixture(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/inputs/other-files");
    std::fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A TensorFlow SavedModel: its version, then a graph whose signature is named so.
fn saved_model() -> Vec<u8> {
    let mut bytes = vec![0x08, 0x01, 0x12, 0x30, 0x0a, 0x05];
    bytes.extend(b"\x2a\x03abc\x2a\x27\x0a\x0fserving_default\x12\x14..................");
    bytes.resize(54, b'.');
    bytes
}

/// Name, content, what the message must say, and what its hint must.
fn others() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let start = |start: &[u8]| {
        let mut bytes = start.to_vec();
        bytes.resize(64, 7);
        bytes
    };
    let whole = fixture("model.onnx");
    vec![
        ("pointer", POINTER.into(), "Git LFS pointer: the file of 267967963 bytes", "git lfs pull"),
        ("empty", vec![], "an empty file", "download it again"),
        ("page", b"\n<!DOCTYPE html>\n<html><body>404</body></html>".to_vec(), "a web page (HTML)", "download"),
        ("old page", b"<HTML><HEAD><TITLE>Sign in</TITLE></HEAD>".to_vec(), "a web page (HTML)", "login"),
        ("xml", b"<?xml version=\"1.0\"?><net name=\"m\"/>".to_vec(), "XML text", "torch.onnx.export"),
        ("zip", fixture("model.zip"), "a zip archive that holds export/model.onnx", "unpack it"),
        ("cut zip", fixture("model.zip")[..200].to_vec(), "a zip archive", "unpack it"),
        ("checkpoint", fixture("checkpoint.pt"), "a PyTorch checkpoint", "torch.onnx.export"),
        ("cut checkpoint", fixture("checkpoint.pt")[..600].to_vec(), "a PyTorch checkpoint", "torch.onnx.export"),
        ("pickle", fixture("legacy.bin"), "a Python pickle", "torch.onnx.export"),
        ("script", fixture("script.pt"), "a TorchScript module", "torch.onnx.export"),
        ("program", fixture("program.pt2"), "an exported program of PyTorch's", "torch.onnx.export"),
        ("ort", fixture("model.ort"), "ONNX Runtime's own format (.ort)", "the .onnx file it was made from"),
        ("weights", fixture("weights.safetensors"), "a safetensors file", "optimum-cli export onnx"),
        ("arrays", fixture("arrays.npz"), "a numpy archive (.npz)", "this is data"),
        ("array", fixture("array.npy"), "a single numpy array (.npy)", "this is data"),
        ("gguf", start(b"GGUF\x03\0\0\0"), "a GGUF model", "export the model it was made from"),
        ("lite", start(b"\x1c\0\0\0TFL3"), "a TensorFlow Lite model", "tf2onnx.convert --tflite"),
        ("keras", start(b"\x89HDF\r\n\x1a\n"), "an HDF5 file", "Keras"),
        ("saved", saved_model(), "a TensorFlow SavedModel", "tf2onnx.convert --saved-model"),
        ("gzip", fixture("model.onnx.gz"), "a file compressed with gzip", "unpack it"),
        ("zstd", start(b"\x28\xb5\x2f\xfd"), "a file compressed with Zstandard", "unpack it"),
        ("json", b"{\"architectures\": [\"BertModel\"]}".to_vec(), "JSON text", "give the .onnx file"),
        ("list", b"[\"a\", \"b\"]".to_vec(), "JSON text", "give the .onnx file"),
        ("toml", b"[package]\nname = \"a\"\n".to_vec(), "not an ONNX model but text", "give the .onnx file"),
        ("text", b"git clone failed\n".to_vec(), "text", "give the .onnx file"),
        ("textual", fixture("model.textproto"), "an ONNX model in text form", "onnx.load"),
        ("json model", fixture("model.json"), "an ONNX model in text form", "onnx.load"),
        ("cut", whole[..whole.len() / 2].to_vec(), "is truncated", "copy or download the file again"),
        ("noise", start(&[0xc7, 0x11, 0xff, 0x03]), "is not an ONNX model", "torch.onnx.export"),
    ]
}

fn refused(dir: &Path, args: &[&str], says: &str, hint: &str) {
    let ran = cli(dir, args);
    assert!(ran.code == 1 || ran.code == 2, "{args:?}: exit code {}\n{}{}", ran.code, ran.out, ran.err);
    let (what, then) = ran.err.split_once("hint:").unwrap_or_else(|| panic!("{args:?}: no hint\n{}", ran.err));
    assert!(what.contains(says), "{args:?}: does not say '{says}'\n{}", ran.err);
    assert!(then.contains(hint), "{args:?}: the hint does not say '{hint}'\n{}", ran.err);
    assert!(!ran.err.contains("panicked"), "{args:?}: {}", ran.err);
}

#[test]
fn what_is_no_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, says, hint) in others() {
        let file = format!("{name}.onnx");
        std::fs::write(dir.path().join(&file), bytes).unwrap();
        refused(dir.path(), &["inspect", &file], says, hint);
    }
    // What is a model stays one, whatever its name.
    std::fs::write(dir.path().join("model.bin"), fixture("model.onnx")).unwrap();
    assert_eq!(cli(dir.path(), &["inspect", "model.bin"]).code, 0);
}

#[test]
fn every_command_names_what_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::write(d.join("model.onnx"), POINTER).unwrap();
    perceptron().write(&d.join("ok.onnx"));
    perceptron_data(&d.join("data.safetensors"), 4, |i| (i % 3) as i32);
    let commands: &[&[&str]] = &[
        &["inspect", "model.onnx"],
        &["inject", "model.onnx"],
        &["train", "model.onnx", "--data", "data.safetensors"],
        &["eval", "model.onnx", "--data", "data.safetensors"],
        &["merge", "model.onnx", "--adapter", "data.safetensors"],
        &["verify", "model.onnx", "ok.onnx"],
        &["verify", "ok.onnx", "model.onnx"],
        &["diff", "ok.onnx", "model.onnx"],
        &["bench", "model.onnx"],
    ];
    for args in commands {
        refused(d, args, "Git LFS pointer", "git lfs pull");
    }
}

#[test]
fn folders_say_which_models_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let make = |folder: &str, files: &[&str]| {
        files.iter().map(|f| d.join(folder).join(f)).for_each(|path: PathBuf| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        });
    };
    make("one", &["config.json", "onnx/model.onnx"]);
    make("many", &["a.onnx", "b.onnx", "onnx/c.onnx", "readme.md"]);
    make("torch", &["config.json", "model.safetensors"]);
    make("tensorflow", &["saved_model.pb", "variables/variables.index"]);
    make("none", &["readme.md"]);
    refused(d, &["inspect", "one"], "it is a folder", "one/onnx/model.onnx");
    refused(d, &["inspect", "many"], "it is a folder", "a.onnx, b.onnx, onnx/c.onnx");
    refused(d, &["inspect", "torch"], "no .onnx file", "optimum-cli export onnx");
    refused(d, &["inspect", "tensorflow"], "SavedModel", "tf2onnx.convert --saved-model");
    refused(d, &["inspect", "none"], "without an .onnx file", "check the path");
}

/// The data file of a model, the adapter, the data and the tokenizer are told likewise.
#[test]
fn what_stands_for_other_files_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    crate::cli::external().write(&d.join("external.onnx"));
    perceptron().write(&d.join("mlp.onnx"));
    crate::cli::done(d, &["inject", "mlp.onnx", "-o", "ok.onnx"]);
    std::fs::write(d.join("rows.jsonl"), "{\"text\": \"a\", \"label\": 0}\n").unwrap();
    std::fs::write(d.join("checkpoint.bin"), fixture("checkpoint.pt")).unwrap();
    std::fs::write(d.join("model.safetensors"), fixture("model.onnx")).unwrap();
    std::fs::write(d.join("array.npy"), fixture("array.npy")).unwrap();
    std::fs::write(d.join("array.npz"), fixture("array.npy")).unwrap();
    std::fs::write(d.join("rows.parquet"), "PAR1....PAR1").unwrap();
    std::fs::write(d.join("vocab.txt"), "hello\nworld\n").unwrap();
    let placeholders: [(&[u8], &str, &str); 3] = [
        (POINTER.as_bytes(), "Git LFS pointer", "git lfs pull"),
        (b"<!doctype html><p>Not found", "a web page", "download"),
        (b"", "an empty file", "download it again"),
    ];
    for (bytes, says, hint) in placeholders {
        for name in ["weights.bin", "a.safetensors", "data.npz", "data.safetensors", "data.jsonl", "tokenizer.json"] {
            std::fs::write(d.join(name), bytes).unwrap();
        }
        refused(d, &["inspect", "external.onnx"], says, hint);
        refused(d, &["merge", "ok.onnx", "--adapter", "a.safetensors"], says, hint);
        refused(d, &["inject", "mlp.onnx", "--adapter", "a.safetensors"], says, hint);
        for data in ["data.npz", "data.safetensors", "data.jsonl"] {
            refused(d, &["train", "ok.onnx", "--data", data], says, hint);
        }
        refused(d, &["train", "ok.onnx", "--data", "rows.jsonl", "--tokenizer", "tokenizer.json"], says, hint);
    }
    refused(d, &["merge", "ok.onnx", "--adapter", "checkpoint.bin"], "a PyTorch checkpoint", "safe_serialization");
    refused(d, &["merge", "ok.onnx", "--adapter", "mlp.onnx"], "an ONNX model", "safetensors");
    refused(
        d,
        &["train", "ok.onnx", "--data", "model.safetensors"],
        "an ONNX model",
        ".jsonl, .csv, .parquet, .arrow, .safetensors or .npz",
    );
    refused(d, &["train", "ok.onnx", "--data", "array.npy"], "a single numpy array", "numpy.savez");
    refused(d, &["train", "ok.onnx", "--data", "array.npz"], "a single numpy array", "numpy.savez");
    let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/inputs/chat/tokenizer.json");
    let parquet = ["train", "ok.onnx", "--data", "rows.parquet", "--tokenizer", tokenizer];
    refused(d, &parquet, "no Parquet file", "download it again");
    refused(d, &["train", "ok.onnx", "--data", "rows.jsonl", "--tokenizer", "vocab.txt"], "text", "tokenizer.json");
    // A data file that is too short for its tensors.
    std::fs::write(d.join("weights.bin"), [0x3f; 8]).unwrap();
    refused(d, &["inspect", "external.onnx"], "should have 48 bytes but has 8", "again");
}
