//! The remainder of `x / y` with the sign of `y` (integers) or of `x` (floats), as ONNX Mod has it.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "modulo",
    attrs: NO_ATTRS,
    infer: infer_number2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Elementwise(|_, t| if t[0] == DType::F32 { "fmod_($0, $1)" } else { "mod_i32($0, $1)" }.into()),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let ints = vec![(Type::i32([3, 5]), Fill::Index(4)), (Type::i32([5]), Fill::Index(4))];
        vec![
            Sample::new(ints, Attrs::new()),
            Sample::positive(&[&[3, 5], &[3, 5]]),
            Sample::positive(&[&[4, 5], &[5]]),
            Sample::pairs(EDGES),
        ]
    },
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map2_number(
        a,
        out,
        |x, y| x % y,
        |x, y| match if y == 0 { 0 } else { x.wrapping_rem(y) } {
            rest if rest != 0 && (rest < 0) != (y < 0) => rest + y,
            rest => rest,
        },
    );
}

/// `z = x - y trunc(x / y)`, so that x has the slope 1 and y the slope `(z - x) / y`.
fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let (x, y, z, g) = (c.x(0), c.x(1), c.y(0), c.g());
    let dy = if c.wants[1] {
        let part = c.b.sub(z, x)?;
        let slope = c.b.div(part, y)?;
        c.b.mul(slope, g)?
    } else {
        g
    };
    Ok(vec![c.sum_to(0, g)?, c.sum_to(1, dy)?])
}
