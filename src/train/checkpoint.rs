//! `last/`: everything that resuming a run needs.

use super::TrainError;
use super::scale::LossScale;
use atomic_write_file::AtomicWriteFile;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: u64,
    pub seconds: f64,
    pub best_loss: Option<f64>,
    pub best_step: u64,
    /// What the run was made with, as far as this module knows it.
    pub identity: BTreeMap<String, String>,
    /// Of runs in mixed precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
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
/// The key under which the states' own file says where the run stood.
const PROGRESS: &str = "reslora.progress";

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
    let progress = serde_json::to_string_pretty(&checkpoint.progress).expect("numbers and text");
    let metadata = HashMap::from([(PROGRESS.to_string(), progress.clone())]);
    let states = safetensors::serialize(views, Some(metadata)).map_err(|e| fail(std::io::Error::other(e)))?;
    // States and progress belong together: where the process ends between the two, the states' own copy counts.
    for (name, content) in [("states.safetensors", states), ("progress.json", progress.into_bytes())] {
        let mut file = AtomicWriteFile::open(dir.join(name)).map_err(fail)?;
        file.write_all(&content).and_then(|()| file.commit()).map_err(fail)?;
    }
    Ok(())
}

/// Where a run stands, without its states.
pub fn progress(dir: &Path) -> Result<Progress, TrainError> {
    let fail = |why: String| TrainError::Resume { path: dir.to_path_buf(), why };
    let bytes = std::fs::read(dir.join("progress.json")).map_err(|e| {
        fail(format!("progress.json: {e}\nhint: the run saved nothing to go on from; --overwrite starts it again"))
    })?;
    serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))
}

pub fn read(dir: &Path) -> Result<Checkpoint, TrainError> {
    let fail = |why: String| TrainError::Resume { path: dir.to_path_buf(), why };
    let mut progress = progress(dir)?;
    let bytes = std::fs::read(dir.join("states.safetensors")).map_err(|e| fail(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| fail(e.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| fail(e.to_string()))?;
    if let Some(text) = header.metadata().as_ref().and_then(|m| m.get(PROGRESS)) {
        let own: Progress = serde_json::from_str(text).map_err(|e| fail(e.to_string()))?;
        if own.step != progress.step {
            progress = own;
        }
    }
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
