//! Autotuning: times kernels that give the same bits, once for each kind of call and adapter, and caches the fastest.

use super::{Built, Gpu, Range, Wanted};
use crate::device::DeviceError;
use crate::device::cache::Cache;
use crate::ir::Type;
use crate::ops::{self, Binding, Dispatch, GpuCall};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Instant;

/// Who won.
#[derive(Default)]
pub(super) struct Tuner {
    /// Whether races are run; without, every call gets the kernel of a fixed rule.
    on: bool,
    /// What wins without a race.
    fixed: Option<String>,
    /// By kind of call.
    winners: BTreeMap<String, String>,
    cache: Cache,
    /// Some winner is not in the cache yet.
    fresh: bool,
}

/// The cache's file.
const FILE: &str = "kernels";
/// The largest extent that is raced: beyond it, kernels' times grow alike.
const MOST_EXTENT: usize = 4096;
/// Words that the operands of a race may take together.
const MOST_WORDS: usize = 1 << 28;
/// How long one measurement should take, in seconds, and how many there are of each kernel.
const MEASURED: f64 = 1e-3;
const REPEATED: usize = 3;

/// Buffers that stand for a call's operands: inputs, outputs and scratch, by number.
#[derive(Default)]
pub(super) struct Operands(BTreeMap<(u8, usize), Range>);

impl Operands {
    pub(super) fn range(&self, binding: Binding) -> Range {
        let place = match binding {
            Binding::Input(i) => (0, i),
            Binding::Output(o) => (1, o),
            Binding::Scratch(words) => (2, words),
        };
        self.0[&place].clone()
    }

    pub(super) fn bind(&self, dispatches: Vec<Dispatch>) -> Vec<Wanted> {
        let ranges = |d: &Dispatch| d.bindings.iter().map(|&b| (b, self.range(b))).collect();
        dispatches.into_iter().map(|d| Wanted { nodes: vec![0], ranges: ranges(&d), dispatch: d }).collect()
    }
}

impl Tuner {
    pub(super) fn new(on: bool, fixed: Option<String>, cache: Cache) -> Tuner {
        let known = if on { cache.read(FILE) } else { None };
        let winners = known.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Tuner { on, fixed, winners, cache, fresh: false }
    }
}

impl Gpu {
    /// The kernel for a call among those it may choose from, raced if no call of its kind was before.
    pub(super) fn choose(&mut self, op: &str, call: &GpuCall) -> Result<Option<&'static str>, DeviceError> {
        if !self.tuner.on {
            return Ok(None);
        }
        let candidates = ops::candidates(op, call);
        if let Some(fixed) = &self.tuner.fixed {
            return Ok(candidates.into_iter().find(|c| c == fixed));
        }
        if candidates.len() < 2 {
            return Ok(candidates.first().copied());
        }
        let kind = kind(op, call);
        let known = self.tuner.winners.get(&kind);
        if let Some(&name) = candidates.iter().find(|c| known.is_some_and(|k| k == *c)) {
            return Ok(Some(name));
        }
        let winner = self.race(op, call, &candidates)?;
        if let Some(name) = winner {
            self.tuner.winners.insert(kind, name.to_string());
            self.tuner.fresh = true;
        }
        Ok(winner)
    }

    /// A decision that was made before under this name; none unless races are run.
    pub(super) fn decided(&self, name: &str) -> Option<&str> {
        self.tuner.winners.get(name).map(String::as_str)
    }

    pub(super) fn decide(&mut self, name: &str, how: &str) {
        self.tuner.winners.insert(name.to_string(), how.to_string());
        self.tuner.fresh = self.tuner.on;
    }

    pub(super) fn races(&self) -> bool {
        self.tuner.on
    }

    /// Writes winners that the cache does not hold yet, beside those that other runs have put there since.
    pub(super) fn remember_winners(&mut self) {
        if !std::mem::take(&mut self.tuner.fresh) {
            return;
        }
        let there = self.tuner.cache.read(FILE).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut all: BTreeMap<String, String> = there.unwrap_or_default();
        all.extend(self.tuner.winners.clone());
        self.tuner.cache.write(FILE, &serde_json::to_vec_pretty(&all).expect("names"));
    }

    /// The winners so far, by kind of call.
    pub fn winners(&self) -> &BTreeMap<String, String> {
        &self.tuner.winners
    }

    /// Runs every candidate on operands of the call's shape. `None` where they would take too much memory.
    fn race(
        &mut self,
        op: &str,
        call: &GpuCall,
        candidates: &[&'static str],
    ) -> Result<Option<&'static str>, DeviceError> {
        let clamped = |types: &[Type]| -> Vec<Type> {
            let extents = |t: &Type| t.shape.iter().map(|&d| d.min(MOST_EXTENT)).collect::<Vec<_>>();
            types.iter().map(|t| Type::new(t.dtype, extents(t))).collect()
        };
        let (types_in, types_out) = (clamped(call.types_in), clamped(call.types_out));
        let words: usize = types_in.iter().chain(&types_out).map(Type::elements).sum();
        if words > MOST_WORDS {
            return Ok(None);
        }
        let in_use = self.bytes;
        let best = self.race_on(op, &GpuCall { types_in: &types_in, types_out: &types_out, ..*call }, candidates);
        // The operands are gone with the race.
        self.bytes = in_use;
        match best {
            Err(DeviceError::Memory { .. }) => Ok(None),
            other => other,
        }
    }

    fn race_on(
        &mut self,
        op: &str,
        call: &GpuCall,
        candidates: &[&'static str],
    ) -> Result<Option<&'static str>, DeviceError> {
        let named = |name| ops::dispatches(op, &GpuCall { variant: Some(name), ..*call });
        let all: Vec<Vec<Dispatch>> = candidates.iter().map(|&name| named(name)).collect();
        let operands = self.made_up(call, &all)?;
        let mut best: Option<(f64, &'static str)> = None;
        for (name, dispatches) in candidates.iter().zip(all) {
            let least = self.fastest(dispatches, &operands)?;
            if best.is_none_or(|b| least < b.0) {
                best = Some((least, name));
            }
        }
        Ok(best.map(|b| b.1))
    }

    /// Buffers for a call that one of `all` computes, with numbers in them.
    pub(super) fn made_up(&mut self, call: &GpuCall, all: &[Vec<Dispatch>]) -> Result<Operands, DeviceError> {
        let mut operands = Operands::default();
        for binding in all.iter().flatten().flat_map(|d| &d.bindings) {
            let (place, words) = match *binding {
                Binding::Input(i) => ((0, i), call.types_in[i].elements().div_ceil(if call.packs(i) { 2 } else { 1 })),
                Binding::Output(o) => ((1, o), call.types_out[o].elements()),
                Binding::Scratch(words) => ((2, words), words),
            };
            if let Entry::Vacant(free) = operands.0.entry(place) {
                let buffer = self.storage(words, "race")?;
                // Around one, with digits below those of a half: zeros would be multiplied at less power than a real step
                // takes. Read as pairs of halves, they are ordinary numbers too.
                let number = |i: usize| 0x3f80_3c00u32 | (i as u32).wrapping_mul(2_654_435_761) >> 12 & 0x3f_03ff;
                let content: Vec<u32> = (0..words).map(number).collect();
                self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&content));
                free.insert(Range { size: buffer.size(), buffer, offset: 0 });
            }
        }
        Ok(operands)
    }

    /// The least time that these dispatches take, of several measurements.
    pub(super) fn fastest(&mut self, dispatches: Vec<Dispatch>, operands: &Operands) -> Result<f64, DeviceError> {
        let built = self.build(operands.bind(dispatches))?;
        let once = self.seconds(&built, 1)?.max(1e-7);
        let times = (MEASURED / once).clamp(1.0, 64.0) as usize;
        let mut least = f64::INFINITY;
        for _ in 0..REPEATED {
            least = least.min(self.seconds(&built, times)? / times as f64);
        }
        Ok(least)
    }

    /// How long it takes to run these dispatches so many times.
    pub(super) fn seconds(&self, built: &[Built], times: usize) -> Result<f64, DeviceError> {
        if self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            let ticks = self.stamped(2, |encoder, set| {
                let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                    query_set: set,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                });
                let pass = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
                let mut pass = encoder.begin_compute_pass(&pass);
                (0..times).for_each(|_| built.iter().for_each(|b| b.encode(&mut pass)));
            })?;
            return Ok(self.between(ticks[0], ticks[1]));
        }
        let began = Instant::now();
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            (0..times).for_each(|_| built.iter().for_each(|b| b.encode(&mut pass)));
        }
        let index = self.queue.submit([encoder.finish()]);
        self.poll(Some(index))?;
        Ok(began.elapsed().as_secs_f64())
    }
}

/// What calls that share a winner have in common: everything but extents, which count to the next power of two and by whether
/// they are divisible by four.
fn kind(op: &str, call: &GpuCall) -> String {
    let extent = |&d: &usize| {
        let by_four = if d.is_multiple_of(4) { "" } else { "+" };
        format!("{}{by_four}", d.min(MOST_EXTENT).next_power_of_two())
    };
    let operand = |(i, t): (usize, &Type)| {
        let dtype = if call.packs(i) { "f16".to_string() } else { t.dtype.to_string() };
        format!("{dtype}[{}]", t.shape.iter().map(extent).collect::<Vec<_>>().join(","))
    };
    let operands: Vec<String> = call.types_in.iter().enumerate().map(operand).collect();
    let attrs: Vec<String> = call.attrs.0.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{op} {} {}", operands.join(" "), attrs.join(" "))
}
