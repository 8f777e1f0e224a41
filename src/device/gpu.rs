//! A GPU through wgpu: weights, states and arenas stay on it; pipelines and bind groups are built once, a submission is
//! one command buffer, and results come back without stalling.

use super::shader::{Access, readable};
use super::{Device, DeviceError, Fetched, PlanId, Run, Ticket, Timing, inputs_of};
use crate::ir::{Def, Leaf, Tensor, Type, Value};
use crate::ops::{self, Binding, Dispatch, GpuCall, GpuTraits};
use crate::plan::{Limits, Place, Plan, Step};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, mpsc};

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
    weights: HashMap<String, wgpu::Buffer>,
    /// Shared by all plans; a plan that needs a larger one brings it, and earlier plans keep theirs.
    arenas: Vec<wgpu::Buffer>,
    layouts: HashMap<Vec<Access>, Arc<(wgpu::BindGroupLayout, wgpu::PipelineLayout)>>,
    pipelines: HashMap<PipelineKey, Arc<wgpu::ComputePipeline>>,
    plans: Vec<Loaded>,
    in_flight: VecDeque<InFlight>,
    staging: BTreeMap<u64, Vec<wgpu::Buffer>>,
    next: u64,
    bytes: usize,
    failure: Arc<Mutex<Option<String>>>,
}

#[derive(PartialEq, Eq, Hash)]
struct PipelineKey {
    source: String,
    constants: Vec<(&'static str, u64)>,
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
    /// The plan's node that it computes, or part of it.
    node: usize,
}

/// A dispatch to build: the node it belongs to, and what its bindings stand for.
type Wanted = (usize, Dispatch, Vec<(Binding, Range)>);

/// Words of a buffer, in bytes.
#[derive(Clone)]
struct Range {
    buffer: wgpu::Buffer,
    offset: u64,
    size: u64,
}

struct InFlight {
    ticket: Ticket,
    submission: wgpu::SubmissionIndex,
    staging: Option<wgpu::Buffer>,
    ready: Option<mpsc::Receiver<bool>>,
    /// For each run, its fetched outputs and where they stand in the staging buffer.
    fetched: Vec<Vec<(String, Type, u64)>>,
}

/// Submissions that may be under way at once: enough that the GPU never waits for the host.
const MAX_IN_FLIGHT: usize = 4;

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // The GL backend complains on machines without a display.
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    wgpu::Instance::new(descriptor)
}

fn adapters() -> Vec<wgpu::Adapter> {
    pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()))
}

fn describe(adapter: &wgpu::Adapter) -> GpuInfo {
    let info = adapter.get_info();
    let limits = adapter.limits();
    GpuInfo {
        name: info.name,
        kind: format!("{:?}", info.device_type),
        backend: format!("{:?}", info.backend),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        software: info.device_type == wgpu::DeviceType::Cpu,
        binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
    }
}

/// Every adapter, in the order of `--device gpu:N`.
pub fn list() -> Vec<GpuInfo> {
    adapters().iter().map(describe).collect()
}

impl Gpu {
    /// Opens the `index`-th adapter, or the best: discrete before integrated before software. `max_weight` limits the
    /// bytes of one weight below what the adapter binds.
    pub fn open(index: Option<usize>, max_weight: Option<u64>) -> Result<Gpu, DeviceError> {
        let mut all = adapters();
        let count = all.len();
        let rank = |a: &wgpu::Adapter| match a.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        let best = (0..count).min_by_key(|&i| rank(&all[i]));
        let Some(chosen) = index.or(best).filter(|&i| i < count) else {
            let wanted = index.map_or("gpu".to_string(), |i| format!("gpu:{i}"));
            let hint = match count {
                0 => "no Vulkan, Metal or DX12 adapter is there; install a driver, or use --device cpu".to_string(),
                _ => format!("there are {count}: `reslora-compile devices` lists them"),
            };
            return Err(DeviceError::NoDevice { wanted, hint });
        };
        let adapter = all.swap_remove(chosen);
        let info = describe(&adapter);
        let limits = adapter.limits();
        let required_features = adapter.features() & wgpu::Features::TIMESTAMP_QUERY;
        let descriptor =
            wgpu::DeviceDescriptor { required_limits: limits.clone(), required_features, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| DeviceError::Failed { device: info.name.clone(), why: e.to_string() })?;
        let failure = Arc::new(Mutex::new(None));
        let slot = failure.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            let mut slot = slot.lock().unwrap_or_else(|p| p.into_inner());
            slot.get_or_insert(e.to_string());
        }));
        let weight = info.binding.min(max_weight.unwrap_or(u64::MAX));
        let traits = GpuTraits { software: info.software, max_workgroups: limits.max_compute_workgroups_per_dimension };
        Ok(Gpu {
            device,
            queue,
            value_words: (info.binding / 4) as usize,
            info,
            traits,
            weight_words: (weight / 4) as usize,
            limits,
            states: HashMap::new(),
            weights: HashMap::new(),
            arenas: vec![],
            layouts: HashMap::new(),
            pipelines: HashMap::new(),
            plans: vec![],
            in_flight: VecDeque::new(),
            staging: BTreeMap::new(),
            next: 0,
            bytes: 0,
            failure,
        })
    }

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

    /// A buffer of at least one word; running out of memory is an error, not a panic.
    fn buffer(&mut self, words: usize, usage: wgpu::BufferUsages, what: &str) -> Result<wgpu::Buffer, DeviceError> {
        let size = (words.max(1) * 4) as u64;
        let memory = |device: String| DeviceError::Memory { device, bytes: size as usize, what: what.to_string() };
        if size > self.limits.max_buffer_size {
            return Err(memory(self.name()));
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let descriptor = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        match pollster::block_on(scope.pop()) {
            Some(_) => Err(memory(self.name())),
            None => {
                self.bytes += size as usize;
                Ok(buffer)
            }
        }
    }

    fn storage(&mut self, words: usize, what: &str) -> Result<wgpu::Buffer, DeviceError> {
        use wgpu::BufferUsages as U;
        self.buffer(words, U::STORAGE | U::COPY_DST | U::COPY_SRC, what)
    }

    fn load_weight(&mut self, name: &str, tensor: &Tensor) -> Result<(), DeviceError> {
        if tensor.elements() > self.value_words {
            let (ty, mib) = (tensor.ty(), self.value_words >> 18);
            let why = format!(
                "weight '{name}' of {ty} does not fit one binding of {mib} MiB, and is not used in a way that can be split"
            );
            return Err(self.failed(why));
        }
        let buffer = self.storage(tensor.elements(), name)?;
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(tensor.words()));
        self.weights.insert(name.to_string(), buffer);
        Ok(())
    }

    fn layout(&mut self, access: &[Access]) -> Arc<(wgpu::BindGroupLayout, wgpu::PipelineLayout)> {
        if let Some(known) = self.layouts.get(access) {
            return known.clone();
        }
        let entry = |(i, a): (usize, &Access)| wgpu::BindGroupLayoutEntry {
            binding: i as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: match a {
                    Access::Uniform => wgpu::BufferBindingType::Uniform,
                    Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                    Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = access.iter().enumerate().map(entry).collect();
        let group =
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let pipeline = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&group)],
            immediate_size: 0,
        });
        let both = Arc::new((group, pipeline));
        self.layouts.insert(access.to_vec(), both.clone());
        both
    }

    fn pipeline(&mut self, d: &Dispatch, access: &[Access]) -> Result<Arc<wgpu::ComputePipeline>, DeviceError> {
        let source = readable(&d.shader.source, access);
        let constants = d.constants.iter().map(|(n, x)| (*n, x.to_bits())).collect();
        let key = PipelineKey { source, constants };
        if let Some(p) = self.pipelines.get(&key) {
            return Ok(p.clone());
        }
        let layout = self.layout(access);
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let module = wgpu::ShaderModuleDescriptor {
            label: Some(d.shader.name),
            source: wgpu::ShaderSource::Wgsl(key.source.as_str().into()),
        };
        let module = if cfg!(debug_assertions) {
            self.device.create_shader_module(module)
        } else {
            // SAFETY: the shaders are our own. Every index they form is checked against the extents they are given, which
            // the plan has checked against the bindings; their loops end.
            unsafe { self.device.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(d.shader.name),
            layout: Some(&layout.1),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &d.constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        if let Some(e) = pollster::block_on(scope.pop()) {
            return Err(self.failed(format!("shader {}: {e}", d.shader.name)));
        }
        let pipeline = Arc::new(pipeline);
        self.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    /// The bytes that a place stands for, given the plan's own buffers.
    fn range(&self, place: &Place, ty: &Type, own: &Own) -> Result<Range, DeviceError> {
        let size = (ty.elements().max(1) * 4) as u64;
        let (buffer, offset) = match place {
            Place::Arena { arena, offset } => (self.arenas[*arena].clone(), *offset),
            Place::State { name, offset } => {
                let state = self.states.get(name).ok_or_else(|| self.failed(format!("no state is called '{name}'")))?;
                (state.clone(), *offset)
            }
            Place::Input(name) => (own.inputs[name].clone(), 0),
            Place::Weight(name) => (self.weights[name].clone(), 0),
            Place::Constant(v) => {
                let (buffer, offset) = &own.constants[v];
                (buffer.clone(), *offset)
            }
        };
        Ok(Range { buffer, offset: offset as u64 * 4, size })
    }

    /// Uploads the constants of a plan into one buffer (or several, where one would exceed a binding).
    fn constants(&mut self, plan: &Plan, own: &mut Own) -> Result<(), DeviceError> {
        const ALIGN: usize = 64;
        let mut open: Vec<u32> = Vec::new();
        let mut members: Vec<(Value, usize)> = Vec::new();
        let limit = (self.limits.max_buffer_size / 4) as usize;
        let all: Vec<(Value, Arc<Tensor>)> = (0..plan.graph.values.len() as u32)
            .map(Value)
            .filter(|v| plan.places[v.index()] == Some(Place::Constant(*v)))
            .filter_map(|v| plan.graph.constant(v).map(|t| (v, t.clone())))
            .collect();
        let mut flush = |open: &mut Vec<u32>, members: &mut Vec<(Value, usize)>| -> Result<(), DeviceError> {
            if !members.is_empty() {
                let buffer = self.storage(open.len(), "constants")?;
                self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(open));
                own.constants.extend(members.drain(..).map(|(v, offset)| (v, (buffer.clone(), offset))));
                open.clear();
            }
            Ok(())
        };
        for (v, t) in all {
            let room = t.elements().max(1).next_multiple_of(ALIGN);
            if open.len() + room > limit {
                flush(&mut open, &mut members)?;
            }
            members.push((v, open.len()));
            let end = open.len() + room;
            open.extend_from_slice(t.words());
            open.resize(end, 0);
        }
        flush(&mut open, &mut members)
    }

    /// Builds pipelines and bind groups; all parameters go into one uniform buffer.
    fn build(&mut self, all: Vec<Wanted>) -> Result<Vec<Built>, DeviceError> {
        let align = self.limits.min_uniform_buffer_offset_alignment.max(256) as usize / 4;
        let mut params: Vec<u32> = Vec::new();
        let mut offsets = Vec::new();
        for (_, d, _) in &all {
            offsets.push(params.len() as u64 * 4);
            params.extend(&d.params);
            params.resize(params.len().next_multiple_of(align), 0);
        }
        if all.is_empty() {
            return Ok(vec![]);
        }
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let uniforms = self.buffer(params.len(), usage, "parameters")?;
        self.queue.write_buffer(&uniforms, 0, bytemuck::cast_slice(&params));
        let mut built = Vec::with_capacity(all.len());
        for ((node, d, ranges), offset) in all.iter().zip(offsets) {
            let written: Vec<&wgpu::Buffer> =
                ranges.iter().filter(|(b, _)| matches!(b, Binding::Output(_))).map(|(_, r)| &r.buffer).collect();
            // A buffer that is written in a dispatch must be bound for writing everywhere in it.
            let access = |(b, r): &(Binding, Range)| match b {
                Binding::Input(_) if !written.contains(&&r.buffer) => Access::Read,
                _ => Access::ReadWrite,
            };
            let accesses: Vec<Access> = [Access::Uniform].into_iter().chain(ranges.iter().map(access)).collect();
            let pipeline = self.pipeline(d, &accesses)?;
            let layout = self.layout(&accesses);
            let bind = |buffer, offset, size| {
                wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset,
                    size: std::num::NonZeroU64::new(size),
                })
            };
            let mut entries =
                vec![wgpu::BindGroupEntry { binding: 0, resource: bind(&uniforms, offset, d.params.len() as u64 * 4) }];
            for (i, (_, r)) in ranges.iter().enumerate() {
                let resource = bind(&r.buffer, r.offset, r.size);
                entries.push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource });
            }
            let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(d.shader.name),
                layout: &layout.0,
                entries: &entries,
            });
            built.push(Built { pipeline, group, workgroups: d.workgroups, kernel: d.shader.name, node: *node });
        }
        self.check()?;
        Ok(built)
    }

    /// A buffer to copy a submission's inputs from.
    fn upload(&self, words: &[u32]) -> Option<wgpu::Buffer> {
        if words.is_empty() {
            return None;
        }
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("upload"),
            size: words.len() as u64 * 4,
            usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(words));
        Some(buffer)
    }

    /// A buffer to read results from, reused between submissions of one size.
    fn take_staging(&mut self, size: u64) -> wgpu::Buffer {
        if let Some(free) = self.staging.get_mut(&size).and_then(Vec::pop) {
            return free;
        }
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("results"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Waits for a submission, or looks whether any is done.
    fn poll(&self, wait_for: Option<wgpu::SubmissionIndex>) -> Result<(), DeviceError> {
        let kind = match wait_for {
            Some(index) => wgpu::PollType::Wait { submission_index: Some(index), timeout: None },
            None => wgpu::PollType::Poll,
        };
        self.device.poll(kind).map_err(|e| self.failed(e.to_string()))?;
        self.check()
    }

    /// Takes the oldest submission if it is done.
    fn take_done(&mut self) -> Result<Option<Fetched>, DeviceError> {
        let Some(front) = self.in_flight.front() else { return Ok(None) };
        if let Some(ready) = &front.ready {
            match ready.try_recv() {
                Ok(true) => {}
                Ok(false) => return Err(self.failed("results could not be read back")),
                Err(_) => return Ok(None),
            }
        } else {
            self.poll(Some(front.submission.clone()))?;
        }
        let front = self.in_flight.pop_front().expect("just looked at");
        let mut runs = Vec::with_capacity(front.fetched.len());
        match front.staging {
            None => runs.resize(front.fetched.len(), vec![]),
            Some(staging) => {
                let view = staging.get_mapped_range(..).map_err(|e| self.failed(e.to_string()))?;
                let bytes: &[u8] = &view;
                for run in front.fetched {
                    let tensor = |(name, ty, offset): (String, Type, u64)| {
                        let part = &bytes[offset as usize..offset as usize + ty.elements() * 4];
                        let words = part.chunks_exact(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
                        let t = Tensor::from_words(&ty, words.collect());
                        (name, t)
                    };
                    runs.push(run.into_iter().map(tensor).collect());
                }
                drop(view);
                staging.unmap();
                self.staging.entry(staging.size()).or_default().push(staging);
            }
        }
        Ok(Some(Fetched { ticket: front.ticket, runs }))
    }
}

/// Buffers of one plan's own.
struct Own {
    inputs: HashMap<String, wgpu::Buffer>,
    constants: HashMap<Value, (wgpu::Buffer, usize)>,
}

impl Device for Gpu {
    fn name(&self) -> String {
        format!("{} ({})", self.info.name, self.info.backend)
    }

    fn limits(&self) -> Limits {
        let arena = (self.limits.max_buffer_size / 4).min(u32::MAX as u64 / 4);
        Limits {
            value_words: self.value_words,
            weight_words: self.weight_words,
            arena_words: arena as usize,
            by_rows: self.info.software,
            busy_rows: if self.info.software { 256 } else { 1024 },
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
        let buffer =
            self.states.get(state).ok_or_else(|| self.failed(format!("no state is called '{state}'")))?.clone();
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read"),
            size: buffer.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&buffer, 0, &staging, 0, buffer.size());
        let index = self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |_| {});
        self.poll(Some(index))?;
        let view = staging.get_mapped_range(..).map_err(|e| self.failed(e.to_string()))?;
        Ok(view.chunks_exact(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]])).collect())
    }

    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        for info in &plan.graph.values {
            if let Def::Leaf(Leaf::Weight(w)) = &info.def
                && !self.weights.contains_key(&w.key())
            {
                self.load_weight(&w.key(), &w.load())?;
            }
        }
        for (a, &words) in plan.arenas.iter().enumerate() {
            let have = self.arenas.get(a).map_or(0, |b| b.size() as usize / 4);
            if have < words {
                let arena = self.storage(words, "arena")?;
                match self.arenas.get_mut(a) {
                    Some(slot) => *slot = arena,
                    None => self.arenas.push(arena),
                }
            }
        }
        let mut own = Own { inputs: HashMap::new(), constants: HashMap::new() };
        for (name, ty) in plan.graph.inputs() {
            let buffer = self.storage(ty.elements(), name)?;
            own.inputs.insert(name.to_string(), buffer);
        }
        self.constants(&plan, &mut own)?;

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
                    let call =
                        GpuCall { attrs: &node.attrs, types_in: &types_in, types_out: &types_out, traits: self.traits };
                    for d in ops::dispatches(&node.op, &call) {
                        let mut ranges = Vec::new();
                        for b in &d.bindings {
                            let (v, ty) = match *b {
                                Binding::Input(i) => (node.inputs[i], &types_in[i]),
                                Binding::Output(o) => (node.outputs[o], &types_out[o]),
                            };
                            ranges.push((*b, self.range(plan.place(v), ty, &own)?));
                        }
                        all.push((*index, d, ranges));
                    }
                }
            }
        }
        let dispatches = self.build(all)?;
        let mut fetches = Vec::new();
        for f in &plan.fetches {
            let ty = plan.graph.ty(f.value).clone();
            let range = self.range(plan.place(f.value), &ty, &own)?;
            fetches.push((f.name.clone(), ty, range));
        }
        self.check()?;
        self.plans.push(Loaded { inputs: own.inputs, dispatches, copies, fetches, plan });
        Ok(PlanId(self.plans.len() - 1))
    }

    fn submit(&mut self, runs: Vec<Run>) -> Result<Ticket, DeviceError> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            let oldest = self.in_flight[self.in_flight.len() - MAX_IN_FLIGHT].submission.clone();
            self.poll(Some(oldest))?;
        }
        let mut upload: Vec<u32> = Vec::new();
        // For each run: buffer, first word in the upload, and words of each input.
        let mut inputs: Vec<Vec<(wgpu::Buffer, u64, u64)>> = Vec::new();
        for run in &runs {
            let loaded = &self.plans[run.plan.0];
            let mut parts = Vec::new();
            for ((name, _), t) in loaded.plan.graph.inputs().into_iter().zip(inputs_of(&loaded.plan, run)?) {
                parts.push((loaded.inputs[name].clone(), upload.len() as u64 * 4, t.elements() as u64 * 4));
                upload.extend_from_slice(t.words());
            }
            inputs.push(parts);
        }
        let source = self.upload(&upload);
        let total: u64 = runs.iter().flat_map(|r| &self.plans[r.plan.0].fetches).map(|f| f.2.size).sum();
        let staging = (total > 0).then(|| self.take_staging(total));

        let mut encoder = self.device.create_command_encoder(&Default::default());
        let (mut at, mut fetched) = (0, Vec::new());
        for (run, parts) in runs.iter().zip(inputs) {
            let loaded = &self.plans[run.plan.0];
            // Copied in right before the run, so that a plan may run twice in one submission.
            for (to, offset, size) in parts {
                if let (Some(source), true) = (&source, size > 0) {
                    encoder.copy_buffer_to_buffer(source, offset, &to, 0, size);
                }
            }
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for d in &loaded.dispatches {
                    pass.set_pipeline(&d.pipeline);
                    pass.set_bind_group(0, &d.group, &[]);
                    let [x, y, z] = d.workgroups;
                    pass.dispatch_workgroups(x, y, z);
                }
            }
            for (from, to) in &loaded.copies {
                encoder.copy_buffer_to_buffer(&from.buffer, from.offset, &to.buffer, to.offset, from.size);
            }
            let mut list = Vec::new();
            for (name, ty, range) in &loaded.fetches {
                if let Some(staging) = &staging {
                    encoder.copy_buffer_to_buffer(&range.buffer, range.offset, staging, at, range.size);
                }
                list.push((name.clone(), ty.clone(), at));
                at += range.size;
            }
            fetched.push(list);
        }
        let submission = self.queue.submit([encoder.finish()]);
        let ready = staging.as_ref().map(|s| {
            let (send, receive) = mpsc::channel();
            s.map_async(wgpu::MapMode::Read, .., move |r| {
                let _ = send.send(r.is_ok());
            });
            receive
        });
        self.check()?;
        let ticket = Ticket(self.next);
        self.next += 1;
        self.in_flight.push_back(InFlight { ticket, submission, staging, ready, fetched });
        Ok(ticket)
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
        if !self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(self.failed("the adapter has no timestamps"));
        }
        let loaded = &self.plans[run.plan.0];
        for ((name, _), t) in loaded.plan.graph.inputs().into_iter().zip(inputs_of(&loaded.plan, run)?) {
            if t.elements() > 0 {
                self.queue.write_buffer(&loaded.inputs[name], 0, bytemuck::cast_slice(t.words()));
            }
        }
        // Two times a dispatch, each dispatch in a pass of its own.
        const PER_SET: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
        let mut ticks: Vec<u64> = Vec::new();
        for part in loaded.dispatches.chunks(PER_SET) {
            let count = 2 * part.len() as u32;
            let set = self.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count,
            });
            let make = |usage| {
                let size = count as u64 * 8;
                self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size,
                    usage,
                    mapped_at_creation: false,
                })
            };
            let resolved = make(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
            let staging = make(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            for (i, d) in part.iter().enumerate() {
                let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                    query_set: &set,
                    beginning_of_pass_write_index: Some(2 * i as u32),
                    end_of_pass_write_index: Some(2 * i as u32 + 1),
                });
                let mut pass =
                    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
                pass.set_pipeline(&d.pipeline);
                pass.set_bind_group(0, &d.group, &[]);
                let [x, y, z] = d.workgroups;
                pass.dispatch_workgroups(x, y, z);
            }
            encoder.resolve_query_set(&set, 0..count, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, count as u64 * 8);
            let index = self.queue.submit([encoder.finish()]);
            staging.map_async(wgpu::MapMode::Read, .., |_| {});
            self.poll(Some(index))?;
            let view = staging.get_mapped_range(..).map_err(|e| self.failed(e.to_string()))?;
            let words = view.chunks_exact(8);
            ticks.extend(words.map(|c| u64::from_ne_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]])));
        }
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for (from, to) in &loaded.copies {
            encoder.copy_buffer_to_buffer(&from.buffer, from.offset, &to.buffer, to.offset, from.size);
        }
        let index = self.queue.submit([encoder.finish()]);
        self.poll(Some(index))?;
        let period = self.queue.get_timestamp_period() as f64 * 1e-9;
        let first = ticks.first().copied().unwrap_or(0);
        let since = |t: u64| t.saturating_sub(first) as f64 * period;
        let timing = |(d, t): (&Built, &[u64])| Timing {
            kernel: d.kernel.to_string(),
            node: Some(d.node),
            start: since(t[0]),
            seconds: since(t[1]) - since(t[0]),
        };
        Ok(loaded.dispatches.iter().zip(ticks.chunks_exact(2)).map(timing).collect())
    }

    fn plan(&self, id: PlanId) -> &Plan {
        &self.plans[id.0].plan
    }

    fn memory(&self) -> usize {
        self.bytes
    }
}
