//! Products of operands rounded to bf16: what primitives compute with them, and training.

use crate::oracle::{self, Case};
use reslora_compile::internals::device::{Cpu, Device, Run};
use reslora_compile::internals::ir::{Attr, Builder, DType, FloatType, Graph, Leaf, Sink, Tensor, Value, Weight};
use reslora_compile::internals::ops::host::Buffer;
use reslora_compile::internals::ops::{self, PRIMITIVES, RULES, Sample, Unit, draw};
use reslora_compile::internals::pipeline;
use reslora_compile::internals::plan::{self, Layout};
use reslora_compile::internals::train::{Settings, data};
use std::path::Path;

/// The sample's outputs, its inputs given or, where `frozen`, weights of the model.
fn graph(op: &str, sample: &Sample, tensors: &[Tensor], frozen: bool, bf16: bool) -> Graph {
    let mut b = Builder::new(RULES);
    let inputs: Vec<Value> = (sample.inputs.iter().zip(tensors).enumerate())
        .map(|(i, ((ty, _), tensor))| match frozen && ty.dtype == DType::F32 {
            true => {
                let kept = tensor.clone();
                b.weight(Weight::new(format!("w{i}"), 1, move || kept.clone()), ty.clone())
            }
            false => b.input(&format!("x{i}"), ty.clone()),
        })
        .collect();
    let attrs = sample.attrs.clone().with("bf16", Attr::Bool(bf16));
    let ys = b.emit_all(op, &inputs, attrs).expect("a sample fits its primitive");
    for (i, &y) in ys.iter().take(ops::results(op, ys.len())).enumerate() {
        b.output(format!("y{i}"), y, Sink::Fetch);
    }
    b.graph
}

fn on_cpu(graph: &Graph, tensors: &[Tensor]) -> Vec<Tensor> {
    let mut cpu = Cpu::new(None);
    let plan = plan::plan(graph.clone(), &Layout::default(), cpu.limits()).expect("it fits");
    let id = cpu.load(plan).expect("it loads");
    let names: Vec<String> = graph.inputs().map(|(name, _)| name.to_string()).collect();
    let inputs = names.into_iter().map(|name| {
        let i: usize = name[1..].parse().expect("named x0, x1, ..");
        (name, tensors[i].clone())
    });
    cpu.submit(vec![Run { plan: id, inputs: inputs.collect() }]).expect("it runs");
    let done = cpu.collect(true).expect("it is done");
    done.into_iter().flat_map(|f| f.runs).flatten().map(|(_, t)| t).collect()
}

/// In f32 on whatever unit the processor has, or on the model of one, and in f64 of rounded operands.
#[test]
fn primitives_with_bf16_multiply_rounded_operands() {
    println!("products of bf16 on {:?}", Unit::here());
    let mut compared = 0;
    for p in PRIMITIVES.iter().filter(|p| ops::takes(p.name, "bf16")) {
        let off = if p.name.starts_with("matmul") { 1e-5 } else { 8e-3 };
        for (s, sample) in (p.samples)().iter().enumerate() {
            let tensors: Vec<Tensor> =
                sample.inputs.iter().enumerate().map(|(i, (ty, fill))| draw(ty, *fill, i as u64 + 1)).collect();
            let given = graph(p.name, sample, &tensors, false, true);
            let want = ops::interpret::<f64>(&given, &|leaf, _| {
                let Leaf::Input(name) = leaf else { panic!("no other leaves here") };
                let t = &tensors[name[1..].parse::<usize>().expect("named x0, x1, ..")];
                match t.as_i32() {
                    Some(x) => Buffer::Int(x.to_vec()),
                    None => Buffer::Float(t.as_f32().unwrap().iter().map(|&x| x as f64).collect()),
                }
            });
            let got = on_cpu(&given, &tensors);
            let frozen = on_cpu(&graph(p.name, sample, &tensors, true, true), &tensors);
            let full = on_cpu(&graph(p.name, sample, &tensors, false, false), &tensors);
            assert!(got != full, "{} {s}: nothing was rounded", p.name);
            for (i, (got, frozen)) in got.iter().zip(&frozen).enumerate() {
                let (Some(got), Some(frozen)) = (got.as_f32(), frozen.as_f32()) else { continue };
                let Buffer::Float(want) = &want[given.output(&format!("y{i}")).unwrap().index()] else { panic!() };
                let largest = want.iter().fold(1.0f64, |a, x| a.max(x.abs()));
                for (e, ((&g, &f), &w)) in got.iter().zip(frozen).zip(want).enumerate() {
                    assert!(g.to_bits() == f.to_bits(), "{} {s} y{i}[{e}]: {g}, with frozen operands {f}", p.name);
                    // What is rounded between two products differs by the order of sums, which may round one the other way.
                    let close = (g as f64 - w).abs() <= off * largest || g as f64 == w || g.is_nan() && w.is_nan();
                    assert!(close, "{} {s} y{i}[{e}]: {g} but {w}", p.name);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 10_000, "only {compared} numbers were compared");
}

/// What `--precision auto` compares runs in both types, on a model of the unit here as on a unit.
#[test]
fn a_trial_gives_the_loss_of_the_first_batch() {
    let case = Case::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases")).join("bert-cls.ts.input"));
    let settings = case.settings();
    let (losses, _) = oracle::train_case(&case, "init.safetensors", &settings, oracle::cpu);
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = (
        case.injected("init.safetensors", &dir.path().join("t.onnx")),
        data::read(&case.dir.join("data.safetensors"), &data::Options::default()).unwrap(),
    );
    let request = pipeline::TrainRequest::new(&model, &data, &settings, dir.path());
    let run = |products| pipeline::precision::trial(&request, &mut Cpu::new(None), products).unwrap();
    let (full, short) = (run(FloatType::F32), run(FloatType::Bf16));
    assert!(full.seconds > 0.0 && (full.loss - losses[0]).abs() < 1e-6 * losses[0], "{full:?}, not {}", losses[0]);
    assert!(short.loss != full.loss && (short.loss - full.loss).abs() < 1e-2 * full.loss, "{short:?}, {full:?}");
}

/// Frozen weights lose all but eight bits, and nothing else does.
#[test]
fn training_on_weights_of_bf16() {
    let case =
        Case::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases")).join("llama-lm.dynamo.block"));
    let settings = case.settings();
    let bf16 = || -> Box<dyn Device> { Box::new(Cpu::new(None).with_weights(FloatType::Bf16)) };
    let (full, _) = oracle::train_case(&case, "init.safetensors", &settings, oracle::cpu);
    let (kept, _) = oracle::train_case(&case, "init.safetensors", &settings, bf16);
    let off = full.iter().zip(&kept).map(|(x, y)| (x - y).abs() / y.abs()).fold(0.0, f64::max);
    assert!(kept != full && off < 1e-2, "{off:.1e}");
}

/// Operands of every product lose all but eight bits, so losses agree with those in f32 to about 2^-8 of an activation each,
/// averaged over many.
#[test]
fn training_in_bf16() {
    for name in ["bert-cls.ts.input", "llama-lm.dynamo.block"] {
        let case = Case::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases")).join(name));
        let settings = case.settings();
        let short = Settings { products: FloatType::Bf16, ..settings.clone() };
        let (full, _) = oracle::train_case(&case, "init.safetensors", &settings, oracle::cpu);
        let (bf16, _) = oracle::train_case(&case, "init.safetensors", &short, oracle::cpu);
        let off = full.iter().zip(&bf16).map(|(x, y)| (x - y).abs() / y.abs()).fold(0.0, f64::max);
        assert!(bf16 != full, "{name}: nothing was rounded");
        assert!(off < 1e-2, "{name}: {off:.1e}");
    }
}
