//! Moments gathered batch by batch on the host, and the rows that are held back to judge a fit by.

use super::moment_output;
use crate::adapter::Moments;
use crate::ir::Tensor;
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::ops::Range;

/// The widest input whose products are summed, `[in, in]`; wider ones are fitted on a sample of their rows. Also the number of
/// rows in that sample.
pub const WIDE: usize = 4096;

/// The most that moments take on the host at once, in bytes: at 4,096 features 256 MiB a block, so four blocks.
pub const BUDGET: usize = 1 << 30;

/// The fewest examples that a choice between merges is made on, where there are so many.
pub const JUDGED: usize = 32;

/// How many examples of a data set are held back at a time.
pub fn held_back(examples: usize) -> usize {
    if examples < 2 { 0 } else { examples.div_ceil(10) }
}

/// The examples that are held back, each fold in its turn: a tenth at a time, from the end, until at least [`JUDGED`] have been,
/// or all.
pub fn folds(examples: usize) -> Vec<Range<usize>> {
    let held = held_back(examples);
    let mut folds = Vec::new();
    let mut end = examples;
    while held > 0 && end > 0 && examples - end < JUDGED {
        folds.push(end.saturating_sub(held)..end);
        end = end.saturating_sub(held);
    }
    folds
}

/// Sums what batches give, part by part.
pub enum Gathering {
    Sums(Option<[Array2<f64>; 3]>),
    /// A reservoir: every row is as likely to be kept as any other.
    Rows {
        x: Vec<Vec<f64>>,
        t: Vec<Vec<f64>>,
        seen: usize,
        rng: ChaCha8Rng,
    },
}

impl Gathering {
    pub fn new(sums: bool) -> Gathering {
        if sums {
            return Gathering::Sums(None);
        }
        Gathering::Rows { x: vec![], t: vec![], seen: 0, rng: ChaCha8Rng::seed_from_u64(0) }
    }

    pub fn add_sums(&mut self, parts: [Array2<f64>; 3]) {
        if let Gathering::Sums(all) = self {
            match all {
                None => *all = Some(parts),
                Some(all) => all.iter_mut().zip(parts).for_each(|(a, p)| *a += &p),
            }
        }
    }

    pub fn add_rows(&mut self, xs: &Array2<f64>, ts: &Array2<f64>, counts: impl Fn(usize) -> bool) {
        let Gathering::Rows { x, t, seen, rng } = self else { return };
        for r in (0..xs.nrows()).filter(|&r| counts(r)) {
            *seen += 1;
            let (row, signal) = (xs.row(r).to_vec(), ts.row(r).to_vec());
            if x.len() < WIDE {
                x.push(row);
                t.push(signal);
            } else {
                let at = rng.random_range(0..*seen);
                if at < WIDE {
                    (x[at], t[at]) = (row, signal);
                }
            }
        }
    }

    pub fn finish(self, [n, r]: [usize; 2]) -> Moments {
        match self {
            Gathering::Sums(None) => {
                Moments::Sums { xx: Array2::zeros((n, n)), tx: Array2::zeros((r, n)), tt: Array2::zeros((r, r)) }
            }
            Gathering::Sums(Some([xx, tx, tt])) => Moments::Sums { xx, tx, tt },
            Gathering::Rows { x, t, .. } => {
                let array = |rows: Vec<Vec<f64>>, width: usize| {
                    Array2::from_shape_vec((rows.len(), width), rows.concat()).expect("rows of one width")
                };
                Moments::Rows { x: array(x, n), t: array(t, r) }
            }
        }
    }
}

/// What one batch gives, by output.
pub type Fetched = HashMap<String, Tensor>;

pub fn matrix(fetched: &Fetched, i: usize, part: &str) -> Option<Array2<f64>> {
    let t = fetched.get(&moment_output(i, part))?;
    let [rows, columns] = t.shape()[..] else { return None };
    let values = t.as_f32()?.iter().map(|&x| x as f64).collect();
    Array2::from_shape_vec((rows, columns), values).ok()
}
