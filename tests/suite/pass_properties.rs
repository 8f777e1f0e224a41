//! What holds of every pass on every program: outputs keep their names, types and values.

use crate::passes::{options, outputs};
use crate::random_graphs::graphs;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use reslora_compile::internals::ir::{FloatType, Graph};
use reslora_compile::internals::passes::{self, Kind, Options};
use std::collections::BTreeSet;

/// 64 programs, the same each time.
fn runner() -> TestRunner {
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Passes that change the order of a sum, or know a constant of a pattern to f32's precision; the others give the same bits.
const REORDERS: &[&str] = &[
    "recognise_softmax",
    "recognise_activation",
    "recognise_norm",
    "recognise_attention",
    "recognise_large_attention",
    "recognise_rotary",
    "recognise_linear_cross_entropy",
    "join_low_rank",
    "sink_scales",
    "sink_bias",
    "order_terms",
    "fuse_addend",
    "fuse_residual",
    "fuse_terms",
    "fold_layout",
    "row_major_operands",
    "group_products",
    "push_slices",
    "shard_weights",
];

/// Every output of `before` is one of `after`, of the same type and within `tolerance` of its values.
fn same(before: &Graph, after: &Graph, tolerance: f64, what: &str) -> Result<(), TestCaseError> {
    let fail = |why: String| Err(TestCaseError::fail(format!("{what}: {why}\n{before}=>\n{after}")));
    let found = outputs(after);
    for (name, x) in outputs(before) {
        let Some(y) = found.get(&name) else {
            return fail(format!("'{name}' is gone"));
        };
        let [was, is] = [before, after].map(|g| g.ty(g.output(&name).expect("an output")));
        if was != is {
            return fail(format!("'{name}' was {was} and is {is}"));
        }
        for (a, b) in x.iter().zip(y) {
            if (a - b).abs() > tolerance * (1.0 + a.abs()) || a.is_nan() != b.is_nan() {
                return fail(format!("'{name}': {a} and {b}"));
            }
        }
    }
    Ok(())
}

/// What a program computes, whatever its values are numbered.
fn operations(graph: &Graph) -> Vec<String> {
    graph.nodes.iter().map(|n| format!("{} of {} {:?}", n.op, n.inputs.len(), n.attrs)).collect()
}

#[test]
fn every_pass_keeps_outputs() {
    let names = passes::names(&options());
    let changed = std::cell::RefCell::new(BTreeSet::new());
    let result = runner().run(&graphs(14), |graph| {
        for name in &names {
            let done = passes::run_pass(name, graph.clone(), &options())
                .map_err(|e| TestCaseError::fail(format!("{e}\n{graph}")))?;
            // Operands rounded to halves are what that pass is for: types alone hold.
            let tolerance = match *name {
                "autocast" => f64::INFINITY,
                name if REORDERS.contains(&name) => 1e-6,
                _ => 0.0,
            };
            same(&graph, &done, tolerance, name)?;
            if operations(&done) != operations(&graph) {
                changed.borrow_mut().insert(*name);
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    // The programs give passes something to do.
    let changed = changed.into_inner();
    assert!(changed.len() >= 12, "only {changed:?} changed a program");
}

/// The whole line, on devices that are good at different things, and the gradients of the unoptimised line.
#[test]
fn the_line_keeps_outputs_and_gradients() {
    let plain = Options { fuse: false, products: FloatType::F32, guard: false, ..options() };
    let result = runner().run(&graphs(14), |graph| {
        let run = |options: &Options| {
            passes::optimize(graph.clone(), options, &mut |_, _| {})
                .map_err(|e| TestCaseError::fail(format!("{e}\n{graph}")))
        };
        let reference = run(&plain)?;
        let fused = Options { fuse: true, ..plain };
        let mut slow = fused;
        slow.limits.profile.row_major_products = false;
        slow.limits.profile.fast_epilogues = false;
        slow.limits.profile.fast_grouped_products = false;
        for options in [fused, slow, Options { guard: true, ..fused }] {
            same(&reference, &run(&options)?, 1e-6, "the line")?;
        }
        same(&graph, &run(&Options { kind: Kind::Forward, ..fused })?, 1e-6, "the line, forward")
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}
