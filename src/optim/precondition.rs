//! Preconditioning: what becomes of the gradients of low-rank factors between clipping and the optimiser.

use crate::ir::{BuildError, Builder, Tensor, Value};
use ndarray::ArrayD;

/// One way to precondition.
#[derive(Debug)]
pub struct Precondition {
    pub name: &'static str,
    /// New gradients of all buffers from the parameters and the gradients; `None` leaves them.
    pub apply: Option<Apply>,
}

/// Gradients of all buffers from the words of each, their parameters, gradients and the pairs of factors in them.
pub type Apply = fn(&mut Builder, &[usize], &[Value], &[Value], &[Pair]) -> Result<Vec<Value>, BuildError>;

/// Every way to precondition.
pub static PRECONDITIONS: &[Precondition] = &[NONE, RIEMANNIAN];

/// Gradients stay.
pub const NONE: Precondition = Precondition { name: "none", apply: None };

/// `g_A ← (BᵀB + δI)⁻¹ g_A`, `g_B ← g_B (AAᵀ + δI)⁻¹` (arXiv 2402.02347), both with A and B from before the step.
pub const RIEMANNIAN: Precondition = Precondition { name: "riemannian", apply: Some(riemannian) };

/// δ
const DAMPING: f64 = 1e-6;

pub fn find(name: &str) -> Option<&'static Precondition> {
    PRECONDITIONS.iter().find(|p| p.name == name)
}

/// A matrix in a flat buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matrix {
    /// The buffer's place in the list.
    pub flat: usize,
    pub offset: usize,
    pub rows: usize,
    pub columns: usize,
}

/// The factors of one target: A `[rank, in]` and B `[out, rank]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub a: Matrix,
    pub b: Matrix,
}

impl Matrix {
    fn words(&self) -> usize {
        self.rows * self.columns
    }

    fn read(&self, b: &mut Builder, flats: &[Value]) -> Result<Value, BuildError> {
        let x = b.slice(flats[self.flat], 0, self.offset, self.words(), 1)?;
        b.reshape(x, [self.rows, self.columns])
    }
}

fn riemannian(
    b: &mut Builder,
    words: &[usize],
    parameters: &[Value],
    gradients: &[Value],
    pairs: &[Pair],
) -> Result<Vec<Value>, BuildError> {
    // The Gram matrices of one rank are inverted together.
    let mut ranks: Vec<usize> = pairs.iter().map(|p| p.a.rows).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let mut changed: Vec<(Matrix, Value)> = Vec::new();
    for rank in ranks {
        let own: Vec<&Pair> = pairs.iter().filter(|p| p.a.rows == rank).collect();
        let mut grams = Vec::new();
        for pair in &own {
            let (a, up) = (pair.a.read(b, parameters)?, pair.b.read(b, parameters)?);
            for gram in [b.matmul(up, up, true, false)?, b.matmul(a, a, false, true)?] {
                grams.push(b.reshape(gram, [1, rank, rank])?);
            }
        }
        let grams = b.concat(&grams, 0)?;
        let inverses = inverse(b, grams, rank)?;
        for (i, pair) in own.into_iter().enumerate() {
            let at = |b: &mut Builder, n: usize| {
                let one = b.slice(inverses, 0, n, 1, 1)?;
                b.reshape(one, [rank, rank])
            };
            let (of_b, of_a) = (at(b, 2 * i)?, at(b, 2 * i + 1)?);
            let (ga, gb) = (pair.a.read(b, gradients)?, pair.b.read(b, gradients)?);
            changed.push((pair.a, b.matmul(of_b, ga, false, false)?));
            changed.push((pair.b, b.matmul(gb, of_a, false, false)?));
        }
    }
    changed.sort_by_key(|(m, _)| (m.flat, m.offset));
    let mut out = Vec::new();
    for (i, &gradient) in gradients.iter().enumerate() {
        let (mut parts, mut at) = (Vec::new(), 0);
        for (m, value) in changed.iter().filter(|(m, _)| m.flat == i) {
            if m.offset > at {
                parts.push(b.slice(gradient, 0, at, m.offset - at, 1)?);
            }
            parts.push(b.reshape(*value, [m.words()])?);
            at = m.offset + m.words();
        }
        if words[i] > at {
            parts.push(b.slice(gradient, 0, at, words[i] - at, 1)?);
        }
        out.push(b.concat(&parts, 0)?);
    }
    Ok(out)
}

/// `(M + δI)⁻¹` of positive semidefinite matrices `[n, r, r]`: scaled to a diagonal of ones, inverted by Gauss and Jordan's method, which
/// needs no pivots then, and improved by one step of Newton's.
fn inverse(b: &mut Builder, grams: Value, r: usize) -> Result<Value, BuildError> {
    let n = b.shape(grams)[0];
    let eye = ArrayD::from_shape_fn(vec![1, r, r], |i| f32::from(u8::from(i[1] == i[2])));
    let eye = b.constant(Tensor::F32(eye));
    let damping = b.scale(eye, DAMPING)?;
    let damped = b.add(grams, damping)?;
    let diagonal = b.mul(damped, eye)?;
    let diagonal = b.reduce_sum(diagonal, &[2], true)?;
    let root = b.unary("sqrt", diagonal)?;
    let across = b.reshape(root, [n, 1, r])?;
    let scaled = b.div(damped, root)?;
    let scaled = b.div(scaled, across)?;
    let mut m = scaled;
    for k in 0..r {
        let row = b.slice(m, 1, k, 1, 1)?;
        let column = b.slice(m, 2, k, 1, 1)?;
        let pivot = b.slice(row, 2, k, 1, 1)?;
        let unit = b.slice(eye, 1, k, 1, 1)?;
        let unit_column = b.reshape(unit, [1, r, 1])?;
        let row = b.add(row, unit)?;
        let row = b.div(row, pivot)?;
        let column = b.sub(column, unit_column)?;
        let change = b.mul(column, row)?;
        m = b.sub(m, change)?;
    }
    let product = b.matmul(scaled, m, false, false)?;
    let twice = b.scale(eye, 2.0)?;
    let rest = b.sub(twice, product)?;
    let m = b.matmul(m, rest, false, false)?;
    let m = b.div(m, root)?;
    b.div(m, across)
}
