//! Lists graphics adapters and opens one.

use super::cooperative::offered;
use super::tuning::Tuner;
use super::{Gpu, GpuInfo, GpuOptions};
use crate::device::DeviceError;
use crate::device::cache::Cache;
use crate::ops::GpuTraits;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// The cache's file of compiled pipelines.
pub(super) const PIPELINES: &str = "pipelines";

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

/// The driver's store of compiled pipelines, filled with what an earlier run left; `None` where the adapter has none.
fn compiled(device: &wgpu::Device, cache: &Cache) -> Option<wgpu::PipelineCache> {
    if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return None;
    }
    let data = cache.read(PIPELINES);
    let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
    // SAFETY: the data is what a cache of this adapter and driver gave, whole, as the digest beside it says; wgpu and the driver
    // check their own headers in it.
    Some(unsafe { device.create_pipeline_cache(&descriptor) })
}

/// What kernels take for granted of every adapter, which WebGPU promises; why an adapter that has less cannot be used.
fn serves(limits: &wgpu::Limits) -> Result<(), String> {
    let wants = [
        ("invocations in a workgroup", limits.max_compute_invocations_per_workgroup, 256),
        ("invocations along x", limits.max_compute_workgroup_size_x, 256),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, 16384),
        ("storage buffers in a kernel", limits.max_storage_buffers_per_shader_stage, 8),
    ];
    match wants.iter().find(|(_, has, needs)| has < needs) {
        Some((what, has, needs)) => {
            Err(format!("it has {has} {what}, and kernels need {needs}\nhint: --device cpu, or another adapter"))
        }
        None => Ok(()),
    }
}

impl Gpu {
    /// [`Gpu::open_with`] nothing but `max_weight` set.
    pub fn open(index: Option<usize>, max_weight: Option<u64>) -> Result<Gpu, DeviceError> {
        Gpu::open_with(index, &GpuOptions { max_weight, ..GpuOptions::default() })
    }

    /// Opens the `index`-th adapter, or the best: discrete before integrated before software.
    pub fn open_with(index: Option<usize>, options: &GpuOptions) -> Result<Gpu, DeviceError> {
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
        let offers = adapter.limits();
        serves(&offers).map_err(|why| DeviceError::Failed { device: info.name.clone(), why })?;
        let limits = if options.least { wgpu::Limits::default().or_worse_values_from(&offers) } else { offers };
        use wgpu::Features as F;
        let useful = if options.least { F::empty() } else { F::TIMESTAMP_QUERY | F::PIPELINE_CACHE | F::SUBGROUP };
        let mut required_features = adapter.features() & useful;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        let cooperative = if options.mixed && !options.least { offered(&adapter) } else { None };
        if cooperative.is_some() {
            required_features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
            // SAFETY: of the experimental features, cooperative matrices alone are used, by one kernel, which is checked against
            // the ordinary one first.
            experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: limits.clone(),
            required_features,
            experimental_features,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| DeviceError::Failed { device: info.name.clone(), why: e.to_string() })?;
        let failure = Arc::new(Mutex::new(None));
        let slot = failure.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            let mut slot = slot.lock().unwrap_or_else(|p| p.into_inner());
            slot.get_or_insert(e.to_string());
        }));
        let binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let weight = binding.min(options.max_weight.unwrap_or(u64::MAX));
        let tunes = options.tune.unwrap_or(!info.software);
        let software = info.software && !tunes;
        let widths = adapter.get_info();
        let one_width = widths.subgroup_min_size == widths.subgroup_max_size;
        let subgroup = (required_features.contains(F::SUBGROUP) && one_width).then_some(widths.subgroup_min_size);
        let traits = GpuTraits {
            software,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            subgroup,
            cooperative,
        };
        let owner = wgpu::util::pipeline_cache_key(&adapter.get_info()).unwrap_or_default();
        let cache = Cache::new(options.cache.clone(), &[&info.name, &info.backend, &info.driver, &owner]);
        let compiled = compiled(&device, &cache);
        Ok(Gpu {
            device,
            queue,
            value_words: (binding / 4) as usize,
            info,
            traits,
            weight_words: (weight / 4) as usize,
            limits,
            states: HashMap::new(),
            weights: HashMap::new(),
            arenas: vec![],
            layouts: HashMap::new(),
            pipelines: HashMap::new(),
            compiled,
            compiled_new: false,
            settled: false,
            tuner: Tuner::new(tunes, options.kernel.clone(), cache.clone()),
            cache,
            half_weights: options.half_weights,
            out_of_range: BTreeSet::new(),
            scratch: None,
            plans: vec![],
            in_flight: VecDeque::new(),
            staging: BTreeMap::new(),
            next: 0,
            bytes: 0,
            failure,
        })
    }
}
