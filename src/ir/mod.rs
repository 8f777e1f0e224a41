//! The training program: typed, with static shapes, in static single assignment form.
//!
//! A [`Graph`] is specialised for one batch shape. Its operations are named primitives with attributes. `ops` defines what they mean;
//! nothing in this module depends on it. Graphs print and parse back ([`text`]).

pub mod build;
pub mod float_type;
pub mod graph;
pub mod program;
pub mod shape;
pub mod tensor;
pub mod text;
pub mod verify;

pub use build::{BuildError, Builder, Rules};
pub use float_type::FloatType;
pub use graph::{Def, Graph, Leaf, Node, Output, Sink, Value, ValueInfo, Weight, Words};
pub use program::{Arg, Attr, Attrs, Instr, Program};
pub use shape::{Axes, DType, MAX_ELEMENTS, Shape, Type, counted, strides};
pub use tensor::Tensor;

/// Inputs that training programs read beside the model's own.
pub mod inputs {
    /// Labels, where the loss is not the model's own.
    pub const LABELS: &str = "labels";
    /// What the sum of losses is multiplied by: one over the number of counted labels of the step.
    pub const LOSS_SCALE: &str = "reslora.loss_scale";
    /// What random draws start from.
    pub const SEED: &str = "reslora.seed";
    /// `(batch, sequence)`: which text of its row each position belongs to, from 1; 0 for padding. Of packed rows.
    pub const SEGMENTS: &str = "reslora.segments";
}

/// Outputs that training programs give.
pub mod outputs {
    /// The micro-batch's share of the step's loss.
    pub const LOSS: &str = "reslora.loss";
    /// Rows whose largest logit is their label.
    pub const CORRECT: &str = "reslora.correct";
    /// What the model answers: one number for each label.
    pub const PREDICTION: &str = "reslora.prediction";
    /// The probabilities of classes.
    pub const PROBABILITIES: &str = "reslora.probabilities";
    /// For each block: Σ ‖x‖², Σ ‖A x‖², and the rows counted.
    pub const STATISTICS: &str = "reslora.statistics";
    /// Begins the name of an index that the model's weights have a part in; then come the rows of its table and the node that
    /// looks it up: `reslora.index/ROWS/NODE`.
    pub const INDEX: &str = "reslora.index/";
}
