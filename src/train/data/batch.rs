//! Batches: which examples, in which order, as which tensors.

use super::inputs::complete;
use super::labels::UNCOUNTED;
use super::padded::unpadded;
use super::{
    Axis, DataError, Dataset, InputSpec, Label, LabelForm, Shapes, Source, Task, TextExample, columns, tensors,
};
use crate::ir::Tensor;
use crate::ir::inputs::SEGMENTS;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// A micro-batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// One tensor for each graph input, but those that are known.
    pub inputs: Vec<(String, Tensor)>,
    /// Inputs that programs are made for by value.
    pub known: Vec<(String, Tensor)>,
    pub labels: Option<Tensor>,
    /// Examples, without rows that only fill up a fixed batch.
    pub examples: usize,
    /// Labels that count: those that are not -100, or every element of float labels but those of rows that fill up.
    pub counted: usize,
    /// Positions that are not padding, or examples where there are no positions.
    pub tokens: usize,
}

impl Batch {
    /// Inputs alone, of which none is known.
    pub fn of(inputs: Vec<(String, Tensor)>) -> Batch {
        Batch { inputs, known: vec![], labels: None, examples: 1, counted: 0, tokens: 0 }
    }

    /// What a program for this batch is made for.
    pub fn shapes(&self) -> Shapes {
        let shapes: Shapes = self.inputs.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
        shapes.with_known(&self.known)
    }
}

/// The order of examples, epoch by epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub shuffle: bool,
    pub seed: u64,
}

impl Order {
    /// The examples of an epoch, cut into batches; the last may be smaller.
    pub fn epoch(&self, epoch: usize, examples: usize, batch_size: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..examples).collect();
        if self.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch as u64 + 1);
            order.shuffle(&mut rng);
        }
        order.chunks(batch_size).map(<[usize]>::to_vec).collect()
    }
}

/// The lengths that texts are padded to: few, so that few shapes are compiled.
pub fn buckets(length: usize) -> usize {
    match length {
        0..=16 => 16,
        17..=128 => length.next_multiple_of(16),
        129..=512 => length.next_multiple_of(64),
        _ => length.next_multiple_of(256),
    }
}

/// Whether texts of a batch are padded to one length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// On the side that the tokenizer's configuration names.
    #[default]
    AsConfigured,
    /// After the text, whatever the configuration names.
    Right,
    /// Never: padding would change the model's results. Batches hold texts of one length.
    Never,
}

/// Tensors by name.
type Named = Vec<(String, Tensor)>;

/// How batches are made for a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Feed {
    pub inputs: Vec<InputSpec>,
    /// Tokens kept of each text.
    pub max_length: usize,
    pub padding: Padding,
    pub labels: LabelForm,
    /// The model holds its loss, which counts every row of a batch.
    pub holds_loss: bool,
    /// Inputs that shapes depend on: a program is made for each of their values.
    pub known: BTreeSet<String>,
    /// Rows hold several texts, whose numbers are in the place of segment ids.
    pub packs: bool,
}

impl Feed {
    pub fn new(inputs: Vec<InputSpec>, max_length: usize) -> Feed {
        Feed { inputs, max_length, ..Feed::default() }
    }

    /// A batch of given tensors, with what else the model reads made where that is usual.
    pub fn complete(&self, mut given: BTreeMap<String, Tensor>, rows: usize, length: usize) -> Result<Batch, String> {
        let (known, inputs) = self.split(complete(&self.inputs, &mut given, rows, length)?);
        Ok(Batch { known, ..Batch::of(inputs) })
    }

    /// The inputs that are known while compiling, and the others.
    fn split(&self, inputs: Named) -> (Named, Named) {
        inputs.into_iter().partition(|(name, _)| self.known.contains(name))
    }

    /// The number of examples that an input is declared with, and its name.
    fn fixed_batch(&self) -> Option<(usize, &str)> {
        self.inputs.iter().find_map(|i| match i.dims.as_deref() {
            Some([Axis::Fixed(n), _, ..]) => Some((*n, i.name.as_str())),
            _ => None,
        })
    }

    /// The number of positions that the model's `input_ids` are declared with.
    pub fn fixed_length(&self) -> Option<usize> {
        self.fixed_length_of("input_ids")
    }

    /// The number of positions that an input is declared with.
    fn fixed_length_of(&self, name: &str) -> Option<usize> {
        let declared = self.inputs.iter().find(|i| i.name == name).and_then(|i| i.dims.as_deref());
        match declared {
            Some([_, Axis::Fixed(n)]) => Some(*n),
            _ => None,
        }
    }
}

/// How the rows of a batch of texts are laid out.
struct TextShape {
    /// Examples; rows beyond them only fill up.
    real: usize,
    pad: i32,
    /// Whether padding stands before the text.
    left: bool,
    /// Positions to pad to at least.
    at_least: usize,
}

impl Dataset {
    /// The examples in batches of at most `size`, in order; where nothing may be padded, each batch holds texts of one length.
    pub fn batches(&self, feed: &Feed, examples: &[usize], size: usize) -> Vec<Vec<usize>> {
        let size = size.max(1);
        let Source::Text { examples: texts, .. } = &self.source else {
            return examples.chunks(size).map(<[usize]>::to_vec).collect();
        };
        if feed.padding != Padding::Never {
            return examples.chunks(size).map(<[usize]>::to_vec).collect();
        }
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &e in examples {
            by_length.entry(texts.length(e)).or_default().push(e);
        }
        by_length.values().flat_map(|group| group.chunks(size).map(<[usize]>::to_vec)).collect()
    }

    /// The tensors of some examples, as the model's inputs.
    pub fn batch(&self, feed: &Feed, examples: &[usize]) -> Result<Batch, DataError> {
        let fixed = feed.fixed_batch();
        // A graph with a fixed batch gets its missing rows filled: copies of the first, whose labels do not count.
        let mut rows = examples.to_vec();
        let per = self.task().texts();
        if let Some((n, name)) = fixed.filter(|f| per > 1 && rows.len() * per != f.0) {
            let (have, whole) = (rows.len() * per, n / per);
            let why = format!("input '{name}' holds {n} texts, and {} rows of {per} texts have {have}", rows.len());
            let hint = match n % per == 0 {
                true => format!("--batch-size {whole}, and a multiple of {whole} rows"),
                false => "export the model with a batch of any size".to_string(),
            };
            return Err(self.misfit(format!("{why}\nhint: {hint}")));
        }
        if let Some((n, name)) = fixed.filter(|_| per == 1)
            && rows.len() != n
        {
            if rows.len() > n {
                let why = format!("input '{name}' holds {n} examples\nhint: --batch-size {n}");
                return Err(self.misfit(why));
            }
            if feed.holds_loss {
                let why = format!(
                    "the model takes {n} examples at a time and holds its loss, which would count rows that only fill \
                     up a batch of {}\nhint: give a multiple of {n} examples with --batch-size {n} (there are {})",
                    rows.len(),
                    self.len()
                );
                return Err(self.misfit(why));
            }
            rows.resize(n, rows[0]);
        }
        match &self.source {
            Source::Text { task, examples: texts, pad_id, pad_left } => {
                let texts: Vec<Cow<TextExample>> = rows.iter().map(|&r| texts.get(r)).collect::<Result<_, _>>()?;
                let texts: Vec<&TextExample> = texts.iter().map(AsRef::as_ref).collect();
                let left = *pad_left && feed.padding == Padding::AsConfigured;
                let shape = TextShape { real: examples.len(), pad: *pad_id, left, at_least: 0 };
                self.text_batch(feed, *task, &texts, shape)
            }
            Source::Tensors { tensors, images: None, .. } => self.tensor_batch(feed, tensors, &rows, examples.len()),
            Source::Tensors { tensors, images: Some(images), .. } => {
                let cut = tensors.iter().map(|(name, t)| (name.clone(), tensors::rows(t, &rows)));
                let mut own: BTreeMap<String, Tensor> = cut.collect();
                own.insert(images.input.name.clone(), images.tensor(&rows)?);
                self.tensor_batch(feed, &own, &(0..rows.len()).collect::<Vec<usize>>(), examples.len())
            }
        }
    }

    /// An example as a batch to look at: as often as a graph of a fixed batch takes rows of several texts.
    pub fn alone(&self, feed: &Feed, example: usize) -> Vec<usize> {
        let per = self.task().texts();
        let rows = feed.fixed_batch().filter(|_| per > 1).map_or(1, |(n, _)| (n / per).max(1));
        vec![example; rows]
    }

    /// A batch of one text that is padded to at least `length` positions, as far as the model goes.
    pub fn padded(&self, feed: &Feed, example: usize, length: usize) -> Result<Batch, DataError> {
        let Source::Text { task, examples, pad_id, pad_left } = &self.source else {
            return self.batch(feed, &[example]);
        };
        let left = *pad_left && feed.padding == Padding::AsConfigured;
        let rows = feed.fixed_batch().map_or(1, |(n, _)| n.div_ceil(task.texts()));
        let shape = TextShape { real: 1, pad: *pad_id, left, at_least: length };
        let text = examples.get(example)?;
        self.text_batch(feed, *task, &vec![text.as_ref(); rows], shape)
    }

    pub(super) fn misfit(&self, why: String) -> DataError {
        DataError::Fit { path: self.path.clone(), why }
    }

    fn text_batch(
        &self,
        feed: &Feed,
        task: Task,
        texts: &[&TextExample],
        shape: TextShape,
    ) -> Result<Batch, DataError> {
        let TextShape { real, pad, left, at_least } = shape;
        // The first texts of all rows, then the second ones, and so on.
        let stacked: Vec<_> = (0..task.texts()).flat_map(|n| texts.iter().map(move |t| t.text(n))).collect();
        let (given, rows) = (texts.len(), stacked.len());
        let decodes = task == Task::SequenceToSequence;
        let longest = |n: usize| texts.iter().map(|t| t.text(n).0.len()).max().unwrap_or(1).max(1);
        let own = if decodes { longest(0) } else { texts.iter().map(|t| t.longest()).max().unwrap_or(1).max(1) };
        if !feed.inputs.iter().any(|i| i.name == "input_ids") {
            return Err(self.misfit("the model has no input 'input_ids', which text needs".into()));
        }
        let length_of = |name: &str, longest: usize| match (feed.fixed_length_of(name), feed.padding) {
            (Some(n), _) if longest > n => {
                Err(self.misfit(format!("a text has {longest} tokens but the model takes {n}\nhint: --max-length {n}")))
            }
            (Some(n), _) => Ok(n),
            (None, Padding::Never) => Ok(longest),
            (None, _) => {
                let most = feed.max_length.min(self.limit.unwrap_or(usize::MAX));
                Ok(buckets(longest.max(at_least)).min(most).max(longest))
            }
        };
        let length = length_of("input_ids", own)?;
        let padded_to = |length: usize, xs: &[i32], fill: i32| {
            let (mut xs, missing) = (xs.to_vec(), length.saturating_sub(xs.len()));
            xs.resize(length, fill);
            if left && !decodes {
                xs.rotate_right(missing);
            }
            xs
        };
        let all = |of: &dyn Fn(usize) -> Vec<i32>, fill: i32| {
            Tensor::i32([rows, length], (0..rows).flat_map(|r| padded_to(length, &of(r), fill)).collect())
        };
        let mut known = BTreeMap::from([
            ("input_ids".to_string(), all(&|r| stacked[r].0.to_vec(), pad)),
            ("attention_mask".to_string(), all(&|r| vec![1; stacked[r].0.len()], 0)),
            ("token_type_ids".to_string(), all(&|r| stacked[r].1.to_vec(), 0)),
        ]);
        if feed.packs {
            let numbers = all(&|r| stacked[r].1.to_vec(), 0);
            known.insert("token_type_ids".into(), all(&|_| vec![], 0));
            known.insert("position_ids".into(), all(&|r| restarted(stacked[r].1), 0));
            known.insert(SEGMENTS.into(), numbers);
        }
        let numbers: Vec<&[f32]> = (0..rows).map(|r| &texts[r % given].numbers[..]).collect();
        known.extend(columns::tensors(&self.options.inputs, &numbers));
        let mut written = None;
        if decodes {
            let n = length_of("decoder_input_ids", longest(1))?;
            let of = |of: &dyn Fn(&TextExample) -> Vec<i32>, fill: i32| {
                let row = |t: &&TextExample| padded_to(n, &of(t), fill);
                Tensor::i32([rows, n], texts.iter().flat_map(row).collect())
            };
            known.insert("decoder_input_ids".into(), of(&|t| t.text(1).0.to_vec(), pad));
            known.insert("decoder_attention_mask".into(), of(&|t| vec![1; t.text(1).0.len()], 0));
            let counts = |r: usize, t: &TextExample| if r < real { t.text(1).2.to_vec() } else { vec![] };
            let row = |(r, t): (usize, &&TextExample)| padded_to(n, &counts(r, t), -100);
            written = Some(Tensor::i32([rows, n], texts.iter().enumerate().flat_map(row).collect()));
        }
        let labels = match (task, &feed.labels) {
            (Task::SequenceToSequence, _) => written,
            (Task::Embed { scored: false, .. }, _) => None,
            (Task::Embed { scored: true, .. }, _) => {
                let score = |t: &&TextExample| t.label.as_ref().map_or(0.0, |l| l.numbers()[0]);
                Some(Tensor::f32([given], texts.iter().map(score).collect()))
            }
            (Task::Classify, LabelForm::AsGiven | LabelForm::Classes) => {
                let class = |t: &TextExample| t.label.as_ref().and_then(Label::class).unwrap_or(-100);
                let label = |(r, t): (usize, &&TextExample)| if r < real { class(t) } else { -100 };
                Some(Tensor::i32([rows], texts.iter().enumerate().map(label).collect()))
            }
            (Task::Classify, LabelForm::Numbers(trailing)) => {
                let width: usize = trailing.iter().product();
                let mut flat = Vec::with_capacity(rows * width);
                for (r, t) in texts.iter().enumerate() {
                    let numbers = t.label.as_ref().filter(|_| r < real).map(Label::numbers);
                    let numbers = numbers.unwrap_or_else(|| vec![UNCOUNTED; width]);
                    if numbers.len() != width {
                        let why = format!("a label holds {} numbers, and the model has {width} outputs", numbers.len());
                        return Err(self.misfit(why));
                    }
                    flat.extend(numbers.iter().map(|&x| if x == -100.0 { UNCOUNTED } else { x }));
                }
                Some(Tensor::f32([&[rows], &trailing[..]].concat(), flat))
            }
            _ => Some(all(&|r| if r % given < real { stacked[r].2.to_vec() } else { vec![] }, -100)),
        };
        let read = |r: usize| stacked[r].0.len() + if decodes { texts[r].text(1).0.len() } else { 0 };
        let tokens = (0..rows).filter(|r| r % given < real).map(read).sum();
        // A row of several texts has one loss.
        let counted = if task.texts() > 1 { real } else { labels.as_ref().map_or(real, counted) };
        let inputs = complete(&feed.inputs, &mut known, rows, length).map_err(|why| self.misfit(why))?;
        let (known, inputs) = feed.split(inputs);
        Ok(Batch { inputs, known, counted, labels, examples: real, tokens })
    }

    fn tensor_batch(
        &self,
        feed: &Feed,
        tensors: &BTreeMap<String, Tensor>,
        rows: &[usize],
        real: usize,
    ) -> Result<Batch, DataError> {
        let mut known: BTreeMap<String, Tensor> =
            tensors.iter().map(|(name, t)| (name.clone(), tensors::rows(t, rows))).collect();
        // A graph that holds its loss may read `labels` itself.
        let own = feed.inputs.iter().any(|i| i.name == "labels");
        let mut labels = if own { known.get("labels").cloned() } else { known.remove("labels") };
        if let (LabelForm::Numbers(trailing), false) = (&feed.labels, own) {
            labels = labels.as_ref().map(|l| as_numbers(l, trailing)).transpose().map_err(|why| self.misfit(why))?;
        }
        if let (LabelForm::Classes, Some(Tensor::F32(a))) = (&feed.labels, &labels) {
            labels = Some(Tensor::I32(a.mapv(|x| x as i32)));
        }
        if rows.len() > real {
            match &mut labels {
                Some(Tensor::I32(a)) => a.slice_axis_mut(ndarray::Axis(0), (real..).into()).fill(-100),
                Some(Tensor::F32(a)) => a.slice_axis_mut(ndarray::Axis(0), (real..).into()).fill(UNCOUNTED),
                _ => {}
            }
        }
        let length = known.get("input_ids").and_then(|t| t.shape().get(1).copied()).unwrap_or(1);
        if !known.contains_key("attention_mask")
            && feed.inputs.iter().any(|i| i.name == "attention_mask")
            && let (Some(pad), Some(ids)) = (self.pad_id, known.get("input_ids").and_then(Tensor::as_i32))
        {
            let mask = ids.chunks(length.max(1)).flat_map(|row| unpadded(row, pad)).collect();
            known.insert("attention_mask".into(), Tensor::i32([rows.len(), length], mask));
        }
        let tokens = match known.get("attention_mask") {
            Some(mask) => match (mask.as_i32(), mask.as_f32()) {
                (Some(m), _) => m.iter().take(real * length).filter(|x| **x != 0).count(),
                (_, Some(m)) => m.iter().take(real * length).filter(|x| **x == 1.0).count(),
                _ => mask.words().iter().take(real * length).filter(|x| **x != 0).count(),
            },
            None => real * length,
        };
        let counted = labels.as_ref().map_or(real, counted);
        let inputs = complete(&feed.inputs, &mut known, rows.len(), length).map_err(|why| self.misfit(why))?;
        let (known, inputs) = feed.split(inputs);
        Ok(Batch { inputs, known, labels, examples: real, counted, tokens })
    }
}

/// Positions that begin again with each text.
fn restarted(segments: &[i32]) -> Vec<i32> {
    let mut out: Vec<i32> = Vec::with_capacity(segments.len());
    for (i, segment) in segments.iter().enumerate() {
        let goes_on = i > 0 && segments[i - 1] == *segment;
        out.push(if goes_on { out[i - 1] + 1 } else { 0 });
    }
    out
}

/// Labels as floats of the output's shape; -100 does not count.
fn as_numbers(labels: &Tensor, trailing: &[usize]) -> Result<Tensor, String> {
    let numbers: Vec<f32> = match labels {
        Tensor::F32(a) => a.iter().map(|&x| if x == -100.0 { UNCOUNTED } else { x }).collect(),
        Tensor::I32(a) => a.iter().map(|&x| if x == -100 { UNCOUNTED } else { x as f32 }).collect(),
        Tensor::Bool(a) => a.iter().map(|&x| x as f32).collect(),
    };
    let rows = labels.shape()[0];
    if rows * trailing.iter().product::<usize>() != numbers.len() {
        return Err(format!(
            "'labels' is {}, which does not fit outputs of {trailing:?} for each example",
            labels.ty()
        ));
    }
    Ok(Tensor::f32([&[rows], trailing].concat(), numbers))
}

fn counted(labels: &Tensor) -> usize {
    match labels {
        Tensor::I32(a) => a.iter().filter(|&&l| l != -100).count(),
        Tensor::F32(a) => a.iter().filter(|&&l| l != UNCOUNTED).count(),
        other => other.elements(),
    }
}
