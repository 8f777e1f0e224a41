//! `trace.jsonl`: what a run looked like from time to time, beside its metrics: memory, and how far each adapter has moved.

use ndarray::ArrayD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

const FILE: &str = "trace.jsonl";
/// About so many points in a run.
const POINTS: u64 = 40;

/// A run at one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps done.
    pub step: u64,
    /// Bytes of memory that the process holds; `None` where the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// By module path, `‖θ - θ₀‖` over the target's trained tensors (Frobenius).
    pub moved: BTreeMap<String, f64>,
}

/// Whether a run of so many steps has a point after this one.
pub(super) fn due(step: u64, total: u64) -> bool {
    step == total || step.is_multiple_of(total.div_ceil(POINTS).max(1))
}

/// Tensors by name.
type Tensors = BTreeMap<String, ArrayD<f32>>;

/// The point of a run whose trained tensors were these at first, and are those now; `paths` are the module paths that they belong to.
pub(super) fn point(step: u64, first: &Tensors, now: &Tensors, paths: &BTreeMap<String, String>) -> Point {
    let mut moved: BTreeMap<String, f64> = BTreeMap::new();
    for (name, first) in first {
        let Some(now) = now.get(name) else { continue };
        let square: f64 = now.iter().zip(first).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let path = paths.get(name).map_or(name.as_str(), String::as_str);
        *moved.entry(path.to_string()).or_default() += square;
    }
    moved.values_mut().for_each(|square| *square = square.sqrt());
    Point { step, memory: memory(), moved }
}

/// Bytes of memory that this process holds.
pub fn memory() -> Option<u64> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
    let own = sysinfo::get_current_pid().ok()?;
    let mut system = System::new();
    let what = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
    Some(system.process(own)?.memory())
}

/// The file of a run that is under way.
pub(super) struct Writer {
    file: File,
}

impl Writer {
    /// Opens a run's trace. On resuming after `keep` steps, later lines are dropped.
    pub fn open(dir: &Path, keep: Option<u64>) -> std::io::Result<Writer> {
        let mut points = read(dir).unwrap_or_default();
        points.retain(|p| keep.is_some_and(|keep| p.step <= keep));
        let mut out = Writer { file: File::create(dir.join(FILE))? };
        points.iter().try_for_each(|p| out.write(p))?;
        Ok(out)
    }

    pub fn write(&mut self, point: &Point) -> std::io::Result<()> {
        let mut text = serde_json::to_string(point)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())
    }
}

/// Every point of a run; none where it has no trace.
pub fn read(dir: &Path) -> std::io::Result<Vec<Point>> {
    let file = match File::open(dir.join(FILE)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        file => file?,
    };
    let lines = BufReader::new(file).lines();
    lines.filter_map(|line| line.map(|line| serde_json::from_str(&line).ok()).transpose()).collect()
}
