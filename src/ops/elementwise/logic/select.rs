//! `x` where the condition holds, else `y`.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "select",
    attrs: NO_ATTRS,
    infer: |ins, _| match ins {
        [c, x, y] if c.dtype == DType::Bool && x.dtype == y.dtype => {
            Ok(vec![Type::new(x.dtype, broadcast(&[c, x, y])?)])
        }
        _ => Err("takes a boolean and two operands of one type".into()),
    },
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Elementwise(|_, _| "select($2, $1, $0 != 0u)".into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let of = |x: Type, fill| (x, fill);
        let floats = vec![
            of(Type::bool([3, 1]), Fill::Flag),
            of(Type::f32([3, 5]), Fill::Normal),
            of(Type::f32([]), Fill::Normal),
        ];
        let ints = vec![
            of(Type::bool([4]), Fill::Flag),
            of(Type::i32([4]), Fill::Index(9)),
            of(Type::i32([1]), Fill::Index(9)),
        ];
        vec![Sample::new(floats, Attrs::new()), Sample::new(ints, Attrs::new())]
    },
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    fn pick<E: Copy>(c: &[i32], x: &[E], y: &[E], out: &mut [E]) {
        out.iter_mut().zip(c).zip(x.iter().zip(y)).for_each(|((o, &c), (&x, &y))| *o = if c != 0 { x } else { y });
    }
    match a[1] {
        Data::Float(x) => pick(a[0].int(), x, a[2].float(), out.float()),
        x => pick(a[0].int(), x.int(), a[2].int(), out.int()),
    }
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (condition, g) = (c.x(0), c.g());
    let zero = c.b.scalar(0.0);
    let dx = if c.wants[1] { c.b.select(condition, g, zero)? } else { g };
    let dy = if c.wants[2] { c.b.select(condition, zero, g)? } else { g };
    Ok(vec![None, c.sum_to(1, dx)?, c.sum_to(2, dy)?])
}
