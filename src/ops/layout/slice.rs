//! Every `step`-th index of `axis` from `start`, `len` of them; `step` may be negative.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "slice",
    attrs: ATTRS,
    infer: |ins, attrs| {
        let [x] = ins else { return Err("takes one operand".into()) };
        let (axis, len) = check(attrs, x.rank(), |axis| x.shape[axis])?;
        let mut shape = x.shape.clone();
        shape.0[axis] = len;
        Ok(vec![Type::new(x.dtype, shape)])
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
        vec![
            Sample::normal(&[&[3, 7]]).with(attrs(1, 2, 4, 1)),
            Sample::normal(&[&[7, 3]]).with(attrs(0, 1, 3, 2)),
            Sample::normal(&[&[2, 5, 3]]).with(attrs(1, 4, 5, -1)),
        ]
    },
};

/// The attributes of `slice` and `unslice`.
pub const ATTRS: &[AttrSpec] = &[
    needs("axis", AttrKind::Int),
    needs("start", AttrKind::Int),
    needs("len", AttrKind::Int),
    needs("step", AttrKind::Int),
];

/// Their values.
pub fn attrs(axis: i64, start: i64, len: i64, step: i64) -> Attrs {
    [("axis", axis), ("start", start), ("len", len), ("step", step)]
        .into_iter()
        .fold(Attrs::new(), |a, (name, value)| a.with(name, Attr::Int(value)))
}

/// The axis and the number of indices, if all of them lie in the axis' extent.
pub fn check(attrs: &Attrs, rank: usize, extent: impl Fn(usize) -> usize) -> Result<(usize, usize), String> {
    let int = |name| attrs.get_int(name).ok_or_else(|| format!("needs '{name}'"));
    let (axis, start, len, step) = (int("axis")?, int("start")?, int("len")?, int("step")?);
    if axis < 0 || axis as usize >= rank || rank > strided::MAX_AXES {
        return Err(format!("axis {axis} of {rank}"));
    }
    let (extent, last) = (extent(axis as usize) as i64, start + (len - 1) * step);
    if step == 0 || len < 0 || len > 0 && (start.min(last) < 0 || start.max(last) >= extent) {
        return Err(format!("indices {start} to {last} by {step} leave axis {axis} of {extent}"));
    }
    Ok((axis as usize, len as usize))
}

fn copy(x: &Type, y: &Type, attrs: &Attrs) -> strided::Copy {
    let axis = attrs.int("axis") as usize;
    let mut src: strided::Strides = x.shape.strides().into_iter().map(|s| s as isize).collect();
    let base = attrs.int("start") as usize * src[axis] as usize;
    src[axis] *= attrs.int("step") as isize;
    strided::Copy::gather(&y.shape, base, src)
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    copy(&c.types_in[0], &c.types_out[0], c.attrs).run(c.ins[0], &mut c.outs[0]);
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let a = &c.node.attrs;
    let (axis, start, step) = (a.int("axis") as usize, a.int("start") as usize, a.int("step"));
    let len = c.b.shape(c.x(0))[axis];
    let g = c.g();
    Ok(vec![Some(c.b.unslice(g, axis, start, len, step)?)])
}
