//! The remainder of `x / y` with the sign of `y` (integers) or of `x` (floats), as ONNX Mod has it.

use super::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "modulo",
    infer: infer_number2,
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|_, t| {
        if t[0] == DType::F32 { "($0 - $1 * trunc($0 / $1))" } else { "mod_i32($0, $1)" }.into()
    }),
    samples: || {
        let ints = vec![(Type::i32([3, 5]), Fill::Index(4)), (Type::i32([5]), Fill::Index(4))];
        vec![Sample::new(ints, Attrs::new())]
    },
};

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, _: &Attrs) {
    map2_number(
        a,
        out,
        |x, y| x % y,
        |x, y| if y == 0 { 0 } else { x.wrapping_rem(y).wrapping_add(y).wrapping_rem(y) },
    );
}
