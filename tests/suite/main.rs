//! The whole test suite in one binary, so that dependencies are linked once.

mod architecture;
mod build;
mod cli;
mod data;
mod files;
mod gpu;
mod operators;
mod oracle;
mod passes;
mod primitives;
