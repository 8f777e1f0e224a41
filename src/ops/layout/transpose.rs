//! Axis `i` of the result is axis `perm[i]` of the operand.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "transpose",
    attrs: &[needs("perm", AttrKind::Ints)],
    infer: |ins, attrs| match (ins, attrs.get_ints("perm")) {
        ([x], Some(perm)) => {
            let mut seen = vec![false; x.rank()];
            for &p in perm {
                match seen.get_mut(p as usize) {
                    Some(s) if !*s => *s = true,
                    _ => return Err(format!("{perm:?} is no permutation of {} axes", x.rank())),
                }
            }
            if perm.len() != x.rank() || perm.len() > strided::MAX_AXES {
                return Err(format!("{perm:?} is no permutation of {} axes", x.rank()));
            }
            let shape: Vec<usize> = perm.iter().map(|&p| x.shape[p as usize]).collect();
            Ok(vec![Type::new(x.dtype, shape)])
        }
        _ => Err("takes one operand and a permutation".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Kernel(|c| vec![copy(&c.types_in[0], &c.types_out[0], c.attrs).dispatch(0, c.traits)]),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let perm = |p: &[i64]| Attrs::new().with("perm", Attr::Ints(p.to_vec()));
        vec![
            Sample::normal(&[&[3, 5]]).with(perm(&[1, 0])),
            Sample::normal(&[&[2, 3, 4, 5]]).with(perm(&[0, 2, 1, 3])),
            Sample::normal(&[&[2, 3, 4, 5]]).with(perm(&[3, 1, 0, 2])),
        ]
    },
};

fn copy(x: &Type, y: &Type, attrs: &Attrs) -> strided::Copy {
    let strides = x.shape.strides();
    let src = attrs.ints("perm").iter().map(|&p| strides[p as usize] as isize).collect();
    strided::Copy::gather(&y.shape, 0, src)
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    copy(&c.types_in[0], &c.types_out[0], c.attrs).run(c.ins[0], &mut c.outs[0]);
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let perm = c.node.attrs.sizes("perm");
    let mut inverse = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
    let g = c.g();
    Ok(vec![Some(c.b.transpose(g, &inverse)?)])
}
