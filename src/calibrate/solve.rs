//! Ridge regression of the signal t that a term's last factor multiplies on the block's own input x.

use crate::adapter::Moments;
use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};
use ndarray::{Array2, Axis};

/// The ridges that are tried where none is given, as fractions of the mean diagonal of `E[x xᵀ]`.
const RIDGES: [f64; 9] = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// A fitted projection.
#[derive(Clone, Debug)]
pub struct Solution {
    /// `A'`, `[rank, in]`, from all rows.
    pub a: Array2<f64>,
    /// For each fold, `A'` from the rows outside it.
    pub a_fit: Vec<Array2<f64>>,
    pub ridge: f64,
}

/// `A' = A₀ + (E[t xᵀ] - A₀ E[x xᵀ]) (E[x xᵀ] + λ I)⁻¹`, λ = ridge × the mean diagonal of `E[x xᵀ]`. Without a ridge, the one
/// with the smallest error of `B t` on the rows held back is taken, over all folds. `parts` are the rows that are never held
/// back, then those of each fold. `a0` is `[rank, in]`, `b` `[out, rank]`.
pub fn solve(parts: &[Moments], a0: &Array2<f64>, b: &Array2<f64>, ridge: Option<f64>) -> Solution {
    let (never, folds) = parts.split_first().expect("there are rows that are never held back");
    let all = folds.iter().fold(never.clone(), |s, p| sum(&s, p));
    let fits: Vec<Moments> = (0..folds.len())
        .map(|k| (folds.iter().enumerate()).filter(|(i, _)| *i != k).fold(never.clone(), |s, (_, p)| sum(&s, p)))
        .collect();
    let candidates = ridge.map_or(RIDGES.to_vec(), |r| vec![r]);
    let tried = candidates.into_iter().map(|r| {
        let projections: Vec<Array2<f64>> = fits.iter().map(|fit| projection(fit, a0, r)).collect();
        (error(folds, &projections, b), r, projections)
    });
    let best = tried.min_by(|x, y| x.0.total_cmp(&y.0)).expect("there is a ridge to try");
    Solution { a: projection(&all, a0, best.1), a_fit: best.2, ridge: best.1 }
}

/// `‖B (t - A' x)‖ / ‖B t‖` over the rows of all folds, each with the projection fitted without it.
pub fn error(folds: &[Moments], projections: &[Array2<f64>], b: &Array2<f64>) -> f64 {
    let parts = folds.iter().zip(projections).map(|(m, a)| squares(m, a, b));
    let (off, whole) = parts.fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
    if whole == 0.0 { 0.0 } else { (off / whole).sqrt() }
}

/// `‖B (t - A' x)‖²` and `‖B t‖²` over rows.
fn squares(moments: &Moments, a: &Array2<f64>, b: &Array2<f64>) -> (f64, f64) {
    let inner = |m: &Array2<f64>| (&b.dot(m) * b).sum().max(0.0);
    match moments {
        Moments::Sums { xx, tx, tt } => {
            let cross = a.dot(&tx.t());
            (inner(&(tt - &cross - cross.t() + a.dot(xx).dot(&a.t()))), inner(tt))
        }
        Moments::Rows { x, t } => {
            let rest = t - &x.dot(&a.t());
            (inner(&rest.t().dot(&rest)), inner(&t.t().dot(t)))
        }
    }
}

/// Moments of both sets of rows.
fn sum(a: &Moments, b: &Moments) -> Moments {
    match (a, b) {
        (Moments::Sums { xx, tx, tt }, Moments::Sums { xx: xx2, tx: tx2, tt: tt2 }) => {
            Moments::Sums { xx: xx + xx2, tx: tx + tx2, tt: tt + tt2 }
        }
        (Moments::Rows { x, t }, Moments::Rows { x: x2, t: t2 }) => {
            let join = |a: &Array2<f64>, b: &Array2<f64>| {
                ndarray::concatenate(Axis(0), &[a.view(), b.view()]).expect("rows of one width")
            };
            Moments::Rows { x: join(x, x2), t: join(t, t2) }
        }
        _ => unreachable!("moments of one block are of one kind"),
    }
}

fn projection(m: &Moments, a0: &Array2<f64>, ridge: f64) -> Array2<f64> {
    match m {
        Moments::Sums { xx, tx, .. } => {
            let lambda = ridge * xx.diag().sum() / xx.nrows().max(1) as f64;
            // (xx + λ I) Z = (tx - A₀ xx)ᵀ, and A' = A₀ + Zᵀ.
            match solve_shifted(xx, lambda, &(tx - &a0.dot(xx)).t().to_owned()) {
                Some(z) => a0 + &z.t(),
                None => a0.clone(),
            }
        }
        Moments::Rows { x, t } => {
            // Fewer rows than columns: (XᵀX + λ I)⁻¹ Xᵀ = Xᵀ (X Xᵀ + λ I)⁻¹.
            let gram = x.dot(&x.t());
            let lambda = ridge * gram.diag().sum() / x.ncols().max(1) as f64;
            match solve_shifted(&gram, lambda, &(t - &x.dot(&a0.t()))) {
                Some(z) => a0 + &z.t().dot(x),
                None => a0.clone(),
            }
        }
    }
}

/// `(m + λ I)⁻¹ rhs` by Cholesky. Where rounding leaves the matrix indefinite, λ grows until it is not; `None` for a matrix of
/// zeros.
fn solve_shifted(m: &Array2<f64>, lambda: f64, rhs: &Array2<f64>) -> Option<Array2<f64>> {
    let n = m.nrows();
    let m = m.as_standard_layout();
    let rhs = rhs.as_standard_layout();
    let rhs = MatRef::from_row_major_slice(rhs.as_slice().expect("standard layout"), n, rhs.ncols());
    let source = MatRef::from_row_major_slice(m.as_slice().expect("standard layout"), n, n);
    let mut lambda = lambda;
    for _ in 0..12 {
        let shifted = Mat::from_fn(n, n, |i, j| source[(i, j)] + if i == j { lambda } else { 0.0 });
        if let Ok(cholesky) = shifted.llt(Side::Lower) {
            let z = cholesky.solve(rhs);
            if (0..n).all(|i| (0..z.ncols()).all(|j| z[(i, j)].is_finite())) {
                return Some(Array2::from_shape_fn((n, z.ncols()), |(i, j)| z[(i, j)]));
            }
        }
        if lambda == 0.0 {
            return None;
        }
        lambda *= 10.0;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn draw(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        Array2::from_shape_fn((rows, columns), |_| rng.random_range(-1.0..1.0))
    }

    fn sums(x: &Array2<f64>, t: &Array2<f64>) -> Moments {
        Moments::Sums { xx: x.t().dot(x), tx: t.t().dot(x), tt: t.t().dot(t) }
    }

    #[test]
    fn a_signal_that_is_linear_in_the_input_is_found() {
        let (x, held, truth) = (draw(40, 6, 1), draw(9, 6, 2), draw(2, 6, 3));
        let (a0, b) = (draw(2, 6, 4), draw(5, 2, 5));
        let (t, t_held) = (x.dot(&truth.t()), held.dot(&truth.t()));
        let s = solve(&[sums(&x, &t), sums(&held, &t_held)], &a0, &b, None);
        assert!(error(&[sums(&held, &t_held)], &s.a_fit, &b) < 1e-6);
        assert!((&s.a - &truth).iter().all(|d| d.abs() < 1e-6));
    }

    #[test]
    fn a_large_ridge_gives_back_the_start_and_rows_agree_with_sums() {
        let (x, t, a0) = (draw(5, 12, 1), draw(5, 2, 2), draw(2, 12, 3));
        let far = projection(&sums(&x, &t), &a0, 1e12);
        assert!((&far - &a0).iter().all(|d| d.abs() < 1e-9));
        let primal = projection(&sums(&x, &t), &a0, 1e-3);
        let dual = projection(&Moments::Rows { x, t }, &a0, 1e-3);
        assert!((&primal - &dual).iter().all(|d| d.abs() < 1e-9));
    }
}
