//! What every primitive's file uses.

pub use super::math::{Real, normal_cdf};
pub use super::parallel::{self, Shared};
pub use super::primitive::{
    Binding, Cpu, CpuCall, Data, DataMut, Dispatch, EDGES, Element, Elements, FINITE, Fill, Gpu, GpuCall, GpuTraits,
    Primitive, SCORES, Sample, Shader, Vjp, VjpCall,
};
pub use super::strided::{self, grid};
pub use crate::ir::{Attr, Attrs, BuildError, DType, Shape, Type, Value};
pub use crate::ops::elementwise::program::{
    broadcast, compare, infer_bool2, infer_compare, infer_float1, infer_float2, infer_number2, map1, map2, map2_number,
};
