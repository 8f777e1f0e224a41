//! The on-disk cache of a device. A cache is never an error: a file that is missing, damaged, or written for another adapter, driver or
//! program version counts as absent, and a failed write is ignored.

use atomic_write_file::AtomicWriteFile;
use etcetera::BaseStrategy;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::PathBuf;

/// The files of one adapter.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    /// `None` remembers nothing.
    folder: Option<PathBuf>,
    /// Hexadecimal digits of what the files are valid for.
    key: String,
}

const DIGEST: usize = 32;

impl Cache {
    /// Files in `folder` that are valid for `owner`: the adapter, its driver and whatever else they depend on. The version of
    /// the program always counts.
    pub fn new(folder: Option<PathBuf>, owner: &[&str]) -> Cache {
        let mut hash = Sha256::new();
        for part in owner.iter().chain(&[env!("CARGO_PKG_VERSION")]) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let key = hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect();
        Cache { folder, key }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|f| f.join(format!("{name}-{}", self.key)))
    }

    /// A file's content, if it is there and whole.
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path(name)?).ok()?;
        let (digest, content) = bytes.split_at_checked(DIGEST)?;
        (Sha256::digest(content)[..] == *digest).then(|| content.to_vec())
    }

    /// Writes a file whole or not at all; says whether it is there now.
    pub fn write(&self, name: &str, content: &[u8]) -> bool {
        let Some(path) = self.path(name) else { return false };
        let write = || -> std::io::Result<()> {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let mut file = AtomicWriteFile::open(&path)?;
            file.write_all(&Sha256::digest(content))?;
            file.write_all(content)?;
            file.commit()
        };
        write().is_ok()
    }
}

/// The folder that the platform gives programs for such files.
pub fn platform_folder() -> Option<PathBuf> {
    let strategy = etcetera::choose_base_strategy().ok()?;
    Some(strategy.cache_dir().join("reslora-compile"))
}

#[cfg(test)]
mod tests {
    use super::Cache;

    #[test]
    fn damaged_foreign_and_unwritable_files_count_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(dir.path().join("new")), &["adapter", "driver"]);
        assert_eq!(cache.read("winners"), None);
        assert!(cache.write("winners", b"content"));
        assert_eq!(cache.read("winners").as_deref(), Some(&b"content"[..]));
        assert_eq!(Cache::new(Some(dir.path().join("new")), &["adapter", "newer driver"]).read("winners"), None);

        let path = cache.path("winners").unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.read("winners"), None);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(cache.read("winners"), None);

        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(!Cache::new(Some(file), &[]).write("winners", b"content"));
        assert!(!Cache::new(None, &[]).write("winners", b"content"));
    }
}
