//! What merges need to know of a model's data: norms and moments of each block's values, gathered by the device, and the
//! regression of a term's signal on its block's input.

mod gather;
mod principal;
mod solve;

pub use gather::{BUDGET, Fetched, Gathering, WIDE, folds, held_back, matrix};
pub use principal::{Directions, Scatter, distribute};
pub use solve::{Solution, error, solve};

use crate::adapter::Norms;
use crate::ir::{BuildError, Builder, DType, Sink, Tensor, Value, outputs};
use std::collections::BTreeMap;

/// The values of one block whose norms are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockValues {
    /// The linear node's input, `(.., in)`.
    pub x: Value,
    /// `A x`, `(.., rank)`, where the structure projects its own input.
    pub xa: Option<Value>,
}

/// Adds the output `reslora.statistics`: for each block Σ ‖x‖², Σ ‖A x‖² and the number of rows. Rows are an input
/// flattened over all but its last axis; where their number is that of the mask's elements, rows at which the mask is zero
/// do not count.
pub fn attach(b: &mut Builder, blocks: &[BlockValues], mask: Option<Value>) -> Result<(), BuildError> {
    let mask = match mask {
        Some(m) => {
            let n = b.shape(m).elements();
            let float = b.cast(m, DType::F32)?;
            let column = b.reshape(float, [n, 1])?;
            let rows = b.reduce_sum(column, &[0, 1], false)?;
            Some((n, column, b.reshape(rows, [1])?))
        }
        None => None,
    };
    let mut parts = Vec::new();
    for block in blocks {
        let rows = row_count(b, block.x);
        let masked = mask.filter(|m| m.0 == rows);
        parts.push(square_sum(b, block.x, masked.map(|m| m.1))?);
        parts.push(match block.xa {
            Some(xa) => square_sum(b, xa, masked.map(|m| m.1))?,
            None => b.constant(Tensor::f32([1], vec![0.0])),
        });
        parts.push(masked.map_or_else(|| b.constant(Tensor::f32([1], vec![rows as f32])), |m| m.2));
    }
    let all = b.concat(&parts, 0)?;
    b.output(outputs::STATISTICS, all, Sink::Fetch);
    Ok(())
}

fn row_count(b: &Builder, x: Value) -> usize {
    let shape = b.shape(x);
    shape[..shape.len().saturating_sub(1)].iter().product()
}

/// Σ x² over the rows that count, `(1)`.
fn square_sum(b: &mut Builder, x: Value, mask: Option<Value>) -> Result<Value, BuildError> {
    let rows = row_count(b, x);
    let width = b.shape(x).elements() / rows.max(1);
    let flat = b.reshape(x, [rows, width])?;
    let square = b.mul(flat, flat)?;
    let square = match mask {
        Some(m) => b.mul(square, m)?,
        None => square,
    };
    let sums = b.reduce_sum(square, &[1], false)?;
    let sum = b.reduce_sum(sums, &[0], false)?;
    b.reshape(sum, [1])
}

/// Sums over batches, in f64.
#[derive(Clone, Debug)]
pub struct Accumulator {
    blocks: Vec<String>,
    sums: Vec<Norms>,
}

impl Accumulator {
    /// For blocks of these module paths, in the order of [`attach`].
    pub fn new(blocks: &[String]) -> Accumulator {
        Accumulator { blocks: blocks.to_vec(), sums: vec![Norms::default(); blocks.len()] }
    }

    /// Adds one batch's output.
    pub fn add(&mut self, statistics: &[f32]) {
        for (sum, s) in self.sums.iter_mut().zip(statistics.chunks_exact(3)) {
            sum.x += s[0] as f64;
            sum.xa += s[1] as f64;
            sum.rows += s[2] as f64;
        }
    }

    pub fn finish(self) -> BTreeMap<String, Norms> {
        self.blocks.into_iter().zip(self.sums).collect()
    }
}

/// Values of one block whose products are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// The linear node's input, `(.., in)`; `None` where another program gives it.
    pub x: Option<Value>,
    /// What its B multiplies, `(.., rank)`; `None` where another program gives it.
    pub t: Option<Value>,
    /// Whether sums over rows are wanted, or the rows.
    pub sums: bool,
}

/// The output that holds part `part` (`xx`, `tx`, `tt`, `x`, `t` or `mask`) of block `i`.
pub fn moment_output(i: usize, part: &str) -> String {
    format!("reslora.moments.{i}.{part}")
}

/// Adds outputs for the moments of each block: Σ x xᵀ, Σ t xᵀ and Σ t tᵀ over the rows that count, or the rows of x and t and
/// which of them count.
pub fn attach_moments(b: &mut Builder, blocks: &[Signals], mask: Option<Value>) -> Result<(), BuildError> {
    let mask = match mask {
        Some(m) => {
            let n = b.shape(m).elements();
            let float = b.cast(m, DType::F32)?;
            Some((n, b.reshape(float, [n, 1])?))
        }
        None => None,
    };
    let flat = |b: &mut Builder, v: Value| {
        let rows = row_count(b, v);
        let width = b.shape(v).elements() / rows.max(1);
        b.reshape(v, [rows, width])
    };
    for (i, block) in blocks.iter().enumerate() {
        let rows = block.x.or(block.t).map_or(0, |v| row_count(b, v));
        let masked = mask.filter(|m| m.0 == rows).map(|m| m.1);
        let add = |b: &mut Builder, part: &str, v: Value| b.output(moment_output(i, part), v, Sink::Fetch);
        let (x, t) = (block.x.map(|v| flat(b, v)).transpose()?, block.t.map(|v| flat(b, v)).transpose()?);
        if let (true, Some(x), Some(t)) = (block.sums, x, t) {
            let counted = |b: &mut Builder, v: Value| masked.map_or(Ok(v), |m| b.mul(v, m));
            let (cx, ct) = (counted(b, x)?, counted(b, t)?);
            for (part, left, right) in [("xx", x, cx), ("tx", t, cx), ("tt", t, ct)] {
                let product = b.matmul(left, right, true, false)?;
                add(b, part, product);
            }
            continue;
        }
        for (part, v) in [("x", x), ("t", t), ("mask", masked)] {
            if let Some(v) = v {
                add(b, part, v);
            }
        }
    }
    Ok(())
}
