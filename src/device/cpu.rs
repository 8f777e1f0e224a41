//! The CPU device: each primitive's own kernel, on all cores, over planned memory. Once threads have their workspace, running a plan
//! allocates only what it returns.

use super::{Device, DeviceError, Fetched, PlanId, Run, Ticket, Timing, halves, host_memory, inputs_of, tiles};
use crate::ir::{DType, Def, FloatType, Leaf, Program, Tensor, Type, Value, ValueInfo, Weight, Words};
use crate::ops::{self, CpuCall, Data, DataMut, elementwise, host};
use crate::plan::{DeviceProfile, Limits, Place, Plan, Step};
use half::{bf16, f16};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A loaded plan.
struct Loaded {
    plan: Plan,
    /// Where each value is; `None` for values that nothing uses.
    slots: Vec<Option<Slot>>,
    /// For each step, what does not change from run to run.
    steps: Vec<Prepared>,
}

/// A place, by number.
#[derive(Clone, Copy)]
enum Slot {
    Arena {
        arena: usize,
        offset: usize,
    },
    State {
        state: usize,
        offset: usize,
    },
    Input(usize),
    Weight(usize),
    Constant(Value),
    /// A weight that is read in tiles alone.
    Tiles,
}

enum Prepared {
    Copy {
        to: Slot,
    },
    Node {
        types_in: Vec<Type>,
        types_out: Vec<Type>,
        /// The program of an elementwise step.
        program: Option<Arc<Program>>,
        tiles: tiles::Read,
    },
}

/// How a frozen weight is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    AsIs,
    /// Each element rounded to the type, as f32: for kernels that cannot read it.
    Rounded(FloatType),
    /// Two elements of 16 bits in a word.
    Packed(FloatType),
}

impl Form {
    fn packed(self) -> Option<FloatType> {
        match self {
            Form::Packed(t) => Some(t),
            _ => None,
        }
    }
}

struct Held {
    words: *const u32,
    len: usize,
    form: Form,
    /// Keeps the words where they are.
    _owner: Arc<dyn Words>,
}

// SAFETY: the words are behind a shared reference that the owner gives out, and never written.
unsafe impl Send for Held {}
unsafe impl Sync for Held {}

impl Held {
    fn new(owner: Arc<dyn Words>, form: Form) -> Held {
        let words = owner.words();
        Held { words: words.as_ptr(), len: words.len(), form, _owner: owner }
    }

    fn memory(&self) -> Memory {
        Memory { words: self.words.cast_mut(), len: self.len, packed: self.form.packed() }
    }
}

/// The cpu device.
#[derive(Default)]
pub struct Cpu {
    /// Bytes that one weight may have, if limited.
    max_weight: Option<u64>,
    states: Vec<Vec<u32>>,
    state_numbers: HashMap<String, usize>,
    weights: Vec<Held>,
    /// By key, and the form that was asked for.
    weight_numbers: HashMap<(String, Form), usize>,
    /// The type of frozen weights.
    kept: FloatType,
    /// Whether units for bf16 are left idle.
    plain: bool,
    tiles: tiles::Weights,
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

    /// Rounds the frozen weights that a GPU would keep as halves to this type, so that both compute with the same numbers, and keeps them
    /// in it where its own kernels can read that.
    pub fn with_weights(self, kept: FloatType) -> Cpu {
        Cpu { kept, ..self }
    }

    /// Says of itself that it has no units for bf16.
    pub fn without_units(self) -> Cpu {
        Cpu { plain: true, ..self }
    }

    fn state(&self, name: &str) -> Result<usize, DeviceError> {
        let why = || format!("no state is called '{name}'");
        self.state_numbers.get(name).copied().ok_or_else(|| DeviceError::Failed { device: "cpu".into(), why: why() })
    }

    /// The number of a weight in a form, loaded if it is new.
    fn weight(&mut self, weight: &Weight, form: Form) -> usize {
        let number = self.weights.len();
        *self.weight_numbers.entry((weight.key(), form)).or_insert_with(|| {
            // Where the file holds the words as they are wanted, its pages serve in place of a copy.
            let as_is = || Held::new(weight.held().cloned().unwrap_or_else(|| Arc::new(weight.load())), Form::AsIs);
            let converted = |convert: fn(&[f32]) -> Option<Vec<u32>>| {
                let words = match weight.held() {
                    Some(held) => {
                        let words = convert(bytemuck::cast_slice(held.words()));
                        held.release();
                        words
                    }
                    None => weight.load().as_f32().and_then(convert),
                };
                words.map(|words| Held::new(Arc::new(words), form)).unwrap_or_else(as_is)
            };
            self.weights.push(match form {
                Form::AsIs => as_is(),
                Form::Rounded(FloatType::Bf16) => converted(halves::round::<bf16>),
                Form::Rounded(_) => converted(halves::round::<f16>),
                Form::Packed(FloatType::Bf16) => converted(halves::pack::<bf16>),
                Form::Packed(_) => converted(halves::pack::<f16>),
            });
            number
        })
    }
}

impl Device for Cpu {
    fn name(&self) -> String {
        let unit = match self.fast_products() {
            FloatType::F32 => String::new(),
            _ => format!(", {}", ops::Unit::here().name()),
        };
        format!("cpu ({} threads{unit})", rayon::current_num_threads())
    }

    fn fast_products(&self) -> FloatType {
        if !self.plain && ops::Unit::here().is_hardware() { FloatType::Bf16 } else { FloatType::F32 }
    }

    fn limits(&self) -> Limits {
        let weight_words = self.max_weight.map_or(usize::MAX / 8, |b| b as usize / 4);
        Limits {
            value_words: usize::MAX / 8,
            weight_words,
            arena_words: usize::MAX / 8,
            profile: DeviceProfile {
                busy_rows: 256,
                row_major_products: false,
                slow_attention: false,
                // Measured: rectangles of a tile lose to one pass over memory in order.
                fast_epilogues: false,
                fast_long_terms: false,
                // Its products pack right operands and read left ones from the cache.
                fast_grouped_products: false,
                buffers: 8,
                rest: 0,
            },
        }
    }

    fn reserve(&mut self, state: &str, words: usize) -> Result<(), DeviceError> {
        let there = self.state_numbers.get(state).copied();
        if there.is_some_and(|number| self.states[number].len() == words) {
            return Ok(());
        }
        host_memory::check(words * 4, state, || self.name())?;
        match there {
            Some(number) => self.states[number] = vec![0; words],
            None => {
                self.state_numbers.insert(state.to_string(), self.states.len());
                self.states.push(vec![0; words]);
            }
        }
        Ok(())
    }

    fn write(&mut self, state: &str, offset: usize, words: &[u32]) -> Result<(), DeviceError> {
        let number = self.state(state)?;
        self.states[number][offset..offset + words.len()].copy_from_slice(words);
        Ok(())
    }

    fn read(&mut self, state: &str) -> Result<Vec<u32>, DeviceError> {
        Ok(self.states[self.state(state)?].clone())
    }

    fn load(&mut self, plan: Plan) -> Result<PlanId, DeviceError> {
        let packable = |unpacks| match self.kept {
            FloatType::F32 => Default::default(),
            _ => halves::packable(&plan, unpacks),
        };
        let (halved, packed) = (packable(ops::unpacks), packable(ops::unpacks_on_host));
        let inputs: HashMap<&str, usize> = plan.graph.inputs().enumerate().map(|(i, (name, _))| (name, i)).collect();
        let leaf = |info: &ValueInfo| match &info.def {
            Def::Leaf(Leaf::Weight(weight)) => Some((weight.key(), weight.clone())),
            _ => None,
        };
        // Values under another shape have their weight's place too.
        let weights: HashMap<String, Weight> = plan.graph.values.iter().filter_map(leaf).collect();
        let reads = tiles::Reads::of(&plan);
        let in_tiles = reads.alone();
        // A weight that the file itself holds as it is wanted takes no memory of its own.
        let mut copied: HashMap<String, usize> = HashMap::new();
        for info in &plan.graph.values {
            let Some((key, weight)) = leaf(info) else { continue };
            let known = |form| self.weight_numbers.contains_key(&(key.clone(), form));
            let in_place = weight.held().is_some() && !halved.contains(&key);
            let known = [Form::AsIs, Form::Rounded(self.kept), Form::Packed(self.kept)].into_iter().any(known);
            if !in_place && !known && !in_tiles.contains(&key) {
                let bytes = info.ty.elements() * if packed.contains(&key) { 2 } else { 4 };
                copied.insert(key, bytes);
            }
        }
        host_memory::check(copied.values().sum::<usize>() + self.tiles.missing(&reads), "frozen weights", || {
            self.name()
        })?;
        self.tiles.load(&reads, &weights);
        let read: Vec<tiles::Read> = reads.steps.iter().map(|step| self.tiles.read(step)).collect();
        let mut slot = |place: &Place| -> Result<Slot, DeviceError> {
            Ok(match place {
                &Place::Arena { arena, offset } => Slot::Arena { arena, offset },
                Place::State { name, offset } => Slot::State { state: self.state(name)?, offset: *offset },
                Place::Input(name) => Slot::Input(inputs[name.as_str()]),
                &Place::Constant(v) => Slot::Constant(v),
                Place::Weight(key) if in_tiles.contains(key) => Slot::Tiles,
                Place::Weight(key) => {
                    let form = match () {
                        _ if !halved.contains(key) => Form::AsIs,
                        _ if packed.contains(key) => Form::Packed(self.kept),
                        _ => Form::Rounded(self.kept),
                    };
                    Slot::Weight(self.weight(&weights[key], form))
                }
            })
        };
        let places = plan.places.iter().map(|place| place.as_ref().map(&mut slot).transpose());
        let slots = places.collect::<Result<_, _>>()?;
        let types = |vs: &[Value]| -> Vec<Type> { vs.iter().map(|&v| plan.graph.ty(v).clone()).collect() };
        let mut steps = Vec::new();
        for (step, tiles) in plan.steps.iter().zip(read) {
            steps.push(match step {
                Step::Copy { to, .. } => Prepared::Copy { to: slot(to)? },
                Step::Node { node, .. } => {
                    let node = &plan.graph.nodes[*node];
                    let (types_in, types_out) = (types(&node.inputs), types(&node.outputs));
                    let program = ops::is_elementwise(&node.op)
                        .then(|| elementwise::program_of(&node.op, &node.attrs, types_in.len(), &types_out[0]));
                    Prepared::Node { types_in, types_out, program, tiles }
                }
            });
        }
        let more = (plan.arenas.iter().enumerate())
            .filter(|(a, words)| self.arenas.get(*a).map_or(0, Vec::len) < **words)
            .map(|(_, words)| words * 4);
        host_memory::check(more.sum(), "values of a step", || self.name())?;
        for (a, &words) in plan.arenas.iter().enumerate() {
            if self.arenas.len() <= a {
                self.arenas.push(vec![]);
            }
            if self.arenas[a].len() < words {
                self.arenas[a] = vec![]; // not two at once
                self.arenas[a] = vec![0; words];
            }
        }
        self.plans.push(Loaded { plan, slots, steps });
        Ok(PlanId(self.plans.len() - 1))
    }

    fn submit(&mut self, runs: Vec<Run>) -> Result<Ticket, DeviceError> {
        let ticket = Ticket(self.next);
        let mut out = Vec::new();
        for run in &runs {
            out.push(self.run_on_pool(run, &mut |_, _, _| ())?);
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
        let mut note = |kernel: &str, node: Option<usize>, started: Instant| {
            let (start, seconds) = ((started - begin).as_secs_f64(), started.elapsed().as_secs_f64());
            let nodes = node.into_iter().collect();
            timings.push(Timing { kernel: kernel.to_string(), nodes, start, seconds });
        };
        self.run_on_pool(run, &mut note)?;
        Ok(timings)
    }

    fn plan(&self, id: PlanId) -> &Plan {
        &self.plans[id.0].plan
    }

    fn memory(&self) -> usize {
        let states: usize = self.states.iter().map(Vec::len).sum();
        let weights: usize = self.weights.iter().map(|w| w.len).sum();
        let arenas: usize = self.arenas.iter().map(Vec::len).sum();
        4 * (states + weights + arenas) + self.tiles.bytes()
    }
}

/// The words behind a place, as pointers: a run reads some places and writes others of one arena.
#[derive(Clone, Copy)]
struct Memory {
    words: *mut u32,
    len: usize,
    /// The type of which each word holds two.
    packed: Option<FloatType>,
}

impl Memory {
    fn of(words: &mut [u32]) -> Memory {
        Memory { words: words.as_mut_ptr(), len: words.len(), packed: None }
    }

    /// Words behind a shared pointer, which nothing writes through.
    fn read_only(words: &[u32]) -> Memory {
        Memory { words: words.as_ptr().cast_mut(), len: words.len(), packed: None }
    }

    fn nothing() -> Memory {
        Memory { words: std::ptr::dangling_mut(), len: 0, packed: None }
    }
}

/// As many results as are listed without an allocation.
const FEW: usize = 16;

/// Hears of each step when it is done: its kernel, its node, and when it began.
type Note<'a> = &'a mut (dyn FnMut(&str, Option<usize>, Instant) + Send);

impl Cpu {
    /// Runs a plan from a thread of the pool, so that handing work to the others needs no more than that they wake.
    fn run_on_pool(&mut self, run: &Run, note: Note) -> Result<Vec<(String, Tensor)>, DeviceError> {
        let mut result = None;
        rayon::scope(|_| result = Some(self.run(run, note)));
        result.expect("the scope has run")
    }

    fn run(&mut self, run: &Run, note: Note) -> Result<Vec<(String, Tensor)>, DeviceError> {
        let Loaded { plan, slots, steps } = &self.plans[run.plan.0];
        let inputs = inputs_of(plan, run)?;
        let arenas: SmallVec<[Memory; 4]> = self.arenas.iter_mut().map(|a| Memory::of(a)).collect();
        let states: SmallVec<[Memory; 32]> = self.states.iter_mut().map(|s| Memory::of(s)).collect();
        let weights = &self.weights;
        let at = |slot: Slot, elements: usize| -> Memory {
            let (memory, offset) = match slot {
                Slot::Arena { arena, offset } => (arenas[arena], offset),
                Slot::State { state, offset } => (states[state], offset),
                Slot::Input(i) => (Memory::read_only(inputs[i].words()), 0),
                Slot::Weight(w) => (weights[w].memory(), 0),
                Slot::Constant(v) => (Memory::read_only(plan.graph.constant(v).expect("a constant").words()), 0),
                Slot::Tiles => unreachable!("kernels are given the tiles"),
            };
            let words = if memory.packed.is_some() { elements.div_ceil(2) } else { elements };
            assert!(offset + words <= memory.len, "a value is within its buffer");
            // SAFETY: in bounds by the assertion.
            Memory { words: unsafe { memory.words.add(offset) }, len: elements, ..memory }
        };
        let memory =
            |v: Value, ty: &Type| at(slots[v.index()].expect("values that steps use have a place"), ty.elements());
        for (step, prepared) in plan.steps.iter().zip(steps) {
            let began = Instant::now();
            match (step, prepared) {
                (Step::Node { node: index, in_place }, Prepared::Node { types_in, types_out, program, tiles }) => {
                    let node = &plan.graph.nodes[*index];
                    let input = |(i, (&v, ty)): (usize, (&Value, &Type))| {
                        if let Some(&(_, number)) = tiles.iter().find(|t| t.0 == i) {
                            return Data::Packed(self.tiles.get(number));
                        }
                        let shared = in_place.iter().any(|p| p.0 == i);
                        let m = if shared { Memory::nothing() } else { memory(v, ty) };
                        // SAFETY: the plan was checked: no output of this step overlaps an input but those it lists
                        // as in place, which are empty here. Words are valid as every element type.
                        unsafe { data(m, ty.dtype) }
                    };
                    let ins: SmallVec<[Data<f32>; 8]> =
                        node.inputs.iter().zip(types_in).enumerate().map(input).collect();
                    // SAFETY: as above; outputs of one step do not overlap each other.
                    let results = node.outputs.iter().zip(types_out);
                    let mut results = results.map(|(&v, ty)| unsafe { data_mut(memory(v, ty), ty.dtype) });
                    let mut few: [DataMut<f32>; FEW] =
                        std::array::from_fn(|_| results.next().unwrap_or(DataMut::Int(&mut [])));
                    let mut many: Vec<DataMut<f32>> = results.collect();
                    let outs = match many.is_empty() {
                        true => &mut few[..types_out.len()],
                        false => {
                            many.splice(0..0, few);
                            &mut many[..]
                        }
                    };
                    let mut call = CpuCall { in_place, attrs: &node.attrs, types_in, types_out, ins: &ins, outs };
                    match program {
                        Some(program) => elementwise::run(program, &mut call),
                        None => host::call(&node.op, &mut call),
                    }
                    note(&node.op, Some(*index), began);
                }
                (Step::Copy { from, .. }, Prepared::Copy { to }) => {
                    let ty = plan.graph.ty(*from);
                    let (src, dst) = (memory(*from, ty), at(*to, ty.elements()));
                    // SAFETY: both are as long; `copy` allows overlap.
                    unsafe { std::ptr::copy(src.words, dst.words, dst.len) };
                    note("copy", None, began);
                }
                _ => unreachable!("each step was prepared as what it is"),
            }
        }
        let fetch = |f: &crate::plan::Fetch| {
            let ty = plan.graph.ty(f.value);
            let m = memory(f.value, ty);
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
            _ if m.packed == Some(FloatType::Bf16) => {
                Data::Bf16(std::slice::from_raw_parts(m.words.cast::<bf16>(), m.len))
            }
            _ if m.packed.is_some() => Data::Half(std::slice::from_raw_parts(m.words.cast::<f16>(), m.len)),
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
