//! The context in which one node is lowered.

use super::{Reason, Request, Scope, integer_types, load, missing};
use crate::ir::{Builder, DType, Shape, Tensor, Type, Value};
use crate::onnx::{ElementType, Model, Node};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

/// The most bodies that are put in place: loops may stand in loops.
const MAX_BODIES: usize = 100_000;
/// Constants of one number with more elements are made by the device.
const FILLED: usize = 1 << 20;

/// One node to lower.
pub struct Context<'a> {
    pub b: &'a mut Builder,
    pub node: &'a Node,
    pub model: &'a Arc<Model>,
    /// One for each input; `None` where it is left out.
    pub inputs: Vec<Option<Value>>,
    /// Which of them have been asked for, a bit each.
    pub read: Cell<u64>,
    pub training: bool,
    /// A number of the node's own, for random draws.
    pub key: i64,
    /// Every name known so far, for graphs inside the node.
    pub values: &'a mut HashMap<String, Value>,
    /// The types that the file's integers have.
    pub elements: &'a mut HashMap<String, ElementType>,
    pub request: &'a Request<'a>,
}

impl Context<'_> {
    /// Lowers a graph that an attribute of the node holds, its inputs bound to `arguments`, and returns its outputs.
    pub fn body(&mut self, attribute: &str, arguments: &[Value]) -> Result<Vec<Value>, Reason> {
        let graph = self.node.attr_graph(attribute).ok_or_else(|| format!("it holds no {attribute}"))?;
        self.b.bodies += 1;
        if self.b.bodies > MAX_BODIES {
            return Err(
                format!("loops run more than {MAX_BODIES} rounds together, those of loops in loops included").into()
            );
        }
        // What the body computes is its own; what is outside, it sees.
        let mut values = self.values.clone();
        values.extend(graph.inputs.iter().cloned().zip(arguments.iter().copied()));
        let mut elements = self.elements.clone();
        // A body's own inputs are what the node's are: of a Loop after its count and condition, of a Scan in order.
        let own = graph.inputs.iter().rev().zip(self.node.inputs().iter().rev());
        let known: Vec<_> =
            own.map(|(name, outer)| (name.clone(), integer_types::of(self.model, outer, &elements))).collect();
        elements.extend(known.into_iter().filter_map(|(name, element)| Some((name, element?))));
        for (name, tensor) in &graph.initializers {
            values.insert(name.clone(), self.b.constant(load(&tensor.view())?));
            elements.insert(name.clone(), tensor.view().element);
        }
        let mut scope = Scope { b: self.b, values: &mut values, elements: &mut elements, request: self.request };
        let operators = missing(graph.nodes.iter());
        if !operators.is_empty() {
            return Err(Reason::Unsupported(operators));
        }
        for (i, node) in graph.nodes.iter().enumerate() {
            let key = self.key.wrapping_mul(1009).wrapping_add(i as i64 + 1);
            scope.run(node, key).map_err(|reason| match reason {
                Reason::Why(why) => {
                    Reason::Why(format!("in its {attribute}, node '{}' ({}): {why}", node.label(), node.operator()))
                }
                unsupported => unsupported,
            })?;
        }
        // And what the body's outputs are, the node's are: counted from the end, since a Loop's begin with its condition.
        for (outer, name) in self.node.outputs().iter().rev().zip(graph.outputs.iter().rev()) {
            if let Some(element) = integer_types::of(self.model, name, scope.elements) {
                self.elements.insert(outer.clone(), element);
            }
        }
        graph.outputs.iter().map(|name| scope.value(name)).collect()
    }

    /// A required input.
    pub fn x(&self, i: usize) -> Result<Value, Reason> {
        self.opt(i).ok_or_else(|| format!("input {i} is missing").into())
    }

    pub fn opt(&self, i: usize) -> Option<Value> {
        self.read.set(self.read.get() | 1 << i.min(63));
        self.inputs.get(i).copied().flatten()
    }

    /// Notes that inputs have been read from the file itself.
    pub fn note_read(&self, inputs: std::ops::Range<usize>) {
        for i in inputs {
            self.opt(i);
        }
    }

    pub fn ty(&self, v: Value) -> &Type {
        self.b.ty(v)
    }

    pub fn shape(&self, v: Value) -> Shape {
        self.b.shape(v).clone()
    }

    pub fn opset(&self) -> i64 {
        self.model.opset(self.node.domain())
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.node.attr_int(name).unwrap_or(default)
    }

    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.node.attr_float(name).unwrap_or(default)
    }

    /// The elements of an input that must be known while compiling.
    pub fn known(&self, i: usize) -> Result<Arc<Tensor>, Reason> {
        let v = self.x(i)?;
        self.b.constant_of(v).cloned().ok_or_else(|| {
            let name = &self.node.inputs()[i];
            format!("input {i} ('{name}') must be known while compiling, but it depends on the data").into()
        })
    }

    /// The elements of an integer input that must be known while compiling.
    pub fn known_ints(&self, i: usize) -> Result<Vec<i64>, Reason> {
        let t = self.known(i)?;
        match t.as_i32() {
            Some(x) => Ok(x.iter().map(|&v| v as i64).collect()),
            None => Err(format!("input {i} must be integers").into()),
        }
    }

    /// A list of integers that older operator sets have as an attribute and newer ones as an input.
    pub fn ints_of(&self, attr: &str, input: usize) -> Result<Option<Vec<i64>>, Reason> {
        if let Some(ints) = self.node.attr_ints(attr) {
            return Ok(Some(ints.to_vec()));
        }
        self.opt(input).map(|_| self.known_ints(input)).transpose()
    }

    /// A scalar float input or attribute that must be known while compiling.
    pub fn known_float(&self, i: usize) -> Result<Option<f32>, Reason> {
        if self.opt(i).is_none() {
            return Ok(None);
        }
        let t = self.known(i)?;
        match (t.as_f32(), t.as_i32()) {
            (Some([x]), _) => Ok(Some(*x)),
            (_, Some([x])) => Ok(Some(*x as f32)),
            _ => Err(format!("input {i} must be one number").into()),
        }
    }

    /// An axis of `rank`, counted from the end where negative.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize, Reason> {
        let a = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(a).ok().filter(|&a| a < rank.max(1)).ok_or_else(|| format!("axis {axis} of {rank}").into())
    }

    pub fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, Reason> {
        axes.iter().map(|&a| self.axis(a, rank)).collect()
    }

    /// Whether the graph has a name for an output of the node.
    pub fn wants(&self, output: usize) -> bool {
        self.node.outputs().get(output).is_some_and(|o| !o.is_empty())
    }

    /// A string attribute.
    pub fn text(&self, name: &str, default: &str) -> String {
        self.node.attr_str(name).map_or_else(|| default.to_string(), |s| s.into_owned())
    }

    /// A list of integers of an attribute; an empty one counts as none.
    pub fn list(&self, name: &str) -> Option<Vec<i64>> {
        self.node.attr_ints(name).filter(|v| !v.is_empty()).map(<[i64]>::to_vec)
    }

    /// An integer constant.
    pub fn integers(&mut self, shape: impl Into<Shape>, values: Vec<i32>) -> Value {
        self.b.constant(Tensor::i32(shape, values))
    }

    /// A float constant.
    pub fn floats(&mut self, shape: impl Into<Shape>, values: Vec<f32>) -> Value {
        self.b.constant(Tensor::f32(shape, values))
    }

    /// A scalar of the element type of `like`.
    pub fn number(&mut self, like: Value, x: f64) -> Value {
        match self.ty(like).dtype {
            DType::F32 => self.b.scalar(x),
            DType::I32 => self.integers([], vec![x as i32]),
            DType::Bool => self.b.constant(Tensor::bool([], vec![u32::from(x != 0.0)])),
        }
    }

    /// A tensor of one number, of the element type of `like`.
    pub fn filled(&mut self, like: Value, shape: impl Into<Shape>, x: f64) -> Value {
        let ty = Type::new(self.ty(like).dtype, shape);
        if ty.elements() <= FILLED {
            return self.b.constant(Tensor::zeros(&ty).filled(x));
        }
        let one = self.b.constant(Tensor::zeros(&Type::new(ty.dtype, vec![1; ty.rank()])).filled(x));
        self.b.broadcast(one, ty.shape).expect("one element fits every shape")
    }

    /// `x` as `(outer, n, inner)` around an axis.
    pub fn around(&mut self, x: Value, axis: usize) -> Result<Value, Reason> {
        let shape = self.shape(x);
        let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
        Ok(self.b.reshape(x, [outer, shape[axis], inner])?)
    }

    /// `x` from the end of an axis to its start.
    pub fn reversed(&mut self, x: Value, axis: usize) -> Result<Value, Reason> {
        match self.shape(x)[axis] {
            0 | 1 => Ok(x),
            n => Ok(self.b.slice(x, axis, n - 1, n, -1)?),
        }
    }

    /// The indices from `start` to `start + len` of an axis, of which those beyond the axis are `fill`.
    pub fn section(&mut self, x: Value, axis: usize, start: i64, len: usize, fill: f64) -> Result<Value, Reason> {
        let n = self.shape(x)[axis] as i64;
        let end = start + len as i64;
        let (from, to) = (start.clamp(0, n), end.clamp(0, n).max(start.clamp(0, n)));
        let kept = self.b.slice(x, axis, if to == from { 0 } else { from as usize }, (to - from) as usize, 1)?;
        let before = ((-start).max(0) as usize).min(len);
        let after = len - before - (to - from) as usize;
        if before + after == 0 {
            return Ok(kept);
        }
        if fill == 0.0 && self.ty(x).is_float() && to > from {
            return Ok(self.b.unslice(kept, axis, before, len, 1)?);
        }
        let mut parts = Vec::new();
        for (n, kept) in [(before, None), (0, Some(kept)), (after, None)] {
            let mut shape = self.shape(x);
            shape.0[axis] = n;
            parts.push(match kept {
                Some(kept) => kept,
                None => self.filled(x, shape, fill),
            });
        }
        Ok(self.b.concat(&parts, axis)?)
    }

    /// `x` with an axis moved to the end.
    pub fn axis_last(&mut self, x: Value, axis: usize) -> Result<Value, Reason> {
        let rank = self.shape(x).len();
        let perm: Vec<usize> = (0..rank).filter(|&d| d != axis).chain([axis]).collect();
        Ok(self.b.transpose(x, &perm)?)
    }

    /// `x` with its last axis moved to a place: the inverse of [`Context::axis_last`].
    pub fn last_to(&mut self, x: Value, axis: usize) -> Result<Value, Reason> {
        let rank = self.shape(x).len();
        let perm: Vec<usize> = (0..axis).chain([rank - 1]).chain(axis..rank - 1).collect();
        Ok(self.b.transpose(x, &perm)?)
    }

    /// `x` as `(R, N)` over its last axis.
    pub fn rows(&mut self, x: Value) -> Result<Value, Reason> {
        let shape = self.shape(x);
        let n = shape.last().copied().unwrap_or(1);
        Ok(self.b.reshape(x, [shape.elements() / n.max(1), n])?)
    }
}

/// The element type that values of an ONNX type have here; `None` for types without arithmetic.
pub fn dtype(element: ElementType) -> Option<DType> {
    use ElementType::*;
    match element {
        F32 | F16 | Bf16 | F64 | F8E4M3 | F8E5M2 => Some(DType::F32),
        I8 | U8 | I16 | U16 | I32 | U32 | I64 | U64 | I4 | U4 => Some(DType::I32),
        Bool => Some(DType::Bool),
        Other(_) => None,
    }
}
