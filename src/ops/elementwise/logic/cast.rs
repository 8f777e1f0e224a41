//! `x` as another element type. Floats become integers towards zero and booleans by being non-zero.

use crate::ops::engine::prelude::*;

pub const PRIMITIVE: Primitive = Primitive {
    name: "cast",
    attrs: &[needs("to", AttrKind::Str)],
    infer: |ins, attrs| match (ins, attrs.get_str("to").and_then(DType::parse)) {
        ([x], Some(to)) => Ok(vec![Type::new(to, x.shape.clone())]),
        _ => Err("takes one operand and a type".into()),
    },
    cpu: Cpu::Elementwise { f32: block, f64: block },
    vjp: Vjp::Zero,
    gpu: Gpu::Elementwise(|attrs, from| {
        let text = match (from[0], to(attrs)) {
            (a, b) if a == b => "$0",
            (DType::Bool, DType::F32) | (DType::I32, DType::F32) => "f32($0)",
            (DType::F32, DType::I32) => "i32_($0)",
            (_, DType::I32) => "i32($0)",
            (DType::F32, _) => "bool_($0)",
            _ => "u32($0 != 0i)",
        };
        text.into()
    }),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work: pointwise_work,
    samples: || {
        let one = |x: Type, fill, to: DType| {
            Sample::new(vec![(x, fill)], Attrs::new().with("to", Attr::Str(to.name().into())))
        };
        vec![
            one(Type::f32([6]), Fill::Normal, DType::I32),
            one(Type::i32([6]), Fill::Index(3), DType::F32),
            one(Type::i32([6]), Fill::Index(3), DType::Bool),
            one(Type::bool([6]), Fill::Flag, DType::F32),
            one(Type::f32([6]), Fill::Normal, DType::Bool),
            one(Type::f32([EDGES.len()]), Fill::Values(EDGES), DType::I32),
            one(Type::f32([EDGES.len()]), Fill::Values(EDGES), DType::Bool),
        ]
    },
};

fn to(attrs: &Attrs) -> DType {
    attrs.get_str("to").and_then(DType::parse).expect("checked by infer")
}

fn block<T: Real>(a: &[Data<T>], out: &mut DataMut<T>, attrs: &Attrs) {
    let boolean = to(attrs) == DType::Bool;
    match (a[0], out) {
        (Data::Float(x), DataMut::Float(y)) => y.copy_from_slice(x),
        (x, DataMut::Float(y)) => y.iter_mut().zip(x.int()).for_each(|(y, &x)| *y = T::of(x as f64)),
        (Data::Float(x), DataMut::Int(y)) if boolean => {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x != T::zero()) as i32);
        }
        (Data::Float(x), DataMut::Int(y)) => y.iter_mut().zip(x).for_each(|(y, &x)| *y = x.to_f64() as i32),
        (x, DataMut::Int(y)) if boolean => y.iter_mut().zip(x.int()).for_each(|(y, &x)| *y = (x != 0) as i32),
        (x, DataMut::Int(y)) => y.copy_from_slice(x.int()),
    }
}
