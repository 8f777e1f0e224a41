//! The gradient of `gather`: each row of the first operand added to the row of `size` zeros that its index names.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "scatter_add",
    attrs: &[needs("axis", AttrKind::Int), needs("size", AttrKind::Int), needs("index_rank", AttrKind::Int)],
    infer: |ins, attrs| {
        let get = |name| attrs.get_int(name).map(|x| x as usize);
        let ([g, index], Some(axis), Some(size), Some(rank)) = (ins, get("axis"), get("size"), get("index_rank"))
        else {
            return Err("takes a gradient, indices, an axis, a size and the indices' rank".into());
        };
        if rank != index.rank()
            || axis + rank > g.rank()
            || g.shape[axis..axis + rank] != index.shape[..]
            || !g.is_float()
        {
            return Err(format!("indices {} do not fit axis {axis} of {}", index.shape, g.shape));
        }
        let shape = [&g.shape[..axis], &[size], &g.shape[axis + rank..]].concat();
        Ok(vec![Type::f32(shape)])
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(|c| {
        let (g, index, axis) = (c.g(), c.x(1), c.node.attrs.int("axis") as usize);
        Ok(vec![Some(c.b.gather(g, index, axis)?), None])
    }),
    gpu: Gpu::Kernel(gpu),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let of = |g: &[usize], k: &[usize], size: i64, axis: i64| {
            let inputs = vec![(Type::f32(g), Fill::Normal), (Type::i32(k), Fill::Index(size as usize))];
            let attrs = [("axis", axis), ("size", size), ("index_rank", k.len() as i64)];
            Sample::new(inputs, attrs.into_iter().fold(Attrs::new(), |a, (n, v)| a.with(n, Attr::Int(v))))
        };
        vec![of(&[2, 2, 3], &[2, 2], 6, 0), of(&[2, 7, 3], &[7], 4, 1)]
    },
};

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let (outer, n, inner) = super::gather::extents(&c.types_out[0], c.attrs);
    let (g, index) = (c.ins[0].float(), c.ins[1].int());
    let y = c.outs[0].float();
    y.fill(T::zero());
    for o in 0..outer {
        for (k, &i) in index.iter().enumerate() {
            let to = (o * n + super::gather::row(i, n)) * inner;
            let from = &g[(o * index.len() + k) * inner..][..inner];
            y[to..to + inner].iter_mut().zip(from).for_each(|(y, &g)| *y += g);
        }
    }
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let (outer, n, inner) = super::gather::extents(&c.types_out[0], c.attrs);
    let (total, k) = (c.types_out[0].elements(), c.types_in[1].elements());
    let (clear, clear_width) = grid(total, 256, c.traits);
    let (add, add_width) = grid(outer * inner, 64, c.traits);
    let words =
        |width, pass| vec![total as u32, width, n as u32, k as u32, inner as u32, (outer * inner) as u32, pass, 0];
    let bindings = vec![Binding::Input(0), Binding::Input(1), Binding::Output(0)];
    let shader = Shader { name: "scatter_add", source: include_str!("../../../shaders/index/scatter_add.wgsl").into() };
    let dispatch = |size: usize, workgroups, params| Dispatch {
        shader: shader.clone(),
        constants: vec![("SIZE", size as f64)],
        bindings: bindings.clone(),
        params,
        workgroups,
    };
    vec![dispatch(256, clear, words(clear_width, 0)), dispatch(64, add, words(add_width, 1))]
}
