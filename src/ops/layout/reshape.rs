//! The same elements under another shape; no memory moves.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "reshape",
    attrs: &[needs("shape", AttrKind::Ints)],
    infer: |ins, attrs| match (ins, attrs.get_ints("shape")) {
        ([x], Some(shape)) => {
            let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
            let out = Type::new(x.dtype, shape);
            if out.elements() != x.elements() {
                return Err(format!("{} elements do not fill {}", x.elements(), out.shape));
            }
            Ok(vec![out])
        }
        _ => Err("takes one operand and a shape".into()),
    },
    cpu: Cpu::Alias,
    vjp: Vjp::Emit(|c| {
        let (shape, g) = (c.b.shape(c.x(0)).clone(), c.g());
        Ok(vec![Some(c.b.reshape(g, shape)?)])
    }),
    gpu: Gpu::Alias,
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || vec![Sample::normal(&[&[2, 6]]).with(Attrs::new().with("shape", Attr::Ints(vec![3, 4])))],
};
