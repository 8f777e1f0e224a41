//! Pipelines and bind groups, each built once.

use super::adapter::PIPELINES;
use super::{Built, Gpu, Range, Wanted};
use crate::device::DeviceError;
use crate::device::shader::{Access, readable};
use crate::ops::{Binding, Dispatch, link};
use std::borrow::Cow;
use std::sync::Arc;

/// What pipelines are known by.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct PipelineKey {
    source: Cow<'static, str>,
    access: Vec<Access>,
    constants: Vec<(&'static str, u64)>,
}

impl Gpu {
    pub(super) fn layout(&mut self, access: &[Access]) -> Arc<(wgpu::BindGroupLayout, wgpu::PipelineLayout)> {
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

    pub(super) fn pipeline(
        &mut self,
        d: &Dispatch,
        access: &[Access],
    ) -> Result<Arc<wgpu::ComputePipeline>, DeviceError> {
        let constants = d.constants.iter().map(|(n, x)| (*n, x.to_bits())).collect();
        let key = PipelineKey { source: d.shader.source.clone(), access: access.to_vec(), constants };
        if let Some(p) = self.pipelines.get(&key) {
            return Ok(p.clone());
        }
        let layout = self.layout(access);
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let module = wgpu::ShaderModuleDescriptor {
            label: Some(d.shader.name),
            source: wgpu::ShaderSource::Wgsl(readable(&link(&key.source), access).into()),
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
            cache: self.compiled.as_ref(),
        });
        if let Some(e) = pollster::block_on(scope.pop()) {
            return Err(self.failed(format!("shader {}: {e}", d.shader.name)));
        }
        self.compiled_new = true;
        let pipeline = Arc::new(pipeline);
        self.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    /// Builds pipelines and bind groups; all parameters go into one uniform buffer.
    pub(super) fn build(&mut self, all: Vec<Wanted>) -> Result<Vec<Built>, DeviceError> {
        let align = self.limits.min_uniform_buffer_offset_alignment.max(256) as usize / 4;
        let mut params: Vec<u32> = Vec::new();
        let mut offsets = Vec::new();
        for Wanted { dispatch: d, .. } in &all {
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
        for (Wanted { nodes, dispatch: d, ranges }, offset) in all.iter().zip(offsets) {
            let written: Vec<&wgpu::Buffer> =
                ranges.iter().filter(|(b, _)| !matches!(b, Binding::Input(_))).map(|(_, r)| &r.buffer).collect();
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
            built.push(Built {
                pipeline,
                group,
                workgroups: d.workgroups,
                kernel: d.shader.name,
                nodes: nodes.clone(),
            });
        }
        self.check()?;
        Ok(built)
    }

    /// Leaves compiled pipelines to later runs.
    pub(super) fn remember_pipelines(&mut self) {
        if std::mem::take(&mut self.compiled_new)
            && let Some(data) = self.compiled.as_ref().and_then(wgpu::PipelineCache::get_data)
        {
            self.cache.write(PIPELINES, &data);
        }
    }
}
