//! The modules of this crate as its own tests and benchmarks see them. Nothing here is stable.

pub mod adapter {
    pub use crate::adapter::*;
}
pub mod adapters {
    pub use crate::adapters::*;
}
pub mod calibrate {
    pub use crate::calibrate::*;
}
pub mod device {
    pub use crate::device::*;
}
pub mod file_kind {
    pub use crate::file_kind::*;
}
pub mod inject {
    pub use crate::inject::*;
}
pub mod ir {
    pub use crate::ir::*;
}
pub mod lower {
    pub use crate::lower::*;
}
pub mod merge {
    pub use crate::merge::*;
}
pub mod onnx {
    pub use crate::onnx::*;
}
pub mod ops {
    pub use crate::ops::*;
}
pub mod optim {
    pub use crate::optim::*;
}
pub mod passes {
    pub use crate::passes::*;
}
pub mod pipeline {
    pub use crate::pipeline::*;
}
pub mod plan {
    pub use crate::plan::*;
}
pub mod settings {
    pub use crate::settings::*;
}
pub mod train {
    pub use crate::train::*;
}
pub mod verify {
    pub use crate::verify::*;
}
