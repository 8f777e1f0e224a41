//! Chooses the loss for training or evaluation, and the form in which it reads the labels.

use super::Error;
use super::compile::LossChoice;
use crate::ir::{DType, Graph};
use crate::lower::loss::{Labels, Loss};
use crate::lower::{self, Lowered, Request};
use crate::onnx::{Model, Node};
use crate::train::Shapes;
use crate::train::data::{DataError, Dataset, LabelForm, LabelKind};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A loss, and why it was taken.
pub struct Chosen {
    pub choice: LossChoice,
    pub form: LabelForm,
    /// One sentence for the user.
    pub why: String,
    /// Shape of the value that the loss is taken on, for the shapes asked about.
    pub shape: Vec<usize>,
    /// The model lowered as far as that value.
    pub graph: Graph,
}

/// Chooses a loss: what was asked for, else what the data's labels and the model's outputs suggest. Shapes are those of a
/// batch of the data.
pub fn choose(
    model: &Arc<Model>,
    shapes: &Shapes,
    asked: Option<Loss>,
    loss_output: Option<&str>,
    data: &Dataset,
) -> Result<Chosen, Error> {
    let all = model.outputs();
    if let Some(name) = loss_output {
        if !all.iter().any(|o| o.name == name) {
            let have: Vec<&str> = all.iter().map(|o| o.name.as_str()).collect();
            return Err(Error::Usage(format!(
                "there is no output '{name}'\nhint: its outputs are {}",
                have.join(", ")
            )));
        }
        return held(model, shapes, name, "--loss-output names it".into());
    }
    let own_labels = model.inputs().iter().any(|i| i.name == "labels");
    if asked.is_none() && (own_labels || !data.has_labels()) {
        let names: Vec<String> = all.iter().filter(|o| o.element.is_float()).map(|o| o.name.clone()).collect();
        let Lowered { b, values } = lowered(model, shapes, &names)?;
        let scalars = names.iter().filter(|n| b.shape(values[*n]).elements() == 1);
        let mut scalars: Vec<&String> = scalars.collect();
        scalars.sort_by_key(|n| n.as_str() != "loss");
        return match scalars.first() {
            Some(name) => held(model, shapes, name, "it is a scalar output of the model".into()),
            None => Err(Error::Usage(
                "the data holds no 'labels', and the model has no scalar output to train on\n\
                 hint: add a tensor 'labels', or name the loss with --loss-output"
                    .into(),
            )),
        };
    }
    let output = all.iter().find(|o| o.name == "logits").or(all.iter().find(|o| o.element.is_float()));
    let output = output.ok_or_else(|| Error::Model("the model has no float output to train on".into()))?.name.clone();
    let Lowered { b, values } = lowered(model, shapes, std::slice::from_ref(&output))?;
    let shape = b.shape(values[&output]).0.clone();
    let Some(kind) = data.label_kind() else {
        let want = "labels for it";
        let why = format!("output '{output}' is {shape:?}, and a loss needs {want}, but there are none");
        return Err(DataError::Fit { path: data.path.clone(), why }.into());
    };
    let misfit = |why: String| Error::Data(DataError::Fit { path: data.path.clone(), why });
    let (loss, class_axis, why) = match asked {
        Some(loss) => {
            let axis = match loss.labels {
                Labels::Classes => class_axis(&shape, &kind).unwrap_or(None),
                _ => None,
            };
            (loss, axis, "--loss asks for it".to_string())
        }
        None => suggested(&output, &shape, &kind).map_err(misfit)?,
    };
    let form = match loss.labels {
        Labels::Classes if kind.dtype == DType::F32 => LabelForm::Classes,
        Labels::Numbers => LabelForm::Numbers(shape[1..].to_vec()),
        _ => LabelForm::AsGiven,
    };
    if loss == Loss::DISTILL && class_axis.is_some() {
        let why = format!("--loss distill takes classes along the last axis, and output '{output}' is {shape:?}");
        return Err(Error::Usage(format!("{why}\nhint: export logits with their classes last")));
    }
    // The value before a last Softmax or Sigmoid is what the loss is computed from.
    let (logits, mut note) = before_probabilities(model, &output, loss, &shape, class_axis);
    let probabilities = note.is_empty() && loss.of_probabilities.is_some() && after_probabilities(model, &output);
    if probabilities {
        note = "; it holds probabilities, whose logarithms are taken".into();
    }
    let why = format!("the loss is {} of '{output}': {why}{note}", loss.title);
    let (shape, graph) = output_shape(model, shapes, &logits)?;
    Ok(Chosen { choice: LossChoice::Added { loss, logits, class_axis, probabilities }, form, why, shape, graph })
}

fn held(model: &Arc<Model>, shapes: &Shapes, output: &str, why: String) -> Result<Chosen, Error> {
    let (shape, graph) = output_shape(model, shapes, output)?;
    let why = format!("the loss is the model's own output '{output}': {why}");
    let choice = LossChoice::Held { output: output.into() };
    Ok(Chosen { choice, form: LabelForm::AsGiven, why, shape, graph })
}

/// What labels suggest for an output of a shape: the loss, the axis of the classes if it is not the last, and why.
fn suggested(output: &str, shape: &[usize], kind: &LabelKind) -> Result<(Loss, Option<usize>, String), String> {
    let rank = shape.len();
    let Some(trailing) = &kind.trailing else {
        return Ok((Loss::CROSS_ENTROPY, None, "labels are tokens".into()));
    };
    let per_example = |s: &[usize]| s.iter().skip(1).product::<usize>();
    let same_size = trailing.iter().product::<usize>() == per_example(shape);
    let single = rank < 2 || shape[rank - 1] == 1 || per_example(shape) == 1;
    let bce = |why: &str| Ok((Loss::BINARY_CROSS_ENTROPY, None, why.to_string()));
    let mse = |why: &str| Ok((Loss::MEAN_SQUARE, None, why.to_string()));
    let classes = class_axis(shape, kind);
    match kind.dtype {
        DType::I32 | DType::Bool => match classes {
            _ if single && same_size && kind.zero_one => bce("labels are 0 or 1 and there is one logit"),
            _ if single && same_size => mse("labels are numbers and the model has one output"),
            Some(axis) if kind.dtype == DType::I32 => {
                let both = axis.is_none() && rank > 2 && without(shape, 1) == *trailing;
                let which = if both { " (classes along the last axis, though axis 1 would fit as well)" } else { "" };
                Ok((Loss::CROSS_ENTROPY, axis, format!("labels are class numbers{which}")))
            }
            _ if same_size && kind.zero_one => lists(kind),
            _ => Err(unfit(output, shape, kind)),
        },
        DType::F32 if same_size => match (kind.zero_one, single) {
            (true, true) => bce("labels are 0 or 1 and there is one logit"),
            (true, false) => lists(kind),
            (false, _) => mse("labels are numbers"),
        },
        // Numbers such as 2.0, as tables write classes.
        DType::F32 if kind.whole && classes == Some(None) && trailing.is_empty() => {
            Ok((Loss::CROSS_ENTROPY, None, "labels are whole numbers, taken as classes".into()))
        }
        DType::F32 => Err(unfit(output, shape, kind)),
    }
}

/// Labels of 0 and 1 for several outputs.
fn lists(kind: &LabelKind) -> Result<(Loss, Option<usize>, String), String> {
    if kind.one_hot {
        return Err("every row of labels holds a single 1: are they one class in one-hot form, or several yes-or-no answers?\n\
             hint: for one class give its number (labels.argmax(-1)); for several answers --loss binary-cross-entropy; to \
             fit the numbers --loss mse"
            .into());
    }
    Ok((Loss::BINARY_CROSS_ENTROPY, None, "labels are 0 or 1 for each output".into()))
}

/// The extents of a shape after its first axis, without one more.
fn without(shape: &[usize], axis: usize) -> Vec<usize> {
    shape.iter().enumerate().filter(|(d, _)| *d != axis && *d > 0).map(|(_, n)| *n).collect()
}

/// The axis of the classes that labels of this shape go with: `Some(None)` for the last one, `None` if none fits.
fn class_axis(shape: &[usize], kind: &LabelKind) -> Option<Option<usize>> {
    let trailing = kind.trailing.as_ref()?;
    let rank = shape.len();
    match rank {
        0 | 1 => None,
        _ if without(shape, rank - 1) == *trailing => Some(None),
        _ if rank > 2 && without(shape, 1) == *trailing => Some(Some(1)),
        _ => None,
    }
}

fn unfit(output: &str, shape: &[usize], kind: &LabelKind) -> String {
    let trailing = kind.trailing.clone().unwrap_or_default();
    let have: Vec<String> = std::iter::once("N".to_string()).chain(trailing.iter().map(usize::to_string)).collect();
    let what = if kind.dtype == DType::F32 { "float" } else { "integer" };
    let rank = shape.len();
    let mut wants = vec![format!("{what} labels of shape {:?}", shape)];
    if rank > 1 {
        wants = vec![
            format!("class numbers of shape {:?}", &shape[..rank - 1]),
            format!("numbers of shape {shape:?} (--loss mse)"),
        ];
    }
    format!(
        "output '{output}' is {shape:?}, and {what} labels [{}] do not go with it\nhint: it takes {}",
        have.join(", "),
        wants.join(", or ")
    )
}

/// The value that goes into the Softmax, LogSoftmax or Sigmoid that an output comes from, if the loss is to be taken there.
fn before_probabilities(
    model: &Model,
    output: &str,
    loss: Loss,
    shape: &[usize],
    class_axis: Option<usize>,
) -> (String, String) {
    let producers = model.producers();
    let mut name = output.to_string();
    while let Some(node) = producers.get(name.as_str()).map(|id| model.node(*id)) {
        let Some(input) = node.input(0).map(String::from) else { break };
        let (domain, op) = (node.domain(), node.op_type());
        let axis = normalised_axis(model, node, shape.len());
        let classes = class_axis.unwrap_or(shape.len().saturating_sub(1));
        // A softmax must be over the classes.
        let fits = loss.labels == Labels::Numbers || axis == Some(classes);
        match (domain, op) {
            ("", "Identity" | "Cast") => name = input,
            ("", op) if loss.activations.contains(&op) && fits => {
                return (input, format!("; its {op} is left to the loss"));
            }
            _ => break,
        }
    }
    (output.to_string(), String::new())
}

/// Whether an output is what a softmax or sigmoid gave, changed in layout or clipped since.
fn after_probabilities(model: &Model, output: &str) -> bool {
    const CARRIES: &[&str] = &[
        "Identity",
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Transpose",
        "Clip",
        "Slice",
        "Gather",
        "Min",
        "Max",
    ];
    let producers = model.producers();
    let mut name = output.to_string();
    while let Some(node) = producers.get(name.as_str()).map(|id| model.node(*id)) {
        match (node.domain(), node.op_type()) {
            ("", "Softmax") => return true,
            // 1 / (1 + e⁻ˣ), written out.
            ("", "Div" | "Reciprocal") => {
                let under = node.input(if node.op_type() == "Div" { 1 } else { 0 });
                let produced = |name: &str| producers.get(name).map(|id| model.node(*id));
                let sum = under.and_then(produced).filter(|n| n.op_type() == "Add");
                let inputs = sum.map_or(&[][..], |n| n.inputs());
                return inputs.iter().filter_map(|i| produced(i)).any(|n| n.op_type() == "Exp");
            }
            // One class's probability out of a softmax, or a sigmoid, against 0 and 1.
            ("", "Sigmoid") => return true,
            ("", op) if CARRIES.contains(&op) => match node.input(0) {
                Some(input) => name = input.to_string(),
                None => return false,
            },
            _ => return false,
        }
    }
    false
}

/// The axis of a softmax. Before opset 13 it flattens the axes from there on; that is the same where it is the last.
fn normalised_axis(model: &Model, node: &Node, rank: usize) -> Option<usize> {
    let old = model.opset("") < 13;
    let axis = node.attr_int("axis").unwrap_or(if old { 1 } else { -1 });
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
    (!old || axis + 1 == rank).then_some(axis)
}

fn lowered(model: &Arc<Model>, shapes: &Shapes, wanted: &[String]) -> Result<Lowered, Error> {
    let trained = BTreeSet::new();
    Ok(lower::lower(&Request { model, shapes, known: &shapes.known(), trained: &trained, wanted, training: false })?)
}

/// Shape of a value that a loss is taken on, and the model lowered as far as that.
pub(super) fn output_shape(model: &Arc<Model>, shapes: &Shapes, name: &str) -> Result<(Vec<usize>, Graph), Error> {
    let Lowered { b, values } = lowered(model, shapes, &[name.to_string()])?;
    Ok((b.shape(values[name]).0.clone(), b.graph))
}
