//! Small ONNX models, built in the test that needs them.

use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};
use std::path::{Path, PathBuf};

pub const F32: i32 = 1;
pub const I64: i32 = 7;
pub const BOOL: i32 = 9;

/// A model in the making.
#[derive(Clone)]
pub struct Net {
    pub graph: GraphProto,
    pub opset: i64,
}

/// An attribute's value.
#[derive(Clone, Debug)]
pub enum A {
    I(i64),
    F(f32),
    S(&'static str),
    Is(Vec<i64>),
    Fs(Vec<f32>),
    T(Box<TensorProto>),
}

pub fn tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw_data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    TensorProto { name: name.into(), dims: dims.to_vec(), data_type: F32, raw_data, ..Default::default() }
}

pub fn ints(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    let raw_data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    TensorProto { name: name.into(), dims: dims.to_vec(), data_type: I64, raw_data, ..Default::default() }
}

/// A dimension is a number, or a name where it starts with a letter.
fn info(name: &str, element: i32, dims: &[&str]) -> ValueInfoProto {
    let dim = |d: &&str| {
        let mut out = tensor_shape_proto::Dimension::new();
        match d.parse() {
            Ok(n) => out.set_dim_value(n),
            Err(_) => out.set_dim_param(d.to_string()),
        }
        out
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: element, shape: Some(shape).into(), ..Default::default() };
    let mut ty = TypeProto::new();
    ty.set_tensor_type(tensor);
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

impl Net {
    pub fn new(opset: i64) -> Net {
        Net { graph: GraphProto { name: "net".into(), ..Default::default() }, opset }
    }

    pub fn input(mut self, name: &str, element: i32, dims: &[&str]) -> Net {
        self.graph.input.push(info(name, element, dims));
        self
    }

    pub fn output(mut self, name: &str, element: i32, dims: &[&str]) -> Net {
        self.graph.output.push(info(name, element, dims));
        self
    }

    pub fn initializer(mut self, t: TensorProto) -> Net {
        self.graph.initializer.push(t);
        self
    }

    pub fn node(mut self, name: &str, op: &str, inputs: &[&str], outputs: &[&str], attrs: &[(&str, A)]) -> Net {
        let (domain, op) = op.split_once(':').unwrap_or(("", op));
        let attribute = attrs
            .iter()
            .map(|(n, v)| {
                let mut a = AttributeProto { name: n.to_string(), ..Default::default() };
                let kind = match v.clone() {
                    A::I(i) => {
                        a.i = i;
                        AttributeType::INT
                    }
                    A::F(f) => {
                        a.f = f;
                        AttributeType::FLOAT
                    }
                    A::S(s) => {
                        a.s = s.as_bytes().to_vec();
                        AttributeType::STRING
                    }
                    A::Is(x) => {
                        a.ints = x;
                        AttributeType::INTS
                    }
                    A::Fs(x) => {
                        a.floats = x;
                        AttributeType::FLOATS
                    }
                    A::T(t) => {
                        a.t = Some(*t).into();
                        AttributeType::TENSOR
                    }
                };
                a.type_ = kind.into();
                a
            })
            .collect();
        self.graph.node.push(NodeProto {
            name: name.into(),
            op_type: op.into(),
            domain: domain.into(),
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: outputs.iter().map(|s| s.to_string()).collect(),
            attribute,
            ..Default::default()
        });
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let own = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version, ..Default::default() };
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![own("", self.opset), own("com.microsoft", 1)],
            graph: Some(self.graph.clone()).into(),
            ..Default::default()
        };
        model.write_to_bytes().unwrap()
    }

    pub fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.bytes()).unwrap();
        path.to_path_buf()
    }
}

/// Numbers that look random and are not.
pub fn spread(n: usize, seed: u64) -> Vec<f32> {
    let at =
        |i: usize| (((i as u64 + 1) * (2 * seed + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / 16_777_216.0;
    (0..n).map(|i| 2.0 * at(i) - 1.0).collect()
}

/// A two-layer perceptron `(N, 4)` to `(N, 3)` whose linear nodes are `net.0.up` and `net.0.down`.
pub fn perceptron() -> Net {
    Net::new(17)
        .input("x", F32, &["batch", "4"])
        .output("logits", F32, &["batch", "3"])
        .initializer(tensor("net.0.up.weight", &[4, 8], &spread(32, 1)))
        .initializer(tensor("net.0.up.bias", &[8], &spread(8, 2)))
        .initializer(tensor("net.0.down.weight", &[3, 8], &spread(24, 3)))
        .node("/net/0/up/MatMul", "MatMul", &["x", "net.0.up.weight"], &["u"], &[])
        .node("/net/0/up/Add", "Add", &["u", "net.0.up.bias"], &["v"], &[])
        .node("/net/0/act/Relu", "Relu", &["v"], &["a"], &[])
        .node("/net/0/down/Gemm", "Gemm", &["a", "net.0.down.weight"], &["logits"], &[("transB", A::I(1))])
}
