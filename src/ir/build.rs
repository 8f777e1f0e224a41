//! Adds operations to a graph, inferring their types and folding constants as it goes.

use super::{
    Attr, Attrs, DType, Def, Graph, Leaf, MAX_ELEMENTS, Node, Output, Shape, Sink, Tensor, Type, Value, ValueInfo,
    Weight, counted,
};
use std::collections::HashMap;
use std::sync::Arc;

/// The output types of an operation on inputs of given types, or why they do not fit it.
pub type Infer = fn(&str, &[&Type], &Attrs) -> Result<Vec<Type>, String>;

/// What this module needs to know of the primitives; `ops` provides it.
#[derive(Clone, Copy)]
pub struct Rules {
    /// In what attributes differ from those that an operation has.
    pub attrs: fn(&str, &Attrs) -> Vec<String>,
    pub infer: Infer,
    /// Evaluates an operation on the host.
    pub eval: fn(&str, &[&Tensor], &Attrs) -> Vec<Tensor>,
}

/// Inputs that an operation does not take: what it is, where it came from, and why.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{op}({types}){at}: {why}")]
pub struct BuildError {
    pub op: String,
    pub types: String,
    pub at: String,
    pub why: String,
}

/// Result of adding an operation.
pub type Built = Result<Value, BuildError>;

/// The most elements that a folded constant, or a frozen weight that takes part in folding, may have.
const FOLD_LIMIT: usize = 1 << 22;
const FOLD_WEIGHT_LIMIT: usize = 1 << 16;

/// Builds a [`Graph`]. Every method that adds an operation returns its first output.
pub struct Builder {
    pub graph: Graph,
    rules: Rules,
    origin: Arc<str>,
    named: HashMap<String, Value>,
    /// Bodies of loops and branches that have been put in place.
    pub bodies: usize,
}

impl Builder {
    pub fn new(rules: Rules) -> Builder {
        Builder::on(Graph::default(), rules)
    }

    /// Goes on building `graph`.
    pub fn on(graph: Graph, rules: Rules) -> Builder {
        let mut named = HashMap::new();
        for (i, info) in graph.values.iter().enumerate() {
            if let Def::Leaf(leaf) = &info.def
                && let Some(key) = leaf_key(leaf)
            {
                named.insert(key, Value(i as u32));
            }
        }
        Builder { graph, rules, origin: "".into(), named, bodies: 0 }
    }

    /// Names the ONNX node that the operations added from now on come from.
    pub fn set_origin(&mut self, origin: impl Into<Arc<str>>) {
        self.origin = origin.into();
    }

    pub fn ty(&self, v: Value) -> &Type {
        self.graph.ty(v)
    }

    pub fn shape(&self, v: Value) -> &Shape {
        self.graph.shape(v)
    }

    pub fn constant_of(&self, v: Value) -> Option<&Arc<Tensor>> {
        self.graph.constant(v)
    }

    // ---- leaves

    /// Adds a leaf; a named one that is there already is returned instead.
    pub fn leaf(&mut self, leaf: Leaf, ty: Type) -> Value {
        let key = leaf_key(&leaf);
        if let Some(&v) = key.as_ref().and_then(|k| self.named.get(k)) {
            return v;
        }
        let v = Value(self.graph.values.len() as u32);
        self.graph.values.push(ValueInfo { ty, def: Def::Leaf(leaf) });
        if let Some(key) = key {
            self.named.insert(key, v);
        }
        v
    }

    pub fn input(&mut self, name: &str, ty: Type) -> Value {
        self.leaf(Leaf::Input(name.to_string()), ty)
    }

    pub fn parameter(&mut self, name: &str, shape: impl Into<Shape>) -> Value {
        self.leaf(Leaf::Parameter(name.to_string()), Type::f32(shape))
    }

    pub fn weight(&mut self, weight: Weight, ty: Type) -> Value {
        self.leaf(Leaf::Weight(weight), ty)
    }

    pub fn state(&mut self, name: &str, ty: Type) -> Value {
        self.leaf(Leaf::State(name.to_string()), ty)
    }

    pub fn constant(&mut self, tensor: impl Into<Arc<Tensor>>) -> Value {
        let tensor = tensor.into();
        let ty = tensor.ty();
        self.leaf(Leaf::Constant(tensor), ty)
    }

    /// A float constant without axes.
    pub fn scalar(&mut self, x: f64) -> Value {
        self.constant(Tensor::scalar(x as f32))
    }

    pub fn output(&mut self, name: impl Into<String>, value: Value, sink: Sink) {
        self.graph.outputs.push(Output { name: name.into(), value, sink });
    }

    // ---- operations

    /// Adds an operation and returns all its outputs. Operations on constants are evaluated at once.
    pub fn emit_all(&mut self, op: &str, inputs: &[Value], attrs: Attrs) -> Result<Vec<Value>, BuildError> {
        let types: Vec<&Type> = inputs.iter().map(|&v| self.graph.ty(v)).collect();
        let outs = (self.rules.infer)(op, &types, &attrs).map_err(|why| {
            let types: Vec<String> = types.iter().map(|t| t.to_string()).collect();
            let at = if self.origin.is_empty() { String::new() } else { format!(" at node '{}'", self.origin) };
            BuildError { op: op.to_string(), types: types.join(", "), at, why }
        })?;
        if let Some(ty) = outs.iter().find(|t| counted(&t.shape).is_none()) {
            let at = if self.origin.is_empty() { String::new() } else { format!(" at node '{}'", self.origin) };
            let why = format!("its result {:?} has more than {MAX_ELEMENTS} elements", ty.shape.0);
            return Err(BuildError { op: op.to_string(), types: String::new(), at, why });
        }
        if let Some(constants) = self.foldable(op, inputs, &outs) {
            let refs: Vec<&Tensor> = constants.iter().map(|t| t.as_ref()).collect();
            let results = (self.rules.eval)(op, &refs, &attrs);
            return Ok(results.into_iter().map(|t| self.constant(t)).collect());
        }
        Ok(self.push(op, inputs, attrs, outs))
    }

    /// Adds an operation whose output types are known, without folding it.
    pub fn push(&mut self, op: &str, inputs: &[Value], attrs: Attrs, outs: Vec<Type>) -> Vec<Value> {
        let node = self.graph.nodes.len();
        let first = self.graph.values.len() as u32;
        for (output, ty) in outs.into_iter().enumerate() {
            self.graph.values.push(ValueInfo { ty, def: Def::Node { node, output } });
        }
        let outputs: Vec<Value> = (first..self.graph.values.len() as u32).map(Value).collect();
        self.graph.nodes.push(Node {
            op: op.to_string(),
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            attrs,
            origin: self.origin.clone(),
        });
        outputs
    }

    pub fn emit(&mut self, op: &str, inputs: &[Value], attrs: Attrs) -> Built {
        Ok(self.emit_all(op, inputs, attrs)?[0])
    }

    /// The operands' tensors if the operation is to be evaluated now. Frozen weights take part when they are small and
    /// the operation is not a mere change of layout, which kernels absorb.
    fn foldable(&self, op: &str, inputs: &[Value], outs: &[Type]) -> Option<Vec<Arc<Tensor>>> {
        if inputs.is_empty() || outs.iter().any(|t| t.elements() > FOLD_LIMIT) {
            return None;
        }
        let layout = op == "transpose" || op == "reshape";
        let fits = |&v: &Value| match self.graph.leaf(v) {
            Some(Leaf::Constant(_)) => true,
            Some(Leaf::Weight(_)) => !layout && self.graph.ty(v).elements() <= FOLD_WEIGHT_LIMIT,
            _ => false,
        };
        if !inputs.iter().all(fits) {
            return None;
        }
        let tensor = |&v: &Value| match self.graph.leaf(v) {
            Some(Leaf::Constant(t)) => t.clone(),
            Some(Leaf::Weight(w)) => Arc::new(w.load()),
            _ => unreachable!("fits admits constants and weights only"),
        };
        Some(inputs.iter().map(tensor).collect())
    }

    fn plain(&mut self, op: &str, inputs: &[Value]) -> Built {
        self.emit(op, inputs, Attrs::new())
    }

    /// An elementwise primitive of one operand, by name.
    pub fn unary(&mut self, op: &str, x: Value) -> Built {
        self.plain(op, &[x])
    }

    /// An elementwise primitive of two operands, which broadcast, by name.
    pub fn binary(&mut self, op: &str, x: Value, y: Value) -> Built {
        self.plain(op, &[x, y])
    }

    pub fn add(&mut self, x: Value, y: Value) -> Built {
        self.plain("add", &[x, y])
    }

    pub fn sub(&mut self, x: Value, y: Value) -> Built {
        self.plain("sub", &[x, y])
    }

    pub fn mul(&mut self, x: Value, y: Value) -> Built {
        if self.graph.splat(y) == Some(1.0)
            && self.shape(y).elements() == 1
            && self.shape(y).len() <= self.shape(x).len()
        {
            return Ok(x);
        }
        self.plain("mul", &[x, y])
    }

    pub fn div(&mut self, x: Value, y: Value) -> Built {
        self.plain("div", &[x, y])
    }

    /// `x · factor`
    pub fn scale(&mut self, x: Value, factor: f64) -> Built {
        let f = self.scalar(factor);
        self.mul(x, f)
    }

    pub fn neg(&mut self, x: Value) -> Built {
        self.plain("neg", &[x])
    }

    pub fn select(&mut self, condition: Value, x: Value, y: Value) -> Built {
        self.plain("select", &[condition, x, y])
    }

    pub fn cast(&mut self, x: Value, to: DType) -> Built {
        if self.ty(x).dtype == to {
            return Ok(x);
        }
        self.emit("cast", &[x], Attrs::new().with("to", Attr::Str(to.name().into())))
    }

    /// `(M, K) · (K, N)`, with equal leading batch axes; `trans_a` reads `a` as `(K, M)`, `trans_b` reads `b` as `(N, K)`.
    pub fn matmul(&mut self, a: Value, b: Value, trans_a: bool, trans_b: bool) -> Built {
        let attrs = Attrs::new().with("trans_a", Attr::Bool(trans_a)).with("trans_b", Attr::Bool(trans_b));
        self.emit("matmul", &[a, b], attrs)
    }

    pub fn reshape(&mut self, x: Value, shape: impl Into<Shape>) -> Built {
        let shape = shape.into();
        if *self.shape(x) == shape {
            return Ok(x);
        }
        self.emit("reshape", &[x], Attrs::new().with("shape", ints(&shape)))
    }

    /// Axis `i` of the result is axis `perm[i]` of `x`. A permutation that moves only axes of extent 1 is a reshape.
    pub fn transpose(&mut self, x: Value, perm: &[usize]) -> Built {
        let shape = self.shape(x).clone();
        let mut wide = perm.iter().filter(|&&p| p < shape.len() && shape[p] != 1);
        let mut last = None;
        if perm.len() == shape.len() && wide.all(|&p| last.replace(p) < Some(p)) {
            let out: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
            return self.reshape(x, out);
        }
        self.emit("transpose", &[x], Attrs::new().with("perm", ints(perm)))
    }

    pub fn broadcast(&mut self, x: Value, shape: impl Into<Shape>) -> Built {
        let shape = shape.into();
        if *self.shape(x) == shape {
            return Ok(x);
        }
        if self.shape(x).elements() == shape.elements() {
            return self.reshape(x, shape);
        }
        self.emit("broadcast", &[x], Attrs::new().with("shape", ints(&shape)))
    }

    /// Every `step`-th index of `axis` from `start`, `len` of them; `step` may be negative.
    pub fn slice(&mut self, x: Value, axis: usize, start: usize, len: usize, step: i64) -> Built {
        if start == 0 && step == 1 && self.shape(x).get(axis) == Some(&len) {
            return Ok(x);
        }
        let attrs = Attrs::new()
            .with("axis", Attr::Int(axis as i64))
            .with("start", Attr::Int(start as i64))
            .with("len", Attr::Int(len as i64))
            .with("step", Attr::Int(step));
        self.emit("slice", &[x], attrs)
    }

    /// `x` written into `len` zeros of `axis`, at every `step`-th index from `start`: what `slice` takes, put back.
    pub fn unslice(&mut self, x: Value, axis: usize, start: usize, len: usize, step: i64) -> Built {
        let attrs = Attrs::new()
            .with("axis", Attr::Int(axis as i64))
            .with("start", Attr::Int(start as i64))
            .with("len", Attr::Int(len as i64))
            .with("step", Attr::Int(step));
        self.emit("unslice", &[x], attrs)
    }

    /// The inputs one after the other along `axis`. Inputs without elements are left out.
    pub fn concat(&mut self, xs: &[Value], axis: usize) -> Built {
        let mut kept: Vec<Value> = xs.iter().copied().filter(|&x| self.shape(x).elements() > 0).collect();
        if kept.is_empty() {
            kept = xs[..1].to_vec();
        }
        if kept.len() == 1 {
            return Ok(kept[0]);
        }
        self.emit("concat", &kept, Attrs::new().with("axis", Attr::Int(axis as i64)))
    }

    /// The rows of `x` along `axis` that `index` names: `(.., N, ..)`, `(K)` to `(.., K, ..)`.
    pub fn gather(&mut self, x: Value, index: Value, axis: usize) -> Built {
        self.emit("gather", &[x, index], Attrs::new().with("axis", Attr::Int(axis as i64)))
    }

    /// Sum over `axes`, which stay with extent 1 if `keep`.
    pub fn reduce_sum(&mut self, x: Value, axes: &[usize], keep: bool) -> Built {
        self.reduce("reduce_sum", x, axes, keep)
    }

    /// A reduction by name over any set of axes: neighbouring axes are reduced at once, from the innermost group outwards.
    pub fn reduce(&mut self, op: &str, x: Value, axes: &[usize], keep: bool) -> Built {
        let shape = self.shape(x).clone();
        let gone = |d: &usize| axes.contains(d);
        let mut wide: Vec<usize> = (0..shape.len()).filter(|d| gone(d) && shape[*d] != 1).collect();
        let mut y = x;
        while let Some(&end) = wide.last() {
            let mut start = end;
            while wide.len() > 1 && wide[wide.len() - 2] + 1 == start {
                wide.pop();
                start -= 1;
            }
            wide.pop();
            let mut current = self.shape(y).clone();
            let outer: usize = current[..start].iter().product();
            let middle: usize = current[start..=end].iter().product();
            let inner: usize = current[end + 1..].iter().product();
            let flat = self.reshape(y, [outer, middle, inner])?;
            let reduced = self.plain(op, &[flat])?;
            current.0[start..=end].fill(1);
            y = self.reshape(reduced, current)?;
        }
        let kept = (0..shape.len()).filter(|d| keep || !gone(d)).map(|d| if gone(&d) { 1 } else { shape[d] });
        let kept: Vec<usize> = kept.collect();
        self.reshape(y, kept)
    }

    /// Sums `x` down to `shape`, which broadcasts to the shape of `x`: the gradient of that broadcast.
    pub fn sum_to(&mut self, x: Value, shape: &Shape) -> Built {
        let from = self.shape(x).clone();
        let lead = from.len() - shape.len();
        let axes: Vec<usize> = (0..from.len()).filter(|&d| d < lead || shape[d - lead] == 1 && from[d] != 1).collect();
        let summed = self.reduce("reduce_sum", x, &axes, true)?;
        self.reshape(summed, shape.clone())
    }
}

/// A list attribute of sizes or axes.
pub fn ints(xs: &[usize]) -> Attr {
    Attr::Ints(xs.iter().map(|&x| x as i64).collect())
}

fn leaf_key(leaf: &Leaf) -> Option<String> {
    match leaf {
        Leaf::Input(n) => Some(format!("input {n}")),
        Leaf::Parameter(n) => Some(format!("parameter {n}")),
        Leaf::Weight(w) => Some(format!("weight {}", w.key())),
        Leaf::State(n) => Some(format!("state {n}")),
        Leaf::Constant(t) if t.elements() <= 16 => Some(format!("constant {} {:?}", t.ty(), t.words())),
        Leaf::Constant(_) => None,
    }
}
