//! What every primitive's file uses.

pub use super::blocks::{
    broadcast, compare, infer_bool2, infer_compare, infer_float1, infer_float2, infer_integer2, infer_number2, map1,
    map2, map2_integer, map2_number,
};
pub use super::math::{Real, normal_cdf};
pub use super::parallel::{self, Shared};
pub use super::primitive::{
    AttrKind, AttrSpec, Binding, Cpu, CpuCall, Data, DataMut, Dispatch, Element, Elements, Gpu, GpuCall, GpuTraits,
    Halves, NO_ATTRS, NO_HALVES, NO_TILES, NO_WINDOWS, NOTHING, Primitive, Results, Shader, Tiled, Vjp, VjpCall, Work,
    flag, may, needs, pointwise_work,
};
pub use super::samples::{EDGES, FINITE, Fill, SCORES, Sample};
pub use super::strided::{self, grid};
pub use crate::ir::{Attr, Attrs, BuildError, DType, Shape, Type, Value};
