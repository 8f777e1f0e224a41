//! Rows of the first operand along `axis`, named by the second: `(.., N, ..)`, `(K..)` to `(.., K.., ..)`. Negative
//! indices count from the end; indices beyond either end read the nearest row.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "gather",
    attrs: &[needs("axis", AttrKind::Int)],
    infer: |ins, attrs| {
        let ([x, index], Some(axis)) = (ins, attrs.get_int("axis")) else {
            return Err("takes a tensor, indices and an axis".into());
        };
        let axis = axis as usize;
        if axis >= x.rank() || index.dtype != DType::I32 || x.shape[axis] == 0 {
            return Err(format!("axis {axis} of {}, indices {}", x.shape, index.dtype));
        }
        let shape = [&x.shape[..axis], &index.shape[..], &x.shape[axis + 1..]].concat();
        Ok(vec![Type::new(x.dtype, shape)])
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Kernel(gpu),
    results: Results::All,
    accumulates: NOTHING,
    halves: Halves { host: |input, _| input == 0, device: |input, _| input == 0, tiles: NO_TILES },
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let of = |x: &[usize], k: &[usize], n, axis| {
            let inputs = vec![(Type::f32(x), Fill::Normal), (Type::i32(k), Fill::Label(n))];
            Sample::new(inputs, Attrs::new().with("axis", Attr::Int(axis)))
        };
        vec![of(&[6, 3], &[2, 2], 6, 0), of(&[2, 5, 3], &[4], 5, 1), of(&[4, 5], &[], 5, 1)]
    },
};

/// Outer, axis and inner extents of `x`.
pub fn extents(x: &Type, attrs: &Attrs) -> (usize, usize, usize) {
    let axis = attrs.int("axis") as usize;
    (x.shape[..axis].iter().product(), x.shape[axis], x.shape[axis + 1..].iter().product())
}

/// The row that an index names among `n`.
pub fn row(index: i32, n: usize) -> usize {
    let i = if index < 0 { index as i64 + n as i64 } else { index as i64 };
    i.clamp(0, n as i64 - 1) as usize
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    fn take<E: Sync, F: Send>(
        x: &[E],
        index: &[i32],
        y: &mut [F],
        (outer, n, inner): (usize, usize, usize),
        copy: impl Fn(&mut [F], &[E]) + Sync,
    ) {
        let (k, y) = (index.len(), Shared::new(y));
        parallel::ranges(outer * k, parallel::rows_grain(inner), |range| {
            for at in range {
                let from = (at / k * n + row(index[at % k], n)) * inner;
                // SAFETY: each output row belongs to one index of the range.
                let out = unsafe { y.part(at * inner..(at + 1) * inner) };
                copy(out, &x[from..from + inner]);
            }
        });
    }
    let (extents, index) = (extents(&c.types_in[0], c.attrs), c.ins[1].int());
    match (c.ins[0], &mut c.outs[0]) {
        (Data::Float(x), DataMut::Float(y)) => take(x, index, y, extents, <[T]>::copy_from_slice),
        (Data::Int(x), DataMut::Int(y)) => take(x, index, y, extents, <[i32]>::copy_from_slice),
        (Data::Half(x), DataMut::Float(y)) => take(x, index, y, extents, |to: &mut [T], from| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = T::of(from.to_f64()));
        }),
        (Data::Bf16(x), DataMut::Float(y)) => take(x, index, y, extents, |to: &mut [T], from| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = T::of(from.to_f64()));
        }),
        _ => panic!("infer keeps the type"),
    }
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let axis = c.node.attrs.int("axis");
    let n = c.b.shape(c.x(0))[axis as usize];
    let rank = c.b.shape(c.x(1)).len();
    let attrs = [("axis", axis), ("size", n as i64), ("index_rank", rank as i64)]
        .into_iter()
        .fold(Attrs::new(), |a, (name, value)| a.with(name, Attr::Int(value)));
    let (g, index) = (c.g(), c.x(1));
    Ok(vec![Some(c.b.emit("scatter_add", &[g, index], attrs)?), None])
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let (_, n, inner) = extents(&c.types_in[0], c.attrs);
    let (total, k) = (c.types_out[0].elements(), c.types_in[1].elements());
    let (workgroups, width) = grid(total, 256, c.traits);
    vec![Dispatch {
        shader: Shader { name: "gather", source: include_str!("../../../shaders/index/gather.wgsl").into() },
        constants: vec![("HALVES", c.packs(0) as u32 as f64)],
        bindings: vec![Binding::Input(0), Binding::Input(1), Binding::Output(0)],
        params: vec![total as u32, width, n as u32, k as u32, inner as u32, 0, 0, 0],
        workgroups,
    }]
}
