//! `1 / (1 - p)` with probability `1 - p`, else 0, at every index of `shape`. The draw is a hash of the seed (a run's input),
//! `key` (the place of use) and the index, so that every device draws alike and a gradient need not redraw.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "dropout_mask",
    attrs: &[needs("shape", AttrKind::Ints), needs("p", AttrKind::Float), needs("key", AttrKind::Int)],
    infer: |ins, attrs| match (ins, attrs.get_ints("shape"), attrs.get_float("p"), attrs.get_int("key")) {
        ([seed], Some(shape), Some(p), Some(_)) if **seed == Type::i32([]) && (0.0..1.0).contains(&p) => {
            Ok(vec![Type::f32(shape.iter().map(|&d| d as usize).collect::<Vec<_>>())])
        }
        _ => Err("takes an integer seed, a shape, a probability below 1 and a key".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Zero,
    gpu: Gpu::Kernel(gpu),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let attrs =
            Attrs::new().with("shape", Attr::Ints(vec![5, 70])).with("p", Attr::Float(0.3)).with("key", Attr::Int(7));
        vec![Sample::new(vec![(Type::i32([]), Fill::Index(1000))], attrs)]
    },
};

/// Draws below this drop the element.
fn threshold(p: f64) -> u32 {
    (p * 4_294_967_296.0) as u32
}

/// The 32-bit finaliser of MurmurHash3.
fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let p = c.attrs.float("p");
    let (limit, keep) = (threshold(p), T::of(1.0 / (1.0 - p)));
    let stream = mix(c.ins[0].int()[0] as u32 ^ mix(c.attrs.int("key") as u32));
    let n = c.types_out[0].elements();
    let y = Shared::new(c.outs[0].float());
    parallel::ranges(n, parallel::GRAIN, |range| {
        // SAFETY: ranges do not overlap.
        let out = unsafe { y.part(range.clone()) };
        for (y, i) in out.iter_mut().zip(range) {
            *y = if mix(stream ^ mix(i as u32)) < limit { T::zero() } else { keep };
        }
    });
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let p = c.attrs.float("p");
    let n = c.types_out[0].elements();
    let (workgroups, width) = grid(n, 256, c.traits);
    let keep = ((1.0 / (1.0 - p)) as f32).to_bits();
    vec![Dispatch {
        shader: Shader {
            name: "dropout_mask",
            source: include_str!("../../../shaders/elementwise/dropout_mask.wgsl").into(),
        },
        constants: vec![],
        bindings: vec![Binding::Input(0), Binding::Output(0)],
        params: vec![n as u32, width, c.attrs.int("key") as u32, threshold(p), keep, 0, 0, 0],
        workgroups,
    }]
}
