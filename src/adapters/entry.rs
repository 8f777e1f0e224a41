//! What an adapter is: the answers that an [`Entry`] gives.

use super::{Block, Config, Emission, Emitter, Factors, Loftq, Residual, Scene, Target, Tensors, Values};
use crate::onnx::{ElementType, Model, NodeId};
use ndarray::{Array1, Array2, ArrayD};
use rand_chacha::ChaCha8Rng;

/// One adapter. No field has a default: a new adapter answers all of them in its own file.
///
/// `W` is `[out, in]`, `x` is `(.., in)`, and `y = W x` is the linear node's product.
pub struct Entry {
    /// As `--structure` and files call it.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// One line for `--help`: what it computes.
    pub help: &'static str,
    /// Settings of its own, which become flags of `inject`.
    pub settings: &'static [Setting],
    /// Whether `--rank` means anything to it.
    pub rank: bool,
    /// Whether `--alpha` means anything to it.
    pub alpha: bool,
    /// Whether `--dropout` means anything to it.
    pub dropout: bool,
    /// The residual path that the name stands for; `None` where `--residual` chooses one.
    pub residual: Option<Residual>,
    /// The residual paths that `--residual` may put on it, besides none.
    pub residuals: &'static [Residual],
    /// Whether it can stand beside a pointwise convolution, whose channels are the second axis.
    pub images: bool,
    /// Whether it asks for its target's role.
    pub reads_roles: bool,
    /// Every suffix that a tensor of its may have; in files a tensor is called `{module path}.{suffix}`.
    pub suffixes: &'static [&'static str],
    /// Its tensors at a target, or why the target does not fit.
    pub tensors: fn(&Config, &Target) -> Result<Vec<Spec>, String>,
    /// Tensors that all targets share; in files they have no path before them.
    pub shared: fn(&Config) -> Vec<Spec>,
    /// Graph inputs that its nodes read.
    pub inputs: &'static [GraphInput],
    /// Its nodes, and how they become plain weights again.
    pub form: Form,
}

impl Entry {
    /// Its name and aliases.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

/// A setting of an adapter's own: a flag `--{name}` of `inject`, and a key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The flag without its hyphens, and the key.
    pub name: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
    /// What values it takes.
    pub kind: SettingKind,
}

/// What values a setting takes, and its default.
#[derive(Clone, Copy, Debug)]
pub enum SettingKind {
    /// A whole number, at least `least`.
    Count {
        /// `None` where a value must be given, or follows from others.
        default: Option<i64>,
        /// The smallest that is allowed.
        least: i64,
    },
    /// A number.
    Number {
        /// Taken where none is given.
        default: f64,
    },
    /// A text.
    Text {
        /// Taken where none is given.
        default: &'static str,
    },
    /// A text that the model's tokenizer cuts into tokens.
    Tokens,
}

/// A tensor of an adapter.
pub struct Spec {
    /// What follows the module path in its name.
    pub suffix: String,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its values before training.
    pub start: Start,
    /// Frozen tensors are saved with the adapter, and not changed.
    pub trained: bool,
    /// The graph reads it as int64; a file may hold it so.
    pub integer: bool,
    /// Its learning-rate group.
    pub group: Group,
}

impl Spec {
    /// A trained tensor of the ordinary learning rate.
    pub fn new(suffix: &str, shape: impl Into<Vec<usize>>, start: Start) -> Spec {
        Spec { suffix: suffix.into(), shape: shape.into(), start, trained: true, integer: false, group: Group::Main }
    }

    /// The same, in another learning-rate group.
    pub fn group(self, group: Group) -> Spec {
        Spec { group, ..self }
    }

    /// The same, of whole numbers.
    pub fn integers(self) -> Spec {
        Spec { integer: true, ..self }
    }

    /// The same, not trained.
    pub fn frozen(self) -> Spec {
        Spec { trained: false, ..self }
    }
}

/// Learning-rate groups. `--lora-plus` (arXiv 2402.12354) raises the rate of the output factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The learning rate of the run.
    Main,
    /// The output factor B of LoRA.
    OutputFactor,
}

/// The values that a tensor has before training.
pub enum Start {
    /// Zero everywhere.
    Zeros,
    /// One number everywhere.
    Full(f32),
    /// Uniform within `1 / √columns`: PyTorch's `kaiming_uniform_(a = √5)` over each matrix.
    KaimingUniform,
    /// Drawn or computed.
    Drawn(fn(&mut Drawing) -> Result<ArrayD<f32>, String>),
}

/// The elements of an initializer by name, of all or of some of its rows; or why they cannot be read.
pub type Elements<'a> = dyn Fn(&str, Option<&[usize]>) -> Result<Vec<f64>, String> + 'a;

/// What a start may read.
pub struct Drawing<'a> {
    /// Draw from this, so that a seed gives the same start again.
    pub rng: &'a mut ChaCha8Rng,
    /// How the model is injected.
    pub config: &'a Config,
    /// `None` for tensors that targets share.
    pub target: Option<&'a Target>,
    /// Extents of the tensor to start.
    pub shape: &'a [usize],
    /// The target's weight as the node multiplies by it, `[out, in]`.
    pub weight: &'a dyn Fn() -> Result<Array2<f64>, String>,
    /// The elements of an initializer of the base, of all or of some of its rows.
    pub initializer: &'a Elements<'a>,
    /// Tensors of the target that were started before this one.
    pub earlier: &'a [(String, ArrayD<f32>)],
    /// Token ids of the text that a setting gives.
    pub tokens: &'a [usize],
    /// The principal directions of the target's inputs, `[k, in]`, the largest first; where they were found.
    pub directions: Option<&'a Array2<f64>>,
    /// The target's weight before it was quantised, `[out, in]`; where it was given.
    pub original: Option<&'a Array2<f32>>,
    /// How weights are quantised for a start that asks for it.
    pub loftq: Loftq,
}

/// A graph input that an adapter adds; its first axis is the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GraphInput {
    /// Its name in the graph, and the data's name for it.
    pub name: &'static str,
    /// Its element type.
    pub element: ElementType,
    /// One line for the flag of `merge` that folds one value in.
    pub help: &'static str,
    /// The setting that says how many values it may have, where they are indices.
    pub count: Option<&'static str>,
    /// The least and the largest value that it may have, where it is no index.
    pub range: Option<(f64, f64)>,
}

/// How an adapter's nodes stand to the linear node.
pub enum Form {
    /// A term `s · last(carry(x))` is added to the product.
    Term(Term),
    /// Nodes of its own take the place of the product, the output or the input.
    Whole(Whole),
    /// It stands elsewhere than at linear nodes.
    Elsewhere(Elsewhere),
}

impl Form {
    /// Whether nodes depend on the linear node's bias. A term that is added alone reads none.
    pub fn reads_bias(&self) -> bool {
        match self {
            Form::Term(term) => term.join.is_some(),
            Form::Whole(_) => true,
            Form::Elsewhere(_) => false,
        }
    }
}

/// A term of two linear maps, which residual paths can join: what a path carries from block to block is `carry(x)`.
pub struct Term {
    /// The nodes of `carry(x)`, `(.., in)` to `(.., k)`. The last argument tells the nodes of several terms of one block apart.
    pub carry: fn(&mut Emitter, &Config, &Target, &str, &str) -> String,
    /// The nodes of `last(t)`, `(.., k)` to `(.., out)`, without `s`.
    pub last: fn(&mut Emitter, &Config, &Target, &str, &str) -> String,
    /// The same maps as matrices.
    pub factors: fn(&Config, &Target, &Values) -> Factors,
    /// How the term joins the product, where it is not added alone.
    pub join: Option<Join>,
}

/// Another way to join a term with the product than to add it.
pub struct Join {
    /// The nodes that join the product and the scaled term; the last gives the block's output.
    pub emit: fn(&mut Emitter, &Block, &str) -> String,
    /// The merged weight, given `W` and `W` with the term's change added.
    pub fold: fn(&Fold, Array2<f64>) -> Array2<f64>,
}

/// Nodes of an adapter's own.
pub struct Whole {
    /// Where the nodes stand.
    pub place: fn(&Config, &Target) -> Place,
    /// The nodes; the last gives the value that stands in the place.
    pub emit: fn(&mut Emitter, &Block) -> String,
    /// How they become plain weights.
    pub folding: fn(&Config) -> Folding,
}

/// What an adapter's nodes take the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The linear node's own output.
    Product,
    /// The same after the node's bias, where an Add of its own holds that.
    Output,
    /// The linear node's input: input 0 of each node that is emitted must lead back to `x`.
    Input,
}

/// An adapter at other places than linear nodes. Only this crate's own table has such entries.
pub struct Elsewhere {
    /// What a place is called, as "normalization".
    pub(crate) what: &'static str,
    /// Every place of a model that it can stand at, in execution order; `--target` is searched in their paths.
    pub(crate) places: fn(&Places) -> Result<Vec<Target>, String>,
    /// The targets that places which were chosen make.
    pub(crate) targets: fn(&Config, Vec<Target>) -> Result<Vec<Target>, String>,
    /// The nodes, and what of the model they take the place of.
    pub(crate) emit: fn(&Scene) -> Emission,
    pub(crate) folding: ElsewhereFolding,
}

/// How an adapter at other places becomes plain weights.
pub(crate) enum ElsewhereFolding {
    /// Some initializers get other values.
    Rewrites(Rewrites),
    /// Plain weights cannot compute it, for this reason.
    KeepsBranch(&'static str),
}

/// A merge that changes initializers.
pub(crate) struct Rewrites {
    /// What the initializers of the model, with the adapter's nodes taken out, become.
    pub rewrites: fn(&Model, &Config, &Tensors) -> Result<Vec<Rewrite>, String>,
    /// Entries of the merged model's metadata, which say how to use it.
    pub metadata: fn(&Model, &Config) -> Vec<(String, String)>,
    /// The nodes with which the merged model takes the inputs of the injected one and gives its outputs, where it does not without.
    pub adapted: Option<fn(&Scene) -> Emission>,
}

/// What looking for places reads.
pub(crate) struct Places<'a> {
    pub model: &'a Model,
    /// The shape of a value at a sample batch shape; `None` where it is not known.
    pub shape_of: &'a dyn Fn(&str) -> Option<Vec<usize>>,
}

/// Another content for an initializer.
pub(crate) struct Rewrite {
    pub path: String,
    pub initializer: String,
    /// The nodes that shall read it. Where others do too, they keep the old one.
    pub readers: Vec<NodeId>,
    pub values: Vec<f64>,
    /// Whether the values are rows that follow those which are there.
    pub append: bool,
}

/// How nodes of an adapter's own become plain weights.
pub enum Folding {
    /// The merged weights compute what the nodes do.
    Exact(fn(&Fold) -> Result<Folded, String>),
    /// Exact for one value of a graph input of its, which the merge chooses; without a choice the branch is kept.
    Chosen(&'static str, fn(&Fold, f64) -> Result<Folded, String>),
    /// Plain weights cannot compute it, for this reason.
    KeepsBranch(&'static str),
}

/// How a configuration merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge<'a> {
    /// Plain weights compute what the adapter does.
    Exact,
    /// The signal that the last factor multiplies is not a function of the block's own input: it is regressed on it.
    Approximate,
    /// Exact where a value is chosen for this graph input, which it depends on example by example.
    Chosen(&'a str),
    /// Plain weights cannot compute it, for this reason.
    KeepsBranch(&'static str),
}

/// What folding one target reads.
pub struct Fold<'a> {
    /// How the model is injected.
    pub config: &'a Config,
    /// The target to fold.
    pub target: &'a Target,
    /// As the node multiplies by it, `[out, in]`.
    pub weight: &'a Array2<f64>,
    /// `[out]`, where the node has a bias.
    pub bias: Option<&'a Array1<f64>>,
    /// The adapter's tensors.
    pub values: &'a Values<'a>,
    /// The value of a graph input that is folded in, by the input's name.
    pub chosen: &'a [(String, f64)],
}

/// The weights of one target after merging.
pub struct Folded {
    /// As the node multiplies by it, `[out, in]`.
    pub weight: Array2<f64>,
    /// `None` leaves the bias as it is.
    pub bias: Option<Array1<f64>>,
}
