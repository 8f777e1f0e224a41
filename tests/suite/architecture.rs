//! The layout's rules, read off the sources: who may import whom, and which crate has one user.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Module and what it may import of ours. docs/architecture.md says why.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("file_kind", &[]),
    ("settings", &[]),
    ("ir", &[]),
    ("onnx", &["file_kind"]),
    ("adapter", &["file_kind"]),
    ("ops", &["ir"]),
    ("optim", &["ir", "settings"]),
    ("plan", &["ir", "ops"]),
    ("adapters", &["onnx"]),
    ("inject", &["onnx", "adapters", "adapter"]),
    ("merge", &["onnx", "adapters", "adapter"]),
    ("lower", &["onnx", "ir", "ops"]),
    ("passes", &["ir", "ops", "optim"]),
    ("device", &["ir", "ops", "plan"]),
    ("train", &["ir", "plan", "device", "adapter", "optim", "file_kind", "settings"]),
    ("calibrate", &["ir", "plan", "device", "adapter", "optim"]),
    ("verify", &["onnx"]),
];

/// Crate and the one module that uses it.
const ONE_USER: &[(&str, &str)] = &[
    ("onnx_protobuf", "onnx"),
    ("petgraph", "onnx"),
    ("wgpu", "device"),
    ("etcetera", "device"),
    ("tract_onnx", "verify"),
    ("clap", "cli"),
    ("anyhow", "cli"),
    ("tokenizers", "train"),
    ("gemm", "ops"),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        match entry.is_dir() {
            true => sources(&entry, out),
            false if entry.extension().is_some_and(|e| e == "rs") => out.push(entry),
            false => {}
        }
    }
}

/// The code of each top-level module: every file of it without comments.
fn modules() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let mut files = Vec::new();
    sources(root, &mut files);
    let mut out: BTreeMap<String, Vec<(PathBuf, String)>> = BTreeMap::new();
    for file in files {
        let inside = file.strip_prefix(root).unwrap();
        let first = inside.iter().next().unwrap().to_string_lossy();
        let module = first.strip_suffix(".rs").unwrap_or(&first).to_string();
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        out.entry(module).or_default().push((file, code));
    }
    out
}

/// The modules of ours that a file names as `crate::module`.
fn imports(code: &str) -> BTreeSet<String> {
    let name = |at: usize| code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    code.match_indices("crate::").map(|(i, m)| name(i + m.len())).filter(|n| !n.is_empty()).collect()
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let modules = modules();
    let names: BTreeSet<&str> = modules.keys().map(String::as_str).collect();
    let mut wrong = Vec::new();
    for (module, allowed) in MAY_IMPORT {
        for (file, code) in modules.get(*module).unwrap_or_else(|| panic!("there is no module '{module}'")) {
            for import in imports(code) {
                let fine = import == *module || allowed.contains(&import.as_str()) || !names.contains(import.as_str());
                if !fine {
                    wrong.push(format!("{}: {module} may not import {import}", file.display()));
                }
            }
        }
    }
    // Of the rest, pipeline may not reach up to cli, and nothing else stands beside the two.
    let listed: BTreeSet<&str> = MAY_IMPORT.iter().map(|m| m.0).chain(["pipeline", "cli", "lib", "main"]).collect();
    assert_eq!(names.difference(&listed).collect::<Vec<_>>(), Vec::<&&str>::new(), "a module without a row");
    for (file, code) in &modules["pipeline"] {
        if imports(code).contains("cli") {
            wrong.push(format!("{}: pipeline may not import cli", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_with_one_user_have_one() {
    let mut wrong = Vec::new();
    for (module, files) in modules() {
        for (file, code) in files {
            for (name, user) in ONE_USER.iter().filter(|(_, user)| *user != module) {
                if code.contains(&format!("use {name}")) || code.contains(&format!("{name}::")) {
                    wrong.push(format!("{}: only {user} may use {name}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_command_line_prints_and_exits() {
    let mut wrong = Vec::new();
    for (module, files) in modules().into_iter().filter(|(m, _)| m != "cli" && m != "main") {
        for (file, code) in files {
            for call in ["println!", "eprintln!", "print!", "process::exit", "dbg!"] {
                if code.contains(call) {
                    wrong.push(format!("{}: {module} calls {call}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_guarantees() {
    for (file, _) in modules().into_values().flatten() {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{} does not open with //!", file.display());
    }
}
