//! The index of the first largest element along the middle axis: `(outer, n, inner)` to `(outer, inner)`.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "argmax",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [x] if x.rank() == 3 && x.dtype != DType::Bool && x.shape[1] > 0 => {
            Ok(vec![Type::i32([x.shape[0], x.shape[2]])])
        }
        _ => Err("takes one number operand of three axes, the middle one not empty".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Zero,
    gpu: Gpu::Kernel(gpu),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: super::kernels::samples,
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    fn first<E: Copy + PartialOrd>(x: &[E], y: &mut [i32], shape: &[usize]) {
        let (n, inner) = (shape[1], shape[2]);
        for (at, y) in y.iter_mut().enumerate() {
            let element = |k: usize| x[(at / inner * n + k) * inner + at % inner];
            *y = (1..n).fold(0, |best, k| if element(k) > element(best) { k } else { best }) as i32;
        }
    }
    match c.ins[0] {
        Data::Float(x) => first(x, c.outs[0].int(), &c.types_in[0].shape),
        x => first(x.int(), c.outs[0].int(), &c.types_in[0].shape),
    }
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let [outer, n, inner] = c.types_in[0].shape[..] else { panic!("infer admits three axes only") };
    let (workgroups, width) = grid(outer * inner, 64, c.traits);
    let float = c.types_in[0].is_float() as u32;
    vec![Dispatch {
        shader: Shader { name: "argmax", source: include_str!("../../../shaders/reduce/argmax.wgsl").into() },
        constants: vec![],
        bindings: vec![Binding::Input(0), Binding::Output(0)],
        params: vec![(outer * inner) as u32, width, n as u32, inner as u32, float, 0, 0, 0],
        workgroups,
    }]
}
