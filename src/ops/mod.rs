//! The primitives: what each means, its host kernel, its gradient and its device kernel.
//!
//! A new primitive is one file in the folder of its kind, one kernel in `shaders/` (none if it is elementwise), and one line in the
//! folder's table.

mod attention;
pub mod elementwise;
mod engine;
pub mod host;
mod index;
mod layout;
mod lookup;
mod loss;
mod matmul;
mod norm;
mod reduce;

pub use engine::assemble::{exchange, link};
pub use engine::packed::PackedWeight;
pub use engine::primitive::{
    AttrKind, AttrSpec, Binding, Cooperative, Cpu, CpuCall, Data, DataMut, Dispatch, Element, Elements, Gpu, GpuCall,
    GpuTraits, Primitive, Results, Shader, Tiled, Vjp, VjpCall, Work,
};
pub use engine::samples::{Fill, Sample, draw};
pub use host::{RULES, eval, interpret};
pub use lookup::{
    PRIMITIVES, added_in_place, candidates, dispatches, find, is_elementwise, results, takes, tiles, unpacks,
    unpacks_on_host, windows, work,
};
pub use matmul::bf16::{Unit, pack_weight};
pub use matmul::ending;
pub use matmul::group::MOST as GROUP;
pub use matmul::multiply::packs_rights;

/// The tables of primitives, by kind.
pub const TABLES: &[&[Primitive]] = &[
    attention::PRIMITIVES,
    elementwise::activation::PRIMITIVES,
    elementwise::arithmetic::PRIMITIVES,
    elementwise::logic::PRIMITIVES,
    elementwise::PRIMITIVES,
    index::PRIMITIVES,
    layout::PRIMITIVES,
    loss::PRIMITIVES,
    matmul::PRIMITIVES,
    norm::PRIMITIVES,
    reduce::PRIMITIVES,
];
