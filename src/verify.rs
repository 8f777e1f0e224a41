//! Runs ONNX files with tract, an independent engine that shares no code with this program.

use crate::onnx::{ElementType, Model, called};
use tract_onnx::prelude::*;

/// A tensor to feed: elements are converted to the type the input declares.
#[derive(Clone, Debug)]
pub struct Feed {
    pub name: String,
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
}

/// An output, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: String,
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
}

/// Why tract did not run a file.
#[derive(Clone, Debug, thiserror::Error)]
#[error("tract cannot run {file}{}: {why}", operator.as_ref().map_or(String::new(), |o| format!(" (operator {o})")))]
pub struct EngineError {
    pub file: String,
    /// The operator it stopped at, as far as its message tells.
    pub operator: Option<String>,
    pub why: String,
}

/// Runs the file that `model` was read from.
pub fn run(model: &Model, feeds: &[Feed]) -> Result<Vec<Output>, EngineError> {
    run_tract(model, feeds).map_err(|error| {
        let why = error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let file = model.path().display().to_string();
        EngineError { file, operator: blamed(model, &why), why }
    })
}

fn run_tract(model: &Model, feeds: &[Feed]) -> TractResult<Vec<Output>> {
    let mut net = tract_onnx::onnx().model_for_path(model.path())?;
    let mut inputs = tvec!();
    for (i, outlet) in net.input_outlets()?.to_vec().into_iter().enumerate() {
        let name = net.node(outlet.node).name.clone();
        let feed = feeds.iter().find(|f| f.name == name);
        let feed = feed.ok_or_else(|| TractError::msg(format!("nothing is fed to input '{name}'")))?;
        let signature = model.inputs().into_iter().find(|s| s.name == name);
        let element = signature.map_or(ElementType::F32, |s| s.element);
        let tensor = tensor(feed, element)?;
        net.set_input_fact(i, InferenceFact::dt_shape(tensor.datum_type(), tensor.shape()))?;
        inputs.push(tensor.into_tvalue());
    }
    let runnable = net.into_optimized()?.into_runnable()?;
    let results = runnable.run(inputs)?;
    let names = model.outputs().into_iter().map(|o| o.name);
    names
        .zip(results)
        .map(|(name, t)| {
            let t = t.into_tensor();
            let wide = t.cast_to::<f64>()?.into_owned();
            let values = wide.try_as_plain_ram()?.as_slice::<f64>()?.to_vec();
            Ok(Output { name, dims: t.shape().to_vec(), values })
        })
        .collect()
}

fn tensor(feed: &Feed, element: ElementType) -> TractResult<Tensor> {
    let wide = Tensor::from_shape(&feed.dims, &feed.values)?;
    let to = match element {
        ElementType::F32 => f32::datum_type(),
        ElementType::F64 => f64::datum_type(),
        ElementType::F16 => f16::datum_type(),
        ElementType::I64 => i64::datum_type(),
        ElementType::I32 => i32::datum_type(),
        ElementType::Bool => bool::datum_type(),
        ElementType::I8 => i8::datum_type(),
        ElementType::U8 => u8::datum_type(),
        other => return Err(TractError::msg(format!("{other} inputs are not known to it"))),
    };
    if to == bool::datum_type() {
        let bits: Vec<bool> = feed.values.iter().map(|&x| x != 0.0).collect();
        return Tensor::from_shape(&feed.dims, &bits);
    }
    Ok(wide.cast_to_dt(to)?.into_owned())
}

/// The operator of a node that an error message names.
fn blamed(model: &Model, why: &str) -> Option<String> {
    let named = model.nodes().filter(|(_, n)| !n.name().is_empty() && why.contains(n.name()));
    let node = named.max_by_key(|(_, n)| n.name().len()).map(|(_, n)| n.operator());
    node.or_else(|| {
        let mut operators: Vec<String> = model.nodes().map(|(_, n)| n.op_type().to_string()).collect();
        operators.sort_by_key(|o| std::cmp::Reverse(o.len()));
        operators.into_iter().find(|o| why.contains(o.as_str()))
    })
}

/// How far two runs of one output are apart.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Difference {
    /// Its name.
    pub output: String,
    /// The largest absolute difference of an element; NaN where [`Difference::not_finite`] says why.
    pub largest: f64,
    /// `‖a - b‖ / ‖a‖`; NaN where [`Difference::not_finite`] says why.
    pub relative: f64,
    /// Which side holds NaN or infinity, so that nothing can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_finite: Option<String>,
}

impl Difference {
    /// Whether it is above a tolerance, as what is not a number always is.
    pub fn exceeds(&self, tolerance: f64) -> bool {
        self.relative.is_nan() || self.relative > tolerance
    }
}

/// Compares outputs of one name; `Err` names one that only one side has, or that differs in shape.
pub fn compare(a: &[Output], b: &[Output]) -> Result<Vec<Difference>, String> {
    if let Some(extra) = b.iter().find(|o| !a.iter().any(|x| x.name == o.name)) {
        return Err(format!("only the second has an output '{}'", extra.name));
    }
    a.iter()
        .map(|x| {
            let y = b.iter().find(|o| o.name == x.name);
            let y = y.ok_or_else(|| format!("only the first has an output '{}'", x.name))?;
            if x.dims != y.dims {
                return Err(format!("output '{}' is {:?} and {:?}", x.name, x.dims, y.dims));
            }
            Ok(difference(&x.name, &x.values, &y.values))
        })
        .collect()
}

pub fn difference(name: &str, a: &[f64], b: &[f64]) -> Difference {
    let (mut largest, mut square, mut size) = (0.0f64, 0.0f64, 0.0f64);
    let mut not_finite = None;
    for (x, y) in a.iter().zip(b) {
        // Scores that both have masked with minus infinity do not differ.
        if *x == f64::NEG_INFINITY && x == y {
            continue;
        }
        if !x.is_finite() || !y.is_finite() {
            not_finite.get_or_insert_with(|| said(*x, *y));
            continue;
        }
        let d = (x - y).abs();
        largest = largest.max(d);
        square += d * d;
        size += x * x;
    }
    let relative = if square == 0.0 { 0.0 } else { square.sqrt() / size.sqrt().max(f64::MIN_POSITIVE) };
    let (largest, relative) = if not_finite.is_some() { (f64::NAN, f64::NAN) } else { (largest, relative) };
    Difference { output: name.to_string(), largest, relative, not_finite }
}

/// Two elements of which one at least is not finite, in words.
fn said(x: f64, y: f64) -> String {
    match (x.is_finite(), y.is_finite()) {
        (false, false) if x.is_nan() && y.is_nan() || x == y => format!("holds {} in both", called(x)),
        (false, false) => format!("holds {} in the first and {} in the second", called(x), called(y)),
        (false, true) => format!("holds {} in the first", called(x)),
        _ => format!("holds {} in the second", called(y)),
    }
}
