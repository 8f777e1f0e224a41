//! Residual paths on every adapter that takes them: gradients of a whole model against finite differences in f64.

use crate::build::{A, F32, Net, spread, tensor};
use reslora_compile::internals::adapters::{self, Form, Residual, Structure};
use reslora_compile::internals::inject::{Options, Selector};
use reslora_compile::internals::ir::{Builder, Def, Graph, Leaf, Sink, Tensor, Type, Value};
use reslora_compile::internals::ops::host::Buffer;
use reslora_compile::internals::ops::{self, RULES};
use reslora_compile::internals::passes::differentiate;
use reslora_compile::internals::pipeline;
use reslora_compile::internals::train::Purpose;
use std::collections::BTreeMap;
use std::sync::Arc;

const WIDTH: usize = 6;

/// Three blocks `(N, T, 6)` to `(N, T, 6)`, each a product, a bias and a tanh.
fn chain() -> Net {
    let mut net = Net::new(17).input("x", F32, &["batch", "seq", "6"]).output("logits", F32, &["batch", "seq", "6"]);
    for i in 0..3 {
        let name = |what: &str| format!("net.{i}.fc.{what}");
        let (from, to) = (if i == 0 { "x".into() } else { format!("h{}", i - 1) }, format!("h{i}"));
        let to = if i == 2 { "logits".to_string() } else { to };
        let (product, sum) = (format!("p{i}"), format!("s{i}"));
        net = net
            .initializer(tensor(&name("weight"), &[6, 6], &spread(WIDTH * WIDTH, i + 1)))
            .initializer(tensor(&name("bias"), &[6], &spread(WIDTH, i + 11)))
            .node(&format!("/net/{i}/fc/MatMul"), "MatMul", &[&from, &name("weight")], &[&product], &[])
            .node(&format!("/net/{i}/fc/Add"), "Add", &[&product, &name("bias")], &[&sum], &[])
            .node(&format!("/net/{i}/act/Tanh"), "Tanh", &[&sum], &[&to], &[] as &[(&str, A)]);
    }
    net
}

/// The model with adapters as a program whose loss is a weighted sum of its outputs.
fn program(structure: Structure, residual: Residual, rank: usize, kind: Option<i64>) -> Graph {
    let dir = tempfile::tempdir().unwrap();
    let base = pipeline::read(&chain().write(&dir.path().join("chain.onnx"))).unwrap();
    let targets = vec![Selector::Path(regex::Regex::new("fc").unwrap())];
    let settings = kind.into_iter().map(|k| ("mora-kind".to_string(), k.into())).collect();
    let options =
        Options { structure, residual, targets, rank, alpha: 3.0, pre_num: -1, settings, ..Options::default() };
    let (model, report) = pipeline::inject(&base, &options).unwrap();
    assert!(report.config.targets[2].prev.is_some(), "the blocks are a chain");
    let trainee = pipeline::load(&Arc::new(model), None).unwrap();
    let shapes = [("x".to_string(), vec![2, 3, WIDTH])].into_iter().collect();
    let graph = trainee.program.forward(&shapes, Purpose::Infer).unwrap();
    let y = graph.output("logits").unwrap();
    let mut b = Builder::on(graph, RULES);
    let w = b.constant(Tensor::f32([2, 3, WIDTH], spread(2 * 3 * WIDTH, 77)));
    let product = b.mul(y, w).unwrap();
    let loss = b.reduce_sum(product, &[0, 1, 2], false).unwrap();
    b.output("loss", loss, Sink::Fetch);
    b.graph
}

/// Values of parameters, none of them zero; magnitudes and scales are near one.
fn parameters(graph: &Graph) -> BTreeMap<String, Vec<f64>> {
    let values = graph.values.iter().filter_map(|v| match &v.def {
        Def::Leaf(Leaf::Parameter(name)) => Some((name.clone(), v.ty.elements())),
        _ => None,
    });
    let value = |(i, (name, n)): (usize, (String, usize))| {
        let middle = if name.ends_with("magnitude_vector") { 1.5 } else { 0.0 };
        (name, spread(n, i as u64 + 21).iter().map(|x| middle + 0.6 * f64::from(*x)).collect())
    };
    values.collect::<BTreeMap<_, _>>().into_iter().enumerate().map(value).collect()
}

fn float(buffer: &Buffer<f64>) -> &[f64] {
    match buffer {
        Buffer::Float(x) => x,
        Buffer::Int(_) => panic!("a float"),
    }
}

/// The same program with values through which no gradient flows as inputs of their own, so that a slope leaves them alone.
fn with_held(mut graph: Graph) -> Graph {
    let held: Vec<Value> = graph.nodes.iter().filter(|n| n.op == "detach").map(|n| n.outputs[0]).collect();
    for v in &held {
        graph.values[v.index()].def = Def::Leaf(Leaf::Input(format!("held.{}", v.index())));
    }
    graph.nodes.retain(|n| n.op != "detach");
    graph
}

fn run(graph: &Graph, parameters: &BTreeMap<String, Vec<f64>>, held: &dyn Fn(usize) -> Vec<f64>) -> Vec<Buffer<f64>> {
    let x: Vec<f64> = spread(2 * 3 * WIDTH, 5).iter().map(|x| f64::from(*x)).collect();
    let feed = |leaf: &Leaf, _: &Type| match leaf {
        Leaf::Parameter(name) => Buffer::Float(parameters[name].clone()),
        Leaf::Input(name) => match name.strip_prefix("held.") {
            Some(at) => Buffer::Float(held(at.parse().unwrap())),
            None => Buffer::Float(x.clone()),
        },
        _ => panic!("no other leaves are fed"),
    };
    ops::interpret::<f64>(graph, &feed)
}

fn check(structure: Structure, residual: Residual, rank: usize, kind: Option<i64>) -> usize {
    let name = format!("{structure} with {residual}, rank {rank}");
    let forward = program(structure, residual, rank, kind);
    let whole = differentiate(forward.clone(), "loss").unwrap();
    let forward = with_held(forward);
    let start = parameters(&forward);
    let base = run(&whole, &start, &|_| unreachable!("it computes them"));
    let held = |at: usize| float(&base[at]).to_vec();
    let loss =
        |p: &BTreeMap<String, Vec<f64>>| float(&run(&forward, p, &held)[forward.output("loss").unwrap().index()])[0];
    let (mut checked, mut moved) = (0, 0);
    for (parameter, values) in &start {
        let g = whole.output(&format!("grad.{parameter}")).unwrap_or_else(|| panic!("{name}: none for {parameter}"));
        let g = float(&base[g.index()]);
        for e in (0..values.len()).step_by(1 + values.len() / 6) {
            let h = 1e-5;
            let mut p = start.clone();
            p.get_mut(parameter).unwrap()[e] += h;
            let up = loss(&p);
            p.get_mut(parameter).unwrap()[e] -= 2.0 * h;
            let slope = (up - loss(&p)) / (2.0 * h);
            // Central differences in f64 with h = 1e-5 are good to about 1e-10 relative to the loss.
            let tolerance = 1e-6 * (1.0 + slope.abs());
            assert!((slope - g[e]).abs() < tolerance, "{name}: {parameter}[{e}]: {slope} but {}", g[e]);
            checked += 1;
            moved += usize::from(slope.abs() > 1e-4);
        }
    }
    assert!(2 * moved > checked, "{name}: only {moved} of {checked} slopes are not zero");
    checked
}

#[test]
fn residual_paths_match_finite_differences() {
    let mut checked = BTreeMap::new();
    for structure in adapters::all() {
        if !matches!(structure.form, Form::Term(_)) || structure.residuals.is_empty() {
            continue;
        }
        let kinds: &[Option<i64>] = if structure.name == "mora" { &[Some(1), Some(6)] } else { &[None] };
        for &residual in [Residual::None].iter().chain(structure.residuals) {
            for &kind in kinds {
                // Of rank 1, lokr has a second factor in two parts.
                for rank in [1, 2] {
                    *checked.entry(structure.name).or_insert(0) += check(structure, residual, rank, kind);
                }
            }
        }
    }
    let names: Vec<&str> = checked.keys().copied().collect();
    assert_eq!(names, ["dora", "loha", "lokr", "lora", "mora", "vera"]);
    assert!(checked.values().all(|n| *n > 50), "{checked:?}");
}
