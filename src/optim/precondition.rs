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
        let damped = damped(b, grams, rank)?;
        let inverses = inverse(b, damped, rank)?;
        for (i, pair) in own.into_iter().enumerate() {
            let at = |b: &mut Builder, all: Value, n: usize| {
                let one = b.slice(all, 0, n, 1, 1)?;
                b.reshape(one, [rank, rank])
            };
            let system = |b: &mut Builder, n: usize| -> Result<System, BuildError> {
                Ok(System { matrix: at(b, damped, n)?, inverse: at(b, inverses, n)? })
            };
            let (of_b, of_a) = (system(b, 2 * i)?, system(b, 2 * i + 1)?);
            let (ga, gb) = (pair.a.read(b, gradients)?, pair.b.read(b, gradients)?);
            changed.push((pair.a, of_b.solve(b, ga, false)?));
            changed.push((pair.b, of_a.solve(b, gb, true)?));
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

/// A symmetric matrix `[r, r]`, and its inverse but for rounding.
struct System {
    matrix: Value,
    inverse: Value,
}

impl System {
    /// `matrix⁻¹ g`, or with `right` `g matrix⁻¹`. The inverse alone loses what rounding is in it times the largest numbers that it could
    /// give. A gradient of A is `Bᵀ` times something, for which `BᵀB` gives far smaller ones, so what is left over is solved again
    /// (iterative refinement; twice, after which the error is that of elimination).
    fn solve(&self, b: &mut Builder, g: Value, right: bool) -> Result<Value, BuildError> {
        let by = |b: &mut Builder, m: Value, x: Value| match right {
            true => b.matmul(x, m, false, false),
            false => b.matmul(m, x, false, false),
        };
        let mut x = by(b, self.inverse, g)?;
        for _ in 0..2 {
            let product = by(b, self.matrix, x)?;
            let rest = b.sub(g, product)?;
            let more = by(b, self.inverse, rest)?;
            x = b.add(x, more)?;
        }
        Ok(x)
    }
}

/// `M + δI` of matrices `[n, r, r]`.
fn damped(b: &mut Builder, grams: Value, r: usize) -> Result<Value, BuildError> {
    let eye = eye(b, r);
    let damping = b.scale(eye, DAMPING)?;
    b.add(grams, damping)
}

/// Ones on the diagonal, `[1, r, r]`.
fn eye(b: &mut Builder, r: usize) -> Value {
    let eye = ArrayD::from_shape_fn(vec![1, r, r], |i| f32::from(u8::from(i[1] == i[2])));
    b.constant(Tensor::F32(eye))
}

/// `M⁻¹` of positive definite matrices `[n, r, r]`: scaled to a diagonal of ones, inverted by Gauss and Jordan's method, which
/// needs no pivots then, and improved by one step of Newton's.
fn inverse(b: &mut Builder, damped: Value, r: usize) -> Result<Value, BuildError> {
    let n = b.shape(damped)[0];
    let eye = eye(b, r);
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
