//! Outputs never take the place of what they are made from, unless that is asked for.

use super::common::Usage;
use crate::onnx::{self, Model};
use anyhow::{Context, Result};
use std::path::Path;

/// Refuses an output, or the data file that goes with it, that is one of the inputs: by whichever path, symbolic link or hard link it
/// is named. `models` are those whose tensors the output may hold; files that they keep tensors in are inputs too. For commands with
/// `--overwrite`, which the hint names.
pub fn guard<'a>(
    output: &Path,
    inputs: impl IntoIterator<Item = (&'a str, &'a Path)>,
    models: &[&Model],
) -> Result<()> {
    check(output, inputs, models, "name another file, or give --overwrite")
}

/// [`guard`] for commands without `--overwrite`.
pub fn guard_always<'a>(
    output: &Path,
    inputs: impl IntoIterator<Item = (&'a str, &'a Path)>,
    models: &[&Model],
) -> Result<()> {
    check(output, inputs, models, "name another file")
}

fn check<'a>(
    output: &Path,
    inputs: impl IntoIterator<Item = (&'a str, &'a Path)>,
    models: &[&Model],
    hint: &str,
) -> Result<()> {
    let mut files: Vec<(String, std::path::PathBuf)> =
        inputs.into_iter().map(|(what, path)| (format!("{what} {}", path.display()), path.to_path_buf())).collect();
    for model in models {
        let data = model.external_files().into_iter();
        files.extend(
            data.map(|path| (format!("{}, which holds weights of {}", path.display(), model.path().display()), path)),
        );
    }
    let data = onnx::data_path(output);
    let external = models.iter().any(|m| !m.external_files().is_empty());
    for written in [Some(output), external.then_some(&*data)].into_iter().flatten() {
        let same = |path: &Path| same_file::is_same_file(written, path).unwrap_or(false);
        if let Some((what, _)) = files.iter().find(|(_, path)| same(path)) {
            let text = format!("-o {} would overwrite {what}", output.display());
            return Err(Usage(format!("{text}\nhint: {hint}")).into());
        }
    }
    // Data beside a model that is not there belongs to another: one that was renamed, or that took its tensors from there.
    if external && data.exists() && !holds(output, &data) {
        let text = format!(
            "-o {} would overwrite {}, which {} does not read",
            output.display(),
            data.display(),
            output.display()
        );
        let why = "it may hold the weights of a model that was renamed";
        return Err(Usage(format!("{text}\nhint: {why}: {hint}")).into());
    }
    Ok(())
}

/// Whether a model keeps tensors in a data file.
fn holds(model: &Path, data: &Path) -> bool {
    let same = |path: &std::path::PathBuf| same_file::is_same_file(path, data).unwrap_or(false);
    onnx::read(model).is_ok_and(|m| m.external_files().iter().any(same))
}

/// Writes a small file whole or not at all.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let fail = || format!("cannot write {}", path.display());
    let mut file = atomic_write_file::AtomicWriteFile::open(path).with_context(fail)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(fail)?;
    file.commit().with_context(fail)
}
