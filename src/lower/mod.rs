//! Lowers ONNX operators to primitives, for one batch shape.
//!
//! Values known at compile time are folded as they appear, so no shape arithmetic remains. A new operator is one function in the file
//! of its family and one line in [`REGISTRY`] (`registry.rs`).

mod attention;
pub mod attributes;
mod context;
mod control;
mod conv;
mod conv_transpose;
mod detection;
mod dropout;
mod einsum;
mod elementwise;
mod flex_attention;
mod float8;
mod functions;
mod integer_types;
mod joined;
mod layout;
mod linear;
mod linear_attention;
pub mod loss;
mod moe;
mod norm;
mod optimizers;
mod pool;
mod quantise;
mod quantised;
mod recurrent;
mod reduce;
mod registry;
mod resize;
mod roi_align;
mod sample;
mod scatter;
mod set;
mod shape;
mod signal;
mod sort;
mod windows;

pub use context::{Context, dtype};
pub use registry::REGISTRY;

use crate::ir::{BuildError, Builder, Leaf, MAX_ELEMENTS, Tensor, Type, Value, Weight, Words, counted};
use crate::onnx::{ElementType, Model, Node, NodeId, TensorView};
use crate::ops::RULES;
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What one operator is lowered by: it returns a value for each output.
pub type Lowering = fn(&mut Context) -> Result<Vec<Value>, Reason>;

/// Why one node cannot be lowered.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    Why(String),
    /// A graph inside the node holds operators without a lowering.
    Unsupported(Vec<Unsupported>),
}

impl From<BuildError> for Reason {
    fn from(e: BuildError) -> Reason {
        Reason::Why(format!("{}({}): {}", e.op, e.types, e.why))
    }
}

impl From<String> for Reason {
    fn from(s: String) -> Reason {
        Reason::Why(s)
    }
}

impl From<&str> for Reason {
    fn from(s: &str) -> Reason {
        Reason::Why(s.to_string())
    }
}

/// Why a model cannot be lowered.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    #[error("{file}: {} no lowering:\n  {}\nhint: simplify the model when exporting, or ask for the operator{}",
        if operators.len() == 1 { "this operator has" } else { "these operators have" },
        operators.iter().map(Unsupported::to_string).collect::<Vec<_>>().join("\n  "),
        if operators.len() == 1 { "" } else { "s" })]
    Unsupported { file: String, operators: Vec<Unsupported> },
    #[error("{file}: node '{node}' ({operator}): {why}")]
    Node { file: String, node: String, operator: String, why: String },
    #[error("{file}: input '{input}': {why}")]
    Input { file: String, input: String, why: String },
    #[error("{file}: there is no output '{name}'\nhint: its outputs are {have}")]
    Output { file: String, name: String, have: String },
}

/// An operator without a lowering, and the nodes that use it.
#[derive(Debug, Clone, PartialEq)]
pub struct Unsupported {
    pub operator: String,
    pub nodes: Vec<String>,
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: Vec<&str> = self.nodes.iter().take(3).map(String::as_str).collect();
        let more = self.nodes.len() - shown.len();
        write!(f, "{} ({}", self.operator, shown.join(", "))?;
        if more > 0 {
            write!(f, ", and {more} more")?;
        }
        write!(f, ")")
    }
}

/// What to lower.
pub struct Request<'a> {
    pub model: &'a Arc<Model>,
    /// The shape of every graph input.
    pub shapes: &'a BTreeMap<String, Vec<usize>>,
    /// Initializers that are parameters rather than weights.
    pub trained: &'a BTreeSet<String>,
    /// Inputs whose elements are known while compiling: the program is made for them alone.
    pub known: &'a BTreeMap<String, Tensor>,
    /// Values of the model that are wanted; nodes that none depends on are left out.
    pub wanted: &'a [String],
    /// Whether Dropout drops.
    pub training: bool,
}

/// A lowered model.
pub struct Lowered {
    pub b: Builder,
    /// The value of each wanted name, and of every other that was lowered on the way.
    pub values: HashMap<String, Value>,
}

/// An ONNX operator: domain, name, and how it is lowered.
pub struct Operator {
    pub domain: &'static str,
    pub name: &'static str,
    pub lower: Lowering,
    /// An input that the lowering reads from the file itself where the file holds it: packed codes of a weight.
    pub stored: Option<usize>,
}

/// An operator of the table.
pub fn find(domain: &str, name: &str) -> Option<&'static Operator> {
    REGISTRY.iter().find(|o| o.domain == domain && o.name == name)
}

/// Every operator of `model` that has no lowering, in order of its first node.
pub fn unsupported(model: &Model) -> Vec<Unsupported> {
    missing(model.nodes().map(|(_, n)| n))
}

/// The operators without a lowering among some nodes. Graphs inside them are looked at when they are lowered: of an If, only
/// the branch that is taken has to be known.
fn missing<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<Unsupported> {
    let mut out: Vec<Unsupported> = Vec::new();
    for node in nodes.filter(|n| find(n.domain(), n.op_type()).is_none()) {
        let operator = node.operator();
        match out.iter_mut().find(|u| u.operator == operator) {
            Some(u) => u.nodes.push(node.label()),
            None => out.push(Unsupported { operator, nodes: vec![node.label()] }),
        }
    }
    out
}

/// Inputs that pick a branch of the graph rather than carry data, and what they are while training.
const BRANCHES: &[(&str, bool)] =
    &[("use_cache_branch", false), ("use_cache", false), ("training_mode", false), ("is_training", false)];

/// What an input that picks a branch is; `None` for inputs that carry data.
pub fn branch_input(input: &crate::onnx::Signature) -> Option<bool> {
    let single = input.dims.as_ref().is_none_or(|d| d.len() <= 1);
    let known = BRANCHES.iter().find(|(name, _)| *name == input.name);
    known.filter(|_| single && input.element == ElementType::Bool).map(|(_, value)| *value)
}

/// Lowers what the wanted values depend on.
pub fn lower(request: &Request) -> Result<Lowered, LowerError> {
    lower_onto(Builder::new(RULES), request)
}

/// Lowers what the wanted values depend on into a program that is there already. Inputs and weights of one name are one.
pub fn lower_onto(b: Builder, request: &Request) -> Result<Lowered, LowerError> {
    let model = request.model;
    let file = model.path().display().to_string();
    let needed = needed(model, request.wanted);
    let operators = missing(model.nodes().filter(|(id, _)| needed.contains(id)).map(|(_, n)| n));
    if !operators.is_empty() {
        return Err(LowerError::Unsupported { file, operators });
    }

    let mut lowered = Lowered { b, values: HashMap::new() };
    for input in model.inputs() {
        let fail = |why: &str| LowerError::Input { file: file.clone(), input: input.name.clone(), why: why.into() };
        if let Some(value) = branch_input(&input) {
            let extents = input.dims.iter().flatten().map(|_| 1).collect::<Vec<usize>>();
            let value = lowered.b.constant(Tensor::bool(extents, vec![u32::from(value)]));
            lowered.values.insert(input.name.clone(), value);
            continue;
        }
        if let Some(t) = request.known.get(&input.name) {
            let value = lowered.b.constant(t.clone());
            lowered.values.insert(input.name.clone(), value);
            continue;
        }
        let Some(shape) = request.shapes.get(&input.name) else {
            continue;
        };
        let dtype =
            context::dtype(input.element).ok_or_else(|| fail(&format!("{} is not supported", input.element)))?;
        let elements = counted(shape);
        let elements = elements.ok_or_else(|| fail(&format!("{shape:?} has more than {MAX_ELEMENTS} elements")))?;
        let ty = Type::new(dtype, shape.clone());
        let value = match elements {
            0 => lowered.b.constant(Tensor::zeros(&ty)),
            _ => lowered.b.input(&input.name, ty),
        };
        lowered.values.insert(input.name.clone(), value);
    }
    let mut elements: HashMap<String, ElementType> =
        model.inputs().into_iter().map(|input| (input.name, input.element)).collect();
    let mut scope = Scope { b: &mut lowered.b, values: &mut lowered.values, elements: &mut elements, request };
    for (id, node) in model.nodes().filter(|(id, _)| needed.contains(id)) {
        scope.run(node, id.0 as i64).map_err(|reason| match reason {
            Reason::Why(why) => {
                LowerError::Node { file: file.clone(), node: node.label(), operator: node.operator(), why }
            }
            Reason::Unsupported(operators) => LowerError::Unsupported { file: file.clone(), operators },
        })?;
    }
    for name in request.wanted {
        if scope.value(name).is_err() {
            let have: Vec<String> = model.outputs().into_iter().map(|o| o.name).collect();
            return Err(LowerError::Output { file, name: name.clone(), have: have.join(", ") });
        }
    }
    lowered.b.set_origin("");
    Ok(lowered)
}

/// The nodes that some wanted value depends on.
fn needed(model: &Model, wanted: &[String]) -> HashSet<NodeId> {
    let mut live: HashSet<String> = wanted.iter().cloned().collect();
    let mut needed = HashSet::new();
    let all: Vec<(NodeId, &Node)> = model.nodes().collect();
    for (id, node) in all.into_iter().rev() {
        if node.outputs().iter().any(|o| live.contains(o)) {
            needed.insert(id);
            live.extend(node.inputs().iter().cloned());
            live.extend(node.captured());
        }
    }
    needed
}

/// The most elements a float initializer may have to be a constant, known while compiling, rather than a weight.
const MAX_CONSTANT: usize = 64;

/// Names that are known while nodes are lowered, and where new ones go.
pub struct Scope<'a> {
    pub b: &'a mut Builder,
    pub values: &'a mut HashMap<String, Value>,
    /// The types that the file's integers have: here all of them are 32 bits.
    pub elements: &'a mut HashMap<String, ElementType>,
    pub request: &'a Request<'a>,
}

impl Scope<'_> {
    /// The value of a name: one that was computed, or a constant of the file.
    pub fn value(&mut self, name: &str) -> Result<Value, Reason> {
        if let Some(&v) = self.values.get(name) {
            return Ok(v);
        }
        let model = self.request.model;
        if !model.is_initializer(name) {
            return Err(match model.inputs().iter().any(|i| i.name == name) {
                true => format!("the data holds no '{name}', and nothing else gives it").into(),
                false => format!("'{name}' is not known").into(),
            });
        }
        let (element, dims) = model.initializer_type(name).expect("it is an initializer");
        let v = if self.request.trained.contains(name) {
            self.b.leaf(Leaf::Parameter(name.to_string()), Type::f32(dims))
        } else {
            constant(self.b, model, name, element, dims)?
        };
        self.values.insert(name.to_string(), v);
        Ok(v)
    }

    /// Lowers one node and keeps its outputs. `key` is a number of its own.
    pub fn run(&mut self, node: &Node, key: i64) -> Result<(), Reason> {
        let model = self.request.model;
        let operator = find(node.domain(), node.op_type()).ok_or("this operator has no lowering")?;
        let mut inputs = Vec::with_capacity(node.inputs().len());
        for (i, name) in node.inputs().iter().enumerate() {
            inputs.push(match name.as_str() {
                "" => None,
                _ if operator.stored == Some(i) && model.is_constant(name) => None,
                _ => Some(self.value(name)?),
            });
        }
        self.b.set_origin(node.label());
        let mut context = Context {
            b: self.b,
            node,
            model,
            inputs,
            read: Cell::new(0),
            training: self.request.training,
            key,
            values: self.values,
            elements: self.elements,
            request: self.request,
        };
        node.forget_reads();
        let mut outputs = (operator.lower)(&mut context)?;
        let (read, inputs) = (context.read.get(), context.inputs);
        if let Some(name) = attributes::passed_over(node) {
            return Err(format!(
                "its attribute '{name}' is not supported\nhint: leave it at its default when exporting"
            )
            .into());
        }
        let given = |i: usize| inputs.get(i).copied().flatten().is_some_and(|v| self.b.shape(v).elements() > 0);
        if let Some(name) = attributes::passed_over_input(node, read, given) {
            return Err(format!("its input '{name}' is not supported\nhint: leave it out when exporting").into());
        }
        if let Some(element) = integer_types::result(model, node, self.elements) {
            integer_types::settle(self.b, node, element, &mut outputs)?;
            let types = node.outputs().iter().enumerate();
            self.elements.extend(types.map(|(i, name)| (name.clone(), integer_types::output(node, i, element))));
        }
        for (name, value) in node.outputs().iter().zip(outputs).filter(|(n, _)| !n.is_empty()) {
            self.values.insert(name.clone(), value);
        }
        Ok(())
    }
}

/// A tensor that the file holds: large ones of floats are weights, everything else is known while compiling.
fn constant(
    b: &mut Builder,
    model: &Arc<Model>,
    name: &str,
    element: ElementType,
    dims: Vec<usize>,
) -> Result<Value, Reason> {
    let size = sized(&dims)?;
    if !element.is_float() || size <= MAX_CONSTANT {
        let view = model.initializer(name).expect("its type was just read");
        return Ok(b.constant(load(&view)?));
    }
    let stored = Stored { model: model.clone(), name: name.to_string() };
    let revision = model.revision(name);
    let held = stored.in_place().is_some().then(|| stored.clone());
    let weight = Weight::new(name, revision, move || load(&stored.view()).expect("a float tensor"));
    let weight = match held {
        Some(stored) => weight.held_by(Arc::new(stored)),
        None => weight,
    };
    Ok(b.weight(weight, Type::f32(dims)))
}

/// A tensor of a model, which never changes while it is shared.
#[derive(Clone)]
struct Stored {
    model: Arc<Model>,
    name: String,
}

impl Stored {
    fn view(&self) -> TensorView<'_> {
        self.model.initializer(&self.name).expect("the model keeps its constants")
    }

    /// The file's own bytes, where they are floats as this machine has them.
    fn in_place(&self) -> Option<&[u32]> {
        let TensorView { element: ElementType::F32, bytes: Cow::Borrowed(bytes), .. } = self.view() else {
            return None;
        };
        if cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(bytes).ok()
    }
}

impl Words for Stored {
    fn words(&self) -> &[u32] {
        self.in_place().expect("a model's bytes stay where they are")
    }

    fn release(&self) {
        self.model.release(&self.name);
    }
}

/// Elements of a shape, if they are no more than a value may have.
pub fn sized(dims: &[usize]) -> Result<usize, Reason> {
    counted(dims)
        .ok_or_else(|| Reason::Why(format!("a tensor of shape {dims:?} has more than {MAX_ELEMENTS} elements")))
}

/// The most elements of a constant that a lowering makes.
const HOSTED: usize = 1 << 27;

/// Refuses to make a constant of so many elements.
pub fn hosted(n: usize) -> Result<usize, Reason> {
    match n <= HOSTED {
        true => Ok(n),
        false => Err(Reason::Why(format!("it needs a table of {n} elements, and {HOSTED} is the most"))),
    }
}

/// A tensor of the file on the host. 64-bit integers beyond 32 bits (such as "to the end") become the nearest.
pub fn load(view: &TensorView) -> Result<Tensor, Reason> {
    sized(&view.dims)?;
    let shape = view.dims.clone();
    if view.element == ElementType::Bool {
        return Ok(Tensor::bool(shape, view.bytes.iter().map(|&b| (b != 0) as u32).collect()));
    }
    if view.element.is_float() {
        return Ok(Tensor::f32(shape, view.to_f32().expect("a float type")));
    }
    let ints = view.to_i64().ok_or_else(|| format!("{} is not supported", view.element))?;
    Ok(Tensor::i32(shape, ints.into_iter().map(|x| x.clamp(i32::MIN as i64, i32::MAX as i64) as i32).collect()))
}
