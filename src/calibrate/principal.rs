//! Principal directions of what layers read, and how EVA (arXiv 2410.07170) gives ranks to layers by the variance they explain.

use super::WIDE;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par, Side};
use ndarray::{Array1, Array2};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rows of one width, gathered batch by batch.
pub struct Scatter {
    width: usize,
    rows: usize,
    kept: Kept,
}

enum Kept {
    /// Σ x and Σ x xᵀ.
    Sums { sum: Array1<f64>, products: Mat<f64> },
    /// A sample of the rows, each as likely to be kept as any other, where products would not fit.
    Sample { rows: Vec<Vec<f64>>, rng: Box<ChaCha8Rng> },
}

/// The principal directions of centred rows.
#[derive(Clone, Debug)]
pub struct Directions {
    /// `[k, width]`, orthonormal, the largest variance first. The element of the largest magnitude of each is positive.
    pub directions: Array2<f64>,
    /// The share of the whole variance that each explains.
    pub ratios: Vec<f64>,
}

impl Scatter {
    pub fn new(width: usize) -> Scatter {
        let kept = match width <= WIDE {
            true => Kept::Sums { sum: Array1::zeros(width), products: Mat::zeros(width, width) },
            false => Kept::Sample { rows: vec![], rng: Box::new(ChaCha8Rng::seed_from_u64(0)) },
        };
        Scatter { width, rows: 0, kept }
    }

    /// The number of rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds the rows of `x` that count.
    pub fn add(&mut self, x: &Array2<f64>, counts: impl Fn(usize) -> bool) {
        let taken: Vec<usize> = (0..x.nrows()).filter(|&r| counts(r)).collect();
        match &mut self.kept {
            Kept::Sums { sum, products } => {
                let batch = Mat::from_fn(taken.len(), self.width, |i, j| x[(taken[i], j)]);
                matmul(products.as_mut(), Accum::Add, batch.transpose(), batch.as_ref(), 1.0, Par::Seq);
                taken.iter().for_each(|&r| *sum += &x.row(r));
            }
            Kept::Sample { rows, rng } => {
                for (k, &r) in taken.iter().enumerate() {
                    let row = x.row(r).to_vec();
                    match rows.len() < WIDE {
                        true => rows.push(row),
                        false => {
                            let at = rng.random_range(0..=self.rows + k);
                            rows.get_mut(at).map(|old| *old = row).unwrap_or(());
                        }
                    }
                }
            }
        }
        self.rows += taken.len();
    }

    /// The first `k` directions.
    pub fn directions(self, k: usize) -> Result<Directions, String> {
        let failed = |e| format!("the variance of its input has no eigenvalues: {e:?}");
        let n = self.width;
        let (total, values, mut directions) = match self.kept {
            Kept::Sums { sum, products } => {
                let count = self.rows.max(1) as f64;
                let centred = Mat::from_fn(n, n, |i, j| products[(i, j)] - sum[i] * sum[j] / count);
                let total = (0..n).map(|i| centred[(i, i)]).sum::<f64>();
                let eigen = centred.self_adjoint_eigen(Side::Lower).map_err(failed)?;
                let order = descending(n, |i| eigen.S()[i]);
                let values: Vec<f64> = order.iter().map(|&i| eigen.S()[i]).collect();
                (total, values, Array2::from_shape_fn((k, n), |(d, j)| eigen.U()[(j, order[d])]))
            }
            Kept::Sample { rows, .. } => {
                let m = rows.len();
                let mean = |j: usize| rows.iter().map(|r| r[j]).sum::<f64>() / m.max(1) as f64;
                let means: Vec<f64> = (0..n).map(mean).collect();
                let x = Mat::from_fn(m, n, |i, j| rows[i][j] - means[j]);
                // Fewer rows than columns: the eigenvectors of X Xᵀ give those of Xᵀ X.
                let gram = &x * x.transpose();
                let total = (0..m).map(|i| gram[(i, i)]).sum::<f64>();
                let eigen = gram.self_adjoint_eigen(Side::Lower).map_err(failed)?;
                let order = descending(m, |i| eigen.S()[i]);
                let values: Vec<f64> = order.iter().map(|&i| eigen.S()[i]).collect();
                if values.get(k - 1).is_none_or(|v| *v <= 1e-12 * total) {
                    return Err(format!("its {m} input rows span fewer than {k} directions"));
                }
                let turned = x.transpose() * eigen.U();
                let length = |d: usize| values[d].sqrt();
                (total, values.clone(), Array2::from_shape_fn((k, n), |(d, j)| turned[(j, order[d])] / length(d)))
            }
        };
        for mut row in directions.rows_mut() {
            let most = row.iter().fold(0.0f64, |m, x| if x.abs() > m.abs() { *x } else { m });
            if most < 0.0 {
                row.mapv_inplace(|x| -x);
            }
        }
        let ratio = |v: &f64| if total > 0.0 { (v / total).max(0.0) } else { 0.0 };
        Ok(Directions { directions, ratios: values.iter().take(k).map(ratio).collect() })
    }
}

/// Places in descending order of their values.
fn descending(n: usize, value: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
    order
}

/// How many directions each layer gets of `budget` in all: those that explain the largest shares of their layers' variances. Where shares
/// are the same, earlier layers come first.
pub fn distribute(ratios: &[&[f64]], budget: usize) -> Vec<usize> {
    let mut all: Vec<(usize, f64)> =
        ratios.iter().enumerate().flat_map(|(layer, r)| r.iter().map(move |&x| (layer, x))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut counts = vec![0; ratios.len()];
    all.into_iter().take(budget).for_each(|(layer, _)| counts[layer] += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows along two axes, far from the origin, of which one varies twice as much.
    #[test]
    fn directions_are_those_of_centred_rows() {
        let rows = Array2::from_shape_fn((4, 3), |(r, j)| match j {
            0 => 100.0 + [2.0, -2.0, 0.0, 0.0][r],
            1 => 50.0 + [0.0, 0.0, 1.0, -1.0][r],
            _ => 7.0,
        });
        let mut scatter = Scatter::new(3);
        scatter.add(&rows, |_| true);
        scatter.add(&Array2::from_elem((2, 3), 1e6), |_| false);
        assert_eq!(scatter.rows(), 4);
        let found = scatter.directions(2).unwrap();
        let want = ndarray::arr2(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]);
        assert!((&found.directions - &want).iter().all(|x| x.abs() < 1e-9), "{:?}", found.directions);
        assert!((found.ratios[0] - 0.8).abs() < 1e-9 && (found.ratios[1] - 0.2).abs() < 1e-9, "{:?}", found.ratios);
    }

    #[test]
    fn ranks_go_where_variance_is_explained() {
        assert_eq!(distribute(&[&[0.9, 0.05], &[0.5, 0.4], &[0.1, 0.02]], 3), [1, 2, 0]);
        assert_eq!(distribute(&[&[0.5, 0.2], &[0.5, 0.2]], 3), [2, 1]);
    }
}
