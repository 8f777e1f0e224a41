//! FlexAttention: attention with graphs of its own for scores and probabilities.

use super::{Context, Reason};
use crate::ir::Value;

type Lowered = Result<Vec<Value>, Reason>;

/// What a graph of the node makes of a value; the value, where there is none.
fn changed(c: &mut Context, attribute: &str, x: Value) -> Result<Value, Reason> {
    if c.node.attr_graph(attribute).is_none() {
        return Ok(x);
    }
    let out = c.body(attribute, &[x])?;
    match out[..] {
        [y] if c.shape(y) == c.shape(x) => Ok(y),
        _ => Err(format!("its {attribute} must give one value of the scores' shape").into()),
    }
}

/// `prob_mod(softmax(score_mod(scale q kᵀ))) v` for q `(B, N, S, D)`, k `(B, M, T, D)` and v `(B, M, T, E)`.
pub fn flex_attention(c: &mut Context) -> Lowered {
    let (q, k, v) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let ([_, heads, _, d], [_, shared, _, _]) = (&c.shape(q)[..], &c.shape(k)[..]) else {
        return Err("takes operands of four axes".into());
    };
    let (heads, d) = (*heads, *d);
    if *shared == 0 || heads % *shared != 0 {
        return Err(format!("{heads} heads of queries do not share {shared} heads of keys evenly").into());
    }
    let (k, v) = (super::attention::repeat(c, k, heads)?, super::attention::repeat(c, v, heads)?);
    let scale = c.node.attr_float("scale").map_or(1.0 / (d as f64).sqrt(), f64::from);
    let scores = c.b.matmul(q, k, false, true)?;
    let scores = c.b.scale(scores, scale)?;
    let scores = changed(c, "score_mod", scores)?;
    let shape = c.shape(scores);
    let rows = c.rows(scores)?;
    let weights = c.b.unary("softmax", rows)?;
    let weights = c.b.reshape(weights, shape)?;
    let weights = changed(c, "prob_mod", weights)?;
    Ok(vec![c.b.matmul(weights, v, false, false)?])
}
