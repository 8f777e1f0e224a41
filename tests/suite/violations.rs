//! Every violation that the verifier of the IR and the check of plans can report: text in, message out.

use reslora_compile::internals::ir::{Def, Graph, Leaf, Tensor, Type, verify};
use reslora_compile::internals::ops::RULES;
use reslora_compile::internals::plan::{self, DeviceProfile, Layout, Limits, Place, Plan, Step};
use std::sync::Arc;

const LIMITS: Limits = Limits {
    value_words: 1000,
    weight_words: 1000,
    arena_words: 1 << 20,
    profile: DeviceProfile {
        busy_rows: 4,
        row_major_products: false,
        slow_attention: false,
        fast_epilogues: false,
        fast_long_terms: false,
        fast_grouped_products: false,
        buffers: 8,
        rest: 0,
    },
};

fn parsed(text: &str) -> Graph {
    Graph::parse(text).unwrap_or_else(|e| panic!("{e}"))
}

fn violations(graph: &Graph) -> Vec<String> {
    verify::verify(graph, &RULES).expect_err("a violation")
}

#[test]
fn the_verifier_says_what_is_wrong() {
    let cases: [(&str, &[&str]); 10] = [
        (
            r#"%1: f32[2] = input "x"
               return "y" = %1"#,
            &["%0 says it is output 0 of node 18446744073709551615, which does not produce it"],
        ),
        (
            r#"%0: f32[2] = input "x"
               %1: f32[2] = exp(%2) @"/a"
               %2: f32[2] = exp(%0)
               return "y" = %1"#,
            &["node 0 exp (from '/a') reads %2 before it is defined"],
        ),
        (
            r#"%0: f32[2] = exp(%7)
               return "y" = %0"#,
            &["node 0 exp reads %7 before it is defined"],
        ),
        (
            r#"%0: f32[2] = input "x"
               %1: f32[2] = exp(%0)
               %1: f32[2] = tanh(%0)
               return "y" = %1"#,
            &["node 0 exp: output %1 does not belong to it"],
        ),
        (
            r#"%0: f32[2] = input "x"
               %1: f32[3] = exp(%0)
               return "y" = %1"#,
            &["node 0 exp: types are f32[3] but the operation gives f32[2]"],
        ),
        (r#"return "y" = %3"#, &["output 'y' is %3, which does not exist"]),
        (
            r#"%0: f32[2] = input "x"
               return "y" = %0
               return "y" = %0"#,
            &["two outputs are named 'y'"],
        ),
        (
            r#"%0: f32[2] = state "m"
               return "y" = %0 -> state "m"
               return "z" = %0 -> state "m""#,
            &["two outputs go to 'm'"],
        ),
        (
            r#"%0: f32[2] = parameter "a"
               %1: f32[3] = input "x"
               return "grad.a" = %1 -> gradient "a""#,
            &["output 'grad.a' is f32[3] but 'a' is f32[2]"],
        ),
        (
            r#"%0: f32[2] = state "m"
               %1: f32[3] = input "x"
               return "m" = %1 -> state "m"
               return "m" = %0"#,
            &["output 'm' is f32[3] but 'm' is f32[2]", "two outputs are named 'm'"],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(violations(&parsed(text)), expected, "{text}");
    }
}

/// What the rule of an operation refuses comes with the node.
#[test]
fn the_verifier_says_which_operation_does_not_fit() {
    for (op, why) in [("nothing(%0)", "nothing"), ("matmul(%0, %0) {trans_a=false, trans_b=false}", "matmul")] {
        let text = format!("%0: f32[2,3] = input \"x\"\n%1: f32[2,3] = {op} @\"/a\"\nreturn \"y\" = %1");
        let found = violations(&parsed(&text));
        let at = format!("node 0 {why} (from '/a'): ");
        assert!(found.len() == 1 && found[0].starts_with(&at) && found[0].len() > at.len(), "{found:?}");
    }
}

/// Text cannot say a constant of another type than its value's.
#[test]
fn the_verifier_finds_a_constant_of_another_type() {
    let mut graph = parsed("%0: f32[2] = constant [1.0,2.0]\nreturn \"y\" = %0");
    graph.values[0].def = Def::Leaf(Leaf::Constant(Arc::new(Tensor::zeros(&Type::i32([2])))));
    assert_eq!(violations(&graph), ["%0 is declared f32[2] but its constant is i32[2]"]);
}

/// A chain that no step of can be in place, so that each value has a place of its own.
fn planned() -> Plan {
    let text = r#"%0: f32[3,4] = input "x"
       %1: f32[4,3] = transpose(%0) {perm=[1,0]}
       %2: f32[4,3] = tanh(%1)
       %3: f32[3,4] = transpose(%2) {perm=[1,0]}
       %4: f32[4,4] = matmul(%3, %3) {trans_a=true, trans_b=false}
       return "y" = %4"#;
    plan::plan(parsed(text), &Layout::default(), LIMITS).unwrap()
}

#[test]
fn the_check_of_plans_finds_values_that_overlap() {
    let plan = planned();
    plan::check(&plan).unwrap();
    let message = |change: &dyn Fn(&mut Plan)| {
        let mut wrong = plan.clone();
        change(&mut wrong);
        plan::check(&wrong).expect_err("it is wrong").to_string()
    };
    let over = "the plan lets values overlap (a bug of reslora-compile): ";
    assert_eq!(message(&|p| p.places[4] = p.places[3].clone()), format!("{over}%4 of matmul over %3"));
    // Part of it is enough.
    let shifted = |p: &mut Plan| {
        let Some(Place::Arena { arena, offset }) = p.places[3] else { panic!("in an arena") };
        p.places[4] = Some(Place::Arena { arena, offset: offset + 11 });
    };
    assert_eq!(message(&shifted), format!("{over}%4 of matmul over %3"));
    // What a step says is in place may share its memory, and nothing else may.
    let apart = |p: &mut Plan| {
        for step in &mut p.steps {
            if let Step::Node { in_place, .. } = step {
                in_place.clear();
            }
        }
    };
    assert_eq!(message(&apart), format!("{over}%2 of tanh over %1"));
    assert_eq!(message(&|p| p.arenas[0] = 64), format!("{over}%3 ends beyond arena 0"));
}

#[test]
fn plans_refuse_values_that_a_device_cannot_bind() {
    let text = r#"%0: f32[2] = input "x"
       %1: f32[2048,2] = broadcast(%0) {shape=[2048,2]} @"/wide"
       return "y" = %1"#;
    let error = plan::plan(parsed(text), &Layout::default(), LIMITS).unwrap_err().to_string();
    assert!(error.starts_with("broadcast at '/wide' gives f32[2048,2], 0 MiB, but this device binds 0 MiB"), "{error}");
}
