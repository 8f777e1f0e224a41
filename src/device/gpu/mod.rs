//! The GPU device, through wgpu. Weights, states and arenas stay on the GPU; pipelines and bind groups are built once; a submission is
//! one command buffer; results are read back without stalling.

mod adapter;
mod batching;
mod cooperative;
mod memory;
mod pipeline;
mod submit;
mod tuning;

pub use adapter::list;

use super::cache::Cache;
use super::shader::Access;
use super::{Device, DeviceError, Fetched, PlanId, Run, Ticket, Timing, halves};
use crate::ir::{FloatType, Type, Value};
use crate::ops::{self, Binding, Dispatch, GpuCall, GpuTraits};
use crate::plan::{DeviceProfile, Limits, Place, Plan, Step};
use batching::Bounds;
use pipeline::PipelineKey;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use submit::InFlight;
use tuning::Tuner;

/// An adapter that could be opened.
#[derive(Clone, Debug)]
pub struct GpuInfo {
    pub name: String,
    pub kind: String,
    pub backend: String,
    pub driver: String,
    /// Runs on the processor.
    pub software: bool,
    /// Bytes of one binding.
    pub binding: u64,
}

/// How an adapter is used.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Limits the bytes of one weight below what the adapter binds.
    pub max_weight: Option<u64>,
    /// Whether kernels are raced for; `None` races them on hardware alone. A software adapter that races is given the kernels
    /// for hardware.
    pub tune: Option<bool>,
    /// Where winners and compiled pipelines are remembered.
    pub cache: Option<PathBuf>,
    /// Keeps frozen weights as halves where every kernel that reads them can unpack.
    pub half_weights: bool,
    /// This kernel wherever a call offers it, without a race.
    pub kernel: Option<String>,
    /// Asks for cooperative matrices, for products of halves.
    pub mixed: bool,
    /// Uses no feature and no limit beyond what every WebGPU adapter has, whatever this one offers.
    pub least: bool,
}

/// A GPU device.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: GpuInfo,
    limits: wgpu::Limits,
    traits: GpuTraits,
    value_words: usize,
    weight_words: usize,
    states: HashMap<String, wgpu::Buffer>,
    /// By key, and whether they are packed halves.
    weights: HashMap<(String, bool), Range>,
    half_weights: bool,
    /// Weights that halves cannot hold.
    out_of_range: BTreeSet<String>,
    /// Shared by all plans; a plan that needs a larger one brings it, and earlier plans keep theirs.
    arenas: Vec<wgpu::Buffer>,
    layouts: HashMap<Vec<Access>, Arc<(wgpu::BindGroupLayout, wgpu::PipelineLayout)>>,
    pipelines: HashMap<PipelineKey, Arc<wgpu::ComputePipeline>>,
    /// Whether it is decided if cooperative matrices are used.
    settled: bool,
    compiled: Option<wgpu::PipelineCache>,
    /// Some pipeline is not in the cache yet.
    compiled_new: bool,
    tuner: Tuner,
    cache: Cache,
    /// What dispatches of one node leave each other; shared by all nodes, since they run one after the other. A plan that needs
    /// a larger one brings it.
    scratch: Option<wgpu::Buffer>,
    plans: Vec<Loaded>,
    in_flight: VecDeque<InFlight>,
    staging: BTreeMap<u64, Vec<wgpu::Buffer>>,
    next: u64,
    bytes: usize,
    failure: Arc<Mutex<Option<String>>>,
}

/// A plan with everything built.
struct Loaded {
    plan: Plan,
    inputs: HashMap<String, wgpu::Buffer>,
    dispatches: Vec<Built>,
    copies: Vec<(Range, Range)>,
    fetches: Vec<(String, Type, Range)>,
}

struct Built {
    pipeline: Arc<wgpu::ComputePipeline>,
    group: wgpu::BindGroup,
    workgroups: [u32; 3],
    kernel: &'static str,
    /// The plan's nodes that it computes, or part of them.
    nodes: Vec<usize>,
}

impl Built {
    fn encode(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        let [x, y, z] = self.workgroups;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// A dispatch to build: the nodes it belongs to, and what its bindings stand for.
#[derive(Clone)]
struct Wanted {
    nodes: Vec<usize>,
    dispatch: Dispatch,
    ranges: Vec<(Binding, Range)>,
}

/// Words of a buffer, in bytes.
#[derive(Clone)]
struct Range {
    buffer: wgpu::Buffer,
    offset: u64,
    size: u64,
}

impl Range {
    fn overlaps(&self, other: &Range) -> bool {
        let ends = |r: &Range| r.offset + r.size;
        self.buffer == other.buffer && self.offset < ends(other) && other.offset < ends(self)
    }

    /// The least range of this buffer with both in it.
    fn with(&self, other: &Range) -> Range {
        let offset = self.offset.min(other.offset);
        let end = (self.offset + self.size).max(other.offset + other.size);
        Range { buffer: self.buffer.clone(), offset, size: end - offset }
    }
}

impl Gpu {
    fn failed(&self, why: impl Into<String>) -> DeviceError {
        DeviceError::Failed { device: self.name(), why: why.into() }
    }

    /// What went wrong on the device since the last call.
    fn check(&self) -> Result<(), DeviceError> {
        match self.failure.lock().unwrap_or_else(|p| p.into_inner()).take() {
            Some(why) => Err(self.failed(why)),
            None => Ok(()),
        }
    }
}

/// Buffers of one plan's own.
struct Own {
    inputs: HashMap<String, wgpu::Buffer>,
    constants: HashMap<Value, (wgpu::Buffer, usize)>,
    /// Keys of the weights that are halves in this plan.
    packed: BTreeSet<String>,
}

impl Own {
    fn packs(&self, place: &Place) -> bool {
        matches!(place, Place::Weight(key) if self.packed.contains(key))
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        format!("{} ({})", self.info.name, self.info.backend)
    }

    fn fast_products(&self) -> FloatType {
        FloatType::F16
    }

    fn limits(&self) -> Limits {
        let arena = (self.limits.max_buffer_size / 4).min(u32::MAX as u64 / 4);
        Limits {
            value_words: self.value_words,
            weight_words: self.weight_words,
            arena_words: arena as usize,
            profile: DeviceProfile {
                busy_rows: if self.traits.software { 256 } else { 1024 },
                row_major_products: self.traits.software,
                slow_attention: self.traits.software && self.traits.subgroup.is_none_or(|width| width < 8),
                fast_epilogues: true,
                fast_long_terms: self.traits.software,
                fast_grouped_products: !self.traits.software,
                // Every adapter has eight. Sixteen are an optimiser's, with its constants.
                buffers: self.limits.max_storage_buffers_per_shader_stage.clamp(8, 16) as usize,
                rest: 8,
            },
        }
    }

    fn reserve(&mut self, state: &str, words: usize) -> Result<(), DeviceError> {
        if self.states.get(state).is_none_or(|b| b.size() != (words.max(1) * 4) as u64) {
            let buffer = self.storage(words, state)?;
            self.states.insert(state.to_string(), buffer);
        }
        Ok(())
    }

    fn write(&mut self, state: &str, offset: usize, words: &[u32]) -> Result<(), DeviceError> {
        let buffer = self.states.get(state).ok_or_else(|| self.failed(format!("no state is called '{state}'")))?;
        self.queue.write_buffer(buffer, offset as u64 * 4, bytemuck::cast_slice(words));
        self.check()
    }

    fn read(&mut self, state: &str) -> Result<Vec<u32>, DeviceError> {
        let buffer = self.states.get(state).ok_or_else(|| self.failed(format!("no state is called '{state}'")))?;
        self.content(buffer)
    }

    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        let packed = if self.half_weights { halves::packable(&plan, crate::ops::unpacks) } else { BTreeSet::new() };
        let mut own = Own { inputs: HashMap::new(), constants: HashMap::new(), packed };
        self.load_weights(&plan, &mut own)?;
        for (a, words) in plan.arenas.iter().enumerate() {
            // Values without elements have a place too.
            let words = (*words).max(1);
            let have = self.arenas.get(a).map_or(0, |b| b.size() as usize / 4);
            if have < words {
                let arena = self.storage(words, "arena")?;
                match self.arenas.get_mut(a) {
                    Some(slot) => *slot = arena,
                    None => self.arenas.push(arena),
                }
            }
        }
        for (name, ty) in plan.graph.inputs() {
            let buffer = self.storage(ty.elements(), name)?;
            own.inputs.insert(name.to_string(), buffer);
        }
        self.constants(&plan, &mut own)?;

        if plan.graph.nodes.iter().any(|n| n.attrs.flag("halves")) {
            self.settle_cooperative()?;
        }

        let mut all = Vec::new();
        let mut copies = Vec::new();
        for step in &plan.steps {
            match step {
                Step::Copy { from, to } => {
                    let ty = plan.graph.ty(*from);
                    copies.push((self.range(plan.place(*from), ty, &own)?, self.range(to, ty, &own)?));
                }
                Step::Node { node: index, .. } => {
                    let node = &plan.graph.nodes[*index];
                    let types = |vs: &[Value]| -> Vec<Type> { vs.iter().map(|&v| plan.graph.ty(v).clone()).collect() };
                    let (types_in, types_out) = (types(&node.inputs), types(&node.outputs));
                    if types_out.iter().all(|t| t.elements() == 0) {
                        continue;
                    }
                    let packed: Vec<bool> = node.inputs.iter().map(|&v| own.packs(plan.place(v))).collect();
                    let (traits, types_in, types_out) = (self.traits, &types_in[..], &types_out[..]);
                    let call =
                        GpuCall { attrs: &node.attrs, types_in, types_out, traits, packed: &packed, variant: None };
                    let variant = self.choose(&node.op, &call)?;
                    for d in ops::dispatches(&node.op, &GpuCall { variant, ..call }) {
                        let mut ranges = Vec::new();
                        for b in &d.bindings {
                            let range = match *b {
                                Binding::Input(i) => self.range(plan.place(node.inputs[i]), &types_in[i], &own)?,
                                Binding::Output(o) => self.range(plan.place(node.outputs[o]), &types_out[o], &own)?,
                                Binding::Scratch(words) => self.scratch(words)?,
                            };
                            ranges.push((*b, range));
                        }
                        all.push(Wanted { nodes: vec![*index], dispatch: d, ranges });
                    }
                }
            }
        }
        let bounds = Bounds {
            binding: self.value_words as u64 * 4,
            workgroups: self.limits.max_compute_workgroups_per_dimension,
        };
        let dispatches = self.build(batching::batched(all, bounds))?;
        let mut fetches = Vec::new();
        for f in &plan.fetches {
            let ty = plan.graph.ty(f.value).clone();
            let range = self.range(plan.place(f.value), &ty, &own)?;
            fetches.push((f.name.clone(), ty, range));
        }
        self.check()?;
        self.remember_winners();
        self.remember_pipelines();
        self.plans.push(Loaded { inputs: own.inputs, dispatches, copies, fetches, plan });
        Ok(PlanId(self.plans.len() - 1))
    }

    fn submit(&mut self, runs: Vec<Run>) -> Result<Ticket, DeviceError> {
        self.submit_runs(&runs)
    }

    fn collect(&mut self, wait: bool) -> Result<Vec<Fetched>, DeviceError> {
        let last = self.in_flight.back().map(|f| f.submission.clone());
        if let Some(last) = last {
            self.poll(wait.then_some(last))?;
        }
        let mut out = Vec::new();
        while let Some(done) = self.take_done()? {
            out.push(done);
        }
        Ok(out)
    }

    fn profile(&mut self, run: &Run) -> Result<Vec<Timing>, DeviceError> {
        self.profile_run(run)
    }

    fn plan(&self, id: PlanId) -> &Plan {
        &self.plans[id.0].plan
    }

    fn launches(&self, id: PlanId) -> usize {
        let loaded = &self.plans[id.0];
        loaded.dispatches.len() + loaded.copies.len()
    }

    fn memory(&self) -> usize {
        self.bytes
    }
}
