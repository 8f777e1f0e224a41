//! Probes a model for how it treats padding and later tokens, by running a row or two before training.
//!
//! A file does not say whether its mask covers everything that reads padded positions, or whether its logits see the token they are to
//! predict. Running a row twice shows both.

use super::Error;
use super::compile::{self, LossChoice};
use super::folding::evaluate;
use super::training::Trainee;
use crate::device::{Device, Run};
use crate::ir::{DType, Graph, Leaf, Tensor, Type};
use crate::lower::LowerError;
use crate::lower::loss::Loss;
use crate::onnx::Model;
use crate::train::data::{Axis, Batch, DataError, Dataset, Feed, Padding, Source, Task};
use crate::train::{Purpose, Session, Shapes};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Two results differ if they do by more than this share of the largest one: far above rounding, far below any real effect.
const DIFFERS: f32 = 1e-4;

/// The most texts of one length that are tried.
const PROBED: usize = 3;

/// The examples among which one is looked for that shows most.
const LOOKED_AT: usize = 4096;

/// The most tokens of a row that are changed, one at a time, to see what sees them.
const CHANGED: usize = 6;

/// Finds out how batches of a model's data sets must be made, sets the trainee's feed, and returns what a user should know.
/// Refuses next-token data for a model that sees the next token.
pub fn survey(trainee: &mut Trainee, sets: &[&Dataset], device: &mut dyn Device) -> Result<Vec<String>, Error> {
    let (name, axis) = match &trainee.program.loss {
        Some(LossChoice::Added { logits, class_axis, .. }) => (logits.clone(), *class_axis),
        Some(LossChoice::Held { output }) => (output.clone(), None),
        None => return Ok(vec![]),
    };
    let mut probe = trainee.clone();
    probe.program.outputs = vec![name.clone()];
    let mut notes = Vec::new();
    if let Some(first) = sets.first()
        && sums_to_one(&mut probe, first, axis, device)?
        && let Some(LossChoice::Added { probabilities, .. }) = &mut trainee.program.loss
    {
        *probabilities = true;
        notes.push(format!("'{name}' holds probabilities, which sum to 1: the loss takes their logarithms"));
    }
    if !trainee.feed.inputs.iter().any(|i| i.name == "input_ids") {
        return Ok(notes);
    }
    let feed = trainee.feed.clone();
    let padding = probe.session(device, |session| {
        let mut found = feed.padding;
        for data in sets {
            if data.next_token() || data.task() == Task::Prefer {
                refuse_sight(session, data, axis)?;
            }
            if matches!(data.source, Source::Text { .. }) && found != Padding::Never {
                let feed = Feed { padding: found, ..feed.clone() };
                found = padding(session, data, &feed, &mut notes)?;
            }
        }
        Ok(found)
    })?;
    let several = |data: &&Dataset| data.task().texts() > 1 || data.task() == Task::SequenceToSequence;
    if padding == Padding::Never && sets.iter().any(several) {
        let why =
            "padding changes what this model computes, and the texts of a row, which run together, differ in length";
        return Err(Error::Usage(format!(
            "{}: {why}\nhint: export the model with an input 'attention_mask' that reaches everything that reads positions",
            trainee.program.model.path().display()
        )));
    }
    trainee.feed.padding = padding;
    if let Some(packed) = sets.iter().find(|_| trainee.program.packs) {
        probe.feed.padding = padding;
        super::packing::check(&mut probe, packed, device)?;
    }
    Ok(notes)
}

/// Whether what cross-entropy is taken on are probabilities of a softmax that the model writes in some form of its own: numbers from 0
/// to 1 that sum to 1 over the classes. What comes straight out of a product has no such form and is not run.
fn sums_to_one(
    probe: &mut Trainee,
    data: &Dataset,
    class_axis: Option<usize>,
    device: &mut dyn Device,
) -> Result<bool, Error> {
    let Some(LossChoice::Added { loss, logits, probabilities: false, .. }) = &probe.program.loss else {
        return Ok(false);
    };
    if *loss != Loss::CROSS_ENTROPY {
        return Ok(false);
    }
    let model = probe.program.model.clone();
    let producers = model.producers();
    let mut name = logits.clone();
    let operator = loop {
        let Some(node) = producers.get(name.as_str()).map(|id| model.node(*id)) else { return Ok(false) };
        match (node.op_type(), node.input(0)) {
            ("Identity" | "Cast" | "Reshape" | "Squeeze" | "Unsqueeze" | "Transpose" | "Flatten", Some(input)) => {
                name = input.to_string();
            }
            (operator, _) => break operator,
        }
    };
    if matches!(operator, "MatMul" | "Gemm" | "Add" | "MatMulNBits" | "Conv" | "LogSoftmax") {
        return Ok(false);
    }
    let rows: Vec<usize> = (0..data.len().min(4)).collect();
    let feed = probe.feed.clone();
    probe.session(device, |session| {
        let rows = data.batches(&feed, &rows, rows.len()).swap_remove(0);
        let Some(t) = outputs(session, &data.batch(&feed, &rows)?)? else { return Ok(false) };
        let (shape, Some(x)) = (t.shape().to_vec(), t.as_f32()) else { return Ok(false) };
        let Some(axis) = class_axis.or(shape.len().checked_sub(1)).filter(|a| *a > 0 && shape[*a] > 1) else {
            return Ok(false);
        };
        let (n, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        let sums = (0..x.len() / n).map(|row| {
            let at = row / inner * n * inner + row % inner;
            (0..n).map(|k| f64::from(x[at + k * inner])).sum::<f64>()
        });
        Ok(x.iter().all(|x| (0.0..=1.0).contains(x)) && { sums }.all(|s| (s - 1.0).abs() < 1e-3))
    })
}

/// The one output of a run of a batch.
pub(super) fn outputs(session: &mut Session, batch: &Batch) -> Result<Option<Tensor>, Error> {
    let plan = session.plan(batch, Purpose::Infer)?;
    session.device.submit(vec![Run { plan, inputs: batch.inputs.clone() }])?;
    let runs = session.collect(true)?.into_iter().flat_map(|f| f.runs).flatten();
    Ok(runs.map(|(_, t)| t).next())
}

/// Whether padding changes what the model gives for a text, and how to do without.
fn padding(session: &mut Session, data: &Dataset, feed: &Feed, notes: &mut Vec<String>) -> Result<Padding, Error> {
    let Source::Text { examples, pad_left, .. } = &data.source else { return Ok(feed.padding) };
    let masks = feed.inputs.iter().any(|i| i.name == "attention_mask");
    if let Some(n) = feed.fixed_length() {
        if !masks && examples.lengths().any(|length| length < n) {
            notes.push(format!(
                "the model takes {n} tokens and no attention_mask: texts are padded to {n}, and the model reads the padding"
            ));
        }
        if *pad_left && data.next_token() && feed.padding == Padding::AsConfigured {
            // Whatever the tokenizer's side: a causal model's tokens see nothing of what comes after them.
            return Ok(Padding::Right);
        }
        return Ok(feed.padding);
    }
    // Texts of the shortest and of the middle length, some of each, alone and padded.
    let mut lengths: Vec<usize> = examples.lengths().filter(|n| *n > 0).collect();
    lengths.sort_unstable();
    let (Some(&shortest), Some(&middle)) = (lengths.first(), lengths.get(lengths.len() / 2)) else {
        return Ok(feed.padding);
    };
    let never = Feed { padding: Padding::Never, ..feed.clone() };
    let mut plain = Vec::new();
    for length in if shortest == middle { vec![shortest] } else { vec![shortest, middle] } {
        let room = data.limit.unwrap_or(usize::MAX).min(feed.max_length.max(length));
        if room <= length {
            continue;
        }
        let of_length = (0..examples.len()).filter(|&i| examples.length(i) == length).take(PROBED);
        for example in of_length {
            // Of an encoder and a decoder, what the decoder writes shows.
            let shown = match data.task() {
                Task::SequenceToSequence => examples.get(example).map_err(DataError::from)?.text(1).0.len(),
                _ => length,
            };
            if let Some(alone) = outputs(session, &data.batch(&never, &data.alone(&never, example))?)? {
                plain.push((example, shown, room.min(length + 3), alone));
            }
        }
    }
    let mut sides = vec![feed.padding];
    if *pad_left && feed.padding == Padding::AsConfigured {
        sides.push(Padding::Right);
    }
    for side in sides {
        let left = *pad_left && side == Padding::AsConfigured;
        let mut same = true;
        for (example, length, to, alone) in &plain {
            let padded = data.padded(&Feed { padding: side, ..feed.clone() }, *example, *to)?;
            same = same && outputs(session, &padded)?.is_none_or(|other| agree(alone, &other, *length, left));
        }
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
    notes.push(format!("{why}: padding is off, and batches hold texts of equal length"));
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

pub(super) fn differ(a: &[f32], b: &[f32]) -> bool {
    // By the usual size of an element: logits of classes that are ruled out may be as large as floats get.
    let mut sizes: Vec<f32> = a.iter().chain(b).map(|x| x.abs()).filter(|x| x.is_finite() && *x > 0.0).collect();
    let middle = sizes.len() / 2;
    let usual = if sizes.is_empty() { 0.0 } else { *sizes.select_nth_unstable_by(middle, f32::total_cmp).1 };
    let apart = |(x, y): (&f32, &f32)| match (x.is_nan(), y.is_nan()) {
        (true, true) => false,
        (false, false) => x != y && (x - y).abs() > DIFFERS * usual.max(x.abs()).max(y.abs()),
        _ => true,
    };
    a.iter().zip(b).any(apart)
}

/// Refuses a model whose logits see the next token: changes tokens of a row, one at a time, and looks at the logits before them.
/// `class_axis` is the axis of the classes where that is not the last.
fn refuse_sight(session: &mut Session, data: &Dataset, class_axis: Option<usize>) -> Result<(), Error> {
    let decodes = data.task() == Task::SequenceToSequence;
    let (ids, mask) = match decodes {
        true => ("decoder_input_ids", "decoder_attention_mask"),
        false => ("input_ids", "attention_mask"),
    };
    // A row of many different tokens shows most; a long one costs more to compile.
    let example = match &data.source {
        Source::Text { examples, .. } => {
            let kinds = |ids: &[i32]| ids.iter().collect::<BTreeSet<_>>().len().min(8);
            let mut best: Option<((usize, Reverse<usize>), usize)> = None;
            for (i, e) in examples.iter().enumerate().take(LOOKED_AT) {
                let e = e.map_err(DataError::from)?;
                let own = e.text(usize::from(decodes)).0;
                let worth = (kinds(own), Reverse(own.len()));
                if own.len() >= 2 && best.is_none_or(|b| worth >= b.0) {
                    best = Some((worth, i));
                }
            }
            best.map(|b| b.1)
        }
        Source::Tensors { .. } => {
            let rows = 0..data.len().min(64);
            rows.max_by_key(|&r| (data.row("input_ids", r).iter().collect::<BTreeSet<_>>().len(), Reverse(r)))
        }
    };
    let Some(example) = example else { return Ok(()) };
    let never = Feed { padding: Padding::Never, ..session.feed.clone() };
    let batch = data.batch(&never, &data.alone(&never, example))?;
    let find = |name: &str| batch.inputs.iter().position(|(n, _)| n == name);
    let Some(at) = find(ids) else { return Ok(()) };
    let length = batch.inputs[at].1.shape()[1];
    let ids = batch.inputs[at].1.as_i32().unwrap_or_default()[..length].to_vec();
    // The positions of the text, in a row that the data may have padded.
    let counts = |p: &usize| match find(mask).map(|m| &batch.inputs[m].1) {
        Some(Tensor::F32(m)) => m.iter().nth(*p).is_some_and(|&x| x == 1.0),
        Some(m) => m.words()[*p] != 0,
        None => true,
    };
    let held: Vec<usize> = (0..length).filter(counts).collect();
    if held.len() < 2 {
        return Ok(());
    }
    let Some(first) = outputs(session, &batch)? else { return Ok(()) };
    let axis = match (first.shape().len(), class_axis) {
        (3, Some(1)) => 2,
        (3, _) => 1,
        _ => return Ok(()),
    };
    if first.shape()[axis] != length {
        return Ok(());
    }
    let step = (held.len() - 1).div_ceil(CHANGED).max(1);
    let places: BTreeSet<usize> = held[1..].iter().copied().step_by(step).chain(held.last().copied()).collect();
    for place in places {
        // Any other token that the data has, else the next number.
        let others = data.integers("input_ids").unwrap_or((0, 1));
        let other = held.iter().map(|&p| ids[p]).find(|x| *x != ids[place]).unwrap_or(match ids[place] {
            x if i64::from(x) > others.0 => x - 1,
            x => x + 1,
        });
        let mut changed = batch.clone();
        let words = &mut changed.inputs[at].1;
        let mut all = words.as_i32().unwrap_or_default().to_vec();
        all[place] = other;
        *words = Tensor::i32(words.shape().to_vec(), all);
        let Some(second) = outputs(session, &changed)? else { return Ok(()) };
        let before = |t: &Tensor| -> Vec<f32> {
            let (shape, x) = (t.shape().to_vec(), t.as_f32().unwrap_or_default());
            let inner: usize = shape[axis + 1..].iter().product();
            let outer = if axis == 2 { shape[1] } else { 1 };
            (0..outer)
                .flat_map(|o| {
                    let from = o * length * inner;
                    x[from + held[0] * inner..from + place * inner].to_vec()
                })
                .collect()
        };
        if differ(&before(&first), &before(&second)) {
            let why = "its labels are the next token at each position, but the model sees that token already: changing a token \
                       of a row changes the logits before it, so the model is not causal (a masked language model or an \
                       encoder), and it would learn to copy\n\
                       hint: train a model that was exported with a causal mask, or give labels of your own in a \
                       .safetensors file";
            return Err(DataError::Fit { path: data.path.clone(), why: why.into() }.into());
        }
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
    let at = (0..examples.len()).max_by_key(|&e| examples.length(e)).expect("there is a longest");
    let example = examples.get(at).map_err(DataError::from)?;
    let texts = (0..=example.further.len()).map(|n| example.text(n).0);
    let row = &texts.max_by_key(|ids| ids.len()).unwrap_or_default().to_vec();
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
        let within = |ids: &[i32]| match evaluate(graph, node.inputs[1], &|name, ty| row(name, ty, ids)) {
            Some(t) => t.as_i32().is_none_or(|x| x.iter().all(|&i| i < rows && i >= -rows)),
            None => true,
        };
        // An index that some token's number takes out of its table says nothing of positions.
        within(ids) || ids.iter().collect::<BTreeSet<_>>().into_iter().take(4).any(|&id| within(&vec![id; ids.len()]))
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
