//! Makes the nodes of one place after another, with the operators that its linear node needs.

use super::{Block, Config, Constant, Target};
use crate::onnx::{AttrValue, DETACH_KEY, ElementType, Linear, NewNode, encode_floats};
use std::collections::{BTreeMap, HashSet};

/// The initializer of `s`, where all targets have the same; and the probability of dropping an element.
const SCALE: &str = "reslora.scale";
const DROPOUT_RATIO: &str = "reslora.dropout_ratio";
/// Shapes that make a factor a kernel of one place, `[0, 0, 1]` and `[0, 0, 1, 1]` (0: as it is).
const KERNEL_SHAPES: [&str; 2] = ["reslora.kernel_shape_1d", "reslora.kernel_shape_2d"];

/// What blocks share.
#[derive(Clone, Default)]
pub(super) struct Shared {
    /// Values that earlier blocks have computed, and later ones may read.
    known: HashSet<String>,
    pub(super) constants: BTreeMap<String, Constant>,
    /// By module path.
    pub(super) signals: BTreeMap<String, String>,
    pub(super) carried: BTreeMap<String, String>,
}

/// For what nodes are emitted.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    /// The model's operator set: from 13 on, axes of ReduceSum are an input.
    pub(super) opset: i64,
    /// They are put into a model, rather than found in one again, which needs no elements of constants.
    pub(super) fresh: bool,
}

/// Collects the nodes of one block.
pub struct Emitter {
    pub(crate) nodes: Vec<NewNode>,
    mode: Mode,
    /// Distinguishes the nodes of a module's second and later calls; empty for the first.
    suffix: String,
    path: String,
    /// The element type of activations, to which factors are cast if it is not f32.
    element: ElementType,
    /// Strides, where the linear node is a convolution.
    strides: Option<Vec<i64>>,
    dropout: f64,
    pub(super) shared: Shared,
}

impl Emitter {
    pub(super) fn new(l: &Linear, config: &Config, mode: Mode, suffix: String, shared: Shared) -> Emitter {
        Emitter::at(&l.path, l.element, l.strides.clone(), config, mode, suffix, shared)
    }

    pub(super) fn at(
        path: &str,
        element: ElementType,
        strides: Option<Vec<i64>>,
        config: &Config,
        mode: Mode,
        suffix: String,
        shared: Shared,
    ) -> Emitter {
        Emitter { nodes: vec![], mode, suffix, path: path.into(), element, strides, dropout: config.dropout, shared }
    }

    /// Goes on at another place; gives the nodes collected so far.
    pub fn take(&mut self) -> Vec<NewNode> {
        std::mem::take(&mut self.nodes)
    }

    /// Calls the nodes that follow after another path.
    pub fn go_to(&mut self, path: &str, element: ElementType) {
        (self.path, self.element) = (path.into(), element);
    }

    /// What all nodes collected read.
    pub fn into_constants(self) -> BTreeMap<String, Constant> {
        self.shared.constants
    }

    /// Adds a node called `{path}.{role}` whose output has the same name, and returns that.
    pub fn node(&mut self, role: &str, op: &str, inputs: &[&str]) -> String {
        self.node_with(role, op, inputs, vec![])
    }

    /// The same with attributes.
    pub fn node_with(&mut self, role: &str, op: &str, inputs: &[&str], attrs: Vec<(&str, AttrValue)>) -> String {
        let name = format!("{}.{role}{}", self.path, self.suffix);
        let mut node = NewNode::new(&name, op, inputs, &name);
        node.attrs.extend(attrs.into_iter().map(|(n, v)| (n.to_string(), v)));
        self.nodes.push(node);
        self.shared.known.insert(name.clone());
        name
    }

    /// A constant of floats in the activations' element type.
    pub fn floats(&mut self, name: &str, dims: &[usize], values: &[f64]) -> String {
        let bytes = encode_floats(self.element, values).expect("activations are floats");
        self.constant(name, Constant { element: self.element, dims: dims.to_vec(), bytes })
    }

    /// A constant of int64.
    pub fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|d| d.to_le_bytes()).collect();
        self.constant(name, Constant { element: ElementType::I64, dims: vec![values.len()], bytes })
    }

    fn constant(&mut self, name: &str, constant: Constant) -> String {
        self.shared.constants.insert(name.to_string(), constant);
        name.to_string()
    }

    /// A constant of one float, shared by all that ask for the same.
    pub fn float(&mut self, value: f64) -> String {
        let element = if self.element == ElementType::F32 { String::new() } else { format!("{}.", self.element) };
        self.floats(&format!("reslora.{element}{value}"), &[], &[value])
    }

    /// A number so low that its exponential is 0, and that the activations' type holds.
    pub fn lowest(&mut self) -> String {
        self.float(if self.element == ElementType::F16 { -6e4 } else { -1e30 })
    }

    /// `x` under another shape; 0 keeps an axis and -1 is what remains.
    pub fn reshape(&mut self, role: &str, x: &str, shape: &[i64]) -> String {
        let dims: Vec<String> = shape.iter().map(i64::to_string).collect();
        let shape = self.integers(&format!("reslora.shape.{}", dims.join("x")), shape);
        self.node(role, "Reshape", &[x, &shape])
    }

    /// `x` with its axes in another order.
    pub fn transpose(&mut self, role: &str, x: &str, perm: &[i64]) -> String {
        self.node_with(role, "Transpose", &[x], vec![("perm", AttrValue::Ints(perm.to_vec()))])
    }

    /// Values end to end along an axis.
    pub fn concat(&mut self, role: &str, parts: &[&str], axis: i64) -> String {
        self.node_with(role, "Concat", parts, vec![("axis", AttrValue::Int(axis))])
    }

    /// Elements `start..end` of an axis.
    pub fn slice(&mut self, role: &str, x: &str, axis: i64, start: usize, end: usize) -> String {
        let mut at = |n: i64| self.integers(&format!("reslora.at.{n}"), &[n]);
        let (start, end, axis) = (at(start as i64), at(end as i64), at(axis));
        self.node(role, "Slice", &[x, &start, &end, &axis])
    }

    /// The sum over an axis, which goes.
    pub fn sum(&mut self, role: &str, x: &str, axis: i64) -> String {
        let keep = ("keepdims", AttrValue::Int(0));
        if self.mode.opset < 13 {
            return self.node_with(role, "ReduceSum", &[x], vec![keep, ("axes", AttrValue::Ints(vec![axis]))]);
        }
        let axes = self.integers(&format!("reslora.at.{axis}"), &[axis]);
        self.node_with(role, "ReduceSum", &[x, &axes], vec![keep])
    }

    /// The last `count` axes of `x` as `shape`, whatever stands before them.
    pub fn reshape_last(&mut self, role: &str, x: &str, count: usize, shape: &[i64]) -> String {
        let all = self.node(&format!("{role}.shape"), "Shape", &[x]);
        let mut at = |n: i64| self.integers(&format!("reslora.at.{n}"), &[n]);
        let (start, end) = (at(0), at(-(count as i64)));
        let leading = self.node(&format!("{role}.leading"), "Slice", &[&all, &start, &end]);
        let dims: Vec<String> = shape.iter().map(i64::to_string).collect();
        let last = self.integers(&format!("reslora.shape.{}", dims.join("x")), shape);
        let whole = self.concat(&format!("{role}.whole"), &[&leading, &last], 0);
        self.node(role, "Reshape", &[x, &whole])
    }

    /// Rows of `width` numbers as `(B, rows, width)`, B as many as the graph input has, however a model has folded its batch axis
    /// into the rows.
    pub fn by_example(&mut self, role: &str, x: &str, input: &str, width: usize) -> String {
        let batch = self.node(&format!("{role}.batch"), "Shape", &[input]);
        let rows = self.integers(&format!("reslora.shape.-1x{width}"), &[-1, width as i64]);
        let shape = self.concat(&format!("{role}.shape"), &[&batch, &rows], 0);
        self.node(role, "Reshape", &[x, &shape])
    }

    /// `x` with the shape of `like`.
    pub fn reshape_like(&mut self, role: &str, x: &str, like: &str) -> String {
        let shape = self.node(&format!("{role}.shape"), "Shape", &[like]);
        self.node(role, "Reshape", &[x, &shape])
    }

    /// A vector with an element for each output, as it multiplies or adds to the block's output.
    pub fn per_output(&mut self, role: &str, vector: &str) -> String {
        match self.strides.as_ref().map(Vec::len) {
            None => self.reshape(role, vector, &[-1]),
            Some(axes) => self.reshape(role, vector, &[&[-1i64][..], &vec![1; axes]].concat()),
        }
    }

    /// `x`, through which no gradient flows.
    pub fn detached(&mut self, role: &str, x: &str) -> String {
        let name = self.node(role, "Identity", &[x]);
        let node = self.nodes.last_mut().expect("just added");
        node.metadata.push((DETACH_KEY.to_string(), "1".to_string()));
        name
    }

    /// What the linear node computes of another input, without its bias: `(.., in)` to `(.., out)`, in f32.
    pub fn again(&mut self, role: &str, block: &Block, input: &str) -> String {
        let narrow = match self.element {
            ElementType::F32 => input.to_string(),
            element => self.cast_to(&format!("{role}.narrow"), input, element),
        };
        let name = format!("{}.{role}{}", self.path, self.suffix);
        self.nodes.push(NewNode::copy_without_bias(block.node, &name, &narrow, &name));
        self.shared.known.insert(name.clone());
        self.wide(&format!("{role}.wide"), &name)
    }

    /// A value of the activations' element type in f32.
    pub fn wide(&mut self, role: &str, x: &str) -> String {
        if self.element == ElementType::F32 { x.to_string() } else { self.cast_to(role, x, ElementType::F32) }
    }

    /// A value of f32 in the activations' element type.
    pub fn narrow(&mut self, role: &str, x: &str) -> String {
        if self.element == ElementType::F32 { x.to_string() } else { self.cast_to(role, x, self.element) }
    }

    /// `x` in another element type.
    pub fn cast_to(&mut self, role: &str, x: &str, element: ElementType) -> String {
        self.node_with(role, "Cast", &[x], vec![("to", AttrValue::Int(element.number() as i64))])
    }

    /// A constant of one float32.
    pub fn wide_float(&mut self, value: f64) -> String {
        self.wide_floats(&format!("reslora.f32.{value}"), &[], &[value])
    }

    /// A constant of float32.
    pub fn wide_floats(&mut self, name: &str, dims: &[usize], values: &[f64]) -> String {
        let bytes = values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
        self.constant(name, Constant { element: ElementType::F32, dims: dims.to_vec(), bytes })
    }

    /// A constant of float32 whose elements cost something to find.
    pub fn computed(&mut self, name: &str, dims: &[usize], values: impl FnOnce() -> Vec<f64>) -> String {
        let values = if self.mode.fresh { values() } else { vec![] };
        self.wide_floats(name, dims, &values)
    }

    /// A constant of booleans.
    pub fn booleans(&mut self, name: &str, dims: &[usize], values: &[bool]) -> String {
        let bytes = values.iter().map(|b| u8::from(*b)).collect();
        self.constant(name, Constant { element: ElementType::Bool, dims: dims.to_vec(), bytes })
    }

    /// The initializer of `s`: one for all targets, and another for each that has another value or type.
    pub fn scale(&mut self, config: &Config, target: &Target) -> String {
        let bytes = encode_floats(self.element, &[config.scale_of(target)]).expect("activations are floats");
        let own = Constant { element: self.element, dims: vec![], bytes };
        let name = match self.shared.constants.get(SCALE) {
            Some(common) if *common != own => target.tensor("lora_scale.value"),
            _ => SCALE.to_string(),
        };
        self.constant(&name, own)
    }

    /// A tensor of the adapter in the activations' element type. All blocks that read it share it.
    pub fn tensor(&mut self, initializer: &str) -> String {
        if self.element == ElementType::F32 {
            return initializer.to_string();
        }
        let stem = initializer.strip_suffix(".weight").unwrap_or(initializer);
        let name = format!("{stem}.cast");
        if self.shared.known.insert(name.clone()) {
            self.cast(&name, initializer);
        }
        name
    }

    fn cast(&mut self, name: &str, from: &str) {
        let to = AttrValue::Int(self.element.number() as i64);
        self.nodes.push(NewNode::new(name, "Cast", &[from], name).attr("to", to));
    }

    /// A factor `(m, n)` as the operator that multiplies by it wants it, in the activations' element type: its transpose
    /// for MatMul, a kernel `(m, n, 1, 1)` for Conv. All blocks that read it share it.
    fn operand(&mut self, initializer: &str) -> String {
        let stem = initializer.strip_suffix(".weight").unwrap_or(initializer);
        let axes = self.strides.as_ref().map(Vec::len);
        let name = axes.map_or(format!("{stem}.T"), |_| format!("{stem}.kernel"));
        if self.shared.known.insert(name.clone()) {
            if let Some(n) = axes {
                let shape = [&[0i64, 0][..], &vec![1; n]].concat();
                self.integers(KERNEL_SHAPES[n - 1], &shape);
            }
            let turn = |name: &str| match axes {
                None => NewNode::new(name, "Transpose", &[initializer], name).attr("perm", AttrValue::Ints(vec![1, 0])),
                Some(n) => NewNode::new(name, "Reshape", &[initializer, KERNEL_SHAPES[n - 1]], name),
            };
            if self.element == ElementType::F32 {
                self.nodes.push(turn(&name));
            } else {
                let wide = format!("{name}.float32");
                self.nodes.push(turn(&wide));
                self.cast(&name, &wide);
            }
        }
        name
    }

    /// `D(x)`: dropout if the configuration has any, else `x` itself.
    pub fn dropped(&mut self, role: &str, x: &str) -> String {
        if self.dropout == 0.0 {
            return x.to_string();
        }
        let ratio = (self.dropout as f32).to_le_bytes().to_vec();
        let ratio = self.constant(DROPOUT_RATIO, Constant { element: ElementType::F32, dims: vec![], bytes: ratio });
        self.node(role, "Dropout", &[x, &ratio])
    }

    /// `M x` for a matrix `[m, in]` and the linear node's input: `(.., in)` to `(.., m)`, at a convolution's strides.
    pub fn product_down(&mut self, role: &str, x: &str, matrix: &str) -> String {
        let operand = self.operand(matrix);
        let strides = self.strides.clone();
        self.product(role, x, &operand, strides)
    }

    /// `M t` for a matrix `[out, k]` and what [`Emitter::product_down`] gave: `(.., k)` to `(.., out)`.
    pub fn product_up(&mut self, role: &str, t: &str, matrix: &str) -> String {
        let operand = self.operand(matrix);
        let strides = self.strides.as_ref().map(|s| vec![1; s.len()]);
        self.product(role, t, &operand, strides)
    }

    fn product(&mut self, role: &str, x: &str, operand: &str, strides: Option<Vec<i64>>) -> String {
        let Some(strides) = strides else { return self.node(role, "MatMul", &[x, operand]) };
        let kernel = AttrValue::Ints(vec![1; strides.len()]);
        self.node_with(
            role,
            "Conv",
            &[x, operand],
            vec![("kernel_shape", kernel), ("strides", AttrValue::Ints(strides))],
        )
    }

    /// Says that `t` is what a block's own first factor gives.
    pub(super) fn carried(&mut self, target: &Target, t: &str) {
        self.shared.carried.entry(target.path.clone()).or_insert_with(|| t.to_string());
    }

    /// What the first factor of an earlier block gave.
    pub(super) fn carried_by(&self, target: &Target) -> String {
        self.shared.carried[&target.path].clone()
    }

    /// Says that `t` is what a block's last factor multiplies.
    pub(super) fn signal(&mut self, target: &Target, t: &str) {
        self.shared.signals.entry(target.path.clone()).or_insert_with(|| t.to_string());
    }
}
