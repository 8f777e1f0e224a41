//! Running sums along the middle axis of `(outer, n, inner)`; `exclusive` leaves out the element itself, `reverse` runs
//! from the end.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "cumsum",
    attrs: &[flag("exclusive"), flag("reverse")],
    infer: |ins, _| match ins {
        [x] if x.rank() == 3 && x.dtype != DType::Bool => Ok(vec![(*x).clone()]),
        _ => Err("takes one number operand of three axes".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        let reverse = !c.node.attrs.flag("reverse");
        let attrs = c.node.attrs.clone().with("reverse", Attr::Bool(reverse));
        let g = c.g();
        Ok(vec![Some(c.b.emit("cumsum", &[g], attrs)?)])
    }),
    gpu: Gpu::Kernel(gpu),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let of = |e, r| Attrs::new().with("exclusive", Attr::Bool(e)).with("reverse", Attr::Bool(r));
        vec![
            Sample::normal(&[&[2, 5, 3]]).with(of(false, false)),
            Sample::normal(&[&[2, 5, 1]]).with(of(true, true)),
            Sample::new(vec![(Type::i32([2, 5, 1]), Fill::Index(3))], of(false, true)),
        ]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    fn sums<E: Copy + Default + std::ops::Add<Output = E>>(x: &[E], y: &mut [E], shape: &[usize], attrs: &Attrs) {
        let (n, inner) = (shape[1], shape[2]);
        let (exclusive, reverse) = (attrs.flag("exclusive"), attrs.flag("reverse"));
        for o in 0..shape[0] {
            for i in 0..inner {
                let mut sum = E::default();
                for step in 0..n {
                    let k = if reverse { n - 1 - step } else { step };
                    let at = (o * n + k) * inner + i;
                    let next = sum + x[at];
                    y[at] = if exclusive { sum } else { next };
                    sum = next;
                }
            }
        }
    }
    match (c.ins[0], &mut c.outs[0]) {
        (Data::Float(x), DataMut::Float(y)) => sums(x, y, &c.types_in[0].shape, c.attrs),
        (Data::Int(x), DataMut::Int(y)) => sums(x, y, &c.types_in[0].shape, c.attrs),
        _ => panic!("infer keeps the type"),
    }
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let [outer, n, inner] = c.types_in[0].shape[..] else { panic!("infer admits three axes only") };
    let (workgroups, width) = grid(outer * inner, 64, c.traits);
    let flag = |name| c.attrs.flag(name) as u32;
    let float = c.types_in[0].is_float() as u32;
    vec![Dispatch {
        shader: Shader { name: "cumsum", source: include_str!("../../../shaders/reduce/cumsum.wgsl").into() },
        constants: vec![],
        bindings: vec![Binding::Input(0), Binding::Output(0)],
        params: vec![
            (outer * inner) as u32,
            width,
            n as u32,
            inner as u32,
            flag("exclusive"),
            flag("reverse"),
            float,
            0,
        ],
        workgroups,
    }]
}
