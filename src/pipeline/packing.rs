//! Whether packed texts compute what they compute alone: tried on one row before training.

use super::Error;
use super::surveying::{differ, outputs};
use super::training::Trainee;
use crate::device::Device;
use crate::ir::Tensor;
use crate::ir::inputs::SEGMENTS;
use crate::train::data::{Batch, DataError, Dataset, Feed, Source};
use std::collections::BTreeMap;

/// The packed rows among which one with several texts is looked for, and the most of its texts that are tried.
const LOOKED_AT: usize = 64;
const TRIED: usize = 4;

/// Refuses a model in which texts of one row reach each other in some other way than by attention, or whose positions cannot begin again.
/// The probe's one output is what the loss reads.
pub fn check(probe: &mut Trainee, data: &Dataset, device: &mut dyn Device) -> Result<(), Error> {
    let Source::Text { examples, .. } = &data.source else { return Ok(()) };
    let mut row = None;
    for e in 0..examples.len().min(LOOKED_AT) {
        let example = examples.get(e).map_err(DataError::from)?;
        if example.type_ids.last().is_some_and(|n| *n > 1) {
            row = Some((e, example.into_owned()));
            break;
        }
    }
    let Some((e, example)) = row else { return Ok(()) };
    let model = probe.program.model.clone();
    let feed = probe.feed.clone();
    probe.session(device, |session| {
        let together = outputs(session, &data.batch(&feed, &data.alone(&feed, e))?)?;
        let mut at = 0;
        for texts in example.type_ids.chunk_by(|a, b| a == b).take(TRIED) {
            let ids = &example.ids[at..at + texts.len()];
            let single = outputs(session, &alone(&feed, ids)?)?;
            let (a, b) = (rows(together.as_ref(), at, ids.len()), rows(single.as_ref(), 0, ids.len()));
            let same = a.zip(b).is_some_and(|(a, b)| !differ(&a, &b));
            if !same {
                let reads = feed.inputs.iter().any(|i| i.name == "position_ids");
                let hint = match reads {
                    true => "train without --pack",
                    false => "export the model with an input 'position_ids', or train without --pack",
                };
                let why = "texts that share a row change what the model computes for each other";
                return Err(Error::Usage(format!("--pack: {}: {why}\nhint: {hint}", model.path().display())));
            }
            at += texts.len();
        }
        Ok(())
    })
}

/// One text in a row of its own.
fn alone(feed: &Feed, ids: &[i32]) -> Result<Batch, Error> {
    let length = feed.fixed_length().unwrap_or(ids.len());
    let row = |of: &dyn Fn(usize) -> i32, fill: i32| {
        let x = (0..length).map(|i| if i < ids.len() { of(i) } else { fill }).collect();
        Tensor::i32([1, length], x)
    };
    let given = BTreeMap::from([
        ("input_ids".to_string(), row(&|i| ids[i], ids[0])),
        ("attention_mask".to_string(), row(&|_| 1, 0)),
        ("position_ids".to_string(), row(&|i| i as i32, 0)),
        ("token_type_ids".to_string(), row(&|_| 0, 0)),
        (SEGMENTS.to_string(), row(&|_| 1, 0)),
    ]);
    feed.complete(given, 1, length).map_err(Error::Model)
}

/// Some positions of logits `(batch, sequence, vocabulary)`, of the first example.
fn rows(t: Option<&Tensor>, first: usize, count: usize) -> Option<Vec<f32>> {
    let t = t?;
    let &[_, n, width] = t.shape() else { return None };
    let x = t.as_f32().filter(|_| first + count <= n)?;
    Some(x[first * width..(first + count) * width].to_vec())
}
