//! GPU buffers: weights, states, constants, and the buffer range behind each place of a plan.

use super::{Gpu, Own, Range};
use crate::device::{Device, DeviceError, halves, host_memory};
use crate::ir::{Def, Leaf, Tensor, Type, Value, Weight};
use crate::plan::{Place, Plan};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Tensors that share a buffer begin at multiples of this many words: 256 bytes, the coarsest alignment that adapters ask for.
const ALIGN: usize = 64;

/// The most words of a buffer that weights share.
const SHARED: usize = 1 << 24;

impl Gpu {
    /// A buffer of at least one word; running out of memory is an error, not a panic.
    pub(super) fn buffer(
        &mut self,
        words: usize,
        usage: wgpu::BufferUsages,
        what: &str,
    ) -> Result<wgpu::Buffer, DeviceError> {
        let size = (words.max(1) * 4) as u64;
        let memory = |device: String| DeviceError::Memory { device, bytes: size as usize, what: what.to_string() };
        if size > self.limits.max_buffer_size {
            return Err(memory(self.name()));
        }
        if self.traits.software {
            host_memory::check(size as usize, what, || self.name())?;
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

    pub(super) fn storage(&mut self, words: usize, what: &str) -> Result<wgpu::Buffer, DeviceError> {
        use wgpu::BufferUsages as U;
        self.buffer(words, U::STORAGE | U::COPY_DST | U::COPY_SRC, what)
    }

    /// Loads weights in the form that a plan reads them in, those that no earlier plan has, one after the other in few buffers. One that
    /// halves cannot hold is taken out of those that the plan reads packed.
    pub(super) fn load_weights(&mut self, plan: &Plan, own: &mut Own) -> Result<(), DeviceError> {
        let mut seen = BTreeSet::new();
        let mut fresh: Vec<(&Weight, usize)> = Vec::new();
        for info in &plan.graph.values {
            let Def::Leaf(Leaf::Weight(w)) = &info.def else { continue };
            let key = w.key();
            if self.out_of_range.contains(&key) {
                own.packed.remove(&key);
            }
            let packed = own.packed.contains(&key);
            if !self.weights.contains_key(&(key.clone(), packed)) && seen.insert(key) {
                let words = if packed { info.ty.elements().div_ceil(2) } else { info.ty.elements() };
                fresh.push((w, words.max(1).next_multiple_of(ALIGN)));
            }
        }
        // The buffer that is being filled: its next free word and its end.
        let mut open: Option<(wgpu::Buffer, usize, usize)> = None;
        for (i, &(w, room)) in fresh.iter().enumerate() {
            let key = w.key();
            let packed = own.packed.contains(&key);
            let tensor = w.load();
            let halves = if packed { tensor.as_f32().and_then(halves::pack::<half::f16>) } else { None };
            if packed && halves.is_none() {
                self.out_of_range.insert(key.clone());
                own.packed.remove(&key);
            }
            let words = halves.as_deref().unwrap_or(tensor.words());
            if words.len() > self.value_words {
                let (ty, mib) = (tensor.ty(), self.value_words >> 18);
                let why = format!(
                    "weight '{key}' of {ty} does not fit one binding of {mib} MiB, and is not used in a way that can be split"
                );
                return Err(self.failed(why));
            }
            // Halves that turned out to be none take more room than was kept.
            let alone = words.len() > room || room > SHARED;
            let (buffer, at) = match open.take_if(|_| !alone) {
                _ if alone => (self.storage(words.len(), &key)?, 0),
                Some((buffer, at, end)) if at + room <= end => {
                    open = Some((buffer.clone(), at + room, end));
                    (buffer, at)
                }
                _ => {
                    // As large as those that will share it.
                    let mut end = 0;
                    for room in fresh[i..].iter().map(|f| f.1).filter(|&room| room <= SHARED) {
                        if end + room > SHARED {
                            break;
                        }
                        end += room;
                    }
                    let buffer = self.storage(end, "weights")?;
                    open = Some((buffer.clone(), room, end));
                    (buffer, 0)
                }
            };
            let (offset, size) = (at as u64 * 4, words.len().max(1) as u64 * 4);
            self.queue.write_buffer(&buffer, offset, bytemuck::cast_slice(words));
            self.weights.insert((key, halves.is_some()), Range { buffer, offset, size });
        }
        Ok(())
    }

    /// Memory for what dispatches of one node leave each other.
    pub(super) fn scratch(&mut self, words: usize) -> Result<Range, DeviceError> {
        let size = (words.max(1) * 4) as u64;
        let buffer = match self.scratch.take().filter(|b| b.size() >= size) {
            Some(buffer) => buffer,
            None => self.storage(words, "scratch")?,
        };
        self.scratch = Some(buffer.clone());
        Ok(Range { buffer, offset: 0, size })
    }

    /// The bytes that a place stands for, given the plan's own buffers.
    pub(super) fn range(&self, place: &Place, ty: &Type, own: &Own) -> Result<Range, DeviceError> {
        let packed = own.packs(place);
        let words = if packed { ty.elements().div_ceil(2) } else { ty.elements() };
        let size = (words.max(1) * 4) as u64;
        let (buffer, offset) = match place {
            Place::Arena { arena, offset } => (self.arenas[*arena].clone(), *offset),
            Place::State { name, offset } => {
                let state = self.states.get(name).ok_or_else(|| self.failed(format!("no state is called '{name}'")))?;
                (state.clone(), *offset)
            }
            Place::Input(name) => (own.inputs[name].clone(), 0),
            Place::Weight(name) => return Ok(self.weights[&(name.clone(), packed)].clone()),
            Place::Constant(v) => {
                let (buffer, offset) = &own.constants[v];
                (buffer.clone(), *offset)
            }
        };
        Ok(Range { buffer, offset: offset as u64 * 4, size })
    }

    /// Uploads the constants of a plan into one buffer (or several, where one would exceed a binding).
    pub(super) fn constants(&mut self, plan: &Plan, own: &mut Own) -> Result<(), DeviceError> {
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

    /// All words of a buffer, after all that was submitted.
    pub(super) fn content(&self, buffer: &wgpu::Buffer) -> Result<Vec<u32>, DeviceError> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read"),
            size: buffer.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
        let index = self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |_| {});
        self.poll(Some(index))?;
        let view = staging.get_mapped_range(..).map_err(|e| self.failed(e.to_string()))?;
        Ok(view.chunks_exact(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]])).collect())
    }

    /// A buffer to copy a submission's inputs from.
    pub(super) fn upload(&self, words: &[u32]) -> Option<wgpu::Buffer> {
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
    pub(super) fn take_staging(&mut self, size: u64) -> wgpu::Buffer {
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
}
