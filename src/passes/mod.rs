//! Optimisation passes. [`optimize`] runs them; the line inside it is the list of what happens, in order.
//!
//! A pass is a function from one graph to the next, in a file of its own. A new one is that file and one line of the list, whose tests it
//! takes part in by standing there.

mod autocast;
mod common_subexpressions;
mod dead_code;
mod differentiate;
mod fold_layout;
mod fuse_addend;
mod fuse_elementwise;
mod fuse_epilogues;
mod group_products;
mod guard_softmax;
mod join_low_rank;
mod keep_apart;
mod line;
mod push_slices;
mod recognise_activation;
mod recognise_attention;
mod recognise_linear_cross_entropy;
mod recognise_norm;
mod recognise_rotary;
mod recognise_softmax;
mod recompute;
mod rewrite;
mod row_major_operands;
mod shard_weights;

use crate::ir::{BuildError, FloatType, Graph, outputs};
use crate::plan::Limits;
use line::Line;

pub use differentiate::{DifferentiateError, differentiate, reached};
pub use line::{check, names, run_pass};

/// A pass failed, or broke a rule of the IR: a bug of ours, but for a loss that cannot be differentiated.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error("pass {pass} broke the program (a bug of reslora-compile):\n  {}", violations.join("\n  "))]
    Broken { pass: &'static str, violations: Vec<String> },
    #[error("pass {pass}: {error}")]
    Build { pass: &'static str, error: BuildError },
    #[error(transparent)]
    Differentiate(#[from] DifferentiateError),
}

/// What a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model's forward pass; its outputs alone are wanted.
    Forward,
    /// A model's forward pass, to be differentiated: the gradients of the output [`outputs::LOSS`] are wanted too.
    Training,
    /// No model: an optimiser's step, or an accumulation of gradients, over flat buffers.
    Update,
}

/// What decides which passes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub kind: Kind,
    /// Whether optimisations beyond the necessary run.
    pub fuse: bool,
    /// The type to which products round their operands.
    pub products: FloatType,
    /// Whether rows of a softmax that a mask leaves no key give 0 rather than NaN.
    pub guard: bool,
    /// Whether rows hold several texts, between which nothing attends.
    pub packs: bool,
    /// What the device holds, and what is fast on it.
    pub limits: Limits,
}

/// Sees the graph before the first pass, under the name `input`, and after each pass, under the pass's name; also one
/// that broke it.
pub type Observer<'a> = &'a mut dyn FnMut(&'static str, &Graph);

/// Runs every pass that `options` ask for on a graph that [`check`] admits, and checks it again after each.
pub fn optimize(graph: Graph, options: &Options, observer: Observer) -> Result<Graph, PassError> {
    let mut line = Line::new(graph, observer);
    passes(&mut line, options)?;
    Ok(line.graph)
}

/// The line of passes. Each states its condition, then its name, then what it does.
fn passes(line: &mut Line, options: &Options) -> Result<(), PassError> {
    let Options { kind, fuse, products, limits, .. } = *options;
    let device = limits.profile;
    let (model, training) = (kind != Kind::Update, kind == Kind::Training);
    let (guard, packs) = (model && options.guard, model && options.packs);
    let optimized = model && fuse;
    // Under mixed precision what is one operation, and so rounds nothing inside, must be the same on every device.
    let mixed = products != FloatType::F32;
    let by_products = device.slow_attention && !mixed;

    // 1. Guards come first, so that what the recognisers make of a softmax keeps them. The patterns of a softmax must be found for that.
    let finds = guard || packs;
    line.run(finds, "fold_layout", fold_layout::fold_layout)?;
    line.run(finds, "common_subexpressions", common_subexpressions::common_subexpressions)?;
    line.run(finds, "recognise_softmax", recognise_softmax::recognise_softmax)?;
    line.run(packs, "keep_apart", keep_apart::keep_apart)?;
    line.run(guard, "guard_softmax", guard_softmax::guard_softmax)?;

    // 2. Patterns see operations rather than chains of reshapes, and compare values by identity.
    line.run(model, "fold_layout", fold_layout::fold_layout)?;
    line.run(model, "common_subexpressions", common_subexpressions::common_subexpressions)?;

    // 3. Operations with a gradient of their own; `dead_code` drops what they replaced.
    line.run(model, "recognise_softmax", recognise_softmax::recognise_softmax)?;
    line.run(model, "recognise_activation", recognise_activation::recognise_activation)?;
    line.run(model, "recognise_norm", recognise_norm::recognise_norm)?;
    line.run(model, "dead_code", dead_code::dead_code)?;

    // 4. Attention as one operation keeps next to nothing for its gradient. Rotations are found first, since transposes move behind them;
    //    `fold_layout` ends the transposes that moved to the result.
    line.run(optimized, "recognise_rotary", recognise_rotary::recognise_rotary)?;
    line.run(optimized && !by_products, "recognise_attention", recognise_attention::recognise_attention)?;
    line.run(optimized && by_products, "recognise_large_attention", recognise_attention::recognise_large_attention)?;
    line.run(optimized, "fold_layout", fold_layout::fold_layout)?;
    line.clean(optimized)?;

    // 5. Less forward work, in front of differentiation, so that gradients are cheaper as well.
    line.run(optimized, "join_low_rank", join_low_rank::join_low_rank)?;
    line.run(optimized, "sink_scales", join_low_rank::sink_scales)?;
    line.run(optimized, "push_slices", push_slices::push_slices)?;
    line.clean(optimized)?;

    // 6. Weights that the device cannot bind whole, before their gradients are made.
    line.run(model, "shard_weights", |g| shard_weights::shard_weights(g, limits.weight_words))?;

    // 7. Only training wants a loss and its gradient at once.
    line.run(training && fuse, "recognise_linear_cross_entropy", |g| {
        recognise_linear_cross_entropy::recognise_linear_cross_entropy(g, device.busy_rows, limits.value_words)
    })?;
    line.run(training, "differentiate", |g| differentiate(g.clone(), outputs::LOSS))?;

    // 8. Gradients bring layout changes and repetitions of their own.
    line.run(true, "fold_layout", fold_layout::fold_layout)?;
    line.clean(true)?;

    // 9. After everything that folds layout, which would undo it.
    line.run(optimized && device.row_major_products, "row_major_operands", row_major_operands::row_major_operands)?;
    line.clean(optimized && device.row_major_products)?;

    // 10. After every pass that makes products.
    line.run(model && mixed, "autocast", |g| autocast::autocast(g, products))?;

    // 11. Horizontal fusion, before the passes below take a product apart from its fellows.
    line.run(optimized && device.fast_grouped_products, "group_products", group_products::group_products)?;

    // 12. Products start from what is added to them. `sink_bias` and `order_terms` come first, so that nothing is left over that a
    //     product could start from, and `dead_code` between, since each asks whether a product has other readers.
    line.run(fuse, "sink_bias", fuse_addend::sink_bias)?;
    line.run(fuse, "dead_code", dead_code::dead_code)?;
    line.run(fuse, "order_terms", fuse_addend::order_terms)?;
    line.run(fuse, "dead_code", dead_code::dead_code)?;
    line.run(fuse, "fuse_addend", fuse_addend::fuse_addend)?;
    line.run(fuse, "dead_code", dead_code::dead_code)?;
    line.run(fuse, "fuse_residual", fuse_addend::fuse_residual)?;
    line.run(fuse, "fuse_terms", |g| fuse_addend::fuse_terms(g, device.fast_long_terms))?;

    // 13. It repeats operations, which `common_subexpressions` would undo; what it repeats may fuse with its reader.
    line.run(fuse, "recompute", recompute::recompute)?;
    line.run(fuse, "dead_code", dead_code::dead_code)?;

    // 14. Elementwise chains take what remains. No pass but epilogue fusion looks into a fused operation.
    line.run(fuse, "fuse_elementwise", |g| fuse_elementwise::fuse_elementwise(g, device.buffers))?;
    line.run(optimized && device.fast_epilogues, "fuse_epilogues", fuse_epilogues::fuse_epilogues)?;
    line.run(optimized && device.fast_epilogues, "dead_code", dead_code::dead_code)
}
