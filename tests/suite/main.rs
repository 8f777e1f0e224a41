//! The whole test suite but for `allocations.rs` in one binary, so that dependencies are linked once.

mod adapters;
mod architecture;
mod arrays;
mod batches;
mod bf16;
mod build;
mod changed;
mod chat;
mod cli;
mod cli_trained;
mod comparing;
mod computed;
mod data;
mod dumps;
mod elsewhere;
mod example_columns;
mod faults;
mod files;
mod functions;
mod fused_products;
mod generating;
mod gpu;
mod help;
mod images;
mod inputs;
mod inspection;
mod library;
mod losses;
mod masked;
mod merges;
mod models;
mod operators;
mod optimizers;
mod oracle;
mod other_files;
mod pass_cases;
mod pass_properties;
mod passes;
mod primitives;
mod products;
mod quantised_bases;
mod random_graphs;
mod residual_gradients;
mod runs;
mod shaders;
mod standard_operators;
mod starts;
mod starts_from_files;
mod structures;
mod tables;
mod tokens;
mod toy_adapter;
mod violations;

/// Says what was not tested, past the test harness, which keeps what a passing test prints to itself.
fn loudly(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "\n*** {what} ***\n");
}
