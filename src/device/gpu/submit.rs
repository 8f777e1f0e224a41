//! Submissions: encodes the dispatches of several plans into one command buffer, and reads results back when they are ready.

use super::{Built, Gpu};
use crate::device::{DeviceError, Fetched, Run, Ticket, Timing, inputs_of};
use crate::ir::{Tensor, Type};
use std::sync::mpsc;

pub(super) struct InFlight {
    ticket: Ticket,
    pub(super) submission: wgpu::SubmissionIndex,
    staging: Option<wgpu::Buffer>,
    ready: Option<mpsc::Receiver<bool>>,
    /// For each run, its fetched outputs and where they stand in the staging buffer.
    fetched: Vec<Vec<(String, Type, u64)>>,
}

/// Submissions that may be under way at once: enough that the GPU never waits for the host.
const MAX_IN_FLIGHT: usize = 4;

impl Gpu {
    /// Waits for a submission, or looks whether any is done.
    pub(super) fn poll(&self, wait_for: Option<wgpu::SubmissionIndex>) -> Result<(), DeviceError> {
        let kind = match wait_for {
            Some(index) => wgpu::PollType::Wait { submission_index: Some(index), timeout: None },
            None => wgpu::PollType::Poll,
        };
        self.device.poll(kind).map_err(|e| self.failed(e.to_string()))?;
        self.check()
    }

    /// Takes the oldest submission if it is done.
    pub(super) fn take_done(&mut self) -> Result<Option<Fetched>, DeviceError> {
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

    pub(super) fn submit_runs(&mut self, runs: &[Run]) -> Result<Ticket, DeviceError> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            let oldest = self.in_flight[self.in_flight.len() - MAX_IN_FLIGHT].submission.clone();
            self.poll(Some(oldest))?;
        }
        let mut upload: Vec<u32> = Vec::new();
        // For each run: buffer, first word in the upload, and words of each input.
        let mut inputs: Vec<Vec<(wgpu::Buffer, u64, u64)>> = Vec::new();
        for run in runs {
            let loaded = &self.plans[run.plan.0];
            let mut parts = Vec::new();
            for ((name, _), t) in loaded.plan.graph.inputs().zip(inputs_of(&loaded.plan, run)?) {
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
                loaded.dispatches.iter().for_each(|d| d.encode(&mut pass));
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

    pub(super) fn profile_run(&mut self, run: &Run) -> Result<Vec<Timing>, DeviceError> {
        if !self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(self.failed("the adapter has no timestamps"));
        }
        let loaded = &self.plans[run.plan.0];
        for ((name, _), t) in loaded.plan.graph.inputs().zip(inputs_of(&loaded.plan, run)?) {
            if t.elements() > 0 {
                self.queue.write_buffer(&loaded.inputs[name], 0, bytemuck::cast_slice(t.words()));
            }
        }
        // Two times a dispatch, each dispatch in a pass of its own.
        const PER_SET: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
        let mut ticks: Vec<u64> = Vec::new();
        for part in loaded.dispatches.chunks(PER_SET) {
            ticks.extend(self.stamped(2 * part.len() as u32, |encoder, set| {
                for (i, d) in part.iter().enumerate() {
                    let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                        query_set: set,
                        beginning_of_pass_write_index: Some(2 * i as u32),
                        end_of_pass_write_index: Some(2 * i as u32 + 1),
                    });
                    let pass = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
                    d.encode(&mut encoder.begin_compute_pass(&pass));
                }
            })?);
        }
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for (from, to) in &loaded.copies {
            encoder.copy_buffer_to_buffer(&from.buffer, from.offset, &to.buffer, to.offset, from.size);
        }
        let index = self.queue.submit([encoder.finish()]);
        self.poll(Some(index))?;
        let first = ticks.first().copied().unwrap_or(0);
        let timing = |(d, t): (&Built, &[u64])| Timing {
            kernel: d.kernel.to_string(),
            nodes: d.nodes.clone(),
            start: self.between(first, t[0]),
            seconds: self.between(t[0], t[1]),
        };
        Ok(loaded.dispatches.iter().zip(ticks.chunks_exact(2)).map(timing).collect())
    }

    /// Seconds between two timestamps.
    pub(super) fn between(&self, from: u64, to: u64) -> f64 {
        to.saturating_sub(from) as f64 * self.queue.get_timestamp_period() as f64 * 1e-9
    }

    /// Submits what `encode` writes, waits for it, and gives the timestamps that it took, `count` of them.
    pub(super) fn stamped(
        &self,
        count: u32,
        encode: impl FnOnce(&mut wgpu::CommandEncoder, &wgpu::QuerySet),
    ) -> Result<Vec<u64>, DeviceError> {
        let set = self.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let size = count as u64 * 8;
        let make = |usage| {
            let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
            self.device.create_buffer(&descriptor)
        };
        let resolved = make(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let staging = make(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encode(&mut encoder, &set);
        encoder.resolve_query_set(&set, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, size);
        let index = self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |_| {});
        self.poll(Some(index))?;
        let view = staging.get_mapped_range(..).map_err(|e| self.failed(e.to_string()))?;
        let ticks = view.chunks_exact(8).map(|c| u64::from_ne_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]));
        Ok(ticks.collect())
    }
}
