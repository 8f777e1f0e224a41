//! The adapter file: factors, fully trained tensors, recorded statistics and the digest of the base. Reading rejects numbers that are not
//! finite.

mod peft;
mod peft_write;

pub use peft_write::write as write_peft;

use crate::file_kind::{self, Wanted};
use atomic_write_file::AtomicWriteFile;
use ndarray::{Array2, ArrayD};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Factors and trained tensors by initializer name, with what else an adapter file records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapter {
    /// Trained tensors, and frozen ones that the adapter drew, by the names that the injected model has for them.
    pub tensors: BTreeMap<String, ArrayD<f32>>,
    /// Digest of the model that was injected into; `None` in files that other programs wrote.
    pub base: Option<String>,
    /// How the adapter was made, as JSON: the configuration that the injected model had, or as much as another program says.
    pub config: Option<String>,
    /// Norms recorded over the last steps of training, by module path.
    pub statistics: BTreeMap<String, Norms>,
}

/// Sums over rows of a block's input `x` and of `A x`; merges use root means of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Norms {
    /// Σ ‖x‖² over the rows counted.
    pub x: f64,
    /// Σ ‖A x‖² over the rows counted.
    pub xa: f64,
    /// The rows counted: those that are not padding.
    pub rows: f64,
}

/// What is known of a block's input `x` and of the signal `t` that its B multiplies, over rows that count.
#[derive(Clone, Debug)]
pub enum Moments {
    /// Sums over rows.
    Sums {
        /// Σ x xᵀ, `[in, in]`.
        xx: Array2<f64>,
        /// Σ t xᵀ, `[rank, in]`.
        tx: Array2<f64>,
        /// Σ t tᵀ, `[rank, rank]`.
        tt: Array2<f64>,
    },
    /// A sample of the rows themselves, for inputs so wide that their products would not fit.
    Rows {
        /// `[rows, in]`
        x: Array2<f64>,
        /// `[rows, rank]`
        t: Array2<f64>,
    },
}

/// Why an adapter cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("cannot open {}: {error}\nhint: check the path", path.display())]
    Open { path: PathBuf, error: std::io::Error },
    #[error("{} is no adapter: {why}\nhint: give a safetensors file, or the run directory that train wrote", path.display())]
    Format { path: PathBuf, why: String },
    #[error("{} is no adapter but {kind}\nhint: {}", path.display(), kind.hint(Wanted::Adapter))]
    Other { path: PathBuf, kind: file_kind::Kind },
    #[error("{} cannot be used: {why}", path.display())]
    Kind { path: PathBuf, why: String },
    #[error(
        "{}: tensor '{tensor}' holds {what} ({count} of {of} elements)\nhint: the training that made it went wrong; take an earlier \
         checkpoint, or train again with a smaller --lr", path.display()
    )]
    NotFinite { path: PathBuf, tensor: String, what: &'static str, count: usize, of: usize },
    #[error("cannot write {}: {error}", path.display())]
    Write { path: PathBuf, error: std::io::Error },
}

/// The files of a folder that PEFT saves.
pub const PEFT_FILES: [&str; 2] = [peft::CONFIG, peft::TENSORS];

/// The one key of the file's metadata that is ours. (One, because safetensors writes several in no fixed order.)
const KEY: &str = "reslora";

/// What stands under [`KEY`], as JSON.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Metadata {
    base: Option<String>,
    config: Option<String>,
    #[serde(default)]
    statistics: BTreeMap<String, Norms>,
}

/// Reads an adapter; `path` may be a run directory, or a folder that PEFT saved. PEFT's names lose what it puts around them
/// (`base_model.model.`, the adapter's name), so that a factor is called `{module path}.lora_A.weight` in every file.
pub fn read(path: &Path) -> Result<Adapter, AdapterError> {
    let path = file(path)?;
    let format = |why: String| AdapterError::Format { path: path.clone(), why };
    let bytes = std::fs::read(&path).map_err(|error| AdapterError::Open { path: path.clone(), error })?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| match file_kind::kind(&bytes) {
        None | Some(file_kind::Kind::Safetensors) => format(e.to_string()),
        Some(kind) => AdapterError::Other { path: path.clone(), kind },
    })?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| format(e.to_string()))?;
    let text = header.metadata().as_ref().and_then(|m| m.get(KEY));
    let metadata: Metadata = match text {
        Some(text) => serde_json::from_str(text).map_err(|e| format(format!("its metadata: {e}")))?,
        None => Metadata { config: peft::config(&path, &file.names())?, ..Metadata::default() },
    };
    let Metadata { base, config, statistics } = metadata;
    let mut adapter = Adapter { tensors: BTreeMap::new(), base, config, statistics };
    let mut origin = BTreeMap::new();
    for (name, view) in file.tensors() {
        let values =
            floats(&view).ok_or_else(|| format(format!("tensor '{name}' is {:?}, not a float type", view.dtype())))?;
        check_finite(&path, &name, values.iter())?;
        let array = ArrayD::from_shape_vec(view.shape(), values).map_err(|e| format(e.to_string()))?;
        let plain = peft::plain_name(&name);
        if let Some(first) = origin.insert(plain.clone(), name.clone()) {
            let why = format!("it holds several adapters: '{first}' and '{name}'");
            return Err(AdapterError::Kind { path, why: format!("{why}\nhint: save one adapter alone") });
        }
        adapter.tensors.insert(plain, array);
    }
    Ok(adapter)
}

fn check_finite<'a>(
    path: &Path,
    name: &str,
    values: impl Iterator<Item = &'a f32> + Clone,
) -> Result<(), AdapterError> {
    let bad = |x: &&f32| !x.is_finite();
    let Some(first) = values.clone().find(bad) else { return Ok(()) };
    let what = if first.is_nan() { "NaN" } else { "infinity" };
    let (count, of) = (values.clone().filter(bad).count(), values.count());
    Err(AdapterError::NotFinite { path: path.to_path_buf(), tensor: name.into(), what, count, of })
}

/// The file of tensors that a path stands for: a file itself, a run directory's, or that of a folder that PEFT saved.
pub fn file(path: &Path) -> Result<PathBuf, AdapterError> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let at = |name: &str| path.join(name);
    if at("adapter.safetensors").exists() || !at(peft::CONFIG).exists() && !at(peft::TENSORS).exists() {
        return Ok(at("adapter.safetensors"));
    }
    match at(peft::TENSORS).exists() {
        true => Ok(at(peft::TENSORS)),
        false => Err(AdapterError::Kind {
            path: path.to_path_buf(),
            why: format!(
                "it holds no {}\nhint: save the adapter as safetensors (save_pretrained with safe_serialization=True)",
                peft::TENSORS
            ),
        }),
    }
}

fn floats(view: &TensorView) -> Option<Vec<f32>> {
    let data = view.data();
    Some(match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
        // Indices of a support, as sltrain has them: whole numbers that f32 holds.
        Dtype::I64 => {
            let whole = |c: &[u8; 8]| Some(i64::from_le_bytes(*c)).filter(|n| n.unsigned_abs() <= 1 << 24);
            data.as_chunks().0.iter().map(|c| whole(c).map(|n| n as f32)).collect::<Option<_>>()?
        }
        Dtype::F64 => data.as_chunks().0.iter().map(|c| f64::from_le_bytes(*c) as f32).collect(),
        _ => return None,
    })
}

/// Writes an adapter to a temporary file beside `path` and renames it; refused where a number is not finite.
pub fn write(adapter: &Adapter, path: &Path) -> Result<(), AdapterError> {
    let io = |error| AdapterError::Write { path: path.to_path_buf(), error };
    for (name, t) in &adapter.tensors {
        check_finite(path, name, t.iter())?;
    }
    let data: BTreeMap<&str, Vec<u8>> =
        adapter.tensors.iter().map(|(n, t)| (n.as_str(), t.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views = adapter.tensors.iter().map(|(name, t)| {
        let view = TensorView::new(Dtype::F32, t.shape().to_vec(), &data[name.as_str()]);
        (name.clone(), view.expect("four bytes an element"))
    });
    let metadata =
        Metadata { base: adapter.base.clone(), config: adapter.config.clone(), statistics: adapter.statistics.clone() };
    let text = serde_json::to_string(&metadata).expect("text and numbers");
    let metadata = HashMap::from([(KEY.to_string(), text)]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| io(std::io::Error::other(e)))?;
    let mut file = AtomicWriteFile::open(path).map_err(io)?;
    file.write_all(&bytes).and_then(|()| file.commit()).map_err(io)
}
