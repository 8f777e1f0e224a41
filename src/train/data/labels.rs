//! Labels: parsed from a row, summarised over a data set, and converted to the form that a loss reads.

use super::{DataError, Dataset, Source, Task};
use crate::ir::{DType, Tensor};
use serde_json::Value;

/// The label of a whole example.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// The number of a class.
    Class(i32),
    /// A number to predict.
    Number(f32),
    /// One number for each output.
    Many(Vec<f32>),
}

impl Label {
    /// Reads a `label`; `names` are those of the classes, in order.
    pub fn read(value: &Value, names: &[String]) -> Result<Label, String> {
        let number = |x: f64| match x.is_finite() && x.abs() <= f64::from(f32::MAX) {
            true => Ok(x as f32),
            false => Err(format!("label {x} is not a finite number")),
        };
        match value {
            Value::Bool(b) => Ok(Label::Class(i32::from(*b))),
            Value::Number(n) if n.is_i64() || n.is_u64() => {
                let class = n.as_i64().and_then(|l| i32::try_from(l).ok());
                class.map(Label::Class).ok_or_else(|| format!("label {n} does not fit 32 bits"))
            }
            Value::Number(n) => number(n.as_f64().unwrap_or(f64::NAN)).map(Label::Number),
            Value::String(name) => named(name, names).map(Label::Class),
            Value::Array(list) => {
                let one = |v: &Value| match v {
                    Value::Bool(b) => Ok(f64::from(u8::from(*b))),
                    _ => v.as_f64().ok_or_else(|| format!("a list of labels holds {v}, which is not a number")),
                };
                let all: Result<Vec<f32>, String> = list.iter().map(|v| one(v).and_then(number)).collect();
                all.map(Label::Many)
            }
            other => Err(format!("'label' must be a class, a number, or a list of numbers, not {other}")),
        }
    }

    /// The class that the label names, where it is a whole number.
    pub fn class(&self) -> Option<i32> {
        match self {
            Label::Class(c) => Some(*c),
            Label::Number(x) if x.fract() == 0.0 && x.abs() < 1e9 => Some(*x as i32),
            _ => None,
        }
    }

    pub fn numbers(&self) -> Vec<f32> {
        match self {
            Label::Class(c) => vec![*c as f32],
            Label::Number(x) => vec![*x],
            Label::Many(xs) => xs.clone(),
        }
    }
}

fn named(name: &str, names: &[String]) -> Result<i32, String> {
    if let Some(at) = names.iter().position(|n| n == name) {
        return Ok(at as i32);
    }
    if names.is_empty() {
        return name.trim().parse().map_err(|_| {
            format!(
                "label \"{name}\" is a name, and nothing says which class it is\nhint: --label-names A,B,... lists the \
                 names in the order of the classes; a config.json with id2label beside the model does too"
            )
        });
    }
    let folded: Vec<usize> = (0..names.len()).filter(|&i| names[i].eq_ignore_ascii_case(name.trim())).collect();
    match folded[..] {
        [one] => Ok(one as i32),
        _ => Err(format!(
            "label \"{name}\" is none of the model's classes\nhint: they are {} (--label-names, or id2label of \
             config.json)",
            names.join(", ")
        )),
    }
}

/// A float label that does not count: rows that only fill up a fixed batch carry it.
pub const UNCOUNTED: f32 = -1.267_650_6e30;

/// In which form a loss reads labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LabelForm {
    /// As the data has them: numbers of classes; -100 does not count.
    #[default]
    AsGiven,
    /// Numbers of classes that the data writes as floats.
    Classes,
    /// Floats of the output's shape, whose extents after the first axis these are; [`UNCOUNTED`] does not count.
    Numbers(Vec<usize>),
}

/// What a data set's labels are like, which decides what they are for.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelKind {
    pub dtype: DType,
    /// Extents after the first axis; a label at each position stands as `None`, since lengths differ.
    pub trailing: Option<Vec<usize>>,
    /// Every number is 0 or 1.
    pub zero_one: bool,
    /// Every row of the last axis holds one 1 and otherwise 0.
    pub one_hot: bool,
    /// Every number is whole.
    pub whole: bool,
}

impl Dataset {
    /// What the labels are like; `None` if there are none.
    pub fn label_kind(&self) -> Option<LabelKind> {
        let (dtype, trailing, numbers): (DType, Option<Vec<usize>>, Vec<f32>) = match &self.source {
            Source::Text { task: Task::Embed { .. }, .. } => return None,
            Source::Text { task: Task::LanguageModel | Task::Prefer | Task::SequenceToSequence, .. } => {
                (DType::I32, None, vec![])
            }
            Source::Text { examples, .. } => {
                let s = examples.summary();
                let dtype = if s.fractions { DType::F32 } else { DType::I32 };
                let one_hot = s.zero_one && s.one_hot && s.width.is_some_and(|w| w > 1);
                let trailing = Some(s.width.into_iter().collect());
                return Some(LabelKind { dtype, trailing, zero_one: s.zero_one, one_hot, whole: s.whole });
            }
            Source::Tensors { tensors, .. } => {
                let t = tensors.get("labels")?;
                let numbers = match t {
                    Tensor::I32(x) => x.iter().map(|&x| x as f32).collect(),
                    Tensor::F32(x) => x.iter().copied().collect(),
                    Tensor::Bool(x) => x.iter().map(|&x| x as f32).collect(),
                };
                (t.dtype(), Some(t.shape()[1..].to_vec()), numbers)
            }
        };
        let zero_one = !numbers.is_empty() && numbers.iter().all(|&x| x == 0.0 || x == 1.0 || x == -100.0);
        let width = trailing.as_ref().and_then(|t| t.last().copied()).unwrap_or(1);
        let one_hot =
            zero_one && width > 1 && numbers.chunks(width).all(|row| row.iter().filter(|x| **x == 1.0).count() == 1);
        let whole = numbers.iter().all(|x| x.fract() == 0.0);
        Some(LabelKind { dtype, trailing, zero_one, one_hot, whole })
    }

    /// Whether any label counts; every float does.
    fn counts(&self) -> bool {
        match &self.source {
            Source::Text { examples, .. } => examples.counts(),
            Source::Tensors { tensors, examples, .. } => match tensors.get("labels") {
                Some(Tensor::I32(a)) => a.iter().any(|l| *l != -100),
                Some(other) => other.elements() > 0,
                None => *examples > 0,
            },
        }
    }

    /// Refuses a data set in which no label counts, saying why, and one that holds what is not a number.
    pub fn check_values(&self) -> Result<(), DataError> {
        let misfit = |why: String| DataError::Fit { path: self.path.clone(), why };
        if !self.counts() {
            let why = "there is nothing to learn or measure: every label is -100, which does not count\n\
                       hint: give labels to the positions or examples that should count";
            return Err(misfit(why.into()));
        }
        let Source::Tensors { tensors, examples, .. } = &self.source else { return Ok(()) };
        for (name, t) in tensors {
            let Some(values) = t.as_f32() else { continue };
            let width = (values.len() / (*examples).max(1)).max(1);
            // A mask that is added to scores may well be minus infinity.
            let bad = |x: &f32| x.is_nan() || name == "labels" && x.is_infinite();
            let mut rows: Vec<usize> =
                values.chunks(width).enumerate().filter(|(_, row)| row.iter().any(bad)).map(|(r, _)| r + 1).collect();
            if let Some(&first) = rows.first() {
                let what = if values.iter().any(|x| x.is_nan()) { "NaN" } else { "infinity" };
                let (count, more) = (rows.len(), if rows.len() > 8 { ", ..." } else { "" });
                rows.truncate(8);
                let list: Vec<String> = rows.iter().map(usize::to_string).collect();
                let rows = match count {
                    1 => format!("example {first}"),
                    n => format!("{n} examples: {}{more}", list.join(", ")),
                };
                return Err(misfit(format!(
                    "'{name}' is not finite ({what}) in {rows}\nhint: leave those rows out, or fill in numbers"
                )));
            }
        }
        Ok(())
    }

    /// Checks every label against the number of classes; says which example is wrong.
    pub fn check_labels(&self, classes: usize) -> Result<(), DataError> {
        let bad = |label: i32| label >= classes as i32 || label < 0 && label != -100;
        let misfit = |why: String| Err(DataError::Fit { path: self.path.clone(), why });
        let found = match &self.source {
            Source::Text { examples, .. } => {
                let s = examples.summary();
                if !s.unclassed && s.classes.is_none_or(|(low, high)| !bad(low) && !bad(high)) {
                    return Ok(());
                }
                let mut found = None;
                for (i, e) in examples.iter().enumerate() {
                    let e = e?;
                    if let Some(label) = e.label.as_ref().filter(|l| l.class().is_none()) {
                        let one = "hint: a model with one output takes numbers (--loss mse), one with many takes lists of 0 and 1";
                        let why = format!(
                            "label {} of example {} is no class, and the model has {classes} outputs\n{one}",
                            label.numbers().first().copied().unwrap_or_default(),
                            i + 1
                        );
                        return misfit(why);
                    }
                    let class = e.label.as_ref().and_then(Label::class);
                    let further = e.further.iter().flat_map(|s| &s.labels);
                    let label = e.labels.iter().chain(further).copied().chain(class).find(|l| bad(*l));
                    found = found.or(label.map(|l| (i, l)));
                }
                found
            }
            Source::Tensors { tensors, examples, .. } => tensors.get("labels").and_then(|t| {
                let labels: Vec<i32> = match t {
                    Tensor::F32(x) => x.iter().map(|&x| x as i32).collect(),
                    _ => t.as_i32()?.to_vec(),
                };
                let at = labels.iter().position(|l| bad(*l))?;
                Some((at / (labels.len() / (*examples).max(1)).max(1), labels[at]))
            }),
        };
        let Some((example, label)) = found else { return Ok(()) };
        misfit(format!(
            "label {label} of example {} is out of range: the model has {classes} classes, 0 to {}\n\
             hint: -100 marks what does not count",
            example + 1,
            classes.saturating_sub(1)
        ))
    }

    /// Whether the labels are the next token of `input_ids` at each position.
    pub fn next_token(&self) -> bool {
        match &self.source {
            Source::Text { task, .. } => matches!(task, Task::LanguageModel | Task::SequenceToSequence),
            Source::Tensors { tensors, .. } => {
                let rows = pair_of(tensors);
                let Some((ids, labels, width)) = rows else { return false };
                let (mut seen, mut equal) = (0, 0);
                for (ids, labels) in ids.chunks(width).zip(labels.chunks(width)) {
                    for t in 0..width.saturating_sub(1) {
                        if labels[t] >= 0 {
                            seen += 1;
                            equal += usize::from(labels[t] == ids[t + 1]);
                        }
                    }
                }
                // A label or two may have been changed by hand.
                seen >= 3 && equal * 10 >= seen * 9
            }
        }
    }

    /// Whether the labels of tensors are the very ids, unshifted.
    pub fn copies_ids(&self) -> bool {
        let Source::Tensors { tensors, .. } = &self.source else { return false };
        let Some((ids, labels, _)) = pair_of(tensors) else { return false };
        let counted = labels.iter().filter(|l| **l >= 0).count();
        counted >= 8 && ids.iter().zip(labels).all(|(i, l)| *l < 0 || i == l)
    }
}

/// `input_ids` and `labels` of one shape `(N, T)`, and `T`.
fn pair_of(tensors: &std::collections::BTreeMap<String, Tensor>) -> Option<(&[i32], &[i32], usize)> {
    let (ids, labels) = (tensors.get("input_ids")?, tensors.get("labels")?);
    let [_, width] = ids.shape()[..] else { return None };
    (ids.shape() == labels.shape() && width > 1).then_some(())?;
    Some((ids.as_i32()?, labels.as_i32()?, width))
}

/// Labels `(N, T)` moved one position to the left: each position has the token after it, the last one none.
pub fn shifted(labels: &Tensor) -> Option<Tensor> {
    let width = *labels.shape().last().filter(|w| **w > 0)?;
    let mut out = labels.as_i32()?.to_vec();
    for row in out.chunks_mut(width) {
        row.rotate_left(1);
        row[width - 1] = -100;
    }
    Some(Tensor::i32(labels.shape().to_vec(), out))
}
