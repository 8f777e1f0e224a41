//! Integer types. Devices compute in signed 32-bit integers. Results of narrower types wrap as those types do; values of unsigned types
//! that may turn negative are refused.

use super::Reason;
use crate::ir::{Builder, DType, Tensor, Value};
use crate::onnx::{ElementType, Model, Node};
use std::collections::HashMap;

/// The type of a name, where it is known.
pub fn of(model: &Model, name: &str, elements: &HashMap<String, ElementType>) -> Option<ElementType> {
    elements.get(name).copied().or_else(|| model.initializer_type(name).map(|(element, _)| element))
}

/// The type of a node's outputs, where they are integers of a type that matters.
pub fn result(model: &Model, node: &Node, elements: &HashMap<String, ElementType>) -> Option<ElementType> {
    let of = |i: usize| of(model, node.input(i)?, elements);
    match node.op_type() {
        "Cast" => node.attr_int("to").map(|to| ElementType::from_number(to as i32)),
        "CastLike" => of(1),
        "Constant" | "ConstantOfShape" => Some(node.attr_tensor("value")?.element),
        "Where" => of(1),
        "OneHot" => of(2),
        // What their bodies give, `Context::body` has noted.
        "If" | "Loop" | "Scan" => None,
        "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" | "NonMaxSuppression" => Some(ElementType::I64),
        "BitCast" => node.attr_int("to").map(|to| ElementType::from_number(to as i32)),
        "EyeLike" => node.attr_int("dtype").map_or_else(|| of(0), |to| Some(ElementType::from_number(to as i32))),
        "QuantizeLinear" => of(2).or_else(|| {
            let given = node.attr_int("output_dtype").filter(|n| *n != 0);
            Some(given.map_or(ElementType::U8, |n| ElementType::from_number(n as i32)))
        }),
        "QLinearMatMul" | "QLinearConv" | "QLinearAdd" | "QLinearMul" => of(7),
        "QLinearSigmoid" | "QLinearLeakyRelu" => of(4),
        "QLinearConcat" => of(1),
        "QGemm" => of(8).or(Some(ElementType::F32)),
        "MatMulInteger" | "ConvInteger" => Some(ElementType::I32),
        "DynamicQuantizeLinear" => Some(ElementType::U8),
        "DequantizeLinear" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul" => Some(ElementType::F32),
        _ => of(0),
    }
}

/// The type of one output of a node whose first has the given one.
pub fn output(node: &Node, index: usize, first: ElementType) -> ElementType {
    match (node.op_type(), index) {
        ("TopK" | "MaxPool", 1) | ("Unique", 1..) => ElementType::I64,
        ("DynamicQuantizeLinear", 1) => ElementType::F32,
        _ => first,
    }
}

/// How many values a type has, and how many of them are negative; `None` for types of 32 bits and more.
pub fn narrow(element: ElementType) -> Option<(i32, i32)> {
    match element {
        ElementType::U8 => Some((256, 0)),
        ElementType::I8 => Some((256, 128)),
        ElementType::U16 => Some((65_536, 0)),
        ElementType::I16 => Some((65_536, 32_768)),
        _ => None,
    }
}

/// Wraps an integer around as a narrow type does.
pub fn wrap(b: &mut Builder, x: Value, (count, below): (i32, i32)) -> Result<Value, Reason> {
    let (count, below) = (Tensor::i32([], vec![count]), Tensor::i32([], vec![below]));
    let (count, below) = (b.constant(count), b.constant(below));
    let raised = b.add(x, below)?;
    let wrapped = b.binary("modulo", raised, count)?;
    Ok(b.sub(wrapped, below)?)
}

/// Operators whose result may leave the range of their operands.
const ARITHMETIC: &[&str] = &[
    "Abs",
    "Add",
    "BitShift",
    "BitwiseNot",
    "CumProd",
    "CumSum",
    "Div",
    "MatMul",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "ReduceL1",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "ScatterElements",
    "ScatterND",
    "Sub",
    "Sum",
];

/// Makes a node's integer outputs what its type makes of them.
pub fn settle(b: &mut Builder, node: &Node, element: ElementType, outputs: &mut [Value]) -> Result<(), Reason> {
    if !ARITHMETIC.contains(&node.op_type()) {
        return Ok(());
    }
    for x in outputs.iter_mut() {
        if b.ty(*x).dtype != DType::I32 {
            continue;
        }
        if let Some(range) = narrow(element) {
            *x = wrap(b, *x, range)?;
        }
        let unsigned = matches!(element, ElementType::U32 | ElementType::U64);
        if unsigned && matches!(node.op_type(), "Sub" | "Neg" | "BitwiseNot") {
            let known = b.constant_of(*x).and_then(|t| t.as_i32().map(|x| x.iter().all(|&x| x >= 0)));
            if known != Some(true) {
                return Err(format!(
                    "its result of {element} may wrap around, which takes more bits than there are here\n\
                     hint: cast to int64 before it when exporting"
                )
                .into());
            }
        }
    }
    Ok(())
}
