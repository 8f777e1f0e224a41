//! The host as a device: primitives' own kernels on all cores, over planned memory.

use super::{Device, DeviceError, Fetched, PlanId, Run, Ticket, Timing, halves, inputs_of};
use crate::ir::{DType, Def, Leaf, Program, Tensor, Type, Value, Words};
use crate::ops::host;
use crate::ops::{CpuCall, Data, DataMut, elementwise};
use crate::plan::{Limits, Place, Plan, Step};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// A loaded plan.
struct Loaded {
    plan: Plan,
    /// For each step, what does not change from run to run.
    steps: Vec<Prepared>,
    /// Keys of the weights that are rounded to halves in this plan.
    rounded: BTreeSet<String>,
}

struct Prepared {
    types_in: Vec<Type>,
    types_out: Vec<Type>,
    /// The program of an elementwise step.
    program: Option<Arc<Program>>,
}

/// The cpu device.
#[derive(Default)]
pub struct Cpu {
    /// Bytes that one weight may have, if limited.
    max_weight: Option<u64>,
    states: HashMap<String, Vec<u32>>,
    /// By key, and whether they are rounded to halves.
    weights: HashMap<(String, bool), Arc<dyn Words>>,
    half_weights: bool,
    /// Shared by all plans, each as large as the largest of its number.
    arenas: Vec<Vec<u32>>,
    plans: Vec<Loaded>,
    done: Vec<Fetched>,
    next: u64,
}

impl Cpu {
    /// `max_weight` limits the bytes of one weight, as devices with small bindings do.
    pub fn new(max_weight: Option<u64>) -> Cpu {
        Cpu { max_weight, ..Cpu::default() }
    }

    /// Rounds the frozen weights that a GPU would keep as halves, so that both compute with the same numbers. Memory is what it
    /// is without.
    pub fn with_half_weights(self) -> Cpu {
        Cpu { half_weights: true, ..self }
    }
}

impl Device for Cpu {
    fn name(&self) -> String {
        format!("cpu ({} threads)", rayon::current_num_threads())
    }

    fn limits(&self) -> Limits {
        let weight_words = self.max_weight.map_or(usize::MAX / 8, |b| b as usize / 4);
        Limits {
            value_words: usize::MAX / 8,
            weight_words,
            arena_words: usize::MAX / 8,
            by_rows: false,
            busy_rows: 256,
            // Measured: rectangles of a tile lose to one pass over memory in order.
            endings: false,
        }
    }

    fn reserve(&mut self, state: &str, words: usize) -> Result<(), DeviceError> {
        if self.states.get(state).is_none_or(|s| s.len() != words) {
            self.states.insert(state.to_string(), vec![0; words]);
        }
        Ok(())
    }

    fn write(&mut self, state: &str, offset: usize, words: &[u32]) -> Result<(), DeviceError> {
        let buffer = self.states.get_mut(state).ok_or_else(|| unknown(state))?;
        buffer[offset..offset + words.len()].copy_from_slice(words);
        Ok(())
    }

    fn read(&mut self, state: &str) -> Result<Vec<u32>, DeviceError> {
        self.states.get(state).cloned().ok_or_else(|| unknown(state))
    }

    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        let rounded = if self.half_weights { halves::packable(&plan) } else { BTreeSet::new() };
        for info in &plan.graph.values {
            if let Def::Leaf(Leaf::Weight(w)) = &info.def {
                let key = (w.key(), rounded.contains(&w.key()));
                // Where the file holds the words as they are wanted, its pages serve in place of a copy.
                let whole = || w.held().cloned().unwrap_or_else(|| Arc::new(w.load()));
                let load = || match key.1.then(|| halves::round(&w.load())).flatten() {
                    Some(halves) => Arc::new(halves) as Arc<dyn Words>,
                    None => whole(),
                };
                self.weights.entry(key.clone()).or_insert_with(load);
            }
        }
        for place in plan.places.iter().flatten() {
            if let Place::State { name, .. } = place
                && !self.states.contains_key(name)
            {
                return Err(unknown(name));
            }
        }
        for (a, &words) in plan.arenas.iter().enumerate() {
            if self.arenas.len() <= a {
                self.arenas.push(vec![]);
            }
            if self.arenas[a].len() < words {
                self.arenas[a] = vec![0; words];
            }
        }
        let types = |vs: &[Value]| -> Vec<Type> { vs.iter().map(|&v| plan.graph.ty(v).clone()).collect() };
        let steps = plan
            .steps
            .iter()
            .map(|step| match step {
                Step::Copy { .. } => Prepared { types_in: vec![], types_out: vec![], program: None },
                Step::Node { node, .. } => {
                    let node = &plan.graph.nodes[*node];
                    let (types_in, types_out) = (types(&node.inputs), types(&node.outputs));
                    let fused = node.op == "fused"
                        || crate::ops::find(&node.op)
                            .is_some_and(|p| matches!(p.cpu, crate::ops::Cpu::Elementwise { .. }));
                    let program =
                        fused.then(|| elementwise::program_of(&node.op, &node.attrs, types_in.len(), &types_out[0]));
                    Prepared { types_in, types_out, program }
                }
            })
            .collect();
        self.plans.push(Loaded { plan, steps, rounded });
        Ok(PlanId(self.plans.len() - 1))
    }

    fn submit(&mut self, runs: Vec<Run>) -> Result<Ticket, DeviceError> {
        let ticket = Ticket(self.next);
        let mut out = Vec::new();
        for run in &runs {
            out.push(self.run(run, &mut |_, _, _| ())?);
        }
        self.next += 1;
        self.done.push(Fetched { ticket, runs: out });
        Ok(ticket)
    }

    fn collect(&mut self, _wait: bool) -> Result<Vec<Fetched>, DeviceError> {
        Ok(std::mem::take(&mut self.done))
    }

    fn profile(&mut self, run: &Run) -> Result<Vec<Timing>, DeviceError> {
        let (begin, mut timings) = (Instant::now(), Vec::new());
        let mut note = |kernel: &str, node, started: Instant| {
            let (start, seconds) = ((started - begin).as_secs_f64(), started.elapsed().as_secs_f64());
            timings.push(Timing { kernel: kernel.to_string(), node, start, seconds });
        };
        self.run(run, &mut note)?;
        Ok(timings)
    }

    fn plan(&self, id: PlanId) -> &Plan {
        &self.plans[id.0].plan
    }

    fn memory(&self) -> usize {
        let states: usize = self.states.values().map(Vec::len).sum();
        let weights: usize = self.weights.values().map(|w| w.words().len()).sum();
        let arenas: usize = self.arenas.iter().map(Vec::len).sum();
        4 * (states + weights + arenas)
    }
}

fn unknown(state: &str) -> DeviceError {
    DeviceError::Failed { device: "cpu".into(), why: format!("no state is called '{state}'") }
}

/// The words behind a place, as pointers: a run reads some places and writes others of one arena.
#[derive(Clone, Copy)]
struct Memory {
    words: *mut u32,
    len: usize,
}

impl Cpu {
    /// Runs a plan; `note` hears of each step when it is done: its kernel, its node, and when it began.
    fn run(
        &mut self,
        run: &Run,
        note: &mut dyn FnMut(&str, Option<usize>, Instant),
    ) -> Result<Vec<(String, Tensor)>, DeviceError> {
        let loaded = &self.plans[run.plan.0];
        let plan = &loaded.plan;
        let inputs = inputs_of(plan, run)?;
        let inputs: HashMap<&str, &Tensor> =
            plan.graph.inputs().into_iter().map(|(name, _)| name).zip(inputs).collect();
        let arenas: Vec<Memory> =
            self.arenas.iter_mut().map(|a| Memory { words: a.as_mut_ptr(), len: a.len() }).collect();
        let states: HashMap<&str, Memory> = self
            .states
            .iter_mut()
            .map(|(name, s)| (name.as_str(), Memory { words: s.as_mut_ptr(), len: s.len() }))
            .collect();
        // What is read only is behind a shared pointer, which nothing below writes through.
        let read_only = |words: &[u32]| Memory { words: words.as_ptr().cast_mut(), len: words.len() };
        let half = |key: &String| loaded.rounded.contains(key);
        let weights: HashMap<&str, Memory> = self
            .weights
            .iter()
            .filter(|((key, rounded), _)| *rounded == half(key))
            .map(|((key, _), w)| (key.as_str(), read_only(w.words())))
            .collect();
        let at = |place: &Place, words: usize| -> Memory {
            let (memory, offset) = match place {
                Place::Arena { arena, offset } => (arenas[*arena], *offset),
                Place::State { name, offset } => (states[name.as_str()], *offset),
                Place::Input(name) => (read_only(inputs[name.as_str()].words()), 0),
                Place::Weight(name) => (weights[name.as_str()], 0),
                Place::Constant(v) => (read_only(plan.graph.constant(*v).expect("a constant").words()), 0),
            };
            assert!(offset + words <= memory.len, "{place} is within its buffer");
            // SAFETY: in bounds by the assertion.
            Memory { words: unsafe { memory.words.add(offset) }, len: words }
        };
        for (step, prepared) in plan.steps.iter().zip(&loaded.steps) {
            let began = Instant::now();
            match step {
                Step::Copy { from, to } => {
                    let n = plan.graph.ty(*from).elements();
                    let (src, dst) = (at(plan.place(*from), n), at(to, n));
                    // SAFETY: both are `n` words long; `copy` allows overlap.
                    unsafe { std::ptr::copy(src.words, dst.words, n) };
                    note("copy", None, began);
                }
                Step::Node { node: index, in_place } => {
                    let node = &plan.graph.nodes[*index];
                    let memory = |v: Value, ty: &Type| at(plan.place(v), ty.elements());
                    let ins: Vec<Data<f32>> = node
                        .inputs
                        .iter()
                        .zip(&prepared.types_in)
                        .enumerate()
                        .map(|(i, (&v, ty))| {
                            let shared = in_place.iter().any(|p| p.0 == i);
                            let m =
                                if shared { Memory { words: std::ptr::dangling_mut(), len: 0 } } else { memory(v, ty) };
                            // SAFETY: the plan was checked: no output of this step overlaps an input but those it lists
                            // as in place, which are empty here. Words are valid as every element type.
                            unsafe { data(m, ty.dtype) }
                        })
                        .collect();
                    let mut outs: Vec<DataMut<f32>> = node
                        .outputs
                        .iter()
                        .zip(&prepared.types_out)
                        // SAFETY: as above; outputs of one step do not overlap each other.
                        .map(|(&v, ty)| unsafe { data_mut(memory(v, ty), ty.dtype) })
                        .collect();
                    let mut call = CpuCall {
                        in_place,
                        attrs: &node.attrs,
                        types_in: &prepared.types_in,
                        types_out: &prepared.types_out,
                        ins: &ins,
                        outs: &mut outs,
                    };
                    match &prepared.program {
                        Some(program) => elementwise::run(program, &mut call),
                        None => host::call(&node.op, &mut call),
                    }
                    note(&node.op, Some(*index), began);
                }
            }
        }
        let fetch = |f: &crate::plan::Fetch| {
            let ty = plan.graph.ty(f.value);
            let m = at(plan.place(f.value), ty.elements());
            // SAFETY: nothing writes while the words are copied.
            let words = unsafe { std::slice::from_raw_parts(m.words, m.len) }.to_vec();
            (f.name.clone(), Tensor::from_words(ty, words))
        };
        Ok(plan.fetches.iter().map(fetch).collect())
    }
}

/// # Safety
/// The words must stay valid and unwritten for `'a`.
unsafe fn data<'a>(m: Memory, dtype: DType) -> Data<'a, f32> {
    // SAFETY: by the caller; f32, i32 and u32 are alike in size and alignment.
    unsafe {
        match dtype {
            DType::F32 => Data::Float(std::slice::from_raw_parts(m.words.cast::<f32>(), m.len)),
            DType::I32 | DType::Bool => Data::Int(std::slice::from_raw_parts(m.words.cast::<i32>(), m.len)),
        }
    }
}

/// # Safety
/// The words must stay valid for `'a`, and nothing else may use them.
unsafe fn data_mut<'a>(m: Memory, dtype: DType) -> DataMut<'a, f32> {
    // SAFETY: as above.
    unsafe {
        match dtype {
            DType::F32 => DataMut::Float(std::slice::from_raw_parts_mut(m.words.cast::<f32>(), m.len)),
            DType::I32 | DType::Bool => DataMut::Int(std::slice::from_raw_parts_mut(m.words.cast::<i32>(), m.len)),
        }
    }
}
