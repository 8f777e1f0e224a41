//! ONNX files survive: byte for byte where nothing changed, and after inject and merge with B = 0.

use crate::oracle::{self, Case};
use reslora_compile::internals::adapters;
use reslora_compile::internals::inject::{InjectError, Options};
use reslora_compile::internals::merge;
use reslora_compile::internals::onnx;
use reslora_compile::internals::pipeline;
use std::path::Path;

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// Every model that is at hand: the cases that travel with the source, and those beside it.
fn models() -> Vec<std::path::PathBuf> {
    let mut out: Vec<_> = oracle::everything().iter().map(|c| c.dir.join("model.onnx")).collect();
    for name in ["cases", "real"] {
        match oracle::shared(name) {
            Some(dir) => out.extend(
                std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path().join("model.onnx")).filter(|p| p.exists()),
            ),
            None => crate::loudly(&format!("../shared/{name} IS MISSING: its models were NOT tested")),
        }
    }
    out
}

#[test]
fn reading_and_writing_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for path in models() {
        let copy = dir.path().join("model.onnx");
        onnx::write(&onnx::read(&path).unwrap(), &copy).unwrap();
        assert!(bytes(&path) == bytes(&copy), "{}", path.display());
        let (data, copied) = (onnx::data_path(&path), onnx::data_path(&copy));
        assert_eq!(data.exists(), copied.exists());
        assert!(!data.exists() || bytes(&data) == bytes(&copied), "{}", data.display());
        let _ = std::fs::remove_file(copied);
    }
}

fn elsewhere(structure: adapters::Structure) -> bool {
    matches!(structure.form, adapters::Form::Elsewhere(_))
}

fn fresh(case: &Case, structure: &str) -> Options {
    let structure = adapters::find(structure).unwrap();
    let settings = [("tasks", 2), ("block-size", 4)].map(|(name, n)| (name.to_string(), serde_json::Value::from(n)));
    Options {
        structure,
        settings: settings.into_iter().filter(|(n, _)| structure.settings.iter().any(|s| s.name == n)).collect(),
        dropout: if structure.dropout { 0.1 } else { 0.0 },
        adapter: None,
        // Places elsewhere than at linear nodes have other paths.
        targets: if elsewhere(structure) { vec![] } else { case.options("init.safetensors").targets },
        ..case.options("init.safetensors")
    }
}

#[test]
fn inject_and_merge_with_b_zero_gives_the_base_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut injected_into = std::collections::BTreeMap::new();
    // Another test may register one of its own meanwhile.
    let structures = adapters::all();
    for case in oracle::everything() {
        let path = case.dir.join("model.onnx");
        let base = pipeline::read(&path).unwrap();
        for &s in &structures {
            let (model, _) = match pipeline::inject(&base, &fresh(&case, s.name)) {
                // A target that does not fit the structure, as a convolution does not fit most.
                Err(pipeline::Error::Inject(InjectError::Target(_))) => continue,
                // No layer of its kind in this model.
                Err(pipeline::Error::Inject(InjectError::NoPlace { .. } | InjectError::Option(_))) if elsewhere(s) => {
                    continue;
                }
                injected => injected.unwrap(),
            };
            *injected_into.entry(s.name).or_insert(0) += 1;
            let injected = dir.path().join("injected.onnx");
            onnx::write(&model, &injected).unwrap();
            let model = onnx::read(&injected).unwrap();
            let config = merge::config(&model).unwrap();
            // Under the base's own name, which is also that of data outside the file.
            let merged = dir.path().join("merged/model.onnx");
            std::fs::create_dir_all(merged.parent().unwrap()).unwrap();
            onnx::write(&merge::strip(&model, &config).unwrap(), &merged).unwrap();
            assert!(bytes(&path) == bytes(&merged), "{} {}", case.name(), s.name);
            let (data, copied) = (onnx::data_path(&path), onnx::data_path(&merged));
            assert!(!data.exists() || bytes(&data) == bytes(&copied), "{} {}: data", case.name(), s.name);
        }
    }
    assert!(structures.iter().all(|s| injected_into.get(s.name) > Some(&2)), "{injected_into:?}");
}
