//! Multiple negatives ranking (InfoNCE with in-batch negatives): the cross-entropy of each anchor's own positive among all positives and
//! negatives of the batch, by cosines times a scale. As `MultipleNegativesRankingLoss` of sentence-transformers computes it.

use super::embeddings::{columns, normalised};
use super::{Form, Labels, Loss};
use crate::ir::{BuildError, Builder, DType, Tensor, Value};

pub const LOSS: Loss = Loss {
    name: "contrastive",
    title: "contrastive (multiple negatives ranking)",
    labels: Labels::Tuples,
    activations: &[],
    of_probabilities: None,
    attach,
};

/// `Σᵢ -log softmax_j(scale · cos(aᵢ, cⱼ))[i]`, the candidates c being the positives and then the negatives.
fn attach(b: &mut Builder, x: Value, form: &Form) -> Result<(Value, Option<Value>), BuildError> {
    let columns = columns(b, x, form)?;
    let (anchors, candidates) = (columns[0], b.concat(&columns[1..], 0)?);
    let (anchors, candidates) = (normalised(b, anchors)?, normalised(b, candidates)?);
    let cosines = b.matmul(anchors, candidates, false, true)?;
    let scores = b.scale(cosines, form.scale)?;
    let [rows, all] = b.shape(scores)[..] else { panic!("a row of scores for each anchor") };
    let own = b.constant(Tensor::i32([rows], (0..rows as i32).collect()));
    let each = b.binary("cross_entropy", scores, own)?;
    let sum = b.reduce_sum(each, &[0], false)?;
    let wide = b.reshape(scores, [rows, all, 1])?;
    let best = b.unary("argmax", wide)?;
    let best = b.reshape(best, [rows])?;
    let hit = b.binary("equal", best, own)?;
    let hit = b.cast(hit, DType::F32)?;
    let correct = b.reduce_sum(hit, &[0], false)?;
    Ok((sum, Some(correct)))
}
