//! The whole test suite but for `allocations.rs` in one binary, so that dependencies are linked once.

mod adapters;
mod architecture;
mod arrays;
mod build;
mod chat;
mod cli;
mod cli_trained;
mod computed;
mod data;
mod files;
mod functions;
mod fused_products;
mod gpu;
mod help;
mod inputs;
mod inspection;
mod masked;
mod merges;
mod models;
mod operators;
mod optimizers;
mod oracle;
mod other_files;
mod pass_cases;
mod passes;
mod primitives;
mod products;
mod runs;
mod shaders;
mod tokens;

/// Says what was not tested, past the test harness, which keeps what a passing test prints to itself.
fn loudly(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "\n*** {what} ***\n");
}
