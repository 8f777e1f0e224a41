//! Passes over the training program, in the order in which the pipeline runs them.

pub mod common_subexpressions;
pub mod dead_code;
pub mod differentiate;
pub mod fold_layout;
pub mod fuse_addend;
pub mod fuse_elementwise;
pub mod fuse_endings;
pub mod group_products;
pub mod guard_softmax;
pub mod halve_operands;
pub mod join_low_rank;
pub mod lay_out_by_rows;
pub mod push_slices;
pub mod recognise_activation;
pub mod recognise_attention;
pub mod recognise_linear_cross_entropy;
pub mod recognise_norm;
pub mod recognise_rotary;
pub mod recognise_softmax;
pub mod recompute;
pub mod rewrite;
pub mod shard_weights;

use crate::ir::{BuildError, Graph, verify};
use crate::ops::RULES;
pub use differentiate::{DifferentiateError, differentiate, reached};

/// A pass broke a rule of the IR: a bug of ours.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error("pass {pass} broke the program (a bug of reslora-compile):\n  {}", violations.join("\n  "))]
    Broken { pass: &'static str, violations: Vec<String> },
    #[error("pass {pass}: {error}")]
    Build { pass: &'static str, error: BuildError },
    #[error(transparent)]
    Differentiate(#[from] DifferentiateError),
}

/// One pass: its name and what it does.
pub struct Pass {
    pub name: &'static str,
    pub run: fn(&Graph) -> Result<Graph, BuildError>,
}

/// For training and statistics, in front of everything else, so that what the recognisers make of a softmax keeps it. `recognise_softmax`
/// comes first, since it finds what is to be guarded.
pub static GUARD: &[Pass] = &[
    Pass { name: "fold_layout", run: fold_layout::fold_layout },
    Pass { name: "common_subexpressions", run: |g| Ok(common_subexpressions::common_subexpressions(g)) },
    Pass { name: "recognise_softmax", run: recognise_softmax::recognise_softmax },
    Pass { name: "guard_softmax", run: guard_softmax::guard_softmax },
];

/// Before differentiation.
///
/// 1. `fold_layout` first, so that patterns see operations rather than chains of reshapes.
/// 2. `common_subexpressions`: patterns compare values by identity.
/// 3. The recognisers, each for operations with a gradient of their own.
/// 4. `dead_code` drops what the recognisers replaced.
pub static FORWARD: &[Pass] = &[
    Pass { name: "fold_layout", run: fold_layout::fold_layout },
    Pass { name: "common_subexpressions", run: |g| Ok(common_subexpressions::common_subexpressions(g)) },
    Pass { name: "recognise_softmax", run: recognise_softmax::recognise_softmax },
    Pass { name: "recognise_activation", run: recognise_activation::recognise_activation },
    Pass { name: "recognise_norm", run: recognise_norm::recognise_norm },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
];

/// After those: attention, which as one operation keeps next to nothing for its gradient. Rotations come first, since transposes
/// move behind them; `fold_layout` ends the transposes that moved to the result. Left out under `--no-fuse`.
pub static ATTEND: &[Pass] = &[
    Pass { name: "recognise_rotary", run: recognise_rotary::recognise_rotary },
    Pass { name: "recognise_attention", run: recognise_attention::recognise_attention },
    Pass { name: "fold_layout", run: fold_layout::fold_layout },
    Pass { name: "common_subexpressions", run: |g| Ok(common_subexpressions::common_subexpressions(g)) },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
];

/// In their place for devices whose kernels of products are much faster than those of attention: only where its scores would be too
/// much to keep.
pub static ATTEND_BY_PRODUCTS: &[Pass] = &[
    Pass { name: "recognise_rotary", run: recognise_rotary::recognise_rotary },
    Pass { name: "recognise_large_attention", run: recognise_attention::recognise_large_attention },
    Pass { name: "fold_layout", run: fold_layout::fold_layout },
    Pass { name: "common_subexpressions", run: |g| Ok(common_subexpressions::common_subexpressions(g)) },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
];

/// Before differentiation too, so that the gradients of what adapters compute, and of positions that nothing reads, are cheaper as well.
/// Left out under `--no-fuse`.
pub static JOIN: &[Pass] = &[
    Pass { name: "join_low_rank", run: join_low_rank::join_low_rank },
    Pass { name: "sink_scales", run: join_low_rank::sink_scales },
    Pass { name: "push_slices", run: push_slices::push_slices },
    Pass { name: "common_subexpressions", run: |g| Ok(common_subexpressions::common_subexpressions(g)) },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
];

/// After differentiation: gradients bring layout changes and repetitions of their own; `fuse_elementwise` comes last,
/// since no pass looks into a fused operation. It is left out under `--no-fuse`.
pub static BACKWARD: &[Pass] = &[
    Pass { name: "fold_layout", run: fold_layout::fold_layout },
    Pass { name: "common_subexpressions", run: |g| Ok(common_subexpressions::common_subexpressions(g)) },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
];

/// For devices whose products want both operands stored by rows, after everything that folds layout.
pub static BY_ROWS: &[Pass] = &[
    Pass { name: "lay_out_by_rows", run: lay_out_by_rows::lay_out_by_rows },
    Pass { name: "common_subexpressions", run: |g| Ok(common_subexpressions::common_subexpressions(g)) },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
];

/// Under mixed precision, after every pass that makes products.
pub static MIXED: &[Pass] = &[Pass { name: "halve_operands", run: halve_operands::halve_operands }];

/// After that and before `FUSE`, whose passes would take a product apart from its fellows, for devices that gain by it.
pub static GROUP: &[Pass] = &[Pass { name: "group_products", run: group_products::group_products }];

/// `sink_bias` and `order_terms` before `fuse_addend`, so that nothing is left over that a product could start from, and `dead_code`
/// between them, since each asks whether a product has other readers; elementwise chains take what remains. No pass that looks into matmuls
/// may come after, but for `END`. `recompute` repeats operations, which `common_subexpressions` would undo, and what it repeats may fuse with
/// its reader.
pub static FUSE: &[Pass] = &[
    Pass { name: "sink_bias", run: fuse_addend::sink_bias },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
    Pass { name: "order_terms", run: fuse_addend::order_terms },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
    Pass { name: "fuse_addend", run: fuse_addend::fuse_addend },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
    Pass { name: "fuse_residual", run: fuse_addend::fuse_residual },
    Pass { name: "fuse_terms", run: fuse_addend::fuse_terms },
    Pass { name: "recompute", run: recompute::recompute },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
    Pass { name: "fuse_elementwise", run: |g| Ok(fuse_elementwise::fuse_elementwise(g)) },
];

/// After that, for devices that gain by it.
pub static END: &[Pass] = &[
    Pass { name: "fuse_endings", run: fuse_endings::fuse_endings },
    Pass { name: "dead_code", run: |g| Ok(dead_code::dead_code(g)) },
];

/// Between the two, for devices that bind less than the largest weight: it takes their limit, so it is no [`Pass`].
pub fn shard(graph: Graph, limit: usize) -> Result<Graph, PassError> {
    let pass = "shard_weights";
    let graph = shard_weights::shard_weights(&graph, limit).map_err(|error| PassError::Build { pass, error })?;
    check(&graph, pass)?;
    Ok(graph)
}

/// After it, and before differentiation: only training wants the loss and its gradient at once. It takes the rows that a device
/// wants at once and the words that it binds, so it is no [`Pass`] either.
pub fn recognise_loss(graph: Graph, rows: usize, words: usize) -> Result<Graph, PassError> {
    let pass = "recognise_linear_cross_entropy";
    let graph = recognise_linear_cross_entropy::recognise_linear_cross_entropy(&graph, rows, words)
        .map_err(|error| PassError::Build { pass, error })?;
    check(&graph, pass)?;
    Ok(graph)
}

/// Runs passes in order, checking the program after each.
pub fn run(mut graph: Graph, passes: &[Pass]) -> Result<Graph, PassError> {
    for pass in passes {
        graph = (pass.run)(&graph).map_err(|error| PassError::Build { pass: pass.name, error })?;
        check(&graph, pass.name)?;
    }
    Ok(graph)
}

/// Checks the rules of the IR.
pub fn check(graph: &Graph, pass: &'static str) -> Result<(), PassError> {
    verify::verify(graph, &RULES).map_err(|violations| PassError::Broken { pass, violations })
}
