//! Every operator with a lowering, against tract: an engine that shares no code with ours.

use crate::build::{A, BOOL, F32, I64, Net, ints, spread, tensor};
use reslora_compile::internals::device::Cpu;
use reslora_compile::internals::ir::Tensor;
use reslora_compile::internals::lower::REGISTRY;
use reslora_compile::internals::pipeline;
use reslora_compile::internals::verify::{self, Feed};
use std::collections::BTreeSet;

/// An input of a problem: a graph input that is fed, or an initializer.
#[derive(Clone)]
enum In {
    Float(&'static [usize], Vec<f32>),
    Int(&'static [usize], Vec<i64>),
    Bool(&'static [usize], Vec<bool>),
    Fixed(&'static [usize], Vec<f32>),
    FixedInts(&'static [usize], Vec<i64>),
    None,
}

struct Problem {
    op: &'static str,
    inputs: Vec<In>,
    attrs: Vec<(&'static str, A)>,
    outputs: usize,
    opset: i64,
    /// Elements worked out by hand where tract has no such operator, or has it otherwise.
    by_hand: Option<Vec<f64>>,
}

fn normal(dims: &'static [usize], seed: u64) -> In {
    In::Float(dims, spread(dims.iter().product(), seed).iter().map(|x| 2.5 * x).collect())
}

fn positive(dims: &'static [usize], seed: u64) -> In {
    In::Float(dims, spread(dims.iter().product(), seed).iter().map(|x| x.abs() + 0.3).collect())
}

fn op(op: &'static str, inputs: Vec<In>) -> Problem {
    Problem { op, inputs, attrs: vec![], outputs: 1, opset: 17, by_hand: None }
}

impl Problem {
    fn attr(mut self, name: &'static str, value: A) -> Problem {
        self.attrs.push((name, value));
        self
    }

    fn outputs(mut self, n: usize) -> Problem {
        self.outputs = n;
        self
    }

    fn opset(mut self, n: i64) -> Problem {
        self.opset = n;
        self
    }

    fn gives(mut self, values: &[f64]) -> Problem {
        self.by_hand = Some(values.to_vec());
        self
    }
}

const S: &[usize] = &[2, 3, 4];
const R: &[usize] = &[3, 4];

fn problems() -> Vec<Problem> {
    let x = || normal(S, 1);
    let y = || normal(S, 2);
    let unary = [
        "Abs",
        "Ceil",
        "Cos",
        "Erf",
        "Exp",
        "Floor",
        "Identity",
        "Neg",
        "Relu",
        "Round",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Tanh",
        "HardSwish",
    ];
    let mut all: Vec<Problem> = unary.into_iter().map(|name| op(name, vec![x()])).collect();
    all.extend(["Log", "Reciprocal", "Sqrt"].into_iter().map(|name| op(name, vec![positive(S, 3)])));
    let binary =
        ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"];
    all.extend(binary.into_iter().map(|name| op(name, vec![x(), normal(&[3, 1], 4)])));
    let flags = |seed: u64| In::Bool(R, spread(12, seed).iter().map(|x| *x > 0.0).collect());
    all.extend(["And", "Or", "Xor"].into_iter().map(|name| op(name, vec![flags(5), flags(6)])));
    let axes = || In::FixedInts(&[1], vec![1]);
    for name in ["ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL2", "ReduceSumSquare"] {
        all.push(op(name, vec![x()]).attr("axes", A::Is(vec![1])));
        all.push(op(name, vec![x()]).attr("axes", A::Is(vec![0, 2])).attr("keepdims", A::I(0)));
        all.push(op(name, vec![x(), axes()]).opset(18));
    }
    let long = |n: &'static [usize], v: &[i64]| In::FixedInts(n, v.to_vec());
    all.extend([
        op("ReduceSum", vec![x(), axes()]),
        op("ReduceSum", vec![x()]).attr("keepdims", A::I(0)),
        op("ReduceMean", vec![x(), long(&[2], &[-1, 0])]).attr("keepdims", A::I(0)).opset(18),
        op("Pow", vec![positive(S, 3), In::Fixed(&[], vec![1.7])]),
        op("Pow", vec![x(), In::Fixed(&[], vec![3.0])]),
        op("Pow", vec![x(), In::Fixed(&[], vec![2.0])]),
        op("Pow", vec![positive(S, 3), In::Fixed(&[], vec![-0.5])]),
        op("Mod", vec![In::Int(&[5], vec![-7, -1, 0, 4, 9]), long(&[], &[4])]).gives(&[1.0, 3.0, 0.0, 0.0, 1.0]),
        op("Mod", vec![In::Int(&[5], vec![-7, -1, 0, 4, 9]), long(&[], &[-4])]).gives(&[-3.0, -1.0, 0.0, 0.0, -3.0]),
        op("Mod", vec![In::Int(&[3], vec![-5, 5, 2147483647]), long(&[], &[2147483646])]).gives(&[
            2147483641.0,
            5.0,
            1.0,
        ]),
        op("Mod", vec![In::Int(&[5], vec![-7, -1, 0, 4, 9]), long(&[], &[4])])
            .attr("fmod", A::I(1))
            .gives(&[-3.0, -1.0, 0.0, 0.0, 1.0]),
        op("Mod", vec![In::Float(&[4], vec![-7.5, -1.0, 4.5, 9.25]), In::Fixed(&[], vec![4.0])])
            .attr("fmod", A::I(1))
            .gives(&[-3.5, -1.0, 0.5, 1.25]),
        op("Equal", vec![In::Int(&[4], vec![1, 2, 3, 4]), long(&[4], &[1, 0, 3, 0])]),
        op("Not", vec![flags(7)]),
        op("Where", vec![flags(7), normal(R, 1), normal(&[4], 2)]),
        op("Where", vec![flags(7), flags(8), flags(9)]).gives(&by_hand_where()),
        op("IsNaN", vec![In::Float(&[3], vec![1.0, f32::NAN, f32::INFINITY])]),
        op("IsInf", vec![In::Float(&[4], vec![1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY])])
            .gives(&[0.0, 0.0, 1.0, 1.0]),
        op("IsInf", vec![In::Float(&[3], vec![1.0, f32::INFINITY, f32::NEG_INFINITY])])
            .attr("detect_negative", A::I(0))
            .gives(&[0.0, 1.0, 0.0]),
        op("Clip", vec![x(), In::Fixed(&[], vec![-1.0]), In::Fixed(&[], vec![0.5])]),
        op("Clip", vec![x(), In::None, In::Fixed(&[], vec![0.5])]),
        op("Clip", vec![x()]).attr("min", A::F(-0.5)).opset(6),
        op("LeakyRelu", vec![x()]).attr("alpha", A::F(0.2)),
        op("Elu", vec![x()]).attr("alpha", A::F(0.7)),
        op("HardSigmoid", vec![x()]).attr("alpha", A::F(0.3)),
        op("Mish", vec![In::Float(&[3], vec![-1.0, 0.0, 2.0])]).opset(18).gives(&[-0.303_401_46, 0.0, 1.943_958_97]),
        op("GlobalLpPool", vec![In::Float(&[1, 2, 2], vec![3.0, 4.0, -6.0, 8.0])]).gives(&[5.0, 10.0]),
        op("Gelu", vec![x()]).opset(20),
        op("Gelu", vec![x()]).attr("approximate", A::S("tanh")).opset(20),
        op("com.microsoft:Gelu", vec![In::Float(&[3], vec![-1.0, 0.0, 2.0])]).gives(&[-0.158_655_25, 0.0, 1.954_499_7]),
        op("Cast", vec![x()]).attr("to", A::I(7)),
        op("Cast", vec![In::Int(&[3], vec![0, 2, -1])]).attr("to", A::I(1)),
        op("Cast", vec![In::Int(&[3], vec![0, 2, -1])]).attr("to", A::I(9)),
        op("CastLike", vec![In::Int(&[3], vec![0, 2, -1]), In::Fixed(&[1], vec![0.0])]).gives(&[0.0, 2.0, -1.0]),
        op("Softmax", vec![x()]).attr("axis", A::I(-1)),
        op("Softmax", vec![x()]).attr("axis", A::I(1)),
        op("Softmax", vec![x()]).attr("axis", A::I(1)).opset(11),
        op("LogSoftmax", vec![x()]).attr("axis", A::I(-1)),
        op("LayerNormalization", vec![x(), In::Fixed(&[4], spread(4, 5)), In::Fixed(&[4], spread(4, 6))]),
        op("LayerNormalization", vec![x(), In::Fixed(&[3, 4], spread(12, 5))]).attr("axis", A::I(1)),
        op("RMSNormalization", vec![In::Float(&[1, 2], vec![3.0, 4.0]), In::Fixed(&[2], vec![1.0, 2.0])])
            .attr("epsilon", A::F(0.0))
            .opset(23)
            .gives(&[3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt()]),
        op("SimplifiedLayerNormalization", vec![In::Float(&[1, 2], vec![3.0, 4.0]), In::Fixed(&[2], vec![1.0, 2.0])])
            .attr("epsilon", A::F(0.0))
            .gives(&[3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt()]),
        op(
            "com.microsoft:SimplifiedLayerNormalization",
            vec![In::Float(&[1, 2], vec![3.0, 4.0]), In::Fixed(&[2], vec![1.0, 2.0])],
        )
        .attr("epsilon", A::F(0.0))
        .gives(&[3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt()]),
        op(
            "InstanceNormalization",
            vec![normal(&[2, 3, 4, 2], 1), In::Fixed(&[3], spread(3, 5)), In::Fixed(&[3], spread(3, 6))],
        ),
        op(
            "GroupNormalization",
            vec![
                In::Float(&[1, 2, 2], vec![1.0, 3.0, 5.0, 9.0]),
                In::Fixed(&[2], vec![1.0, 2.0]),
                In::Fixed(&[2], vec![0.0, 1.0]),
            ],
        )
        .attr("num_groups", A::I(2))
        .attr("epsilon", A::F(0.0))
        .opset(21)
        .gives(&[-1.0, 1.0, -1.0, 3.0]),
        op(
            "BatchNormalization",
            vec![
                normal(&[2, 3, 4], 1),
                In::Fixed(&[3], spread(3, 5)),
                In::Fixed(&[3], spread(3, 6)),
                In::Fixed(&[3], spread(3, 7)),
                In::Fixed(&[3], vec![0.5, 1.0, 2.0]),
            ],
        ),
        op("GlobalAveragePool", vec![normal(&[2, 3, 4, 5], 1)]),
        op("Resize", vec![normal(&[1, 2, 3, 4], 1), In::None, In::Fixed(&[4], vec![1.0, 1.0, 2.0, 2.0])])
            .attr("coordinate_transformation_mode", A::S("asymmetric"))
            .attr("nearest_mode", A::S("floor")),
        op("Resize", vec![normal(&[1, 2, 3, 4], 1), In::None, In::Fixed(&[4], vec![1.0, 1.0, 2.0, 1.5])])
            .attr("mode", A::S("linear")),
        op("Resize", vec![In::Float(&[1, 1, 1, 2], vec![1.0, 3.0]), In::None, In::None, long(&[4], &[1, 1, 1, 4])])
            .attr("mode", A::S("linear"))
            .attr("coordinate_transformation_mode", A::S("align_corners"))
            .gives(&[1.0, 1.0 + 2.0 / 3.0, 1.0 + 4.0 / 3.0, 3.0]),
        op("Resize", vec![In::Float(&[4], vec![1.0, 2.0, 3.0, 4.0]), In::None, In::Fixed(&[1], vec![0.5])])
            .gives(&[1.0, 3.0]),
        op("ScatterND", vec![normal(&[3, 4], 1), long(&[2, 1], &[2, 0]), normal(&[2, 4], 2)]),
        op("ScatterND", vec![normal(&[3, 4], 1), long(&[2, 2], &[2, 3, 0, 1]), In::Fixed(&[2], vec![7.0, 8.0])]),
        op("Attention", vec![normal(&[1, 2, 3, 4], 1), normal(&[1, 1, 3, 4], 2), normal(&[1, 1, 3, 4], 3)])
            .attr("is_causal", A::I(1))
            .opset(23),
        op(
            "RotaryEmbedding",
            vec![
                In::Float(&[1, 1, 1, 4], vec![1.0, 2.0, 3.0, 4.0]),
                In::Fixed(&[2, 1], vec![1.0, 0.0]),
                In::Fixed(&[2, 1], vec![0.0, 1.0]),
                In::Int(&[1, 1], vec![1]),
            ],
        )
        .opset(23)
        .gives(&[-2.0, 1.0, 3.0, 4.0]),
        op("MatMul", vec![normal(&[2, 3, 4], 1), normal(&[4, 5], 2)]),
        op("MatMul", vec![normal(&[2, 1, 3, 4], 1), normal(&[3, 4, 2], 2)]),
        op("MatMul", vec![normal(&[3, 4], 1), normal(&[2, 4, 2], 2)]),
        op("MatMul", vec![normal(&[4], 1), normal(&[4, 2], 2)]),
        op("MatMul", vec![normal(&[3, 4], 1), normal(&[4], 2)]),
        op("Gemm", vec![normal(&[3, 4], 1), normal(&[5, 4], 2), normal(&[5], 3)])
            .attr("transB", A::I(1))
            .attr("alpha", A::F(0.5))
            .attr("beta", A::F(2.0)),
        op("Gemm", vec![normal(&[4, 3], 1), normal(&[4, 5], 2)]).attr("transA", A::I(1)),
        op(
            "Conv",
            vec![normal(&[2, 3, 7, 6], 1), In::Fixed(&[4, 3, 3, 3], spread(108, 2)), In::Fixed(&[4], spread(4, 3))],
        )
        .attr("pads", A::Is(vec![1, 1, 1, 1]))
        .attr("strides", A::Is(vec![2, 1])),
        op("Conv", vec![normal(&[1, 4, 5, 5], 1), In::Fixed(&[4, 1, 3, 3], spread(36, 2))]).attr("group", A::I(4)),
        op("Conv", vec![normal(&[1, 2, 6, 6], 1), In::Fixed(&[3, 2, 2, 2], spread(24, 2))])
            .attr("dilations", A::Is(vec![2, 2]))
            .attr("auto_pad", A::S("SAME_UPPER")),
        op("Conv", vec![normal(&[2, 3, 9], 1), In::Fixed(&[4, 3, 3], spread(36, 2))]).attr("strides", A::Is(vec![2])),
        op("Reshape", vec![x(), long(&[3], &[0, -1, 2])]),
        op("Transpose", vec![x()]).attr("perm", A::Is(vec![2, 0, 1])),
        op("Transpose", vec![x()]),
        op("Squeeze", vec![normal(&[2, 1, 3, 1], 1), long(&[1], &[1])]),
        op("Squeeze", vec![normal(&[2, 1, 3], 1)]).attr("axes", A::Is(vec![1])).opset(11),
        op("Unsqueeze", vec![x(), long(&[2], &[0, -1])]),
        op("Flatten", vec![x()]).attr("axis", A::I(2)),
        op("Expand", vec![normal(&[3, 1], 1), long(&[3], &[2, 1, 4])]),
        op("Tile", vec![normal(R, 1), long(&[2], &[2, 3])]),
        op("Concat", vec![x(), y(), x()]).attr("axis", A::I(-2)),
        op("Split", vec![x(), long(&[2], &[1, 3])]).attr("axis", A::I(2)).outputs(2),
        op("Split", vec![x()]).attr("axis", A::I(2)).attr("num_outputs", A::I(2)).outputs(2).opset(18),
        op(
            "Slice",
            vec![
                x(),
                long(&[2], &[1, 3]),
                long(&[2], &[9_223_372_036_854_775_807, -5]),
                long(&[2], &[1, 2]),
                long(&[2], &[1, -2]),
            ],
        ),
        op("Slice", vec![x()])
            .attr("starts", A::Is(vec![1]))
            .attr("ends", A::Is(vec![3]))
            .attr("axes", A::Is(vec![2]))
            .opset(9),
        op("Gather", vec![x(), In::Int(&[2, 2], vec![0, 2, -1, 1])]).attr("axis", A::I(1)),
        op("Gather", vec![x(), long(&[], &[1])]).attr("axis", A::I(2)),
        op("GatherElements", vec![normal(R, 1), In::Int(&[2, 4], vec![0, 2, -1, 1, 2, 2, 0, 0])]).attr("axis", A::I(0)),
        op("GatherND", vec![x(), In::Int(&[2, 2], vec![0, 2, 1, 1])]),
        op("GatherND", vec![x(), In::Int(&[2, 1, 1], vec![2, 0])]).attr("batch_dims", A::I(1)),
        op("Pad", vec![normal(R, 1), long(&[4], &[1, 0, 0, 2])]),
        op("Pad", vec![normal(R, 1), long(&[4], &[1, 0, 0, 2]), In::Fixed(&[], vec![1.5])]),
        op("Pad", vec![normal(R, 1), long(&[4], &[1, 2, 0, 1])]).attr("mode", A::S("reflect")),
        op("Pad", vec![normal(R, 1), long(&[4], &[1, 2, 0, 1])]).attr("mode", A::S("edge")),
        op("Trilu", vec![normal(&[2, 4, 4], 1)]),
        op("Trilu", vec![normal(&[4, 4], 1), long(&[], &[-1])]).attr("upper", A::I(0)),
        op("OneHot", vec![In::Int(&[3], vec![0, 2, 1]), long(&[], &[4]), In::Fixed(&[2], vec![-1.0, 2.0])]),
        op("OneHot", vec![In::Int(&[5], vec![-5, -1, 4, 7, 2]), long(&[], &[4]), In::Fixed(&[2], vec![0.0, 1.0])])
            .gives(&[0., 0., 0., 0., 0., 0., 0., 1., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 1., 0.]),
        op("CumSum", vec![x(), long(&[], &[1])]),
        op("CumSum", vec![x(), long(&[], &[2])]).attr("exclusive", A::I(1)).attr("reverse", A::I(1)),
        op("ArgMax", vec![x()]).attr("axis", A::I(2)).attr("keepdims", A::I(0)),
        op("ArgMin", vec![x()]).attr("axis", A::I(1)),
        op("Shape", vec![x()]).gives(&[2.0, 3.0, 4.0]),
        op("Size", vec![x()]).gives(&[24.0]),
        op("Constant", vec![]).attr("value", A::T(Box::new(tensor("", &[2], &[1.5, 2.5])))).gives(&[1.5, 2.5]),
        op("Constant", vec![]).attr("value_ints", A::Is(vec![3, 4])).gives(&[3.0, 4.0]),
        op("Constant", vec![]).attr("value_floats", A::Fs(vec![3.5, 4.0])).gives(&[3.5, 4.0]),
        op("ConstantOfShape", vec![long(&[2], &[2, 1])])
            .attr("value", A::T(Box::new(ints("", &[1], &[7]))))
            .gives(&[7.0, 7.0]),
        op("Range", vec![long(&[], &[1]), long(&[], &[8]), long(&[], &[3])]).gives(&[1.0, 4.0, 7.0]),
        op("NonZero", vec![In::FixedInts(&[2, 2], vec![1, 0, 0, 5])]).gives(&[0.0, 1.0, 0.0, 1.0]),
        op("Dropout", vec![x(), In::Fixed(&[], vec![0.5])]),
        op("SoftmaxCrossEntropyLoss", vec![In::Float(&[2, 2], vec![0.0, 0.0, 1.0, 1.0]), In::Int(&[2], vec![0, -100])])
            .attr("ignore_index", A::I(-100))
            .gives(&[std::f64::consts::LN_2]),
        op(
            "SoftmaxCrossEntropyLoss",
            vec![In::Float(&[1, 2, 2], vec![0.0, 3.0, 0.0, 3.0]), In::Int(&[1, 2], vec![0, 1])],
        )
        .attr("reduction", A::S("none"))
        .gives(&[std::f64::consts::LN_2; 2]),
        op(
            "NegativeLogLikelihoodLoss",
            vec![
                In::Float(&[3, 2], vec![-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]),
                In::Int(&[3], vec![1, 0, 1]),
                In::Fixed(&[2], vec![1.0, 3.0]),
            ],
        )
        .gives(&[(3.0 * 2.0 + 3.0 + 3.0 * 6.0) / 7.0]),
    ]);
    all
}

fn by_hand_where() -> Vec<f64> {
    let flag = |seed: u64| spread(12, seed).into_iter().map(|x| x > 0.0).collect::<Vec<bool>>();
    let (c, x, y) = (flag(7), flag(8), flag(9));
    (0..12).map(|i| (if c[i] { x[i] } else { y[i] }) as u8 as f64).collect()
}

/// Builds the problem as a model of one node; returns it with what is fed.
fn build(p: &Problem) -> (Net, Vec<Feed>) {
    let mut net = Net::new(p.opset);
    let mut feeds = Vec::new();
    let mut names = Vec::new();
    for (i, input) in p.inputs.iter().enumerate() {
        let name = format!("x{i}");
        let dims = |d: &[usize]| d.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let long = |d: &[usize]| d.iter().map(|&n| n as i64).collect::<Vec<_>>();
        let mut feed = |net: Net, element: i32, d: &[usize], values: Vec<f64>| {
            feeds.push(Feed { name: name.clone(), dims: d.to_vec(), values });
            let dims = dims(d);
            net.input(&name, element, &dims.iter().map(String::as_str).collect::<Vec<_>>())
        };
        net = match input {
            In::Float(d, v) => feed(net, F32, d, v.iter().map(|&x| x as f64).collect()),
            In::Int(d, v) => feed(net, I64, d, v.iter().map(|&x| x as f64).collect()),
            In::Bool(d, v) => feed(net, BOOL, d, v.iter().map(|&x| x as u8 as f64).collect()),
            In::Fixed(d, v) => net.initializer(tensor(&name, &long(d), v)),
            In::FixedInts(d, v) => net.initializer(ints(&name, &long(d), v)),
            In::None => net,
        };
        names.push(if matches!(input, In::None) { String::new() } else { name });
    }
    let outs: Vec<String> = (0..p.outputs).map(|i| format!("y{i}")).collect();
    let (ins, ys): (Vec<&str>, Vec<&str>) =
        (names.iter().map(String::as_str).collect(), outs.iter().map(String::as_str).collect());
    net = net.node("/the/node", p.op, &ins, &ys, &p.attrs);
    for y in &outs {
        net = net.output(y, F32, &[]);
    }
    for o in &mut net.graph.output {
        // Of the output only its name is known: what it is, is the question.
        o.type_ = Default::default();
    }
    (net, feeds)
}

fn ours(path: &std::path::Path, feeds: &[Feed]) -> Vec<(Vec<usize>, Vec<f64>)> {
    let model = pipeline::read(path).unwrap();
    let specs = pipeline::input_specs(&model);
    let fed = |s: &reslora_compile::internals::train::data::InputSpec| {
        let f = feeds.iter().find(|f| f.name == s.name).unwrap();
        let floats: Vec<f32> = f.values.iter().map(|&x| x as f32).collect();
        let ints = || f.values.iter().map(|&x| x as i32).collect::<Vec<i32>>();
        let t = match s.dtype {
            reslora_compile::internals::ir::DType::F32 => Tensor::f32(f.dims.clone(), floats),
            reslora_compile::internals::ir::DType::I32 => Tensor::i32(f.dims.clone(), ints()),
            reslora_compile::internals::ir::DType::Bool => {
                Tensor::bool(f.dims.clone(), ints().iter().map(|&x| x as u32).collect())
            }
        };
        (s.name.clone(), t)
    };
    let inputs: Vec<(String, Tensor)> = specs.iter().map(fed).collect();
    let trainee = pipeline::load(&model, None).unwrap();
    let mut device = Cpu::new(None);
    let outputs = pipeline::infer(&trainee, &[inputs], &mut device).unwrap_or_else(|e| panic!("{e}"));
    model
        .outputs()
        .iter()
        .map(|o| {
            let t = &outputs[&o.name][0];
            let values = match (t.as_f32(), t.as_i32()) {
                (Some(x), _) => x.iter().map(|&x| x as f64).collect(),
                (_, Some(x)) => x.iter().map(|&x| x as f64).collect(),
                _ => vec![],
            };
            (t.shape().to_vec(), values)
        })
        .collect()
}

/// One-node models that ONNX Runtime ran; fixtures/operators/make.py asked it.
fn asked() -> Vec<std::path::PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/operators");
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    files.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect()
}

/// Operators of ONNX Runtime's own, and those that tract lacks, against what ONNX Runtime computes.
#[test]
fn every_operator_of_onnx_runtime_computes_what_it_computes() {
    for path in asked() {
        let model = pipeline::read(&path).unwrap();
        let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let values = |name: &str| -> Option<(Vec<usize>, Vec<f64>)> {
            let t = tensors.tensor(name).ok()?;
            let of = |n: usize, read: fn(&[u8]) -> f64| t.data().chunks(n).map(read).collect();
            let values = match t.dtype() {
                safetensors::Dtype::F32 => of(4, |b| f32::from_le_bytes(b.try_into().unwrap()) as f64),
                safetensors::Dtype::I32 => of(4, |b| i32::from_le_bytes(b.try_into().unwrap()) as f64),
                safetensors::Dtype::U8 | safetensors::Dtype::BOOL => of(1, |b| b[0] as f64),
                safetensors::Dtype::I8 => of(1, |b| b[0] as i8 as f64),
                safetensors::Dtype::I64 => of(8, |b| i64::from_le_bytes(b.try_into().unwrap()) as f64),
                other => panic!("{other:?}"),
            };
            Some((t.shape().to_vec(), values))
        };
        let feed = |name: String| {
            let (dims, values) = values(&name)?;
            Some(Feed { name, dims, values })
        };
        let feeds: Vec<Feed> = model.inputs().into_iter().filter_map(|i| feed(i.name)).collect();
        for (o, (shape, got)) in model.outputs().iter().zip(ours(&path, &feeds)) {
            let (want_shape, want) = values(&o.name).unwrap();
            assert_eq!(shape, want_shape, "{} {}", path.display(), o.name);
            let size = want.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!((g - w).abs() <= TOLERANCE * size, "{} {}[{i}]: {g}, not {w}", path.display(), o.name);
            }
        }
    }
}

/// Relative to the largest element: two f32 engines that sum in other orders and approximate functions otherwise.
const TOLERANCE: f64 = 2e-5;

#[test]
fn every_operator_computes_what_tract_computes() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (k, p) in problems().iter().enumerate() {
        let (net, feeds) = build(p);
        let path = net.write(&dir.path().join(format!("{k}.onnx")));
        let got = ours(&path, &feeds);
        let want: Vec<(Vec<usize>, Vec<f64>)> = match &p.by_hand {
            Some(values) => vec![(got[0].0.clone(), values.clone())],
            None => match verify::run(&pipeline::read(&path).unwrap(), &feeds) {
                Ok(outs) => outs.into_iter().map(|o| (o.dims, o.values)).collect(),
                Err(e) => {
                    wrong.push(format!("{} (problem {k}): {e}", p.op));
                    continue;
                }
            },
        };
        for (o, ((dims, have), (want_dims, want))) in got.iter().zip(&want).enumerate() {
            let size = want.iter().filter(|x| x.is_finite()).fold(1e-3f64, |m, x| m.max(x.abs()));
            let close = |(h, w): (&f64, &f64)| h == w || h.is_nan() && w.is_nan() || (h - w).abs() <= TOLERANCE * size;
            if dims != want_dims || have.len() != want.len() || !have.iter().zip(want).all(close) {
                wrong.push(format!("{} (problem {k}) output {o}: {dims:?} {have:?}, not {want_dims:?} {want:?}", p.op));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn full_name(o: &reslora_compile::internals::lower::Operator) -> String {
    match o.domain {
        "" => o.name.to_string(),
        d => format!("{d}:{}", o.name),
    }
}

#[test]
fn every_operator_has_a_problem() {
    let mut tried: BTreeSet<String> = problems().iter().map(|p| p.op.to_string()).collect();
    for path in asked().into_iter().chain(crate::standard_operators::cases()) {
        tried.extend(pipeline::read(&path).unwrap().nodes().map(|(_, n)| n.operator()));
    }
    let missing: Vec<String> = REGISTRY.iter().map(full_name).filter(|n| !tried.contains(n)).collect();
    assert!(missing.is_empty(), "operators without a problem here: {}", missing.join(", "));
}

/// Every attribute of every operator with a lowering is read somewhere, or said to change nothing.
#[test]
fn every_attribute_is_read_or_said_to_change_nothing() {
    use reslora_compile::internals::lower::attributes::{harmless, schema};
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lower");
    // What is packed in few bits is read together with its file.
    let packed = folder.join("../onnx/quantised.rs");
    let sources: String = walkdir::WalkDir::new(folder)
        .into_iter()
        .map(|e| e.unwrap().into_path())
        .chain([packed])
        .filter(|p| p.extension().is_some_and(|e| e == "rs") && !p.ends_with("attributes.rs"))
        .map(|p| std::fs::read_to_string(p).unwrap())
        .collect();
    let mut unread = Vec::new();
    for o in reslora_compile::internals::lower::REGISTRY {
        let operator = full_name(o);
        for name in schema(&operator).into_iter().flat_map(|s| s.keys()) {
            if !sources.contains(&format!("\"{name}\"")) && !harmless(&operator, name) {
                unread.push(format!("{operator} {name}"));
            }
        }
    }
    // What no lowering reads is refused when a node sets it to something else than its default.
    unread.sort();
    insta::assert_snapshot!(unread.join("\n"), @r"
    BatchNormalization spatial
    Dropout is_test
    Pad paddings
    Scan directions
    Upsample height_scale
    Upsample width_scale
    com.microsoft:CausalConvWithState input_channel_offset
    com.microsoft:CausalConvWithState input_channels
    com.microsoft:CausalConvWithState ndim
    com.microsoft:CausalConvWithState state_channels_last
    com.microsoft:CausalConvWithState state_length
    com.microsoft:CausalConvWithState state_update_capacity
    com.microsoft:CausalConvWithState state_window
    com.microsoft:FusedGemm activation_gamma
    com.microsoft:FusedMatMul transBatchA
    com.microsoft:FusedMatMul transBatchB
    com.microsoft:GroupQueryAttention causal
    com.microsoft:GroupQueryAttention k_quant_type
    com.microsoft:GroupQueryAttention qk_output
    com.microsoft:GroupQueryAttention sliding_window_cache
    com.microsoft:GroupQueryAttention v_quant_type
    com.microsoft:LinearAttention state_window
    com.microsoft:MatMulNBits weight_prepacked
    com.microsoft:MoE swiglu_limit_after_activation
    com.microsoft:MoE use_sparse_mixer
    ");
}
