pub mod ir;
pub mod ops;
pub mod passes;
