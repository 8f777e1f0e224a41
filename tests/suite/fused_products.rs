//! Products with more in them (a second term, what is added, what they end in) and groups of products, in every kernel.

use crate::gpu::available;
use crate::products::{assert_valid_cooperative, close, hardware_traits, open};
use reslora_compile::internals::device::{Cpu, Device, Run};
use reslora_compile::internals::ir::{Attr, Builder, Sink, Tensor, Type};
use reslora_compile::internals::ops::{self, Cooperative, GpuCall, GpuTraits, RULES, Sample, draw};
use reslora_compile::internals::plan::{self, Layout};
use std::collections::BTreeSet;

/// Problems, each with its operation.
fn samples() -> Vec<(&'static str, Sample)> {
    let of = |op| (ops::find(op).expect("a primitive").samples)().into_iter().map(move |s| (op, s));
    ["matmul_fused", "matmul_group"].into_iter().flat_map(of).collect()
}

/// A sample's results on a device.
fn on((op, sample): &(&str, Sample), device: &mut dyn Device) -> Vec<Tensor> {
    let mut b = Builder::new(RULES);
    let name = |i: usize| format!("x{i}");
    let inputs: Vec<_> = sample.inputs.iter().enumerate().map(|(i, (ty, _))| b.input(&name(i), ty.clone())).collect();
    let results = b.emit_all(op, &inputs, sample.attrs.clone()).expect("a product");
    results.iter().enumerate().for_each(|(i, &y)| b.output(format!("y{i}"), y, Sink::Fetch));
    let id = device.load(plan::plan(b.graph, &Layout::default(), device.limits()).expect("a plan")).expect("loaded");
    let drawn = sample.inputs.iter().enumerate().map(|(i, (ty, fill))| (name(i), draw(ty, *fill, i as u64)));
    device.submit(vec![Run { plan: id, inputs: drawn.collect() }]).expect("submitted");
    device.collect(true).expect("collected").remove(0).runs.remove(0).into_iter().map(|(_, t)| t).collect()
}

fn call<T>((op, sample): &(&str, Sample), traits: GpuTraits, f: impl FnOnce(&GpuCall) -> T) -> T {
    let types_in: Vec<Type> = sample.inputs.iter().map(|x| x.0.clone()).collect();
    let refs: Vec<&Type> = types_in.iter().collect();
    let types_out = (ops::find(op).unwrap().infer)(&refs, &sample.attrs).unwrap();
    f(&GpuCall { attrs: &sample.attrs, types_in: &types_in, types_out: &types_out, traits, packed: &[], variant: None })
}

#[test]
fn every_kernel_computes_what_the_host_computes() {
    if !available() {
        return;
    }
    let want: Vec<Vec<Tensor>> = samples().iter().map(|s| on(s, &mut Cpu::new(None))).collect();
    let offered = |s: &(&str, Sample)| call(s, hardware_traits(), |c| ops::candidates(s.0, c));
    let kernels: BTreeSet<&str> = samples().iter().flat_map(offered).collect();
    assert!(kernels.len() > 6, "only {kernels:?}");
    let mut first: Vec<Option<Vec<Tensor>>> = vec![None; want.len()];
    for kernel in kernels {
        let mut gpu = open(Some(kernel), false);
        for ((s, want), first) in samples().iter().zip(&want).zip(&mut first) {
            if offered(s).contains(&kernel) {
                let have = on(s, &mut gpu);
                have.iter().zip(want).for_each(|(h, w)| close(h, w, &format!("{kernel} on {s:?}")));
                assert_eq!(first.get_or_insert(have.clone()), &have, "{kernel} on {s:?} differs from the one before");
            }
        }
    }
    assert!(first.iter().all(Option::is_some));
}

#[test]
fn kernels_in_cooperative_matrices_are_valid() {
    let mut kernels = BTreeSet::new();
    for (size, width, one_width) in [(16, 32, true), (8, 32, true), (16, 64, false)] {
        let cooperative = Some(Cooperative { size, width, one_width });
        let traits = GpuTraits { cooperative, ..hardware_traits() };
        for (op, s) in samples().into_iter().filter(|s| s.0 == "matmul_fused") {
            let s = s.clone().with(s.attrs.with("halves", Attr::Bool(true)));
            call(&(op, s), traits, |c| {
                for name in ops::candidates(op, c) {
                    assert_valid_cooperative(op, &GpuCall { variant: Some(name), ..*c });
                    kernels.insert(name);
                }
            });
        }
    }
    assert!(kernels.len() > 2, "only {kernels:?}");
}
