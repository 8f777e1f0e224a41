//! What a primitive is: four answers (types, host kernel, gradient, device kernel) and problems to try them on.

use super::math::Real;
use super::packed::PackedWeight;
use super::samples::Sample;
use crate::ir::{Attr, Attrs, BuildError, Builder, Node, Type, Value};
use half::{bf16, f16};
use std::borrow::Cow;
use std::ops::Range;

/// One primitive operation. No field has a default: a new primitive answers all of them in its own file.
#[derive(Clone, Copy)]
pub struct Primitive {
    pub name: &'static str,
    /// The attributes that a node of it may have.
    pub attrs: &'static [AttrSpec],
    /// Output types, or why these inputs and attributes do not fit.
    pub infer: fn(&[&Type], &Attrs) -> Result<Vec<Type>, String>,
    pub cpu: Cpu,
    pub vjp: Vjp,
    pub gpu: Gpu,
    pub results: Results,
    pub accumulates: Accumulates,
    pub halves: Halves,
    pub windows: Option<Windows>,
    pub work: fn(&[Type], &[Type], &Attrs) -> Work,
    /// Small problems on which tests and `doctor` compare the kernels.
    pub samples: fn() -> Vec<Sample>,
}

/// An attribute: its name, its type, and whether every node has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttrSpec {
    pub name: &'static str,
    pub kind: AttrKind,
    pub required: bool,
}

/// The type of an attribute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttrKind {
    Int,
    Ints,
    Float,
    Bool,
    Str,
    Program,
}

impl AttrKind {
    fn of(attr: &Attr) -> AttrKind {
        match attr {
            Attr::Int(_) => AttrKind::Int,
            Attr::Ints(_) => AttrKind::Ints,
            Attr::Float(_) => AttrKind::Float,
            Attr::Bool(_) => AttrKind::Bool,
            Attr::Str(_) => AttrKind::Str,
            Attr::Program(_) => AttrKind::Program,
        }
    }
}

/// An attribute that every node has.
pub const fn needs(name: &'static str, kind: AttrKind) -> AttrSpec {
    AttrSpec { name, kind, required: true }
}

/// An attribute that a node may have.
pub const fn may(name: &'static str, kind: AttrKind) -> AttrSpec {
    AttrSpec { name, kind, required: false }
}

/// A boolean that is false where a node does not have it.
pub const fn flag(name: &'static str) -> AttrSpec {
    may(name, AttrKind::Bool)
}

/// No attributes.
pub const NO_ATTRS: &[AttrSpec] = &[];

/// In what a node's attributes differ from those that its primitive has: unknown ones, wrong types, missing ones.
pub fn violations(specs: &[AttrSpec], attrs: &Attrs) -> Vec<String> {
    let given = attrs.0.iter().filter_map(|(name, attr)| match specs.iter().find(|s| s.name == name) {
        None => Some(format!("has no attribute '{name}'")),
        Some(spec) if spec.kind != AttrKind::of(attr) => {
            Some(format!("attribute '{name}' is of type {:?}, not {:?}", AttrKind::of(attr), spec.kind))
        }
        Some(_) => None,
    });
    let missing = specs.iter().filter(|s| s.required && !attrs.0.contains_key(s.name));
    given.chain(missing.map(|s| format!("needs attribute '{}'", s.name))).collect()
}

/// Which outputs hold results. The others are memory that the kernels work in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Results {
    All,
    First(usize),
}

/// The input, if there is one, that is added to the first output and read only where that is written, so that both may share
/// memory. Given the number of inputs.
pub type Accumulates = fn(usize, &Attrs) -> Option<usize>;

/// No input does that.
pub const NOTHING: Accumulates = |_, _| None;

/// Whether kernels can read an input, given its number and that of its axes, as packed halves.
#[derive(Clone, Copy)]
pub struct Halves {
    /// See [`Data::Half`].
    pub host: fn(usize, usize) -> bool,
    /// See [`GpuCall::packed`].
    pub device: fn(usize, usize) -> bool,
    /// Given a node's types, the right operands that the host can read in tiles if they are frozen: their input, extents `(k, n)` and
    /// strides of rows and columns. A kernel may read one input in two ways.
    pub tiles: fn(&[Type], &Attrs) -> Vec<Tiled>,
}

/// See [`Halves::tiles`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiled {
    pub input: usize,
    pub extents: [usize; 2],
    pub strides: (usize, usize),
}

/// No operand is read in tiles.
pub const NO_TILES: fn(&[Type], &Attrs) -> Vec<Tiled> = |_, _| vec![];

/// Floats of 32 bits alone.
pub const NO_HALVES: Halves = Halves { host: |_, _| false, device: |_, _| false, tiles: NO_TILES };

/// Places of a window along each axis of images `(B, C, H, W)`, or why the window does not fit.
pub type Windows = fn(&[usize], &Attrs) -> Result<[usize; 2], String>;

/// No windows.
pub const NO_WINDOWS: Option<Windows> = None;

/// Floating-point operations, and bytes read and written once each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub flops: f64,
    pub bytes: f64,
}

impl Work {
    /// So many operations, and every operand and result once.
    pub fn new(flops: f64, types_in: &[Type], types_out: &[Type]) -> Work {
        let elements = types_in.iter().chain(types_out).map(|t| t.elements() as f64);
        Work { flops, bytes: 4.0 * elements.sum::<f64>() }
    }
}

/// One operation for each element of the largest operand or result, times the instructions of a program.
pub fn pointwise_work(types_in: &[Type], types_out: &[Type], attrs: &Attrs) -> Work {
    let instructions = attrs.get_program().map_or(1, |p| p.instrs.len().max(1));
    let elements = types_in.iter().chain(types_out).map(|t| t.elements() as f64);
    Work::new(instructions as f64 * elements.fold(0.0, f64::max), types_in, types_out)
}

/// Computes one block of an elementwise primitive: operands and result have equally many elements.
pub type BlockFn<T> = fn(&[Data<T>], &mut DataMut<T>, &Attrs);

/// The primitives of some tables, in order of names.
pub fn sorted(tables: &[&'static [Primitive]]) -> Vec<&'static Primitive> {
    let mut all: Vec<&Primitive> = tables.iter().copied().flatten().collect();
    all.sort_by_key(|p| p.name);
    all
}

/// The one of this name among primitives in order of names.
pub fn find(sorted: &[&'static Primitive], name: &str) -> Option<&'static Primitive> {
    sorted.binary_search_by(|p| p.name.cmp(name)).ok().map(|i| sorted[i])
}

/// How the host computes a primitive.
#[derive(Clone, Copy)]
pub enum Cpu {
    /// Element by element; the engine in `elementwise::program` loops, broadcasts and fuses.
    Elementwise { f32: BlockFn<f32>, f64: BlockFn<f64> },
    /// A kernel of its own.
    Kernel { f32: fn(&mut CpuCall<f32>), f64: fn(&mut CpuCall<f64>) },
    /// The output is the input's memory under another shape.
    Alias,
}

/// An element type that host kernels are compiled for.
pub trait Element: Real {
    /// The block kernel of an elementwise primitive.
    fn block(cpu: &Cpu) -> Option<BlockFn<Self>>;
    /// The kernel of any other.
    fn kernel(cpu: &Cpu) -> Option<fn(&mut CpuCall<Self>)>;
}

impl Element for f32 {
    fn block(cpu: &Cpu) -> Option<BlockFn<f32>> {
        match cpu {
            Cpu::Elementwise { f32, .. } => Some(*f32),
            _ => None,
        }
    }
    fn kernel(cpu: &Cpu) -> Option<fn(&mut CpuCall<f32>)> {
        match cpu {
            Cpu::Kernel { f32, .. } => Some(*f32),
            _ => None,
        }
    }
}

impl Element for f64 {
    fn block(cpu: &Cpu) -> Option<BlockFn<f64>> {
        match cpu {
            Cpu::Elementwise { f64, .. } => Some(*f64),
            _ => None,
        }
    }
    fn kernel(cpu: &Cpu) -> Option<fn(&mut CpuCall<f64>)> {
        match cpu {
            Cpu::Kernel { f64, .. } => Some(*f64),
            _ => None,
        }
    }
}

/// How a device computes a primitive.
#[derive(Clone, Copy)]
pub enum Gpu {
    /// A WGSL expression over `$0`, `$1`, ...; the engine in `elementwise::program` puts it into a kernel.
    Elementwise(fn(&Attrs, &[crate::ir::DType]) -> Cow<'static, str>),
    /// Kernels of its own, run in order.
    Kernel(fn(&GpuCall) -> Vec<Dispatch>),
    /// Likewise, with several ways to do it: `candidates` names those that suit a call, of which [`GpuCall::variant`] may be
    /// one. Which is taken must not change a bit of the result.
    Tuned { kernel: fn(&GpuCall) -> Vec<Dispatch>, candidates: fn(&GpuCall) -> Vec<&'static str> },
    /// The output is the input's memory under another shape.
    Alias,
}

/// How a gradient passes through a primitive.
#[derive(Clone, Copy)]
pub enum Vjp {
    /// Emits the gradient of each input that wants one.
    Emit(fn(&mut VjpCall) -> Result<Vec<Option<Value>>, BuildError>),
    /// The output does not vary with the input (comparisons, rounding, integers).
    Zero,
    /// Belongs to a gradient itself, which nothing differentiates again.
    Never,
}

/// The differentiation of one node.
pub struct VjpCall<'a> {
    pub b: &'a mut Builder,
    pub node: &'a Node,
    /// The gradient of each output, where there is one.
    pub grads: Vec<Option<Value>>,
    /// Which inputs need a gradient.
    pub wants: Vec<bool>,
}

impl VjpCall<'_> {
    pub fn x(&self, i: usize) -> Value {
        self.node.inputs[i]
    }

    pub fn y(&self, i: usize) -> Value {
        self.node.outputs[i]
    }

    /// The gradient of input `i` from one of the broadcast shape; `None` where none is wanted.
    pub fn sum_to(&mut self, i: usize, g: Value) -> Result<Option<Value>, BuildError> {
        if !self.wants[i] {
            return Ok(None);
        }
        let shape = self.b.shape(self.x(i)).clone();
        Ok(Some(self.b.sum_to(g, &shape)?))
    }

    /// The gradient of the first output, which exists whenever a primitive of one output is differentiated.
    pub fn g(&self) -> Value {
        self.grads[0].expect("a node is differentiated only when an output has a gradient")
    }
}

/// A kernel's read-only operand.
#[derive(Clone, Copy)]
pub enum Data<'a, T> {
    Float(&'a [T]),
    /// Integers, and booleans as 0 and 1.
    Int(&'a [i32]),
    /// Frozen floats as halves, for kernels that [`Primitive::halves`] names.
    Half(&'a [f16]),
    /// The same as bf16.
    Bf16(&'a [bf16]),
    /// A frozen right operand in tiles, for kernels whose [`Halves::tiles`] names it.
    Packed(&'a PackedWeight),
}

/// Floats in any form.
pub enum Elements<'a, T> {
    Full(&'a [T]),
    Halves(&'a [f16]),
    Bf16(&'a [bf16]),
    Packed(&'a PackedWeight),
}

impl<T> Clone for Elements<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Elements<'_, T> {}

impl<'a, T> Elements<'a, T> {
    pub fn count(self) -> usize {
        match self {
            Elements::Full(x) => x.len(),
            Elements::Halves(x) => x.len(),
            Elements::Bf16(x) => x.len(),
            Elements::Packed(x) => x.elements(),
        }
    }

    pub fn part(self, range: Range<usize>) -> Elements<'a, T> {
        match self {
            Elements::Full(x) => Elements::Full(&x[range]),
            Elements::Halves(x) => Elements::Halves(&x[range]),
            Elements::Bf16(x) => Elements::Bf16(&x[range]),
            Elements::Packed(x) => {
                assert_eq!(range, 0..x.elements(), "a packed operand is read whole");
                Elements::Packed(x)
            }
        }
    }
}

/// A kernel's result.
pub enum DataMut<'a, T> {
    Float(&'a mut [T]),
    Int(&'a mut [i32]),
}

impl<'a, T> Data<'a, T> {
    pub fn float(self) -> &'a [T] {
        match self {
            Data::Float(x) => x,
            Data::Int(_) => panic!("infer admits floats only"),
            _ => panic!("floats of 16 bits are for kernels that read them"),
        }
    }

    /// Floats, however they are stored.
    pub fn elements(self) -> Elements<'a, T> {
        match self {
            Data::Half(x) => Elements::Halves(x),
            Data::Bf16(x) => Elements::Bf16(x),
            Data::Packed(x) => Elements::Packed(x),
            other => Elements::Full(other.float()),
        }
    }

    pub fn int(self) -> &'a [i32] {
        match self {
            Data::Int(x) => x,
            _ => panic!("infer admits integers only"),
        }
    }
}

impl<T> DataMut<'_, T> {
    pub fn float(&mut self) -> &mut [T] {
        match self {
            DataMut::Float(x) => x,
            DataMut::Int(_) => panic!("infer gives floats only"),
        }
    }

    pub fn int(&mut self) -> &mut [i32] {
        match self {
            DataMut::Int(x) => x,
            DataMut::Float(_) => panic!("infer gives integers only"),
        }
    }
}

/// One run of a host kernel. Operands are row-major and do not overlap results, but for inputs (of elementwise primitives, and
/// what a matmul adds) that `in_place` pairs with the output whose memory they share: those are empty here.
pub struct CpuCall<'a, T> {
    pub in_place: &'a [(usize, usize)],
    pub attrs: &'a Attrs,
    pub types_in: &'a [Type],
    pub types_out: &'a [Type],
    pub ins: &'a [Data<'a, T>],
    pub outs: &'a mut [DataMut<'a, T>],
}

impl<T: Real> CpuCall<'_, T> {
    pub fn shape_in(&self, i: usize) -> &[usize] {
        &self.types_in[i].shape
    }

    pub fn shape_out(&self, i: usize) -> &[usize] {
        &self.types_out[i].shape
    }
}

/// What a kernel may know of the device it is written for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuTraits {
    /// A software adapter: no gain from workgroup memory, barriers are dear.
    pub software: bool,
    /// The most workgroups along one axis of a dispatch.
    pub max_workgroups: u32,
    /// The most invocations of one workgroup, and the bytes of memory that they may share.
    pub max_invocations: u32,
    pub workgroup_bytes: u32,
    /// The width of subgroups, where all have one and kernels may use them.
    pub subgroup: Option<u32>,
    /// Cooperative matrices of f16 that add up in f32.
    pub cooperative: Option<Cooperative>,
}

/// An adapter's cooperative matrices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cooperative {
    /// Rows and columns of each.
    pub size: u32,
    /// Invocations of the widest subgroup.
    pub width: u32,
    /// Whether every subgroup is as wide.
    pub one_width: bool,
}

impl GpuTraits {
    /// The least that adapters of a kind offer.
    pub fn least(software: bool) -> GpuTraits {
        GpuTraits {
            software,
            max_workgroups: 65535,
            max_invocations: 256,
            workgroup_bytes: 16384,
            subgroup: None,
            cooperative: None,
        }
    }
}

/// One use of a device kernel.
pub struct GpuCall<'a> {
    pub attrs: &'a Attrs,
    pub types_in: &'a [Type],
    pub types_out: &'a [Type],
    pub traits: GpuTraits,
    /// Inputs that are stored as halves, two in a word, the first in the lower bits; where it is shorter than the inputs,
    /// the rest are not.
    pub packed: &'a [bool],
    /// One of the kernels that [`Gpu::Tuned`] offers; `None` leaves the choice to a fixed rule.
    pub variant: Option<&'a str>,
}

impl GpuCall<'_> {
    pub fn packs(&self, input: usize) -> bool {
        self.packed.get(input).copied().unwrap_or(false)
    }
}

/// An operand of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    Input(usize),
    Output(usize),
    /// Memory of this many words that lasts from dispatch to dispatch of one node.
    Scratch(usize),
}

/// A kernel's source: a file of `shaders/`, as it is or with its slots filled; [`super::assemble::link`] adds what it imports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shader {
    pub name: &'static str,
    pub source: Cow<'static, str>,
}

/// One dispatch: binding 0 is `params` (a uniform of 32-bit words), bindings 1.. are `bindings` in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    pub shader: Shader,
    /// Values of the shader's `override` constants.
    pub constants: Vec<(&'static str, f64)>,
    pub bindings: Vec<Binding>,
    pub params: Vec<u32>,
    pub workgroups: [u32; 3],
}
