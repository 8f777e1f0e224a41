//! `last/`: the checkpoint, everything needed to resume a run.

use super::TrainError;
use super::scale::LossScale;
use atomic_write_file::AtomicWriteFile;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: u64,
    pub seconds: f64,
    /// What the best adapter was chosen by, the smaller the better: its loss, or a metric (negative where more is better).
    pub best_loss: Option<f64>,
    /// Evaluations since the best one.
    #[serde(default)]
    pub idle: u64,
    pub best_step: u64,
    /// What the run was made with, as far as this module knows it.
    pub identity: BTreeMap<String, String>,
    /// Of runs in mixed precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Digest of the states that this belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<String>,
}

/// A checkpoint: progress, the device's states, and the statistics of the last steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    pub progress: Progress,
    pub states: BTreeMap<String, Vec<f32>>,
    /// One row a step.
    pub statistics: Vec<Vec<f32>>,
}

const STATISTICS: &str = "reslora.statistics";
const PROGRESS: &str = "progress.json";
/// The progress of states that are about to be written: it takes the place of [`PROGRESS`] once they are.
const NEXT: &str = "progress.next.json";

pub fn write(dir: &Path, checkpoint: &Checkpoint) -> Result<(), TrainError> {
    let fail = |error: std::io::Error| TrainError::Write { path: dir.to_path_buf(), error };
    std::fs::create_dir_all(dir).map_err(fail)?;
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let bytes = |xs: &[f32]| -> Vec<u8> { xs.iter().flat_map(|x| x.to_le_bytes()).collect() };
    for (name, values) in &checkpoint.states {
        tensors.insert(name.clone(), (vec![values.len()], bytes(values)));
    }
    if let Some(first) = checkpoint.statistics.first() {
        let shape = vec![checkpoint.statistics.len(), first.len()];
        tensors.insert(STATISTICS.into(), (shape, bytes(&checkpoint.statistics.concat())));
    }
    let views = tensors.iter().map(|(name, (shape, data))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).expect("four bytes an element"))
    });
    let states = safetensors::serialize(views, None).map_err(|e| fail(std::io::Error::other(e)))?;
    let progress = Progress { states: Some(digest(&states)), ..checkpoint.progress.clone() };
    let progress = serde_json::to_vec_pretty(&progress).expect("numbers and text");
    for (name, content) in [(NEXT, progress), ("states.safetensors", states)] {
        let mut file = AtomicWriteFile::open(dir.join(name)).map_err(fail)?;
        file.write_all(&content).and_then(|()| file.commit()).map_err(fail)?;
    }
    std::fs::rename(dir.join(NEXT), dir.join(PROGRESS)).map_err(fail)
}

fn digest(bytes: &[u8]) -> String {
    <sha2::Sha256 as sha2::Digest>::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Where a run stands, without its states.
pub fn progress(dir: &Path) -> Result<Progress, TrainError> {
    let fail = |why: String| TrainError::Resume { path: dir.to_path_buf(), why };
    // A process that ended while it wrote its first checkpoint has left the next progress alone.
    let file = [PROGRESS, NEXT].iter().find(|name| dir.join(name).exists()).unwrap_or(&PROGRESS);
    let bytes = std::fs::read(dir.join(file)).map_err(|e| {
        fail(format!("{PROGRESS}: {e}\nhint: the run saved nothing to go on from; --overwrite starts it again"))
    })?;
    serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))
}

pub fn read(dir: &Path) -> Result<Checkpoint, TrainError> {
    let fail = |why: String| TrainError::Resume { path: dir.to_path_buf(), why };
    let mut progress = progress(dir)?;
    let bytes = std::fs::read(dir.join("states.safetensors")).map_err(|e| fail(e.to_string()))?;
    let is_of = |p: &Progress, digest: &str| p.states.as_ref().is_none_or(|d| d == digest);
    let digest = digest(&bytes);
    if !is_of(&progress, &digest)
        && let Ok(text) = std::fs::read(dir.join(NEXT))
    {
        // A process ended between the states and the rename of their progress.
        let next: Progress = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
        if !is_of(&next, &digest) {
            return Err(fail("its states are those of another step\nhint: --overwrite starts the run again".into()));
        }
        progress = next;
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|e| fail(e.to_string()))?;
    let mut out = Checkpoint { progress, ..Checkpoint::default() };
    for (name, view) in file.tensors() {
        let values: Vec<f32> =
            view.data().chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        if name == STATISTICS {
            out.statistics = values.chunks(view.shape()[1].max(1)).map(<[f32]>::to_vec).collect();
        } else {
            out.states.insert(name, values);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: u64) -> Checkpoint {
        let states = BTreeMap::from([("parameters.0".to_string(), vec![step as f32; 3])]);
        let progress = Progress { step, ..Progress::default() };
        Checkpoint { progress, states, statistics: vec![] }
    }

    /// A process may end anywhere in a write: what is read is one checkpoint whole, or an error.
    #[test]
    fn states_are_never_read_with_the_progress_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let read_back = || read(dir.path()).map(|c| (c.progress.step, c.states["parameters.0"][0]));
        write(dir.path(), &checkpoint(4)).unwrap();
        let before = std::fs::read(at(PROGRESS)).unwrap();
        write(dir.path(), &checkpoint(6)).unwrap();
        assert_eq!(read_back().unwrap(), (6, 6.0));
        // Ended after the states, before the rename of their progress.
        std::fs::rename(at(PROGRESS), at(NEXT)).unwrap();
        assert_eq!(read_back().unwrap(), (6, 6.0));
        std::fs::write(at(PROGRESS), &before).unwrap();
        assert_eq!(read_back().unwrap(), (6, 6.0));
        std::fs::write(at("states.safetensors"), before.clone()).unwrap();
        assert!(read_back().is_err());
        // Ended before the states.
        write(dir.path(), &checkpoint(4)).unwrap();
        std::fs::write(at(NEXT), b"{\"step\": 6, \"states\": \"other\"}").unwrap();
        assert_eq!(read_back().unwrap(), (4, 4.0));
    }
}
