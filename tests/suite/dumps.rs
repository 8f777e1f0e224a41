//! `--dump-ir`: a folder for each program that is compiled, a file for each pass, and every file parses back.

use crate::build::perceptron;
use crate::cli::{cli, done, perceptron_data};
use reslora_compile::internals::ir::Graph;
use std::path::Path;

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

/// The programs below a folder; every file of theirs reads back as what was printed.
fn programs(folder: &Path) -> Vec<String> {
    let programs = names(folder);
    for program in &programs {
        let files = names(&folder.join(program));
        assert!(files[0] == "00-input.ir" && files.len() > 3, "{program}: {files:?}");
        for (i, file) in files.iter().enumerate() {
            assert!(file.starts_with(&format!("{i:02}-")) && file.ends_with(".ir"), "{program}: {files:?}");
            let text = std::fs::read_to_string(folder.join(program).join(file)).unwrap();
            let graph = Graph::parse(&text).unwrap_or_else(|e| panic!("{program}/{file}: {e}"));
            assert_eq!(graph.to_string(), text, "{program}/{file}");
        }
    }
    programs
}

#[test]
fn programs_are_written_after_each_pass() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    perceptron().write(&d.join("mlp.onnx"));
    perceptron_data(&d.join("data.safetensors"), 8, |i| (i % 3) as i32);
    done(d, &["inject", "mlp.onnx", "--rank", "2"]);
    let (model, data) = ("mlp.reslora.onnx", ["--data", "data.safetensors", "--batch-size", "4", "--device", "cpu"]);
    let on = |command: &str, rest: &[&str]| {
        let folder = d.join("ir").join(command);
        let flag = ["--dump-ir", folder.to_str().unwrap()];
        done(d, &[&[command, model], rest, &flag].concat());
        programs(&folder)
    };
    let train = on("train", &[&data[..], &["-o", "run"]].concat());
    assert!(train.iter().any(|p| p.contains("-train") && p.ends_with("-x=4x4")), "{train:?}");
    assert!(train.iter().any(|p| p.contains("-update-parameters.0=")), "{train:?}");
    let last = train.iter().find(|p| p.contains("-train")).unwrap();
    assert!(names(&d.join("ir/train").join(last)).iter().any(|f| f.ends_with("-differentiate.ir")));
    let eval = on("eval", &[&data[..], &["--adapter", "run"]].concat());
    assert!(eval.iter().any(|p| p.contains("-evaluate-x=4x4")), "{eval:?}");
    assert!(!on("bench", &["--batch", "2", "--steps", "1", "--device", "cpu"]).is_empty());
    assert!(!on("merge", &["--adapter", "run", "--device", "cpu"]).is_empty());

    // The run does not know of it, so that --resume does not ask for it.
    assert!(!std::fs::read_to_string(d.join("run/config.toml")).unwrap().contains("dump"));
    let refused = cli(d, &[&["eval", model], &data[..], &["--dump-ir", "mlp.onnx/ir"]].concat());
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("cannot write mlp.onnx/ir: ") && refused.err.contains("hint: "), "{}", refused.err);
}
