//! The ONNX file: lossless reading and writing, its nodes as a graph, and queries on them.

mod diff;
mod dot;
mod element;
mod external_data;
mod inline;
mod interface;
mod linear;
mod model;
mod module_path;
mod node;
mod norm;
mod quantised;
mod read;
mod role;
mod wire;
mod write;

pub use diff::{FileDiff, TensorChange, diff};
pub use dot::dot;
pub use element::{ElementType, TensorView, called, encode_floats, encode_integers, not_finite};
pub use linear::{Bias, Linear, linear_nodes, nearest};
pub use model::{Dim, Model, NodeId, Signature, sha256};
pub use module_path::module_path;
pub use node::{AttrValue, DETACH_KEY, NewNode, Node, OwnTensor, Subgraph};
pub use norm::{Norm, norm_nodes};
pub use quantised::Quantised;
pub use read::{ReadError, read};
pub use role::{ROLES, Role, roles};
pub use write::{WriteError, data_path, write};
