//! The device kernels on whatever adapter is there, a software one included.

use crate::oracle;
use crate::products::open;
use reslora_compile::device::{Device, Gpu, GpuOptions, Run};
use reslora_compile::ir::{Builder, DType, Sink, Tensor, Value};
use reslora_compile::ops::{self, Gpu as GpuKernel, PRIMITIVES, RULES, draw};
use reslora_compile::plan::{self, Layout};

/// Whether there is an adapter; says loudly when there is none, and fails if `RESLORA_REQUIRE_GPU=1`.
pub fn available() -> bool {
    let found = reslora_compile::device::list_gpus();
    if found.is_empty() {
        let required = std::env::var("RESLORA_REQUIRE_GPU").is_ok_and(|v| v == "1");
        assert!(!required, "RESLORA_REQUIRE_GPU=1, but there is no Vulkan, Metal or DX12 adapter");
        crate::loudly("NO GPU ADAPTER: the kernels in shaders/ were NOT tested");
        return false;
    }
    true
}

/// Relative to the largest element: f32 kernels sum in other orders, and adapters' functions differ by a few units in the
/// last place, which sums over a few hundred elements multiply.
const TOLERANCE: f32 = 2e-5;

#[test]
fn every_primitive_computes_what_the_host_computes() {
    if !available() {
        return;
    }
    // As the adapter is, and with the kernels for hardware, whatever it is.
    for tune in [None, Some(true)] {
        let options = GpuOptions { tune, ..GpuOptions::default() };
        compare_primitives(&mut Gpu::open_with(None, &options).expect("an adapter"));
    }
}

fn compare_primitives(gpu: &mut Gpu) {
    for p in PRIMITIVES.iter().filter(|p| !matches!(p.gpu, GpuKernel::Alias)) {
        for (s, sample) in (p.samples)().iter().enumerate() {
            let tensors: Vec<Tensor> =
                sample.inputs.iter().enumerate().map(|(i, (ty, fill))| draw(ty, *fill, i as u64 + 1)).collect();
            let mut b = Builder::new(RULES);
            let inputs: Vec<Value> =
                tensors.iter().enumerate().map(|(i, t)| b.input(&format!("x{i}"), t.ty())).collect();
            let outs = b.emit_all(p.name, &inputs, sample.attrs.clone()).expect("a sample fits its primitive");
            for (k, &v) in outs.iter().enumerate() {
                b.output(format!("y{k}"), v, Sink::Fetch);
            }
            let plan = plan::plan(b.graph, &Layout::default(), gpu.limits()).expect("a plan");
            let id = gpu.load(plan).unwrap_or_else(|e| panic!("{}: {e}", p.name));
            let named = tensors.iter().enumerate().map(|(i, t)| (format!("x{i}"), t.clone())).collect();
            gpu.submit(vec![Run { plan: id, inputs: named }]).expect("submitted");
            let got = gpu.collect(true).expect("collected").remove(0).runs.remove(0);
            let refs: Vec<&Tensor> = tensors.iter().collect();
            let results = ops::results(p.name, outs.len());
            for (k, want) in ops::eval(p.name, &refs, &sample.attrs).iter().take(results).enumerate() {
                let have = &got.iter().find(|(n, _)| *n == format!("y{k}")).expect("fetched").1;
                assert_eq!(have.ty(), want.ty());
                if want.dtype() != DType::F32 {
                    assert_eq!(have, want, "{} sample {s} output {k}", p.name);
                    continue;
                }
                let (have, want) = (have.as_f32().unwrap(), want.as_f32().unwrap());
                let size = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                for (i, (h, w)) in have.iter().zip(want).enumerate() {
                    assert!((h - w).abs() <= TOLERANCE * size, "{} sample {s} output {k}[{i}]: {h} but {w}", p.name);
                }
            }
        }
    }
}

pub fn gpu() -> Box<dyn Device> {
    Box::new(Gpu::open(None, None).expect("an adapter"))
}

fn gpu_with_shards() -> Box<dyn Device> {
    Box::new(Gpu::open(None, oracle::SMALL_WEIGHTS).expect("an adapter"))
}

#[test]
fn oracle_probe_with_sharded_weights() {
    if available() {
        oracle::fixtures().iter().for_each(|c| oracle::check_probe(c, gpu_with_shards));
    }
}

#[test]
fn oracle_probe() {
    if available() {
        oracle::fixtures().iter().for_each(|c| oracle::check_probe(c, gpu));
    }
}

/// The programs and kernels that a hardware adapter gets, without races.
fn as_hardware() -> Box<dyn Device> {
    Box::new(open(Some("matmul 64x64x16.4x4"), false))
}

#[test]
fn oracle_training_as_on_hardware() {
    if available() {
        oracle::fixtures().iter().for_each(|c| oracle::check_training(c, as_hardware));
    }
}

#[test]
fn oracle_training() {
    if available() {
        oracle::fixtures().iter().for_each(|c| oracle::check_training(c, gpu));
    }
}

#[test]
fn oracle_merges() {
    if available() {
        oracle::fixtures().iter().for_each(|c| oracle::check_merges(c, gpu));
    }
}
