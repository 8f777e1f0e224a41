//! Passes: text in, text out, and the same numbers before and after.

use crate::oracle;
use crate::pass_cases::CASES;
use reslora_compile::internals::device::{Cpu, Device};
use reslora_compile::internals::ir::{Attr, Attrs, Builder, DType, FloatType, Graph, Leaf, Sink, Tensor, Type, Weight};
use reslora_compile::internals::ops::host::Buffer;
use reslora_compile::internals::ops::{self, Fill, RULES, draw};
use reslora_compile::internals::passes::{self, Kind, Options};
use reslora_compile::internals::pipeline;
use reslora_compile::internals::plan::{DeviceProfile, Limits};
use reslora_compile::internals::train::Purpose;
use std::collections::{BTreeMap, BTreeSet};

/// Settings under which every pass of the line has something to do: parts of four rows, weights of at most 24 words.
pub fn options() -> Options {
    let profile = DeviceProfile {
        busy_rows: 4,
        row_major_products: true,
        slow_attention: true,
        fast_epilogues: true,
        fast_long_terms: true,
        fast_grouped_products: true,
        buffers: 8,
        rest: 0,
    };
    let limits = Limits { value_words: 1000, weight_words: 24, arena_words: 1 << 20, profile };
    Options { kind: Kind::Training, fuse: true, products: FloatType::F16, guard: true, packs: false, limits }
}

/// Some passes, each alone, in this order.
fn run(names: &[&str], graph: Graph) -> Graph {
    names.iter().fold(graph, |g, name| passes::run_pass(name, g, &options()).unwrap_or_else(|e| panic!("{e}")))
}

/// What ends the line after differentiation, whatever the options.
const CLEANED: &[&str] = &["fold_layout", "common_subexpressions", "dead_code"];

/// Every output on drawn inputs, in f64.
pub fn outputs(graph: &Graph) -> BTreeMap<String, Vec<f64>> {
    let seed = |name: &str| name.bytes().map(u64::from).sum();
    let feed = |leaf: &Leaf, ty: &Type| match leaf {
        Leaf::Input(name) | Leaf::Parameter(name) => Buffer::<f64>::of(&draw(ty, Fill::Normal, seed(name))),
        _ => panic!("no other leaves here"),
    };
    let values = ops::interpret::<f64>(graph, &feed);
    let of = |b: &Buffer<f64>| match b {
        Buffer::Float(x) => x.clone(),
        Buffer::Int(x) => x.iter().map(|&i| i as f64).collect(),
    };
    graph.outputs.iter().map(|o| (o.name.clone(), of(&values[o.value.index()]))).collect()
}

fn assert_same(before: &Graph, after: &Graph, what: &str) {
    let (before, after) = (outputs(before), outputs(after));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{what}");
    for (name, x) in &before {
        for (a, b) in x.iter().zip(&after[name]) {
            // Patterns know their constants (1/√2, 0.044715) to f32's precision.
            assert!((a - b).abs() < 1e-6 * (1.0 + a.abs()), "{what}: {name}: {a} and {b}");
        }
    }
}

fn parsed(text: &str) -> Graph {
    let graph = Graph::parse(text).unwrap_or_else(|e| panic!("{e}"));
    passes::check(&graph, "parse").unwrap_or_else(|e| panic!("{e}\n{graph}"));
    graph
}

/// Passes that have tests of their own below, and in packing.rs.
const ELSEWHERE: &[&str] = &[
    "keep_apart",
    "guard_softmax",
    "recognise_large_attention",
    "shard_weights",
    "recognise_linear_cross_entropy",
    "differentiate",
];

#[test]
fn passes_rewrite_what_they_find() {
    let mut shown = String::new();
    for (name, what, text) in CASES {
        let graph = parsed(text);
        let done = run(&[name], graph.clone());
        // Rounding is what that pass is for.
        if *name != "autocast" {
            assert_same(&graph, &done, what);
        }
        // Without what the rewrite left behind, so that the shape of the result shows.
        let shape = run(&["dead_code"], done);
        shown += &format!("# {name}: {what}\n{graph}=>\n{shape}\n");
    }
    insta::assert_snapshot!(shown);
    let covered: BTreeSet<&str> = CASES.iter().map(|c| c.0).collect();
    let missing: Vec<&str> =
        passes::names(&options()).into_iter().filter(|n| !covered.contains(n) && !ELSEWHERE.contains(n)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn text_reads_back() {
    for (name, what, text) in CASES {
        let graph = parsed(text);
        let printed = graph.to_string();
        assert_eq!(parsed(&printed).to_string(), printed, "{name}: {what}");
        let done = run(&[name], graph).to_string();
        assert_eq!(parsed(&done).to_string(), done, "{name}: {what}");
    }
    for (wrong, why) in
        [("%0: f32[2] = input", "string"), ("%0: f99[2] = input \"x\"", "f99"), ("return \"y\" %0", "'='")]
    {
        let error = Graph::parse(wrong).unwrap_err();
        assert!(error.contains(why), "{wrong}: {error}");
    }
}

/// Attention of every fixture is one operation a layer, none of its transposes is left, and `--no-fuse` leaves it apart.
#[test]
fn attention_is_found_as_every_exporter_writes_it() {
    for case in oracle::fixtures() {
        let model = pipeline::read(&case.dir.join("model.onnx")).unwrap();
        let shapes = pipeline::sample_shapes(&model.inputs());
        let limits = Cpu::new(None).limits();
        let count = |fuse: bool, op: &str| {
            let all = pipeline::inferring(&model);
            // Keys and values, which some exporters give as outputs too, are wanted with heads first.
            let program = pipeline::Program { fuse, outputs: all.outputs[..1].to_vec(), ..all };
            let graph = program.graph(&shapes, Purpose::Infer, limits).unwrap();
            graph.nodes.iter().filter(|n| n.op == op).count()
        };
        let layers = count(false, "softmax");
        assert!(layers > 0 && count(false, "attention") == 0, "{}", case.name());
        assert_eq!(count(true, "attention"), layers, "{}", case.name());
        assert_eq!(count(true, "softmax"), 0, "{}", case.name());
        assert_eq!(count(true, "transpose"), 0, "{}", case.name());
    }
}

/// Gradients reach parameters only, and only those that the loss depends on.
#[test]
fn differentiation_stops_at_what_is_frozen() {
    let graph = parsed(
        r#"%0: f32[4,3] = input "x"
           %1: f32[3,3] = input "frozen"
           %2: f32[3,2] = parameter "a"
           %3: f32[3,2] = parameter "unused"
           %4: f32[4,3] = matmul(%0, %1) {trans_a=false, trans_b=false}
           %5: f32[4,2] = matmul(%4, %2) {trans_a=false, trans_b=false}
           %6: f32[4,2] = matmul(%0, %3) {trans_a=false, trans_b=false}
           %7: f32[1,8,1] = reshape(%5) {shape=[1,8,1]}
           %8: f32[1,1] = reduce_sum(%7)
           %9: f32[] = reshape(%8) {shape=[]}
           return "loss" = %9
           return "other" = %6"#,
    );
    let done = passes::differentiate(graph, "loss").unwrap();
    let names: Vec<&str> = done.outputs.iter().map(|o| o.name.as_str()).collect();
    assert!(names.contains(&"grad.a") && !names.contains(&"grad.frozen") && !names.contains(&"grad.x"), "{names:?}");
    insta::assert_snapshot!(done);
}

/// A loss over a language model's head: `lines` compute the logits, their last value, from the rows `%0: f32[6,4]` and the weight
/// `%2: f32[12,4]`.
fn with_head(weight: &str, lines: &str) -> Graph {
    let logits = 2 + lines.lines().count();
    let [loss, lse, wide, sum, flat] = [1, 2, 3, 4, 5].map(|i| logits + i);
    parsed(&format!(
        r#"%0: f32[6,4] = parameter "x"
           %1: i32[6] = constant [0, 8, -1, 3, -1, 5]
           %2: f32[12,4] = {weight} "w"
           {lines}
           %{loss}: f32[6], %{lse}: f32[6] = cross_entropy(%{logits}, %1)
           %{wide}: f32[1,6,1] = reshape(%{loss}) {{shape=[1,6,1]}}
           %{sum}: f32[1,1] = reduce_sum(%{wide})
           %{flat}: f32[] = reshape(%{sum}) {{shape=[]}}
           return "loss" = %{flat}"#
    ))
}

const PRODUCT: &str = "%3: f32[6,12] = matmul(%0, %2) {trans_a=false, trans_b=true}";

/// Projection and loss become one operation, four rows at a time, with the gradients of the two.
#[test]
fn a_projection_and_its_loss_are_one_operation() {
    let biased = format!(
        r#"%4: f32[12] = input "bias"
           {PRODUCT}
           %5: f32[2,3,12] = reshape(%3) {{shape=[2,3,12]}}
           %6: f32[2,3,12] = add(%5, %4)
           %7: f32[6,12] = reshape(%6) {{shape=[6,12]}}"#
    );
    let parts = r#"%3: f32[8,4] = input "v"
           %4: f32[6,12] = matmul(%0, %2) {trans_a=false, trans_b=true}
           %5: f32[6,8] = matmul(%0, %3) {trans_a=false, trans_b=true}
           %6: f32[6,20] = concat(%4, %5) {axis=1}"#;
    let cases = [("plain", PRODUCT), ("with a bias", &biased), ("in parts", parts)];
    let mut shown = String::new();
    for (what, lines) in cases {
        let graph = with_head("input", lines);
        let fused = run(&["recognise_linear_cross_entropy", "dead_code"], graph.clone());
        shown += &format!("# {what}\n{graph}=>\n{fused}\n");
        let gradients = |g: Graph| run(CLEANED, passes::differentiate(g, "loss").unwrap());
        let (apart, fused) = (gradients(graph), gradients(fused));
        assert_same(&apart, &fused, what);
        // The same with every weight both ways, as some devices want it.
        let even = run(&["row_major_operands", "common_subexpressions", "dead_code"], fused);
        assert_same(&apart, &even, what);
    }
    insta::assert_snapshot!(shown);
}

/// Where the logits serve something else, or more than x has a gradient, the parts stay.
#[test]
fn a_projection_that_is_trained_or_read_stays_apart() {
    let adapter = format!(
        r#"%4: f32[2,4] = parameter "a"
           %5: f32[12,2] = parameter "b"
           {PRODUCT}
           %6: f32[6,2] = matmul(%0, %4) {{trans_a=false, trans_b=true}}
           %7: f32[6,12] = matmul(%6, %5) {{trans_a=false, trans_b=true}}
           %8: f32[6,12] = add(%3, %7)"#
    );
    let bias = format!(
        r#"%4: f32[12] = parameter "bias"
           {PRODUCT}
           %5: f32[6,12] = add(%3, %4)"#
    );
    let mut read = with_head("input", PRODUCT);
    let logits = read.nodes[0].outputs[0];
    read.outputs.push(reslora_compile::internals::ir::Output {
        name: "logits".into(),
        value: logits,
        sink: Sink::Fetch,
    });
    let cases = [
        ("a trained weight", with_head("parameter", PRODUCT)),
        ("an adapter", with_head("input", &adapter)),
        ("a trained bias", with_head("input", &bias)),
        ("logits that are an output", read),
    ];
    for (what, graph) in cases {
        let done = run(&["recognise_linear_cross_entropy"], graph);
        assert!(done.nodes.iter().all(|n| n.op != "linear_cross_entropy"), "{what}: {done}");
    }
}

/// A weight of more words than the limit is read in parts, with the numbers unchanged.
#[test]
fn large_weights_are_read_in_parts() {
    let (w, table) = (draw(&Type::f32([6, 10]), Fill::Normal, 1), draw(&Type::f32([10, 6]), Fill::Normal, 2));
    let mut b = Builder::new(RULES);
    let ids = b.constant(Tensor::i32([4], vec![0, 9, 3, 7]));
    let held = |name: &str, t: &Tensor| {
        let t = t.clone();
        Weight::new(name, 1, move || t.clone())
    };
    let table = b.weight(held("table", &table), Type::f32([10, 6]));
    let w = b.weight(held("w", &w), Type::f32([6, 10]));
    let rows = b.emit("gather", &[table, ids], Attrs::new().with("axis", Attr::Int(0))).unwrap();
    let y = b.matmul(rows, w, false, false).unwrap();
    let back = b.matmul(y, w, false, true).unwrap();
    b.output("y", y, Sink::Fetch);
    b.output("back", back, Sink::Fetch);
    let largest = |g: &Graph| {
        let words = |v: &reslora_compile::internals::ir::ValueInfo| match &v.def {
            reslora_compile::internals::ir::Def::Leaf(Leaf::Weight(_)) => v.ty.elements(),
            _ => 0,
        };
        g.values.iter().map(words).max().unwrap()
    };
    let done = run(&["shard_weights", "dead_code"], b.graph.clone());
    assert_eq!(largest(&b.graph), 60);
    assert!(largest(&done) <= 24, "{done}");
    assert_same(&b.graph, &done, "shards");
    assert_eq!(done.ty(done.output("y").unwrap()).dtype, DType::F32);
}

#[test]
fn attention_of_few_scores_stays_apart_where_products_are_faster() {
    let mut found = 0;
    for (_, what, text) in CASES.iter().filter(|c| c.0 == "recognise_attention") {
        let fused = |name: &str| run(&[name], parsed(text)).nodes.iter().any(|n| n.op == "attention");
        found += fused("recognise_attention") as usize;
        assert!(!fused("recognise_large_attention"), "{what}");
    }
    assert!(found > 0, "no case has attention");
}

/// A row that a mask leaves no key gives zeros, not NaN; other rows as before.
#[test]
fn guarded_softmaxes_give_zeros_without_keys() {
    let graph = parsed(
        r#"%0: f32[2,3] = input "x"
           %1: f32[2,1] = constant [0.0,-inf]
           %2: f32[2,3] = add(%0, %1)
           %3: f32[2,3] = softmax(%2) {safe=false}
           return "y" = %3"#,
    );
    let (before, after) = (outputs(&graph), outputs(&run(&["guard_softmax"], graph)));
    assert!(before["y"][3..].iter().all(|x| x.is_nan()));
    assert_eq!(after["y"][..3], before["y"][..3]);
    assert_eq!(after["y"][3..], [0.0; 3]);
}

/// The passes of each kind of program, in order, on a device that is good at nothing and under every option.
#[test]
fn each_kind_of_program_runs_its_part_of_the_line() {
    let graph = parsed(
        r#"%0: f32[] = parameter "a"
           %1: f32[] = tanh(%0)
           return "reslora.loss" = %1"#,
    );
    let plain = DeviceProfile {
        row_major_products: false,
        slow_attention: false,
        fast_epilogues: false,
        fast_long_terms: false,
        fast_grouped_products: false,
        ..options().limits.profile
    };
    let limits = Limits { profile: plain, ..options().limits };
    let least = Options { fuse: false, products: FloatType::F32, guard: false, limits, ..options() };
    let mut shown = String::new();
    for (what, options) in [
        ("an update", Options { kind: Kind::Update, ..least }),
        ("an update, fused", Options { kind: Kind::Update, ..options() }),
        ("a forward pass, --no-fuse", Options { kind: Kind::Forward, ..least }),
        ("training, --no-fuse", least),
        ("training", Options { fuse: true, ..least }),
        ("training, where everything is fast but attention", Options { products: FloatType::F32, ..options() }),
        ("training, mixed, where everything is fast but attention", options()),
    ] {
        let mut seen = vec![];
        passes::optimize(graph.clone(), &options, &mut |name, _| seen.push(name)).unwrap();
        shown += &format!("# {what}\n{}\n\n", seen.join("\n"));
    }
    insta::assert_snapshot!(shown);
}
