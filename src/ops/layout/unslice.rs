//! The operand spread over `len` zeros of `axis`, at every `step`-th index from `start`: what `slice` took, put back.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "unslice",
    attrs: super::slice::ATTRS,
    infer: |ins, attrs| {
        let ([x], Some(len), Some(axis)) = (ins, attrs.get_int("len"), attrs.get_int("axis")) else {
            return Err("takes one operand, an axis and a length".into());
        };
        let taken = *x.shape.get(axis as usize).ok_or("axis out of range")?;
        let inner = attrs.clone().with("len", Attr::Int(taken as i64));
        let (axis, _) = super::slice::check(&inner, x.rank(), |_| len as usize)?;
        let mut shape = x.shape.clone();
        shape.0[axis] = len as usize;
        Ok(vec![Type::new(x.dtype, shape)])
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Kernel(gpu),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let of = super::slice::attrs;
        vec![
            Sample::normal(&[&[3, 4]]).with(of(1, 2, 7, 1)),
            Sample::normal(&[&[3, 3]]).with(of(0, 1, 7, 2)),
            Sample::normal(&[&[2, 3, 3]]).with(of(1, 4, 6, -2)),
        ]
    },
};

fn parts(x: &Type, attrs: &Attrs) -> (usize, usize, usize) {
    let axis = attrs.int("axis") as usize;
    (x.shape[..axis].iter().product(), x.shape[axis], x.shape[axis + 1..].iter().product())
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    fn spread<E: Copy + Default>(x: &[E], y: &mut [E], (outer, taken, inner): (usize, usize, usize), attrs: &Attrs) {
        let (start, len, step) = (attrs.int("start"), attrs.int("len") as usize, attrs.int("step"));
        y.fill(E::default());
        for o in 0..outer {
            for i in 0..taken {
                let at = (o * len + (start + i as i64 * step) as usize) * inner;
                y[at..at + inner].copy_from_slice(&x[(o * taken + i) * inner..][..inner]);
            }
        }
    }
    let parts = parts(&c.types_in[0], c.attrs);
    match (c.ins[0], &mut c.outs[0]) {
        (Data::Float(x), DataMut::Float(y)) => spread(x, y, parts, c.attrs),
        (Data::Int(x), DataMut::Int(y)) => spread(x, y, parts, c.attrs),
        _ => panic!("infer keeps the type"),
    }
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let a = &c.node.attrs;
    let (axis, start, step) = (a.int("axis") as usize, a.int("start") as usize, a.int("step"));
    let len = c.b.shape(c.x(0))[axis];
    let g = c.g();
    Ok(vec![Some(c.b.slice(g, axis, start, len, step)?)])
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let (_, taken, inner) = parts(&c.types_in[0], c.attrs);
    let n = c.types_out[0].elements();
    let (workgroups, width) = grid(n, 256, c.traits);
    let int = |name| c.attrs.int(name) as i32 as u32;
    vec![Dispatch {
        shader: Shader { name: "unslice", source: include_str!("../../../shaders/layout/unslice.wgsl").into() },
        constants: vec![],
        bindings: vec![Binding::Input(0), Binding::Output(0)],
        params: vec![n as u32, width, int("len"), taken as u32, inner as u32, int("start"), int("step"), 0],
        workgroups,
    }]
}
