//! Devices: a store of named buffers and frozen weights, and the plans that run on it.

mod cache;
mod cpu;
mod gpu;
mod halves;
mod host_memory;
mod shader;
mod tiles;

pub use cache::platform_folder;
pub use cpu::Cpu;
pub use gpu::{Gpu, GpuInfo, GpuOptions, list as list_gpus};

use crate::ir::{FloatType, Tensor};
use crate::plan::{Limits, Plan};
use smallvec::SmallVec;

/// Identifies a loaded plan on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanId(pub usize);

/// Numbers submissions in order, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// One run of a plan.
#[derive(Clone, Debug)]
pub struct Run {
    pub plan: PlanId,
    /// A tensor for each input of the plan, by name.
    pub inputs: Vec<(String, Tensor)>,
}

/// What a submission gave back: for each of its runs, the fetched outputs by name.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub ticket: Ticket,
    pub runs: Vec<Vec<(String, Tensor)>>,
}

/// How long one kernel of a run took.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The primitive, or the shader.
    pub kernel: String,
    /// The plan's nodes that it computed, or a part of; none for a copy.
    pub nodes: Vec<usize>,
    /// Seconds from the run's beginning.
    pub start: f64,
    pub seconds: f64,
}

/// Why a device cannot do what it is asked to.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("there is no device '{wanted}'\nhint: {hint}")]
    NoDevice { wanted: String, hint: String },
    #[error("{device}: {why}")]
    Failed { device: String, why: String },
    #[error("{device} has no memory for {bytes} more bytes ({what})\nhint: a smaller --batch-size or --max-length")]
    Memory { device: String, bytes: usize, what: String },
    #[error("the run brings no '{0}'")]
    MissingInput(String),
    #[error("'{name}' is {have}, but the plan was made for {want}")]
    InputType { name: String, have: String, want: String },
}

/// A device. States are buffers of four-byte words, zero when they are made.
pub trait Device {
    /// The name for messages.
    fn name(&self) -> String;

    /// The type of 16 bits that it multiplies faster than f32; f32 where there is none.
    fn fast_products(&self) -> FloatType;

    /// What plans must keep to.
    fn limits(&self) -> Limits;

    /// Makes a state, or leaves it as it is if there is one of this name and size.
    fn reserve(&mut self, state: &str, words: usize) -> Result<(), DeviceError>;

    /// Writes into a state.
    fn write(&mut self, state: &str, offset: usize, words: &[u32]) -> Result<(), DeviceError>;

    /// Reads a whole state, after all that was submitted.
    fn read(&mut self, state: &str) -> Result<Vec<u32>, DeviceError>;

    /// Makes a plan ready to run: its weights are loaded if no earlier plan has them, its states must be there.
    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError>;

    /// Runs plans in order. Returns before they are done where the device can.
    fn submit(&mut self, runs: Vec<Run>) -> Result<Ticket, DeviceError>;

    /// Submissions that are done, in order; with `wait`, all of them.
    fn collect(&mut self, wait: bool) -> Result<Vec<Fetched>, DeviceError>;

    /// Runs a plan once, kernel after kernel, and times each. What the plan writes to states stands as after any run.
    fn profile(&mut self, run: &Run) -> Result<Vec<Timing>, DeviceError>;

    /// A plan that was loaded.
    fn plan(&self, id: PlanId) -> &Plan;

    /// The kernels and copies that a run of a plan takes.
    fn launches(&self, id: PlanId) -> usize {
        self.plan(id).steps.len()
    }

    /// Bytes of device memory in use: weights, states, arenas and inputs.
    fn memory(&self) -> usize;
}

/// Checks a run's inputs against the plan, and returns them in the order of `plan.graph.inputs()`.
fn inputs_of<'a>(plan: &Plan, run: &'a Run) -> Result<SmallVec<[&'a Tensor; 8]>, DeviceError> {
    let find = |name: &str| run.inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t);
    plan.graph
        .inputs()
        .map(|(name, ty)| {
            let t = find(name).ok_or_else(|| DeviceError::MissingInput(name.to_string()))?;
            if (t.dtype(), t.shape()) == (ty.dtype, &ty.shape[..]) {
                return Ok(t);
            }
            Err(DeviceError::InputType { name: name.into(), have: t.ty().to_string(), want: ty.to_string() })
        })
        .collect()
}
