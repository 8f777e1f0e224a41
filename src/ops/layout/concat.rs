//! The operands one after the other along `axis`.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "concat",
    attrs: &[needs("axis", AttrKind::Int)],
    infer: |ins, attrs| {
        let (Some(first), Some(axis)) = (ins.first(), attrs.get_int("axis")) else {
            return Err("takes operands and an axis".into());
        };
        let axis = axis as usize;
        if axis >= first.rank() || first.rank() > strided::MAX_AXES {
            return Err(format!("axis {axis} of {}", first.rank()));
        }
        let mut shape = first.shape.clone();
        shape.0[axis] = 0;
        for x in ins {
            let mut rest = x.shape.clone();
            if x.rank() == first.rank() {
                shape.0[axis] += x.shape[axis];
                rest.0[axis] = shape[axis];
            }
            if rest != shape || x.dtype != first.dtype {
                return Err(format!("{x} and {first} differ in more than axis {axis}"));
            }
        }
        Ok(vec![Type::new(first.dtype, shape)])
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Kernel(|c| {
        let copies = copies(c.types_in, &c.types_out[0], c.attrs);
        copies.enumerate().map(|(i, copy)| copy.dispatch(i, c.traits)).collect()
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let axis = |a| Attrs::new().with("axis", Attr::Int(a));
        vec![
            Sample::normal(&[&[2, 3], &[2, 1], &[2, 4]]).with(axis(1)),
            Sample::normal(&[&[2, 3, 4], &[1, 3, 4]]).with(axis(0)),
        ]
    },
};

fn copies(ins: &[Type], out: &Type, attrs: &Attrs) -> impl Iterator<Item = strided::Copy> {
    let axis = attrs.int("axis") as usize;
    let dst = out.shape.strides();
    let mut base = 0;
    ins.iter().map(move |x| {
        let dst_base = base;
        base += x.shape[axis] * dst[axis];
        let src = x.shape.strides().into_iter().map(|s| s as isize).collect();
        strided::Copy { shape: x.shape[..].into(), src_base: 0, src, dst_base, dst: dst.clone() }
    })
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    for (copy, &x) in copies(c.types_in, &c.types_out[0], c.attrs).zip(c.ins) {
        copy.run(x, &mut c.outs[0]);
    }
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (axis, g) = (c.node.attrs.int("axis") as usize, c.g());
    let mut start = 0;
    let mut grads = Vec::new();
    for i in 0..c.node.inputs.len() {
        let len = c.b.shape(c.x(i))[axis];
        grads.push(if c.wants[i] { Some(c.b.slice(g, axis, start, len, 1)?) } else { None });
        start += len;
    }
    Ok(grads)
}
