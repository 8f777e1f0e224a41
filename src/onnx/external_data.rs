//! Tensor data stored in files next to the model.

use super::element::ElementType;
use super::read::ReadError;
use crate::file_kind::{self, Kind, Wanted};
use onnx_protobuf::TensorProto;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A file of tensor data, mapped.
#[derive(Debug)]
pub struct ExternalFile {
    path: PathBuf,
    bytes: memmap2::Mmap,
}

impl ExternalFile {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn mapped(&self) -> &memmap2::Mmap {
        &self.bytes
    }
}

/// The external files of one model, each mapped once.
pub(super) struct Opener {
    dir: PathBuf,
    model: PathBuf,
    files: HashMap<String, Arc<ExternalFile>>,
}

impl Opener {
    pub fn new(model: &Path) -> Opener {
        let dir = model.parent().unwrap_or(Path::new("")).to_path_buf();
        Opener { dir, model: model.to_path_buf(), files: HashMap::new() }
    }

    /// The file and bytes that a tensor's `external_data` names.
    pub fn open(&mut self, t: &TensorProto) -> Result<(Arc<ExternalFile>, Range<usize>), ReadError> {
        let entry = |key: &str| t.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let bad = |why: String| ReadError::External { model: self.model.clone(), tensor: t.name.clone(), why };
        let location = entry("location").ok_or_else(|| bad("it names no location".into()))?.to_string();
        let number = |key: &str| -> Result<Option<usize>, ReadError> {
            entry(key).map(|v| v.parse().map_err(|_| bad(format!("{key} '{v}' is no number")))).transpose()
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        // Without a length, as much as the tensor takes.
        let length = length.or_else(|| {
            let bits = ElementType::from_number(t.data_type).bits()?;
            let elements = t.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))?;
            Some(elements.checked_mul(bits)?.div_ceil(8))
        });
        let file = match self.files.get(&location) {
            Some(file) => file.clone(),
            None => {
                let plain =
                    Path::new(&location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
                if !plain {
                    return Err(bad(format!("location '{location}' leaves the model's folder")));
                }
                let path = self.dir.join(&location);
                let missing = |error| ReadError::ExternalFile {
                    model: self.model.clone(),
                    tensor: t.name.clone(),
                    file: path.clone(),
                    error,
                };
                let handle = std::fs::File::open(&path).map_err(missing)?;
                // SAFETY: as for the model itself (see read.rs).
                let bytes = unsafe { memmap2::Mmap::map(&handle) }.map_err(missing)?;
                let other = file_kind::in_place_of_a_file(&bytes);
                if let Some(kind) = other.filter(|k| *k != Kind::Empty || length != Some(0)) {
                    return Err(bad(format!("'{location}' is {kind}\nhint: {}", kind.hint(Wanted::Model))));
                }
                let file = Arc::new(ExternalFile { path, bytes });
                self.files.insert(location.clone(), file.clone());
                file
            }
        };
        let have = file.bytes().len();
        let length = length.unwrap_or(have.saturating_sub(offset));
        let end = offset.checked_add(length).filter(|&e| e <= have).ok_or_else(|| {
            let rest = have.saturating_sub(offset);
            bad(format!(
                "from byte {offset} of '{location}' it should have {length} bytes but has {rest}\n\
                 hint: copy or download '{location}' again, or export the model again: the two do not belong together"
            ))
        })?;
        Ok((file, offset.min(end)..end))
    }
}
