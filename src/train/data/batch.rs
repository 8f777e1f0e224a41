//! Batches: which examples, in what order, and as which tensors.

use super::{Axis, DataError, Dataset, InputSpec, Label, Source, Task, TextExample, tensors};
use crate::ir::{DType, Tensor};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// A micro-batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// One tensor for each graph input.
    pub inputs: Vec<(String, Tensor)>,
    pub labels: Option<Tensor>,
    /// Examples, without rows that only fill up a fixed batch.
    pub examples: usize,
    /// Labels that count: those that are not -100, or every element of float labels.
    pub counted: usize,
    /// Positions that are not padding, or examples where there are no positions.
    pub tokens: usize,
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

impl Dataset {
    /// The tensors of some examples, as the model's inputs.
    pub fn batch(&self, inputs: &[InputSpec], examples: &[usize], max_length: usize) -> Result<Batch, DataError> {
        let fixed = inputs.iter().find_map(|i| match i.dims.as_deref() {
            Some([Axis::Fixed(n), _, ..]) => Some((*n, i.name.as_str())),
            _ => None,
        });
        // A graph with a fixed batch gets its missing rows filled: copies of the first, whose labels do not count.
        let mut rows = examples.to_vec();
        if let Some((n, name)) = fixed
            && rows.len() != n
        {
            if rows.len() > n {
                let why = format!("input '{name}' holds {n} examples\nhint: --batch-size {n}");
                return Err(self.misfit(why));
            }
            rows.resize(n, rows[0]);
        }
        let batch = match &self.source {
            Source::Text { task, examples: texts, pad_id } => {
                let texts: Vec<&TextExample> = rows.iter().map(|&r| &texts[r]).collect();
                self.text_batch(inputs, *task, &texts, examples.len(), *pad_id, max_length)?
            }
            Source::Tensors { tensors, .. } => self.tensor_batch(inputs, tensors, &rows, examples.len())?,
        };
        Ok(batch)
    }

    fn misfit(&self, why: String) -> DataError {
        DataError::Fit { path: self.path.clone(), why }
    }

    fn text_batch(
        &self,
        inputs: &[InputSpec],
        task: Task,
        texts: &[&TextExample],
        real: usize,
        pad: i32,
        max_length: usize,
    ) -> Result<Batch, DataError> {
        let rows = texts.len();
        let longest = texts.iter().map(|t| t.ids.len()).max().unwrap_or(1);
        let declared = inputs.iter().find(|i| i.name == "input_ids").and_then(|i| i.dims.as_deref());
        let length = match declared {
            Some([_, Axis::Fixed(n)]) if longest > *n => {
                return Err(
                    self.misfit(format!("a text has {longest} tokens but the model takes {n}\nhint: --max-length {n}"))
                );
            }
            Some([_, Axis::Fixed(n)]) => *n,
            _ => buckets(longest).min(max_length.max(longest)),
        };
        let fill = |of: &dyn Fn(&TextExample) -> &[i32], pad: i32| {
            let row = |t: &&TextExample| {
                let mut ids = of(t).to_vec();
                ids.resize(length, pad);
                ids
            };
            Tensor::i32([rows, length], texts.iter().flat_map(row).collect())
        };
        let ones = |t: &TextExample| t.ids.len();
        let mask: Vec<i32> =
            texts.iter().flat_map(|t| (0..length).map(|p| (p < ones(t)) as i32).collect::<Vec<_>>()).collect();
        let mut known = BTreeMap::from([
            ("input_ids".to_string(), fill(&|t| &t.ids, pad)),
            ("attention_mask".to_string(), Tensor::i32([rows, length], mask)),
            ("token_type_ids".to_string(), fill(&|t| &t.type_ids, 0)),
        ]);
        if !inputs.iter().any(|i| i.name == "input_ids") {
            return Err(self.misfit("the model has no input 'input_ids', which text needs".into()));
        }
        let labels = match task {
            Task::Classify => {
                let label = |(r, t): (usize, &&TextExample)| match &t.label {
                    Some(Label::Class(c)) if r < real => *c,
                    _ => -100,
                };
                Tensor::i32([rows], texts.iter().enumerate().map(label).collect())
            }
            _ => {
                let row = |(r, t): (usize, &&TextExample)| {
                    let mut labels = if r < real { t.labels.clone() } else { vec![] };
                    labels.resize(length, -100);
                    labels
                };
                Tensor::i32([rows, length], texts.iter().enumerate().flat_map(row).collect())
            }
        };
        let tokens = texts[..real].iter().map(|t| t.ids.len()).sum();
        let inputs = complete(inputs, &mut known, rows, length).map_err(|why| self.misfit(why))?;
        Ok(Batch { inputs, counted: counted(&labels), labels: Some(labels), examples: real, tokens })
    }

    fn tensor_batch(
        &self,
        inputs: &[InputSpec],
        tensors: &BTreeMap<String, Tensor>,
        rows: &[usize],
        real: usize,
    ) -> Result<Batch, DataError> {
        let mut known: BTreeMap<String, Tensor> =
            tensors.iter().map(|(name, t)| (name.clone(), tensors::rows(t, rows))).collect();
        // A graph that holds its loss may read `labels` itself.
        let own = inputs.iter().any(|i| i.name == "labels");
        let mut labels = if own { known.get("labels").cloned() } else { known.remove("labels") };
        if let (Some(Tensor::I32(a)), true) = (&mut labels, rows.len() > real) {
            a.slice_axis_mut(ndarray::Axis(0), (real..).into()).fill(-100);
        }
        let length = known.get("input_ids").and_then(|t| t.shape().get(1).copied()).unwrap_or(1);
        let tokens = match known.get("attention_mask") {
            Some(mask) => mask.as_i32().map_or(real, |m| m.iter().map(|&x| x as usize).sum()),
            None => real * length,
        };
        let counted = labels.as_ref().map_or(real, counted);
        let inputs = complete(inputs, &mut known, rows.len(), length).map_err(|why| self.misfit(why))?;
        Ok(Batch { inputs, labels, examples: real, counted, tokens })
    }
}

fn counted(labels: &Tensor) -> usize {
    match labels {
        Tensor::I32(a) => a.iter().filter(|&&l| l != -100).count(),
        other => other.elements(),
    }
}

/// A tensor for each of the model's inputs: from the data, or made where that is usual.
fn complete(
    inputs: &[InputSpec],
    known: &mut BTreeMap<String, Tensor>,
    rows: usize,
    length: usize,
) -> Result<Vec<(String, Tensor)>, String> {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut out = Vec::new();
    for input in inputs {
        let t = match known.get(&input.name) {
            Some(t) => t.clone(),
            None => made(input, known, &names, rows, length)?,
        };
        let t = fit(input, t, &mut names)?;
        out.push((input.name.clone(), t));
    }
    Ok(out)
}

/// Inputs the data does not hold.
fn made(
    input: &InputSpec,
    known: &BTreeMap<String, Tensor>,
    names: &BTreeMap<String, usize>,
    rows: usize,
    length: usize,
) -> Result<Tensor, String> {
    if input.name.starts_with("past_key_values") || input.name.starts_with("past_") {
        let dims = input.dims.clone().unwrap_or_default();
        let extent = |(d, axis): (usize, &Axis)| match axis {
            Axis::Fixed(n) => *n,
            Axis::Named(name) if name.contains("past") => 0,
            Axis::Named(name) if names.contains_key(name) => names[name],
            _ if d == 0 => rows,
            _ => 0,
        };
        let shape: Vec<usize> = dims.iter().enumerate().map(extent).collect();
        let none = shape.iter().product::<usize>() == 0;
        let ty = crate::ir::Type::new(input.dtype, shape);
        return match none {
            true => Ok(Tensor::zeros(&ty)),
            false => Err(format!("input '{}' has no axis to leave empty, and the data does not hold it", input.name)),
        };
    }
    let ids = known.get("input_ids").is_some();
    match input.name.as_str() {
        "token_type_ids" if ids => Ok(Tensor::i32([rows, length], vec![0; rows * length])),
        "attention_mask" if ids => Ok(Tensor::i32([rows, length], vec![1; rows * length])),
        "position_ids" if ids => {
            let ones = vec![1; rows * length];
            let mask = known.get("attention_mask").and_then(Tensor::as_i32).unwrap_or(&ones);
            let row = |m: &[i32]| {
                let mut seen = -1;
                let at = |&keep: &i32| {
                    seen += keep;
                    seen.max(0)
                };
                m.iter().map(at).collect::<Vec<i32>>()
            };
            Ok(Tensor::i32([rows, length], mask.chunks(length.max(1)).flat_map(row).collect()))
        }
        name => {
            let have: Vec<&str> = known.keys().map(String::as_str).collect();
            Err(format!(
                "the model reads '{name}', which the data does not hold; it has {}\n\
                 hint: name each tensor after the graph input it is for",
                have.join(", ")
            ))
        }
    }
}

/// Checks a tensor against an input: element type, number of axes, fixed extents, and names that occur twice.
fn fit(input: &InputSpec, t: Tensor, names: &mut BTreeMap<String, usize>) -> Result<Tensor, String> {
    let t = match (input.dtype, t) {
        (DType::Bool, Tensor::I32(a)) => Tensor::Bool(a.mapv(|x| (x != 0) as u32)),
        (DType::I32, Tensor::Bool(a)) => Tensor::I32(a.mapv(|x| x as i32)),
        (DType::F32, Tensor::I32(a)) => Tensor::F32(a.mapv(|x| x as f32)),
        (_, t) => t,
    };
    let declared = |dims: &Vec<Axis>| {
        let axis = |a: &Axis| match a {
            Axis::Fixed(n) => n.to_string(),
            Axis::Named(name) => name.clone(),
            Axis::Unknown => "?".into(),
        };
        format!("[{}]", dims.iter().map(axis).collect::<Vec<_>>().join(","))
    };
    let wrong = |what: String| {
        let shape = input.dims.as_ref().map(declared).unwrap_or_default();
        let ty = t.ty();
        format!("'{}' is {ty}, but {what}\nhint: the model declares it as {}{shape}", input.name, input.dtype)
    };
    if t.dtype() != input.dtype {
        return Err(wrong(format!("the model reads {}", input.dtype)));
    }
    let Some(dims) = &input.dims else { return Ok(t) };
    if dims.len() != t.shape().len() {
        return Err(wrong(format!("the model reads {} axes", dims.len())));
    }
    for (d, (axis, &have)) in dims.iter().zip(t.shape()).enumerate() {
        match axis {
            Axis::Fixed(want) if *want != have => return Err(wrong(format!("axis {d} must be {want}"))),
            // Exporters give unrelated axes one name at times; what an operator then refuses says more than this could.
            Axis::Named(name) => {
                names.entry(name.clone()).or_insert(have);
            }
            _ => {}
        }
    }
    Ok(t)
}
