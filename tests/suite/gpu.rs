//! The device kernels on whatever adapter is there, a software one included.

use crate::changed::{Change, Changed};
use crate::oracle;
use crate::products::open;
use reslora_compile::internals::device::{Cpu, Device, Fetched, Gpu, GpuOptions};
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::pipeline;

/// Whether there is an adapter; says loudly when there is none, and fails if `RESLORA_REQUIRE_GPU=1`.
pub fn available() -> bool {
    let found = reslora_compile::internals::device::list_gpus();
    if found.is_empty() {
        let required = std::env::var("RESLORA_REQUIRE_GPU").is_ok_and(|v| v == "1");
        assert!(!required, "RESLORA_REQUIRE_GPU=1, but there is no Vulkan, Metal or DX12 adapter");
        crate::loudly("NO GPU ADAPTER: the kernels in shaders/ were NOT tested");
        return false;
    }
    true
}

#[test]
fn every_primitive_computes_what_the_host_computes() {
    if !available() {
        return;
    }
    // As the adapter is, with the kernels for hardware, whatever it is, and both without subgroups and larger limits.
    let tile = || Some("matmul 64x64x16.4x4".to_string());
    for (tune, kernel, least) in
        [(None, None, false), (Some(true), None, false), (None, None, true), (Some(true), tile(), true)]
    {
        let options = GpuOptions { tune, kernel, least, ..GpuOptions::default() };
        let checks = pipeline::self_check(&mut Gpu::open_with(None, &options).expect("an adapter"));
        let failed: Vec<String> =
            checks.iter().filter_map(|k| Some(format!("{}: {}", k.primitive, k.failure.as_ref()?))).collect();
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
}

#[test]
fn a_small_model_trains_as_on_the_host() {
    if !available() {
        return;
    }
    let check = pipeline::training_check(gpu().as_mut()).expect("a run");
    assert_eq!(check.failure, None);
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

/// An adapter that has what WebGPU promises of every adapter, and no more: no subgroups, no f16, the smallest limits.
fn least() -> Box<dyn Device> {
    Box::new(Gpu::open_with(None, &GpuOptions { least: true, ..GpuOptions::default() }).expect("an adapter"))
}

#[test]
fn oracle_training_with_what_every_adapter_has() {
    if available() {
        oracle::fixtures().iter().for_each(|c| oracle::check_training(c, least));
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

/// The second element of every float result is one too large.
struct Wrong;

impl Change for Wrong {
    fn fetched(&self, all: &mut [Fetched]) {
        for (_, t) in all.iter_mut().flat_map(|f| &mut f.runs).flatten() {
            if let Tensor::F32(x) = t {
                x.iter_mut().skip(1).take(1).for_each(|x| *x += 1.0);
            }
        }
    }
}

#[test]
fn doctor_names_the_sample_its_arguments_and_both_values() {
    let checks = pipeline::self_check(&mut Changed(Cpu::new(None), Wrong));
    let failure = |name| checks.iter().find(|k| k.primitive == name).unwrap().failure.clone().unwrap_or_default();
    // The second of the numbers that sin is tried on is 0.
    assert_eq!(failure("abs").split(": ").next(), Some("sample 1 (f32[3,5])"));
    let sin = failure("sin");
    assert!(
        sin.contains("output 0, element 1, of (") && sin.contains("on the device, ") && sin.ends_with("on the host"),
        "{sin}"
    );
    assert_eq!(failure("and"), "", "booleans were left alone");
}
