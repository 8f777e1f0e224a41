//! Kernels of the cpu device and passes of the compiler, each alone: `cargo bench`. Whole steps are timed by
//! `reslora-compile bench`, and beside other programs by `benches/compare.sh`.

use divan::{Bencher, black_box};
use reslora_compile::internals::device::{Cpu, Device, Gpu, GpuOptions, Run};
use reslora_compile::internals::inject::{Options, Selector};
use reslora_compile::internals::ir::{Attr, Attrs, Builder, Sink, Type};
use reslora_compile::internals::ops::{Fill, RULES, draw};
use reslora_compile::internals::pipeline;
use reslora_compile::internals::plan::{self, Layout};
use std::path::Path;
use std::sync::Arc;

fn main() {
    divan::main();
}

/// One primitive on tensors of these shapes, run after run.
fn primitive(bencher: Bencher, op: &str, shapes: &[&[usize]], attrs: Attrs) {
    let mut device = Cpu::new(None);
    let mut b = Builder::new(RULES);
    let mut inputs = Vec::new();
    let mut values = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let ty = Type::f32(shape.to_vec());
        inputs.push((format!("x{i}"), draw(&ty, Fill::Normal, i as u64 + 1)));
        values.push(b.input(&format!("x{i}"), ty));
    }
    let y = b.emit(op, &values, attrs).expect("the shapes fit");
    // One element alone comes back, so that fetching is not what is timed.
    let n = b.shape(y).elements();
    let flat = b.reshape(y, [n]).expect("as many elements");
    let corner = b.slice(flat, 0, 0, 1, 1).expect("there is one");
    b.output("y", corner, Sink::Fetch);
    let plan = plan::plan(b.graph, &Layout::default(), device.limits()).expect("a plan");
    let id = device.load(plan).expect("loaded");
    let run = Run { plan: id, inputs };
    bencher.bench_local(|| {
        device.submit(vec![run.clone()]).expect("submitted");
        black_box(device.collect(true).expect("collected"))
    });
}

/// Tiles of the product kernel for hardware, each on the best adapter there is (a software one runs them slowly): 1,024 rows of a
/// transformer's width by its square weight, as the file stores it.
#[divan::bench(args = ["matmul 128x128x16.8x8", "matmul 128x64x16.8x4", "matmul 64x64x16.8x4", "matmul 64x64x16.4x4"])]
fn gpu_matmul(bencher: Bencher, kernel: &str) {
    const N: usize = 1024;
    let options = GpuOptions { tune: Some(true), kernel: Some(kernel.to_string()), ..GpuOptions::default() };
    let Ok(mut device) = Gpu::open_with(None, &options) else { return };
    let mut b = Builder::new(RULES);
    let ty = Type::f32([N, N]);
    let (x, w) = (b.input("x", ty.clone()), b.input("w", ty.clone()));
    let y = b.matmul(x, w, false, true).expect("the shapes fit");
    let corner = b.slice(y, 0, 0, 1, 1).expect("there is one");
    b.output("y", corner, Sink::Fetch);
    let id = device.load(plan::plan(b.graph, &Layout::default(), device.limits()).expect("a plan")).expect("loaded");
    let inputs = vec![("x".to_string(), draw(&ty, Fill::Normal, 1)), ("w".to_string(), draw(&ty, Fill::Normal, 2))];
    let run = Run { plan: id, inputs };
    bencher.bench_local(|| {
        device.submit(vec![run.clone()]).expect("submitted");
        black_box(device.collect(true).expect("collected"))
    });
}

fn flags(trans_a: bool, trans_b: bool) -> Attrs {
    Attrs::new().with("trans_a", Attr::Bool(trans_a)).with("trans_b", Attr::Bool(trans_b))
}

#[divan::bench(args = [(512, 384, 384), (512, 384, 1536), (512, 1536, 384), (512, 384, 8), (512, 8, 384)])]
fn matmul(bencher: Bencher, (m, k, n): (usize, usize, usize)) {
    primitive(bencher, "matmul", &[&[m, k], &[k, n]], flags(false, false));
}

#[divan::bench(args = [(512, 384, 384), (512, 1536, 384)])]
fn matmul_transposed(bencher: Bencher, (m, k, n): (usize, usize, usize)) {
    primitive(bencher, "matmul", &[&[m, k], &[n, k]], flags(false, true));
}

#[divan::bench]
fn softmax(bencher: Bencher) {
    primitive(bencher, "softmax", &[&[6144, 64]], Attrs::new().with("safe", Attr::Bool(false)));
}

#[divan::bench]
fn layer_norm(bencher: Bencher) {
    primitive(bencher, "layer_norm", &[&[512, 384], &[384], &[384]], Attrs::new().with("eps", Attr::Float(1e-5)));
}

#[divan::bench]
fn gelu(bencher: Bencher) {
    primitive(bencher, "gelu", &[&[512, 1536]], Attrs::new());
}

#[divan::bench]
fn gelu_grad(bencher: Bencher) {
    primitive(bencher, "gelu_grad", &[&[512, 1536], &[512, 1536]], Attrs::new());
}

#[divan::bench]
fn transpose_heads(bencher: Bencher) {
    let perm = Attrs::new().with("perm", Attr::Ints(vec![0, 2, 1, 3]));
    primitive(bencher, "transpose", &[&[8, 64, 12, 32]], perm);
}

fn fixture(name: &str) -> Arc<reslora_compile::internals::onnx::Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cases").join(name).join("model.onnx");
    pipeline::read(&path).expect("a fixture")
}

const MODELS: [&str; 3] = ["bert-cls.ts.input", "llama-lm.dynamo.block", "vit-cls.ts.block"];

#[divan::bench(args = MODELS)]
fn inject(bencher: Bencher, name: &str) {
    let base = fixture(name);
    let options = options();
    bencher.bench_local(|| pipeline::inject(&base, &options).expect("injected"));
}

/// From the file's nodes to a plan: lowering, every pass, differentiation, memory.
#[divan::bench(args = MODELS)]
fn compile(bencher: Bencher, name: &str) {
    let base = fixture(name);
    let limits = Cpu::new(None).limits();
    let options = options();
    bencher.bench_local(|| pipeline::inspect(&base, &options, 2, 12, limits).expect("compiled"));
}

fn options() -> Options {
    Options {
        targets: vec![Selector::Path(regex::Regex::new("query|value|q_proj|v_proj").expect("a pattern"))],
        rank: 4,
        alpha: 8.0,
        ..Options::default()
    }
}
