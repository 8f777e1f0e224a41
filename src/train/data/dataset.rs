//! Data sets: what their examples have in common, and parts of them.

use super::{DataError, Dataset, Options, Source, Task, buckets, labels, tensors};
use crate::ir::Tensor;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashSet};

impl Dataset {
    /// Moves the labels of tensors one position to the left.
    pub(super) fn shift_labels(&mut self) -> Result<(), DataError> {
        let misfit = |why: &str| DataError::Fit { path: self.path.clone(), why: why.into() };
        match &mut self.source {
            Source::Text { .. } => {
                self.notes.push("--shift-labels has no effect on text, whose labels are the next token already".into());
            }
            Source::Tensors { tensors, .. } => {
                let labels = tensors.get("labels").and_then(labels::shifted);
                let labels = labels.ok_or_else(|| misfit("--shift-labels needs integer 'labels' with positions"))?;
                tensors.insert("labels".into(), labels);
            }
        }
        Ok(())
    }

    /// What a step's `tokens` count: `tokens` where examples are sequences of them, else `examples`.
    pub fn unit(&self) -> &'static str {
        let tokens = match &self.source {
            Source::Text { .. } => true,
            Source::Tensors { tensors, .. } => {
                ["attention_mask", "input_ids"].iter().any(|name| tensors.contains_key(*name))
            }
        };
        if tokens { "tokens" } else { "examples" }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        match &self.source {
            Source::Text { examples, .. } => examples.len(),
            Source::Tensors { examples, .. } => *examples,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn task(&self) -> Task {
        match &self.source {
            Source::Text { task, .. } => *task,
            Source::Tensors { .. } => Task::Tensors,
        }
    }

    /// Whether the data holds labels.
    pub fn has_labels(&self) -> bool {
        match &self.source {
            Source::Text { .. } => true,
            Source::Tensors { tensors, .. } => tensors.contains_key("labels"),
        }
    }

    /// Tokens of the longest text; `None` for tensors, which are used as they are.
    pub fn longest(&self) -> Option<usize> {
        match &self.source {
            Source::Text { examples, .. } => examples.lengths().max(),
            Source::Tensors { .. } => None,
        }
    }

    /// Tokens of a text; 0 for tensors, whose rows are all of one length.
    pub fn length(&self, example: usize) -> usize {
        match &self.source {
            Source::Text { examples, .. } => examples.length(example),
            Source::Tensors { .. } => 0,
        }
    }

    /// The smallest and largest element that the data has for an integer input, padding included; `None` if it has none.
    pub fn integers(&self, input: &str) -> Option<(i64, i64)> {
        let wide = |(low, high): (i32, i32)| (i64::from(low), i64::from(high));
        match &self.source {
            Source::Text { examples, pad_id, .. } => {
                let with = |range: Option<(i32, i32)>, x: i32| range.map_or((x, x), |(a, b)| (a.min(x), b.max(x)));
                match input {
                    "input_ids" => Some(wide(with(examples.summary().ids, *pad_id))),
                    "token_type_ids" => Some(wide(with(examples.summary().type_ids, 0))),
                    _ => {
                        let i = self.options.inputs.iter().position(|c| c.name == input && c.integer)?;
                        let (low, high) = *examples.summary().numbers.get(i)?;
                        Some((low as i64, high as i64))
                    }
                }
            }
            Source::Tensors { tensors, .. } => {
                let x = tensors.get(input)?.as_i32()?;
                Some(wide((*x.iter().min()?, *x.iter().max()?)))
            }
        }
    }

    /// A tensor of the data.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match &self.source {
            Source::Text { .. } => None,
            Source::Tensors { tensors, .. } => tensors.get(name),
        }
    }

    /// The integers of one example in a tensor.
    pub fn row(&self, tensor: &str, example: usize) -> &[i32] {
        let Source::Tensors { tensors, .. } = &self.source else { return &[] };
        let Some(t) = tensors.get(tensor) else { return &[] };
        let width: usize = t.shape().iter().skip(1).product();
        t.as_i32().and_then(|x| x.get(example * width..(example + 1) * width)).unwrap_or(&[])
    }

    /// The most positions that a batch may have.
    pub fn positions(&self) -> usize {
        match &self.source {
            Source::Text { .. } => buckets(self.longest().unwrap_or(1)).min(self.limit.unwrap_or(usize::MAX)),
            Source::Tensors { tensors, .. } => {
                tensors.get("input_ids").and_then(|t| t.shape().get(1).copied()).unwrap_or(1)
            }
        }
    }

    /// The same file with texts cut at another length.
    pub fn cut_at(&self, max_length: usize) -> Result<Dataset, DataError> {
        let options = Options { max_length, ..self.options.clone() };
        Ok(Dataset { limit: self.limit, ..super::read_all(&self.given, &options)? })
    }

    /// The same file with some of its examples.
    pub fn subset(&self, keep: std::ops::Range<usize>) -> Dataset {
        self.only(&keep.collect::<Vec<usize>>())
    }

    fn only(&self, keep: &[usize]) -> Dataset {
        let source = match &self.source {
            Source::Text { task, examples, pad_id, pad_left } => {
                let examples = examples.only(keep.iter().copied());
                Source::Text { task: *task, examples, pad_id: *pad_id, pad_left: *pad_left }
            }
            Source::Tensors { tensors, images, .. } => {
                let cut = |(name, t): (&String, &Tensor)| (name.clone(), tensors::rows(t, keep));
                let images = images.as_ref().map(|images| images.only(keep));
                Source::Tensors { tensors: tensors.iter().map(cut).collect(), examples: keep.len(), images }
            }
        };
        Dataset { source, notes: vec![], ..self.clone() }
    }

    /// Splits off a share of the rows, drawn from `seed`: what is left to train on, and what to evaluate on, each in the file's order. The
    /// share is rounded up. Examples of one row, such as the answers of one conversation, stay together.
    pub fn split(&self, share: f64, seed: u64) -> Result<(Dataset, Dataset), DataError> {
        let row = |e: usize| match &self.source {
            Source::Text { examples, .. } => examples.row(e),
            Source::Tensors { .. } => e,
        };
        let mut rows: Vec<usize> = (0..self.len()).map(row).collect();
        rows.dedup();
        let n = (rows.len() as f64 * share).ceil() as usize;
        if n == 0 || n >= rows.len() {
            let why = format!(
                "{share} of its {} rows (--eval-split) leaves nothing to train on\nhint: a smaller share, or more rows",
                rows.len()
            );
            return Err(DataError::Fit { path: self.path.clone(), why });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Epochs draw from streams 1, 2, ...
        rng.set_stream(u64::MAX);
        rows.shuffle(&mut rng);
        let chosen: HashSet<usize> = rows[..n].iter().copied().collect();
        let (eval, train): (Vec<usize>, Vec<usize>) = (0..self.len()).partition(|e| chosen.contains(&row(*e)));
        Ok((self.only(&train), self.only(&eval)))
    }

    /// Checks the elements of integer inputs against the number of rows of the tables they are looked up in.
    pub fn check_indices(&self, bounds: &BTreeMap<String, usize>) -> Result<(), DataError> {
        for (name, &n) in bounds {
            let beyond = |x: &&i32| **x >= n as i32 || **x < -(n as i32);
            let found = match &self.source {
                Source::Text { .. } => {
                    let range = self.integers(name).into_iter();
                    range.flat_map(|(low, high)| [high as i32, low as i32]).find(|x| beyond(&x))
                }
                Source::Tensors { tensors, .. } => {
                    tensors.get(name).and_then(Tensor::as_i32).and_then(|x| x.iter().find(beyond).copied())
                }
            };
            if let Some(x) = found {
                let why = format!(
                    "'{name}' holds {x}, but the table it is looked up in has {n} rows\n\
                     hint: is this the tokenizer the model was trained with?"
                );
                return Err(DataError::Fit { path: self.path.clone(), why });
            }
        }
        Ok(())
    }
}
