//! Linear nodes: the nodes that an adapter can attach to.

use super::module_path::module_path;
use super::node::COPY_KEY;
use super::{ElementType, Model, Node, NodeId, Quantised};
use ndarray::Array2;
use std::collections::{HashMap, HashSet};

/// Where the bias of a linear node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Bias {
    /// The linear node adds this initializer itself.
    Own { name: String },
    /// An Add of its own, the only reader of the product, adds this initializer and gives `output`.
    Added { name: String, node: NodeId, output: String },
}

/// A matrix product of a value with a constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    pub node: NodeId,
    pub path: String,
    /// The initializer that the constant comes from.
    pub weight: String,
    /// Whether the product reads the initializer as `[out, in]` rather than `[in, out]`.
    pub transposed: bool,
    /// The operators between the initializer and the product, from the product up.
    pub through: Vec<String>,
    pub in_features: usize,
    pub out_features: usize,
    /// The product is multiplied by this (Gemm's `alpha`).
    pub alpha: f32,
    /// Strides of a convolution whose kernel covers one place: a matrix product over the channels of every place that the
    /// strides keep. `None` for matrix products.
    pub strides: Option<Vec<i64>>,
    /// Element type of the value read and the value computed.
    pub element: ElementType,
    /// Names of the value read and the value computed.
    pub x: String,
    pub y: String,
}

/// Every linear node, in execution order: a MatMul whose right side is a two-dimensional constant (directly, or
/// through Transpose, Identity, Cast or DequantizeLinear), a Gemm with such a right side, a MatMulNBits, or a Conv whose
/// kernel covers one place. Nodes share a path only where they share a weight.
pub fn linear_nodes(model: &Model) -> Vec<Linear> {
    let producers = model.producers();
    let mut found: Vec<Linear> = model.nodes().filter_map(|(id, _)| linear(model, &producers, id)).collect();
    // One module may hold several weights: the second and later ones get a number, one that gives no other module's path. An
    // exporter may also write one weight once for every call of its module: copies count as one.
    let mut taken: HashSet<String> = found.iter().map(|l| l.path.clone()).collect();
    let mut weights: HashMap<String, Vec<(String, String)>> = HashMap::new();
    let same = |a: &str, b: &str| {
        a == b
            || model.initializer_type(a) == model.initializer_type(b)
                && model.initializer(a).map(|t| t.bytes) == model.initializer(b).map(|t| t.bytes)
    };
    for l in &mut found {
        let known = weights.entry(l.path.clone()).or_default();
        if let Some((_, path)) = known.iter().find(|(w, _)| same(w, &l.weight)) {
            l.path = path.clone();
            continue;
        }
        let path = match known.len() {
            0 => l.path.clone(),
            k => {
                (k..).map(|n| format!("{}_{n}", l.path)).find(|p| !taken.contains(p)).expect("there are enough numbers")
            }
        };
        taken.insert(path.clone());
        known.push((l.weight.clone(), path.clone()));
        l.path = path;
    }
    found
}

impl Linear {
    /// The node's bias, `[out]`. `consumers` are [`Model::consumers`].
    pub fn bias(&self, model: &Model, consumers: &HashMap<String, Vec<NodeId>>) -> Option<Bias> {
        let own = model.node(self.node);
        let at = if own.op_type() == "MatMulNBits" { 5 } else { 2 };
        let vector = |name: &str| self.is_vector(model, name);
        if own.op_type() != "MatMul" {
            return own.input(at).filter(|n| vector(n)).map(|n| Bias::Own { name: n.to_string() });
        }
        let [reader] = consumers.get(&self.y)?[..] else { return None };
        let add = model.node(reader);
        let (a, b) = (add.input(0)?, add.input(1)?);
        let name = if a == self.y { b } else { a };
        let alone = add.op_type() == "Add" && a != b && !model.outputs().iter().any(|o| o.name == self.y);
        (alone && vector(name)).then(|| Bias::Added {
            name: name.to_string(),
            node: reader,
            output: add.outputs()[0].clone(),
        })
    }

    /// Whether a constant has one element for each output, along its last axis.
    fn is_vector(&self, model: &Model, name: &str) -> bool {
        let dims = model.initializer_type(name).map(|t| t.1);
        dims.and_then(|d| d.split_last().map(|(last, rest)| *last == self.out_features && rest.iter().all(|n| *n == 1)))
            .unwrap_or(false)
    }

    /// Whether the weight's elements can be read and written; or why not.
    pub fn check_weight(&self, model: &Model) -> Result<(), String> {
        let element = model.initializer_type(&self.weight).map_or(ElementType::Other(0), |t| t.0);
        match self.quantised(model) {
            Some(read) => read.map(drop),
            None if !element.is_float() => Err(format!("it is {element}")),
            None => Ok(()),
        }
    }

    /// What is unusual about the bias that the node adds itself, if something is.
    pub fn odd_bias(&self, model: &Model) -> Option<String> {
        let own = model.node(self.node);
        let at = if own.op_type() == "MatMulNBits" { 5 } else { 2 };
        let bias = own.input(at).filter(|_| own.op_type() != "MatMul")?;
        if !self.is_vector(model, bias) {
            return Some(format!("its bias '{bias}' is no constant with one element for each output"));
        }
        let beta = own.attr_float("beta").filter(|_| own.op_type() == "Gemm")?;
        (beta != 1.0).then(|| format!("its bias '{bias}' is multiplied by {beta}"))
    }

    /// The weight as the node multiplies by it, `[out, in]`; or why its elements cannot be read.
    pub fn multiplied(&self, model: &Model) -> Result<Array2<f64>, String> {
        let w = self.weight_matrix(model)?;
        Ok(if self.alpha == 1.0 { w } else { w * f64::from(self.alpha) })
    }

    /// The weight as the file stores it, `[out, in]`, without Gemm's `alpha`; or why its elements cannot be read.
    pub fn weight_matrix(&self, model: &Model) -> Result<Array2<f64>, String> {
        let (dims, values) = match self.quantised(model) {
            Some(q) => {
                let q = q?;
                (q.dims.clone(), q.dequantise().into_iter().map(f64::from).collect())
            }
            None => {
                let view = model.initializer(&self.weight).expect("linear nodes read initializers");
                let values = view.to_f64().ok_or_else(|| format!("it is {}", view.element))?;
                (view.dims.clone(), values)
            }
        };
        // The kernel of a pointwise convolution has axes of one element behind its two.
        let stored = Array2::from_shape_vec((dims[0], dims[1]), values).expect("checked when the file was read");
        Ok(if self.transposed { stored } else { stored.reversed_axes() })
    }

    /// The quantised weight behind this node; `None` where it is stored as floats.
    pub fn quantised(&self, model: &Model) -> Option<Result<Quantised, String>> {
        let own = model.node(self.node);
        if own.op_type() == "MatMulNBits" {
            return Some(Quantised::read(model, own));
        }
        let dequantises = |n: &Node| n.op_type() == "DequantizeLinear" && n.input(0) == Some(&self.weight);
        let through = self.through.iter().any(|op| op == "DequantizeLinear");
        let node = through.then(|| model.nodes().map(|(_, n)| n).find(|n| dequantises(n))).flatten()?;
        Some(Quantised::read(model, node))
    }
}

/// Rows or columns of a weight beyond which a file is not to be believed.
const MAX_EXTENT: usize = 1 << 31;

fn linear(model: &Model, producers: &HashMap<&str, NodeId>, id: NodeId) -> Option<Linear> {
    let node = model.node(id);
    let (x, b) = (node.input(0)?, node.input(1)?);
    if node.metadata(COPY_KEY).is_some() {
        return None;
    }
    let kind = match (node.domain(), node.op_type()) {
        ("", kind @ ("MatMul" | "Gemm" | "Conv")) | ("com.microsoft", kind @ "MatMulNBits") => kind,
        _ => return None,
    };
    if kind == "MatMulNBits" {
        let extent = |name: &str| usize::try_from(node.attr_int(name)?).ok().filter(|n| (1..=MAX_EXTENT).contains(n));
        let (k, n) = (extent("K")?, extent("N")?);
        return model.is_constant(b).then(|| Linear {
            node: id,
            path: module_path(node, Some(b)),
            weight: b.to_string(),
            transposed: true,
            through: vec![],
            in_features: k,
            out_features: n,
            alpha: 1.0,
            strides: None,
            element: node.input(2).and_then(|s| model.initializer_type(s)).map_or(ElementType::F32, |t| t.0),
            x: x.to_string(),
            y: node.outputs()[0].clone(),
        });
    }
    if model.is_constant(x) || kind == "Gemm" && node.attr_int("transA").unwrap_or(0) != 0 {
        return None;
    }
    let Root { weight, flips, through, element } = root(model, producers, b)?;
    let (_, dims) = model.initializer_type(&weight)?;
    let strides = if kind == "Conv" { Some(pointwise(node, &dims)?) } else { None };
    let (&[rows, columns], _) = dims.split_first_chunk()?;
    if ![rows, columns].iter().all(|n| (1..=MAX_EXTENT).contains(n)) {
        return None;
    }
    if kind != "Conv" && dims.len() > 2 {
        return None;
    }
    let flag = kind == "Conv" || kind == "Gemm" && node.attr_int("transB").unwrap_or(0) != 0;
    let transposed = flips != flag;
    let (out_features, in_features) = if transposed { (rows, columns) } else { (columns, rows) };
    Some(Linear {
        node: id,
        path: module_path(node, Some(&weight)),
        weight,
        transposed,
        through,
        in_features,
        out_features,
        alpha: if kind == "Gemm" { node.attr_float("alpha").unwrap_or(1.0) } else { 1.0 },
        strides,
        element,
        x: x.to_string(),
        y: node.outputs()[0].clone(),
    })
}

/// The strides of a convolution whose kernels, `dims`, cover one place of all channels, without padding.
fn pointwise(node: &Node, dims: &[usize]) -> Option<Vec<i64>> {
    let axes = dims.len().checked_sub(2).filter(|n| (1..=2).contains(n))?;
    let unpadded = node.attr_ints("pads").is_none_or(|p| p.iter().all(|&x| x == 0));
    let plain = dims[2..].iter().all(|&d| d == 1) && node.attr_int("group").unwrap_or(1) == 1 && unpadded;
    plain.then(|| node.attr_ints("strides").filter(|s| s.len() == axes).map_or(vec![1; axes], <[i64]>::to_vec))
}

/// The initializer behind a value, and what stands between.
struct Root {
    weight: String,
    /// An odd number of transposes.
    flips: bool,
    through: Vec<String>,
    /// Element type of the value.
    element: ElementType,
}

fn root(model: &Model, producers: &HashMap<&str, NodeId>, value: &str) -> Option<Root> {
    let (mut name, mut flips, mut through, mut element) = (value, false, Vec::new(), None);
    while !model.is_constant(name) {
        let node = model.node(*producers.get(name)?);
        match (node.domain(), node.op_type()) {
            ("", "Transpose") => match node.attr_ints("perm") {
                None | Some([1, 0]) => flips = !flips,
                Some([0, 1]) => {}
                _ => return None,
            },
            ("", "Identity") => {}
            ("", "Cast") => {
                element.get_or_insert(ElementType::from_number(node.attr_int("to")? as i32));
            }
            ("", "DequantizeLinear") => {
                element.get_or_insert(model.initializer_type(node.input(1)?)?.0);
            }
            _ => return None,
        }
        through.push(node.op_type().to_string());
        name = node.input(0)?;
    }
    let element = element.unwrap_or(model.initializer_type(name)?.0);
    element.is_float().then(|| Root { weight: name.to_string(), flips, through, element })
}

/// The nearest of `names` to `wanted`, best first.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let mut scored: Vec<(f64, &str)> = names.into_iter().map(|n| (similarity(wanted, n), n)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.dedup_by_key(|s| s.1);
    scored.into_iter().take(count).map(|s| s.1).collect()
}

/// How well the tail of a path fits what was asked for: people write the end of a path.
fn similarity(wanted: &str, path: &str) -> f64 {
    let wanted: String = wanted.chars().filter(|c| c.is_alphanumeric() || *c == '_' || *c == '.').collect();
    let whole = strsim::jaro_winkler(&wanted, path);
    let parts = path.split('.').map(|p| strsim::normalized_damerau_levenshtein(&wanted, p));
    parts.fold(whole, f64::max)
}
