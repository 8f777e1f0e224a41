//! Running primitives on the host one by one: constants while compiling, and whole graphs in f32 or f64 for tests.

use super::elementwise;
use crate::ir::{Attrs, DType, Def, Graph, Leaf, Rules, Tensor, Type, Value};
use crate::ops::engine::primitive::{Cpu, CpuCall, Data, DataMut, Element, violations};

/// What `ir` needs to know of the primitives.
pub const RULES: Rules = Rules { attrs, infer, eval };

fn attrs(op: &str, attrs: &Attrs) -> Vec<String> {
    super::find(op).map_or(vec![], |p| violations(p.attrs, attrs))
}

fn infer(op: &str, ins: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    let primitive = super::find(op).ok_or_else(|| format!("no primitive is called '{op}'"))?;
    (primitive.infer)(ins, attrs)
}

/// A value's elements on the host, as floats of type `T` or as integers.
#[derive(Clone, Debug, PartialEq)]
pub enum Buffer<T> {
    Float(Vec<T>),
    Int(Vec<i32>),
}

impl<T: Element> Buffer<T> {
    pub fn zeros(ty: &Type) -> Buffer<T> {
        match ty.dtype {
            DType::F32 => Buffer::Float(vec![T::zero(); ty.elements()]),
            DType::I32 | DType::Bool => Buffer::Int(vec![0; ty.elements()]),
        }
    }

    pub fn of(t: &Tensor) -> Buffer<T> {
        match (t.as_f32(), t.as_i32()) {
            (Some(x), _) => Buffer::Float(x.iter().map(|&v| T::of(v as f64)).collect()),
            (_, Some(x)) => Buffer::Int(x.to_vec()),
            _ => unreachable!("a tensor is one or the other"),
        }
    }

    pub fn data(&self) -> Data<'_, T> {
        match self {
            Buffer::Float(x) => Data::Float(x),
            Buffer::Int(x) => Data::Int(x),
        }
    }

    pub fn data_mut(&mut self) -> DataMut<'_, T> {
        match self {
            Buffer::Float(x) => DataMut::Float(x),
            Buffer::Int(x) => DataMut::Int(x),
        }
    }
}

/// Runs one host kernel.
pub fn call<T: Element>(op: &str, call: &mut CpuCall<T>) {
    let primitive = super::find(op).unwrap_or_else(|| panic!("verified graphs hold known primitives only, not '{op}'"));
    match &primitive.cpu {
        Cpu::Elementwise { .. } => {
            let program = elementwise::program_of(op, call.attrs, call.ins.len(), &call.types_out[0]);
            elementwise::run(&program, call);
        }
        Cpu::Kernel { .. } => {
            let kernel = T::kernel(&primitive.cpu).expect("a kernel has both element types");
            kernel(call);
        }
        Cpu::Alias => match (call.ins[0], &mut call.outs[0]) {
            (Data::Float(x), DataMut::Float(y)) => y.copy_from_slice(x),
            (Data::Int(x), DataMut::Int(y)) => y.copy_from_slice(x),
            _ => panic!("an alias keeps its type"),
        },
    }
}

/// Evaluates one operation on host tensors that fit it.
pub fn eval(op: &str, ins: &[&Tensor], attrs: &Attrs) -> Vec<Tensor> {
    let types_in: Vec<Type> = ins.iter().map(|t| t.ty()).collect();
    let refs: Vec<&Type> = types_in.iter().collect();
    let types_out = infer(op, &refs, attrs).unwrap_or_else(|e| panic!("eval of {op}: {e}"));
    let data: Vec<Data<f32>> = ins
        .iter()
        .map(|t| match t.as_f32() {
            Some(x) => Data::Float(x),
            None => Data::Int(t.as_i32().expect("not a float tensor")),
        })
        .collect();
    let mut outs: Vec<Buffer<f32>> = types_out.iter().map(Buffer::zeros).collect();
    let mut views: Vec<DataMut<f32>> = outs.iter_mut().map(Buffer::data_mut).collect();
    let (types_in, types_out) = (&types_in[..], &types_out[..]);
    call(op, &mut CpuCall { in_place: &[], attrs, types_in, types_out, ins: &data, outs: &mut views });
    types_out
        .iter()
        .zip(outs)
        .map(|(ty, out)| match (out, ty.dtype) {
            (Buffer::Float(x), _) => Tensor::f32(ty.shape.clone(), x),
            (Buffer::Int(x), DType::Bool) => Tensor::bool(ty.shape.clone(), bytemuck::cast_vec(x)),
            (Buffer::Int(x), _) => Tensor::i32(ty.shape.clone(), x),
        })
        .collect()
}

/// Runs a whole graph, keeping every value. `feed` gives inputs, parameters and states; weights load themselves.
pub fn interpret<T: Element>(graph: &Graph, feed: &dyn Fn(&Leaf, &Type) -> Buffer<T>) -> Vec<Buffer<T>> {
    let mut values: Vec<Option<Buffer<T>>> = graph
        .values
        .iter()
        .map(|info| match &info.def {
            Def::Leaf(Leaf::Constant(t)) => Some(Buffer::of(t)),
            Def::Leaf(Leaf::Weight(w)) => Some(Buffer::of(&w.load())),
            Def::Leaf(leaf) => Some(feed(leaf, &info.ty)),
            Def::Node { .. } => None,
        })
        .collect();
    for node in &graph.nodes {
        let types = |vs: &[Value]| -> Vec<Type> { vs.iter().map(|&v| graph.ty(v).clone()).collect() };
        let (types_in, types_out) = (types(&node.inputs), types(&node.outputs));
        let mut outs: Vec<Buffer<T>> = types_out.iter().map(Buffer::zeros).collect();
        {
            let ins: Vec<Data<T>> = node
                .inputs
                .iter()
                .map(|v| values[v.index()].as_ref().expect("nodes stand in execution order").data())
                .collect();
            let mut views: Vec<DataMut<T>> = outs.iter_mut().map(Buffer::data_mut).collect();
            let attrs = &node.attrs;
            let (types_in, types_out) = (&types_in[..], &types_out[..]);
            call(&node.op, &mut CpuCall { in_place: &[], attrs, types_in, types_out, ins: &ins, outs: &mut views });
        }
        for (&v, out) in node.outputs.iter().zip(outs) {
            values[v.index()] = Some(out);
        }
    }
    values.into_iter().map(|v| v.expect("every value is a leaf or an output")).collect()
}
