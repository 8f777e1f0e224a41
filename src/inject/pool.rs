//! Sentence embeddings: a new output that pools hidden states `(batch, sequence, hidden)` over the positions that the mask keeps.

use super::error::InjectError;
use crate::onnx::{Dim, ElementType, Model, NewNode, Signature};

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over the tokens that the mask keeps.
    Mean,
    /// The first position.
    Cls,
    /// The last token that the mask keeps, whichever side is padded.
    Last,
}

/// Every pooling with its name.
pub(crate) const POOLINGS: [(Pooling, &str); 3] =
    [(Pooling::Mean, "mean"), (Pooling::Cls, "cls"), (Pooling::Last, "last")];

/// What the new output is called.
pub(crate) const EMBEDDING: &str = "sentence_embedding";

/// The output of hidden states: the one whose name says so, else the only one of three axes. `rank` gives the number of axes of an
/// output.
pub(crate) fn hidden_states(
    model: &Model,
    rank: &dyn Fn(&Signature) -> Option<usize>,
) -> Result<Signature, InjectError> {
    let all = model.outputs();
    let fits: Vec<&Signature> = all.iter().filter(|o| o.element.is_float() && rank(o) == Some(3)).collect();
    let named = ["last_hidden_state", "token_embeddings", "hidden_states"];
    let found = named.iter().find_map(|n| fits.iter().find(|o| o.name == *n));
    match (found, &fits[..]) {
        (Some(one), _) => Ok((*one).clone()),
        (None, [one]) => Ok((*one).clone()),
        (None, []) => {
            let names: Vec<&str> = all.iter().map(|o| o.name.as_str()).collect();
            let why = format!(
                "no output holds hidden states (batch, sequence, hidden) to pool: there are {}",
                names.join(", ")
            );
            Err(InjectError::Option(format!(
                "{why}\nhint: export the encoder without its head, as for feature extraction"
            )))
        }
        (None, several) => {
            let names: Vec<&str> = several.iter().map(|o| o.name.as_str()).collect();
            let why =
                format!("several outputs have three axes, and none is called last_hidden_state: {}", names.join(", "));
            Err(InjectError::Option(format!("{why}\nhint: rename the one that holds hidden states")))
        }
    }
}

/// The model with an output [`EMBEDDING`] `(batch, hidden)`, of length 1 if `normalise`.
pub(crate) fn pooled(
    base: &Model,
    hidden: &Signature,
    pooling: Pooling,
    normalise: bool,
) -> Result<Model, InjectError> {
    let taken = base.producers().contains_key(EMBEDDING) || base.is_constant(EMBEDDING);
    if taken || base.inputs().iter().any(|i| i.name == EMBEDDING) {
        let hint = "hint: leave --pool out, and train on what the model gives";
        return Err(InjectError::Option(format!("the model computes a '{EMBEDDING}' already\n{hint}")));
    }
    if base.opset("") < 13 {
        return Err(InjectError::Opset { opset: base.opset(""), what: "pooling".into() });
    }
    let anchor = base.producers().get(hidden.name.as_str()).copied();
    let anchor = anchor.ok_or_else(|| InjectError::Option(format!("no node computes '{}'", hidden.name)))?;
    let masked = base.inputs().iter().any(|i| i.name == "attention_mask");
    let mut p = Pool { nodes: vec![], constants: vec![], element: hidden.element };
    let x = hidden.name.as_str();
    let wide = match (pooling, masked) {
        (Pooling::Cls, _) => p.position(x, 0),
        (Pooling::Last, false) => p.position(x, -1),
        (Pooling::Mean, false) => {
            let ones = p.ones_of(x);
            p.mean(x, &ones)
        }
        (Pooling::Mean, true) => {
            let mask = p.mask();
            p.mean(x, &mask)
        }
        (Pooling::Last, true) => {
            let mask = p.mask();
            p.last(x, &mask)
        }
    };
    match normalise {
        true => p.normalised(&wide),
        false => drop(p.node_to("Identity", &[&wide], EMBEDDING)),
    }
    let mut model = base.clone();
    for (name, element, dims, bytes) in p.constants {
        model.add_initializer(&name, element, &dims, bytes);
    }
    model.insert_after(anchor, p.nodes);
    let dims = hidden.dims.as_ref().filter(|d| d.len() == 3).map(|d| vec![d[0].clone(), d[2].clone()]);
    model.add_output(EMBEDDING, hidden.element, &dims.unwrap_or_else(|| vec![Dim::Unknown, Dim::Unknown]));
    Ok(model)
}

/// The nodes of a pooling, and what they read.
struct Pool {
    nodes: Vec<NewNode>,
    constants: Vec<(String, ElementType, Vec<usize>, Vec<u8>)>,
    /// Of the hidden states.
    element: ElementType,
}

impl Pool {
    fn node_to(&mut self, op: &str, inputs: &[&str], output: &str) -> String {
        let name = format!("/pooling/{op}_{}", self.nodes.len());
        self.nodes.push(NewNode::new(&name, op, inputs, output));
        output.into()
    }

    fn node(&mut self, op: &str, inputs: &[&str]) -> String {
        let output = format!("pooling.{}_{}", op.to_lowercase(), self.nodes.len());
        self.node_to(op, inputs, &output)
    }

    fn integers(&mut self, values: &[i64], dims: &[usize]) -> String {
        let name = format!("pooling.constant_{}", self.constants.len());
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constants.push((name.clone(), ElementType::I64, dims.to_vec(), bytes));
        name
    }

    fn number(&mut self, x: f64) -> String {
        let name = format!("pooling.constant_{}", self.constants.len());
        let bytes = crate::onnx::encode_floats(self.element, &[x]).expect("hidden states are floats");
        self.constants.push((name.clone(), self.element, vec![], bytes));
        name
    }

    /// A value in the type of the hidden states.
    fn cast(&mut self, x: &str) -> String {
        let output = format!("pooling.cast_{}", self.nodes.len());
        let to = crate::onnx::AttrValue::Int(i64::from(self.element.number()));
        let name = format!("/pooling/Cast_{}", self.nodes.len());
        self.nodes.push(NewNode::new(&name, "Cast", &[x], &output).attr("to", to));
        output
    }

    /// The mask as `(batch, 1, sequence)`.
    fn mask(&mut self) -> String {
        let mask = self.cast("attention_mask");
        let axis = self.integers(&[1], &[1]);
        self.node("Unsqueeze", &[&mask, &axis])
    }

    /// A mask of ones for hidden states `x`, `(batch, 1, sequence)`.
    fn ones_of(&mut self, x: &str) -> String {
        let first = self.integers(&[0], &[1]);
        let row = {
            let output = format!("pooling.gather_{}", self.nodes.len());
            let name = format!("/pooling/Gather_{}", self.nodes.len());
            let axis = crate::onnx::AttrValue::Int(2);
            self.nodes.push(NewNode::new(&name, "Gather", &[x, &first], &output).attr("axis", axis));
            output
        };
        let (zero, one) = (self.number(0.0), self.number(1.0));
        let zeros = self.node("Mul", &[&row, &zero]);
        let ones = self.node("Add", &[&zeros, &one]);
        let shape = self.integers(&[0, 1, -1], &[3]);
        self.node("Reshape", &[&ones, &shape])
    }

    /// One position of every text, `(batch, hidden)`.
    fn position(&mut self, x: &str, at: i64) -> String {
        let index = self.integers(&[at], &[]);
        let output = format!("pooling.gather_{}", self.nodes.len());
        let name = format!("/pooling/Gather_{}", self.nodes.len());
        let axis = crate::onnx::AttrValue::Int(1);
        self.nodes.push(NewNode::new(&name, "Gather", &[x, &index], &output).attr("axis", axis));
        output
    }

    /// `Σ_t m_t x_t`, `(batch, hidden)`; m is `(batch, 1, sequence)`.
    fn weighted(&mut self, x: &str, m: &str) -> String {
        let sum = self.node("MatMul", &[m, x]);
        let axis = self.integers(&[1], &[1]);
        self.node("Squeeze", &[&sum, &axis])
    }

    /// Sum over positions, `(batch, 1)`.
    fn total(&mut self, m: &str) -> String {
        let axis = self.integers(&[2], &[1]);
        let output = format!("pooling.reducesum_{}", self.nodes.len());
        let name = format!("/pooling/ReduceSum_{}", self.nodes.len());
        let keep = crate::onnx::AttrValue::Int(0);
        self.nodes.push(NewNode::new(&name, "ReduceSum", &[m, &axis], &output).attr("keepdims", keep));
        output
    }

    fn mean(&mut self, x: &str, m: &str) -> String {
        let sum = self.weighted(x, m);
        let count = self.total(m);
        // A text without a token has the zero vector. The smallest float of 16 bits is about 6e-8.
        let least = self.number(if self.element == ElementType::F16 { 1e-7 } else { 1e-9 });
        let count = self.node("Max", &[&count, &least]);
        self.node("Div", &[&sum, &count])
    }

    /// Counting tokens from the front, the last one is where the count reaches their number.
    fn last(&mut self, x: &str, m: &str) -> String {
        let axis = self.integers(&[2], &[]);
        let so_far = self.node("CumSum", &[m, &axis]);
        let all = self.total(m);
        let axis = self.integers(&[2], &[1]);
        let all = self.node("Unsqueeze", &[&all, &axis]);
        let there = self.node("Equal", &[&so_far, &all]);
        let there = self.cast(&there);
        let there = self.node("Mul", &[&there, m]);
        self.weighted(x, &there)
    }

    fn normalised(&mut self, x: &str) {
        let square = self.node("Mul", &[x, x]);
        let axis = self.integers(&[1], &[1]);
        let sum = self.node("ReduceSum", &[&square, &axis]);
        let least = self.number(if self.element == ElementType::F16 { 1e-7 } else { 1e-24 });
        let sum = self.node("Max", &[&sum, &least]);
        let length = self.node("Sqrt", &[&sum]);
        self.node_to("Div", &[x, &length], EMBEDDING);
    }
}
