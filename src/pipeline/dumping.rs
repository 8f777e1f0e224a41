//! `--dump-ir`: the text of every program that is compiled, before the first pass and after each.
//!
//! The folder is one for the process, since one command compiles programs at many places.

use super::Error;
use crate::ir::{Graph, Sink};
use crate::passes::{self, Options};
use crate::train::{Purpose, Shapes};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

static FOLDER: OnceLock<PathBuf> = OnceLock::new();
static PROGRAMS: AtomicUsize = AtomicUsize::new(0);

/// The longest name of a program's folder, well below what file systems take.
const LONGEST: usize = 120;

/// From now on, each program that this process compiles is written below `folder`: `NN-PROGRAM/NN-PASS.ir`, numbered in order. Files
/// that are there are replaced. The first folder that is given stays.
pub fn dump_ir(folder: &Path) -> Result<(), Error> {
    make(folder)?;
    FOLDER.get_or_init(|| folder.to_path_buf());
    Ok(())
}

/// Runs the passes, and writes what they make of the graph where that is wanted. `name` says which program it is.
pub fn optimize(graph: Graph, options: &Options, name: impl FnOnce(&Graph) -> String) -> Result<Graph, Error> {
    let Some(root) = FOLDER.get() else { return Ok(passes::optimize(graph, options, &mut |_, _| {})?) };
    let program = PROGRAMS.fetch_add(1, Ordering::Relaxed) + 1;
    let folder = root.join(format!("{program:02}-{}", file_name(&name(&graph))));
    make(&folder)?;
    let (mut written, mut failed) = (0, None);
    let mut write = |pass: &'static str, graph: &Graph| {
        let path = folder.join(format!("{written:02}-{pass}.ir"));
        written += 1;
        if failed.is_none() {
            failed = std::fs::write(&path, graph.to_string()).err().map(|error| Error::Dump { path, error });
        }
    };
    let graph = passes::optimize(graph, options, &mut write)?;
    failed.map_or(Ok(graph), Err)
}

/// What a model's program is called: its purpose, and the shapes of its inputs.
pub fn model_program(purpose: Purpose, shapes: &Shapes) -> String {
    let what = match purpose {
        Purpose::Train { statistics: false } => "train",
        Purpose::Train { statistics: true } => "train-with-statistics",
        Purpose::Evaluate => "evaluate",
        Purpose::Calibrate => "calibrate",
        Purpose::Infer => "infer",
    };
    shapes.iter().fold(what.to_string(), |name, (input, shape)| name + &sized(input, shape))
}

/// What a program without a model is called: the states that it updates, and their shapes.
pub fn update_program(graph: &Graph) -> String {
    let states = graph.outputs.iter().filter(|o| matches!(o.sink, Sink::State(_)));
    states.fold("update".to_string(), |name, o| name + &sized(&o.name, graph.shape(o.value)))
}

fn sized(name: &str, shape: &[usize]) -> String {
    let extents: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("-{name}={}", extents.join("x"))
}

/// `name` in characters that every file system takes.
fn file_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-=".contains(c) { c } else { '_' };
    name.chars().map(plain).take(LONGEST).collect()
}

fn make(folder: &Path) -> Result<(), Error> {
    let failed = |error| Error::Dump { path: folder.to_path_buf(), error };
    std::fs::create_dir_all(folder).map_err(failed)
}
