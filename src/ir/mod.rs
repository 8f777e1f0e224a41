//! The training program: typed, static shapes, in static single assignment form.
//!
//! A [`Graph`] is specialised for one batch shape. Its operations are named primitives with attributes; what a primitive
//! means is written in `ops`, and nothing in this module knows it. Graphs print and parse back ([`text`]).

pub mod build;
pub mod graph;
pub mod program;
pub mod shape;
pub mod tensor;
pub mod text;
pub mod verify;

pub use build::{BuildError, Builder, Rules};
pub use graph::{Attr, Attrs, Def, Graph, Leaf, Node, Output, Sink, Value, ValueInfo, Weight};
pub use program::{Arg, Instr, Program};
pub use shape::{DType, Shape, Type};
pub use tensor::Tensor;
