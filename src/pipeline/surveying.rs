//! What a model does with padding and with later tokens, found by running it on a row or two before data goes in.
//!
//! A file does not say whether its mask reaches everything that reads padded positions, nor whether its logits see the
//! token that they are to predict. Both show at once when a row is run twice.

use super::Error;
use super::compile::{self, LossChoice};
use super::folding::evaluate;
use super::training::Trainee;
use crate::device::{Device, Run};
use crate::ir::{DType, Graph, Leaf, Tensor, Type};
use crate::lower::LowerError;
use crate::onnx::Model;
use crate::train::data::{Axis, Batch, DataError, Dataset, Feed, Padding, Source};
use crate::train::{Purpose, Session, Shapes};
use std::sync::Arc;

/// Two results differ if they do by more than this share of the largest one: far above rounding, far below any real effect.
const DIFFERS: f32 = 1e-4;

/// Finds out how batches of `data` must be made, sets the trainee's feed, and returns what a user should know. Refuses
/// next-token data for a model that sees the next token.
pub fn survey(trainee: &mut Trainee, data: &Dataset, device: &mut dyn Device) -> Result<Vec<String>, Error> {
    let Some(LossChoice::Added { logits, .. }) = trainee.program.loss.clone() else { return Ok(vec![]) };
    if !trainee.feed.inputs.iter().any(|i| i.name == "input_ids") {
        return Ok(vec![]);
    }
    let mut probe = Trainee { program: trainee.program.clone(), ..trainee.clone() };
    probe.program.outputs = vec![logits];
    let mut notes = Vec::new();
    let text = matches!(data.source, Source::Text { .. });
    let feed = trainee.feed.clone();
    let padding = probe.session(device, |session| {
        if data.next_token() {
            refuse_sight(session, data)?;
        }
        if text { padding(session, data, &feed, &mut notes) } else { Ok(feed.padding) }
    })?;
    trainee.feed.padding = padding;
    Ok(notes)
}

/// The one output of a run of a batch.
fn outputs(session: &mut Session, batch: &Batch) -> Result<Option<Tensor>, Error> {
    let plan = session.plan(batch, Purpose::Infer)?;
    session.device.submit(vec![Run { plan, inputs: batch.inputs.clone() }])?;
    let runs = session.device.collect(true)?.into_iter().flat_map(|f| f.runs).flatten();
    Ok(runs.map(|(_, t)| t).next())
}

/// Whether padding changes what the model gives for a text, and how to do without.
fn padding(session: &mut Session, data: &Dataset, feed: &Feed, notes: &mut Vec<String>) -> Result<Padding, Error> {
    let Source::Text { examples, pad_left, .. } = &data.source else { return Ok(feed.padding) };
    let masks = feed.inputs.iter().any(|i| i.name == "attention_mask");
    if let Some(n) = feed.fixed_length() {
        if !masks && examples.iter().any(|e| e.ids.len() < n) {
            notes.push(format!(
                "the model takes {n} tokens and no attention_mask: texts are padded to {n}, and the model reads the padding"
            ));
        }
        return Ok(feed.padding);
    }
    // The shortest text that has any tokens to speak of, alone.
    let lengths = examples.iter().enumerate().map(|(i, e)| (e.ids.len(), i));
    let Some((length, example)) = lengths.filter(|(n, _)| *n > 0).min() else { return Ok(feed.padding) };
    let room = data.limit.unwrap_or(usize::MAX).min(feed.max_length.max(length));
    if room <= length {
        return Ok(feed.padding);
    }
    let never = Feed { padding: Padding::Never, ..feed.clone() };
    let alone = data.batch(&never, &[example])?;
    let Some(plain) = outputs(session, &alone)? else { return Ok(feed.padding) };
    let mut sides = vec![feed.padding];
    if *pad_left {
        sides.push(Padding::Right);
    }
    for side in sides {
        let padded = data.padded(&Feed { padding: side, ..feed.clone() }, example, room.min(length + 3))?;
        let left = *pad_left && side == Padding::AsConfigured;
        let same = match outputs(session, &padded)? {
            Some(other) => agree(&plain, &other, length, left),
            None => true,
        };
        if same {
            if side != feed.padding {
                notes.push(
                    "padding on the left, as the tokenizer's configuration has it, changes what this model computes: texts \
                     are padded on the right"
                        .into(),
                );
            }
            return Ok(side);
        }
    }
    let why = match masks {
        true => "the attention_mask of this model does not reach everything that reads padded positions",
        false => "this model takes no attention_mask, and padding changes what it computes",
    };
    notes.push(format!("{why}: texts are not padded, and a batch holds texts of one length"));
    Ok(Padding::Never)
}

/// Whether an output of a text alone, `length` positions, is that of the same text padded, in the positions of the text.
fn agree(alone: &Tensor, padded: &Tensor, length: usize, left: bool) -> bool {
    let (Some(a), Some(b)) = (alone.as_f32(), padded.as_f32()) else { return true };
    let (sa, sb) = (alone.shape(), padded.shape());
    if sa == sb {
        return !differ(a, b);
    }
    // The one axis that the two do not share holds positions.
    let axes: Vec<usize> = (0..sa.len().min(sb.len())).filter(|&d| sa[d] != sb[d]).collect();
    let &[axis] = &axes[..] else { return false };
    if sa.len() != sb.len() || sa[axis] != length || sb[axis] < length {
        return false;
    }
    let (outer, inner) = (sa[..axis].iter().product::<usize>(), sa[axis + 1..].iter().product::<usize>());
    let skip = if left { sb[axis] - length } else { 0 };
    let kept: Vec<f32> = (0..outer)
        .flat_map(|o| {
            let at = (o * sb[axis] + skip) * inner;
            b[at..at + length * inner].iter().copied()
        })
        .collect();
    !differ(a, &kept)
}

fn differ(a: &[f32], b: &[f32]) -> bool {
    let top = a.iter().chain(b).filter(|x| x.is_finite()).fold(0f32, |m, x| m.max(x.abs()));
    let apart = |(x, y): (&f32, &f32)| match (x.is_nan(), y.is_nan()) {
        (true, true) => false,
        (false, false) => x != y && (x - y).abs() > DIFFERS * top,
        _ => true,
    };
    a.iter().zip(b).any(apart)
}

/// Refuses a model whose logits see the next token: changes the last token of a row and looks at those before it.
fn refuse_sight(session: &mut Session, data: &Dataset) -> Result<(), Error> {
    let (example, length) = match &data.source {
        Source::Text { examples, .. } => {
            let found = examples.iter().enumerate().filter(|(_, e)| e.ids.len() >= 3);
            let Some((i, e)) = found.min_by_key(|(_, e)| e.ids.len()) else { return Ok(()) };
            (i, e.ids.len())
        }
        Source::Tensors { tensors, .. } => (0, tensors["input_ids"].shape()[1]),
    };
    let never = Feed { padding: Padding::Never, ..session.feed.clone() };
    let Ok(batch) = data.batch(&never, &[example]) else { return Ok(()) };
    let find = |name: &str| batch.inputs.iter().position(|(n, _)| n == name);
    let Some(at) = find("input_ids") else { return Ok(()) };
    let ids = batch.inputs[at].1.as_i32().unwrap_or_default()[..batch.inputs[at].1.shape()[1]].to_vec();
    // The last position of the text, in a row that the data may have padded.
    let mask = find("attention_mask").and_then(|m| batch.inputs[m].1.as_i32());
    let last = match mask {
        Some(mask) => (0..ids.len()).rev().find(|&p| mask[p] != 0).unwrap_or(0),
        None => length.min(ids.len()) - 1,
    };
    let first = mask.and_then(|m| (0..ids.len()).find(|&p| m[p] != 0)).unwrap_or(0);
    if last < first + 2 {
        return Ok(());
    }
    let other = ids[first..last].iter().copied().find(|x| *x != ids[last]);
    let Some(other) = other else { return Ok(()) };
    let mut changed = batch.clone();
    let words = &mut changed.inputs[at].1;
    let mut all = words.as_i32().unwrap_or_default().to_vec();
    all[last] = other;
    *words = Tensor::i32(words.shape().to_vec(), all);
    let (Some(a), Some(b)) = (outputs(session, &batch)?, outputs(session, &changed)?) else { return Ok(()) };
    let (Some(x), Some(y)) = (a.as_f32(), b.as_f32()) else { return Ok(()) };
    let &[_, positions, width] = a.shape() else { return Ok(()) };
    if positions != ids.len() {
        return Ok(());
    }
    let span = first * width..last * width;
    if differ(&x[span.clone()], &y[span]) {
        let why = "its labels are the next token at each position, but the model sees that token already: changing the last \
                   token of a row changes the logits before it, so the model is not causal (a masked language model or an \
                   encoder), and it would learn to copy\n\
                   hint: train a model that was exported with a causal mask, or give labels of your own in a .safetensors \
                   file";
        return Err(DataError::Fit { path: data.path.clone(), why: why.into() }.into());
    }
    Ok(())
}

/// A text data set as far as the model's positions go: where longer texts are there, it is read again and cut, and a note
/// says so.
pub fn within_positions(model: &Arc<Model>, data: Dataset) -> Result<Dataset, Error> {
    let (Some(longest), Source::Text { examples, .. }) = (data.longest(), &data.source) else { return Ok(data) };
    let inputs = super::input_specs(model);
    if !inputs.iter().any(|i| i.name == "input_ids") || longest == 0 {
        return Ok(data);
    }
    let feed = Feed::new(inputs, usize::MAX);
    let row = examples.iter().map(|e| &e.ids).max_by_key(|ids| ids.len()).expect("there is a longest");
    let room = crate::train::data::buckets(longest);
    let limit = match feed.fixed_length() {
        Some(n) => n,
        None if takes(model, &feed, row, room) => return Ok(data),
        None if !takes(model, &feed, row, 1) => return Ok(data),
        None => {
            let (mut good, mut bad) = (1, room);
            while good + 1 < bad {
                let middle = good.midpoint(bad);
                if takes(model, &feed, row, middle) { good = middle } else { bad = middle }
            }
            good
        }
    };
    let mut data = match longest > limit {
        true => {
            let mut cut = data.cut_at(limit)?;
            cut.notes.push(format!(
                "{}: the model takes at most {limit} tokens (positions): longer texts were cut there, not at --max-length {}",
                cut.path.display(),
                data.options.max_length
            ));
            cut
        }
        false => data,
    };
    data.limit = Some(limit);
    Ok(data)
}

/// Whether a model can be lowered for a row of `length` tokens, and every table that it looks positions up in has them.
fn takes(model: &Arc<Model>, feed: &Feed, row: &[i32], length: usize) -> bool {
    let mut ids = row[..length.min(row.len())].to_vec();
    let fill = ids.last().copied().unwrap_or(0);
    ids.resize(length, fill);
    let mut shapes: Shapes = compile::shapes_at(&model.inputs(), 1, length);
    for input in &feed.inputs {
        let fixed = matches!(input.dims.as_deref(), Some([_, Axis::Fixed(_)]));
        if matches!(input.name.as_str(), "input_ids" | "attention_mask" | "token_type_ids" | "position_ids")
            && input.dims.as_ref().is_none_or(|d| d.len() == 2)
            && !fixed
        {
            let rows = shapes.get(&input.name).and_then(|s| s.first().copied()).unwrap_or(1);
            shapes.insert(input.name.clone(), vec![rows, length]);
        }
    }
    let names: Vec<String> = model.outputs().into_iter().filter(|o| o.element.is_float()).map(|o| o.name).collect();
    match compile::lowered_graph(model, &shapes, &names) {
        Ok(graph) => {
            let bounds = compile::index_bounds(&graph);
            bounds.get("position_ids").is_none_or(|&n| length <= n) && positions_within(&graph, &ids)
        }
        Err(Error::Lower(LowerError::Node { .. })) => false,
        Err(_) => true,
    }
}

/// Whether the positions that a graph computes from ids and mask lie within the tables they are looked up in.
fn positions_within(graph: &Graph, ids: &[i32]) -> bool {
    graph.nodes.iter().filter(|n| n.op == "gather").all(|node| {
        let rows = graph.shape(node.inputs[0])[node.attrs.int("axis") as usize] as i32;
        if matches!(graph.leaf(graph.through_reshapes(node.inputs[1])), Some(Leaf::Input(_))) {
            return true;
        }
        match evaluate(graph, node.inputs[1], &|name, ty| row(name, ty, ids)) {
            Some(t) => t.as_i32().is_none_or(|x| x.iter().all(|&i| i < rows && i >= -rows)),
            None => true,
        }
    })
}

/// What a graph input holds for a row of ids under a mask of ones; `None` for other inputs.
fn row(name: &str, ty: &Type, ids: &[i32]) -> Option<Tensor> {
    let n = ty.shape.elements();
    let row: Vec<i32> = match name {
        "input_ids" => ids.iter().copied().cycle().take(n).collect(),
        "attention_mask" => vec![1; n],
        "token_type_ids" => vec![0; n],
        _ => return None,
    };
    let word = |x: i32| if ty.dtype == DType::F32 { (x as f32).to_bits() } else { x as u32 };
    Some(Tensor::from_words(ty, row.into_iter().map(word).collect()))
}
