//! Plans: the order in which a program's operations run, and where each value lives meanwhile.

mod memory;
mod schedule;

pub use memory::{Layout, Segment, Slot};

use crate::ir::{Graph, Leaf, Sink, Value};
use std::fmt;

/// A place of four-byte words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the memory that the plan's values share over time.
    Arena { arena: usize, offset: usize },
    /// In a named buffer of the device's store.
    State { name: String, offset: usize },
    /// A run's input.
    Input(String),
    /// A frozen tensor, loaded once for all plans.
    Weight(String),
    /// A constant of the plan: the value's number.
    Constant(Value),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Run a node. `in_place` lists inputs that share their place with an output: `(input, output)`.
    Node { node: usize, in_place: Vec<(usize, usize)> },
    /// Copy a value to where an output goes.
    Copy { from: Value, to: Place },
}

/// An output that the host reads back.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetch {
    pub name: String,
    pub value: Value,
}

/// A program ready for a device.
#[derive(Clone, Debug)]
pub struct Plan {
    pub graph: Graph,
    pub steps: Vec<Step>,
    /// The place of each value; `None` for values that nothing uses.
    pub places: Vec<Option<Place>>,
    /// Words of each arena.
    pub arenas: Vec<usize>,
    pub fetches: Vec<Fetch>,
    /// The most words that values of the plan need at once: no layout of arenas is smaller.
    pub lower_bound: usize,
}

/// What a device can hold, and what is fast on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most words of one value.
    pub value_words: usize,
    /// The most words of one frozen weight; larger ones are split.
    pub weight_words: usize,
    /// The most words of one arena.
    pub arena_words: usize,
    pub profile: DeviceProfile,
}

/// What is fast on a device, measured on its own kernels. It decides how a program is written, never what it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceProfile {
    /// Rows of a product's left operand that keep the device busy: what is computed in parts has parts of so many.
    pub busy_rows: usize,
    /// Kernels of products are fast only where both operands are stored row by row.
    pub row_major_products: bool,
    /// Kernels of attention are an order of magnitude slower than those of products: attention as one operation pays only where its
    /// scores would be too much to keep.
    pub slow_attention: bool,
    /// Elementwise operations cost less at a product's end than in passes of their own over memory.
    pub fast_epilogues: bool,
    /// The sum of two products is as fast in one kernel whatever their depths.
    pub fast_long_terms: bool,
    /// Products of low rank that read one input are faster as one kernel, which reads it once.
    pub fast_grouped_products: bool,
    /// Buffers that one elementwise kernel may read and write.
    pub buffers: usize,
    /// For how many nodes memory rests before another value takes it. Kernels near each other can then run as one.
    pub rest: usize,
}

/// Why a program has no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(
        "{op}{at} gives {ty}, {} MiB, but this device binds {} MiB at once\nhint: a smaller --batch-size or --max-length, or --device cpu",
        words >> 18, limit >> 18
    )]
    TooLarge { op: String, at: String, ty: String, words: usize, limit: usize },
    #[error("the plan lets values overlap (a bug of reslora-compile): {0}")]
    Overlap(String),
}

/// Plans a verified graph.
pub fn plan(graph: Graph, layout: &Layout, limits: Limits) -> Result<Plan, PlanError> {
    let uses = schedule::uses(&graph);
    let plan = memory::assign(graph, &uses, layout, limits)?;
    memory::check(&plan, &uses)?;
    Ok(plan)
}

/// Checks that no two values that are alive at once share words, but for operations in place, and that all stand inside their arenas.
pub fn check(plan: &Plan) -> Result<(), PlanError> {
    memory::check(plan, &schedule::uses(&plan.graph))
}

impl Plan {
    /// The place of a value that a step reads or writes.
    pub fn place(&self, v: Value) -> &Place {
        self.places[v.index()].as_ref().expect("values that steps use have a place")
    }

    pub fn arena_bytes(&self) -> usize {
        self.arenas.iter().sum::<usize>() * 4
    }

    /// Bytes of the frozen tensors that the plan reads.
    pub fn weight_bytes(&self) -> usize {
        let weight = |info: &crate::ir::ValueInfo| match &info.def {
            crate::ir::Def::Leaf(Leaf::Weight(_)) => info.ty.elements() * 4,
            _ => 0,
        };
        self.graph.values.iter().map(weight).sum()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Arena { arena, offset } => write!(f, "arena{arena}+{offset}"),
            Place::State { name, offset } => write!(f, "{name}+{offset}"),
            Place::Input(name) => write!(f, "input {name}"),
            Place::Weight(name) => write!(f, "weight {name}"),
            Place::Constant(v) => write!(f, "constant {v}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "arenas {:?} words, at least {} needed", self.arenas, self.lower_bound)?;
        for step in &self.steps {
            match step {
                Step::Copy { from, to } => writeln!(f, "{to} <- copy {}", self.place(*from))?,
                Step::Node { node, in_place } => {
                    let node = &self.graph.nodes[*node];
                    let list =
                        |vs: &[Value]| vs.iter().map(|&v| self.place(v).to_string()).collect::<Vec<_>>().join(", ");
                    let mark = if in_place.is_empty() { "" } else { " (in place)" };
                    writeln!(f, "{} <- {}({}){mark}", list(&node.outputs), node.op, list(&node.inputs))?;
                }
            }
        }
        for fetch in &self.fetches {
            writeln!(f, "fetch {} from {}", fetch.name, self.place(fetch.value))?;
        }
        Ok(())
    }
}

/// The name of the store's buffer for parameters (or gradients) of a segment.
pub fn parameters_state(segment: usize) -> String {
    format!("parameters.{segment}")
}

pub fn gradients_state(segment: usize) -> String {
    format!("gradients.{segment}")
}

/// Where an output goes in the store, if it goes there.
fn sink_place(sink: &Sink, layout: &Layout) -> Option<Place> {
    match sink {
        Sink::Fetch => None,
        Sink::State(name) => Some(Place::State { name: name.clone(), offset: 0 }),
        Sink::Gradient(parameter) => {
            let slot = layout.slot(parameter)?;
            Some(Place::State { name: gradients_state(slot.segment), offset: slot.offset })
        }
    }
}
