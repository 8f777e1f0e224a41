//! The whole test suite in one binary, so that dependencies are linked once.

mod files;
mod gpu;
mod oracle;
mod primitives;
