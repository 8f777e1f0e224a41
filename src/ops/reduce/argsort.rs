//! The order of the elements along the middle axis of `(outer, n, inner)`, as indices: largest first, or smallest first if
//! `ascending`. Equal elements stay in order; NaN counts as the largest number.

use crate::ops::engine::prelude::*;
use std::cmp::Ordering;

pub const PRIMITIVE: Primitive = Primitive {
    name: "argsort",
    attrs: &[flag("ascending")],
    infer: |ins, _| match ins {
        [x] if x.rank() == 3 && x.dtype != DType::Bool => Ok(vec![Type::i32(x.shape.clone())]),
        _ => Err("takes one number operand of three axes".into()),
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
        let of = |ascending| Attrs::new().with("ascending", Attr::Bool(ascending));
        vec![
            Sample::normal(&[&[2, 300, 3]]).with(of(false)),
            Sample::normal(&[&[4, 7, 1]]).with(of(true)),
            Sample::new(vec![(Type::i32([2, 40, 3]), Fill::Label(5))], of(false)),
            Sample::new(vec![(Type::f32([1, EDGES.len(), 1]), Fill::Values(EDGES))], of(true)),
        ]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    fn sort<E: Copy>(x: &[E], y: &mut [i32], shape: &[usize], order: impl Fn(E, E) -> Ordering) {
        let (n, inner) = (shape[1], shape[2]);
        let mut indices: Vec<i32> = Vec::with_capacity(n);
        for column in 0..shape[0] * inner {
            let place = |k: i32| (column / inner * n + k as usize) * inner + column % inner;
            indices.clear();
            indices.extend(0..n as i32);
            indices.sort_by(|&a, &b| order(x[place(a)], x[place(b)]));
            for (k, &i) in indices.iter().enumerate() {
                y[place(k as i32)] = i;
            }
        }
    }
    let ascending = c.attrs.flag("ascending");
    let directed = |o: Ordering| if ascending { o } else { o.reverse() };
    match c.ins[0] {
        Data::Float(x) => {
            let order = |a: T, b: T| a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()));
            sort(x, c.outs[0].int(), &c.types_in[0].shape, |a, b| directed(order(a, b)));
        }
        x => sort(x.int(), c.outs[0].int(), &c.types_in[0].shape, |a: i32, b: i32| directed(a.cmp(&b))),
    }
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let [_, n, inner] = c.types_in[0].shape[..] else { panic!("infer admits three axes only") };
    let total = c.types_in[0].elements();
    let (workgroups, width) = grid(total, 64, c.traits);
    let (float, ascending) = (c.types_in[0].is_float() as u32, c.attrs.flag("ascending") as u32);
    vec![Dispatch {
        shader: Shader { name: "argsort", source: include_str!("../../../shaders/reduce/argsort.wgsl").into() },
        constants: vec![],
        bindings: vec![Binding::Input(0), Binding::Output(0)],
        params: vec![total as u32, width, n as u32, inner as u32, float, ascending, 0, 0],
        workgroups,
    }]
}
