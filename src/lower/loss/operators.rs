//! ONNX operators that are a loss of the model's own.

use crate::ir::{DType, Tensor, Value};
use crate::lower::norm::log_softmax_rows;
use crate::lower::{Context, Reason};

type Lowered = Result<Vec<Value>, Reason>;

/// Class scores `(N, C, d1, ..)` as rows `(N d1 .., C)`.
fn class_rows(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let rank = c.shape(x).len();
    if rank < 2 {
        return Err("scores need two axes".into());
    }
    let perm: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let last = c.b.transpose(x, &perm)?;
    c.rows(last)
}

/// Reduces `losses` of each row by the node's `reduction`, weighted by class and leaving out `ignore_index`.
fn reduce(c: &mut Context, log_probability: Value, labels: Value, weight: Option<Value>) -> Result<Value, Reason> {
    let shape = c.shape(labels);
    let [rows, classes] = c.shape(log_probability)[..] else { return Err("scores need two axes".into()) };
    let labels = c.b.reshape(labels, [rows])?;
    let ignore = c.node.attr_int("ignore_index").unwrap_or(-100);
    let ignored = c.b.constant(Tensor::i32([], vec![ignore as i32]));
    let out = c.b.binary("equal", labels, ignored)?;
    let counts = c.b.unary("not", out)?;
    let zero = c.b.constant(Tensor::i32([], vec![0]));
    let class = c.b.select(out, zero, labels)?;
    // A lookup of its own, so that a label beyond the classes is seen as one.
    let all = c.b.constant(Tensor::i32([classes], (0..classes as i32).collect()));
    let class = c.b.gather(all, class, 0)?;
    // Row r's class stands at r C + class of the flattened scores.
    let base = c.b.constant(Tensor::i32([rows], (0..rows).map(|r| (r * classes) as i32).collect()));
    let at = c.b.add(base, class)?;
    let flat = c.b.reshape(log_probability, [rows * classes])?;
    let picked = c.b.gather(flat, at, 0)?;
    let mut share = c.b.cast(counts, DType::F32)?;
    if let Some(weight) = weight {
        let own = c.b.gather(weight, class, 0)?;
        share = c.b.mul(share, own)?;
    }
    let weighted = c.b.mul(picked, share)?;
    let losses = c.b.neg(weighted)?;
    match c.node.attr_str("reduction").as_deref().unwrap_or("mean") {
        "none" => Ok(c.b.reshape(losses, shape)?),
        "sum" => Ok(c.b.reduce_sum(losses, &[0], false)?),
        "mean" => {
            let (sum, total) = (c.b.reduce_sum(losses, &[0], false)?, c.b.reduce_sum(share, &[0], false)?);
            Ok(c.b.div(sum, total)?)
        }
        other => Err(format!("reduction '{other}' is not known").into()),
    }
}

pub fn softmax_cross_entropy_loss(c: &mut Context) -> Lowered {
    let (x, labels) = (c.x(0)?, c.x(1)?);
    let shape = c.shape(x);
    let rows = class_rows(c, x)?;
    let log = log_softmax_rows(c, rows)?;
    let loss = reduce(c, log, labels, c.opt(2))?;
    if c.node.outputs().len() < 2 || c.node.outputs()[1].is_empty() {
        return Ok(vec![loss]);
    }
    let mut wide: Vec<usize> = [shape[0]].into_iter().chain(shape[2..].iter().copied()).collect();
    wide.push(shape[1]);
    let log = c.b.reshape(log, wide)?;
    let rank = shape.len();
    let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    Ok(vec![loss, c.b.transpose(log, &perm)?])
}

pub fn negative_log_likelihood_loss(c: &mut Context) -> Lowered {
    let (x, labels) = (c.x(0)?, c.x(1)?);
    let rows = class_rows(c, x)?;
    Ok(vec![reduce(c, rows, labels, c.opt(2))?])
}
