//! What every primitive is built of: its description, loops over rows and cores, copies between layouts, and the making of kernels.

pub mod assemble;
pub mod blocks;
pub mod math;
pub mod packed;
pub mod parallel;
pub mod prelude;
pub mod primitive;
pub mod rows;
pub mod samples;
pub mod strided;
