//! Multiple negatives ranking (InfoNCE with in-batch negatives): the cross-entropy of each anchor's own positive among all positives and
//! negatives of the batch, by cosines times a scale. As `MultipleNegativesRankingLoss` of sentence-transformers computes it.

use super::cross_entropy::best;
use super::embeddings::{columns, normalised};
use super::{Form, Labels, Loss, Predicted};
use crate::ir::{BuildError, Builder, DType, Tensor, Value};

pub const LOSS: Loss = Loss {
    name: "contrastive",
    title: "contrastive (multiple negatives ranking)",
    labels: Labels::Tuples,
    activations: &[],
    of_probabilities: None,
    attach,
    predict: ranks,
};

/// `Σᵢ -log softmax_j(scale · cos(aᵢ, cⱼ))[i]`, the candidates c being the positives and then the negatives.
fn attach(b: &mut Builder, x: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let scores = scores(b, x, form)?;
    let rows = b.shape(scores)[0];
    let own = b.constant(Tensor::i32([rows], (0..rows as i32).collect()));
    let each = b.binary("cross_entropy", scores, own)?;
    let sum = b.reduce_sum(each, &[0], false)?;
    let best = best(b, scores)?;
    let hit = b.binary("equal", best, own)?;
    let hit = b.cast(hit, DType::F32)?;
    let correct = b.reduce_sum(hit, &[0], false)?;
    Ok((sum, Some(correct)))
}

/// `scale · cos(aᵢ, cⱼ)`, `(B, candidates)`
fn scores(b: &mut Builder, x: Value, form: &Form) -> Result<Value, BuildError> {
    let columns = columns(b, x, form)?;
    let (anchors, candidates) = (columns[0], b.concat(&columns[1..], 0)?);
    let (anchors, candidates) = (normalised(b, anchors)?, normalised(b, candidates)?);
    let cosines = b.matmul(anchors, candidates, false, true)?;
    b.scale(cosines, form.scale)
}

/// The place of each anchor's own positive, from 1.
fn ranks(b: &mut Builder, x: Value, form: &Form) -> Result<Predicted, BuildError> {
    let scores = scores(b, x, form)?;
    let [rows, all] = b.shape(scores)[..] else { panic!("a row of scores for each anchor") };
    let flat = b.reshape(scores, [rows * all])?;
    let places = b.constant(Tensor::i32([rows], (0..rows).map(|r| (r * all + r) as i32).collect()));
    let own = b.gather(flat, places, 0)?;
    let own = b.reshape(own, [rows, 1])?;
    let better = b.binary("less", own, scores)?;
    let better = b.cast(better, DType::F32)?;
    let count = b.reduce_sum(better, &[1], false)?;
    let one = b.scalar(1.0);
    Ok(Predicted { answer: b.add(count, one)?, probabilities: None })
}
