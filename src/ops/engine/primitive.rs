//! What a primitive is: four answers (types, host kernel, gradient, device kernel) and problems to try them on.

use super::math::Real;
use crate::ir::{Attrs, BuildError, Builder, Node, Type, Value};
use crate::ops::elementwise::program::BlockFn;
use half::f16;
use std::borrow::Cow;
use std::ops::Range;

/// One primitive operation. No field has a default: a new primitive answers all of them in its own file.
pub struct Primitive {
    pub name: &'static str,
    /// Output types, or why these inputs and attributes do not fit.
    pub infer: fn(&[&Type], &Attrs) -> Result<Vec<Type>, String>,
    pub cpu: Cpu,
    pub vjp: Vjp,
    pub gpu: Gpu,
    /// Small problems on which tests and `doctor` compare the kernels.
    pub samples: fn() -> Vec<Sample>,
}

/// How the host computes a primitive.
pub enum Cpu {
    /// Element by element; the engine in [`crate::ops::elementwise::program`] loops, broadcasts and fuses.
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
pub enum Gpu {
    /// A WGSL expression over `$0`, `$1`, ...; the engine in [`crate::ops::elementwise::program`] puts it into a kernel.
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
    /// Frozen floats as halves, for kernels that [`crate::ops::unpacks_on_host`] names.
    Half(&'a [f16]),
}

/// Floats in either form.
pub enum Elements<'a, T> {
    Full(&'a [T]),
    Halves(&'a [f16]),
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
        }
    }

    pub fn part(self, range: Range<usize>) -> Elements<'a, T> {
        match self {
            Elements::Full(x) => Elements::Full(&x[range]),
            Elements::Halves(x) => Elements::Halves(&x[range]),
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
            Data::Half(_) => panic!("halves are for kernels that read them"),
        }
    }

    /// Floats, however they are stored.
    pub fn elements(self) -> Elements<'a, T> {
        match self {
            Data::Half(x) => Elements::Halves(x),
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

/// A kernel's source: a file of `shaders/`, or that file with its marked part replaced.
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

/// How the elements of a sample's input are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Standard normal.
    Normal,
    /// Uniform in (0.5, 2).
    Positive,
    /// Integers in `0..n`.
    Index(usize),
    /// Integers in `-1..n`, where -1 stands for a label that does not count (-100).
    Label(usize),
    /// 0 or 1.
    Flag,
    /// Standard normal, and frozen.
    Frozen,
    /// A frozen bias of scores: standard normal, and for one in three, but for the first of a row, so low that nothing is left.
    Mask,
    /// The same, low where a key (the last axis) comes after a query (the axis before) or more than this many before it.
    Window(usize),
    /// The same with -∞ where a key is masked, and throughout in every third row: what left padding leaves of a causal mask.
    Padded,
    /// These numbers, over and over.
    Values(&'static [f32]),
}

impl Fill {
    /// Whether a gradient is asked of such an input, floats being.
    pub fn frozen(self) -> bool {
        matches!(self, Fill::Frozen | Fill::Mask | Fill::Window(_) | Fill::Padded | Fill::Values(_))
    }
}

#[rustfmt::skip]
const ARGUMENTS: [f32; 42] = [
    f32::NAN, 0.0, -0.0, 1e-20, 0.3, -0.3, 0.5, 1.5, -1.5, 2.5, 1.0, -1.0, std::f32::consts::PI, 7.5, -9.3, 20.0, -20.0, 87.0, -87.0,
    100.0, -104.0, 999.0, 1e4, -1e4, 1e6, -1e6, 3e18,
    // And those at which adapters differ.
    1e-40, -3e-39, 1.175_494_4e-38, 88.8, 4095.7, -4096.3, 131_071.0, -131_071.0, 16_777_217.0, 2.2e9, -2.2e9, 3e38, -3e38,
    f32::INFINITY, f32::NEG_INFINITY,
];

/// Large and odd arguments: what positions of long texts, timesteps, scores and their differences come to, and the edges of f32.
pub const EDGES: &[f32] = &ARGUMENTS;

/// Those of them that every adapter tells from each other and can add up.
pub const FINITE: &[f32] = ARGUMENTS.split_at(27).0;

/// Scores and logits far apart.
#[rustfmt::skip]
pub const SCORES: &[f32] = &[
    1e4, -1e4, 9_999.5, 0.0, 12.0, -80.0, 1e4, 3.5, -1e30, 88.0, f32::NEG_INFINITY, 9_999.0, 40.0, 41.0, -1e-20, 100.5,
];

/// A small problem.
#[derive(Clone, Debug)]
pub struct Sample {
    pub inputs: Vec<(Type, Fill)>,
    pub attrs: Attrs,
}

impl Sample {
    pub fn new(inputs: Vec<(Type, Fill)>, attrs: Attrs) -> Sample {
        Sample { inputs, attrs }
    }

    /// A problem on standard normal floats of these shapes.
    pub fn normal(shapes: &[&[usize]]) -> Sample {
        Sample::new(shapes.iter().map(|s| (Type::f32(*s), Fill::Normal)).collect(), Attrs::new())
    }

    /// A problem on floats in (0.5, 2) of these shapes.
    pub fn positive(shapes: &[&[usize]]) -> Sample {
        Sample::new(shapes.iter().map(|s| (Type::f32(*s), Fill::Positive)).collect(), Attrs::new())
    }

    /// One operand of these numbers.
    pub fn of(values: &'static [f32]) -> Sample {
        Sample::new(vec![(Type::f32([values.len()]), Fill::Values(values))], Attrs::new())
    }

    /// These numbers, and as many standard normal ones.
    pub fn beside_normal(values: &'static [f32]) -> Sample {
        let ty = Type::f32([values.len()]);
        Sample::new(vec![(ty.clone(), Fill::Values(values)), (ty, Fill::Normal)], Attrs::new())
    }

    /// Every pair of these numbers.
    pub fn pairs(values: &'static [f32]) -> Sample {
        let n = values.len();
        let sides = [Type::f32([n, 1]), Type::f32([n])];
        Sample::new(sides.map(|ty| (ty, Fill::Values(values))).to_vec(), Attrs::new())
    }

    /// Whether its numbers differ so much in size that each result is compared by itself.
    pub fn edges(&self) -> bool {
        self.inputs.iter().any(|(_, fill)| matches!(fill, Fill::Values(_)))
    }

    pub fn with(mut self, attrs: Attrs) -> Sample {
        self.attrs = attrs;
        self
    }
}
