//! How the factors A and B of LoRA start (`--init`).
//!
//! | name | A, B | source |
//! |---|---|---|
//! | default | kaiming-uniform, zeros | LoRA's own code |
//! | gaussian | normal of deviation 1 / rank, zeros | LoRA's paper, 2106.09685 |
//! | orthogonal | random and orthogonal to each other: `B A = 0`, neither zero | `peft` |
//! | pissa | the largest singular directions of W | PiSSA, 2404.02948 |
//! | olora | the first columns of Q and rows of R, `W = Q R` | OLoRA, 2406.01775 |
//! | eva | the principal directions of the target's inputs, zeros | EVA, 2410.07170 |
//! | loftq | the largest singular directions of what quantising W loses | LoftQ, 2310.08659; `loftq.rs` |
//!
//! pissa and olora take a part out of W. The base is not changed: frozen copies `A₀` and `B₀` are subtracted in the graph, so that the
//! term is `s (B A - B₀ A₀) x` and the model starts as it was.

use super::{Config, Drawing, Residual, Target};
use faer::Mat;
use ndarray::{Array2, ArrayD, Axis, s};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the factors start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// A kaiming-uniform, B zero.
    #[default]
    Default,
    /// A normal, B zero.
    Gaussian,
    /// Both random, with `B A = 0`.
    Orthogonal,
    /// The largest singular directions of the weight.
    Pissa,
    /// The first directions of the weight's QR decomposition.
    Olora,
    /// A the principal directions of the target's inputs, B zero.
    Eva,
    /// The largest singular directions of the weight's quantisation error; the weight itself is quantised.
    Loftq,
}

/// How `--init loftq` quantises weights that the file holds as floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loftq {
    /// 4: the 16 values of NF4, a scale for every 64 elements. 8: integers, a scale for every row.
    pub bits: usize,
    /// How often quantisation and singular directions are found in turn, each for what the other leaves.
    pub iterations: usize,
}

impl Default for Loftq {
    fn default() -> Loftq {
        Loftq { bits: 4, iterations: 1 }
    }
}

/// Every start with its name.
pub(crate) const INITS: [(Init, &str); 7] = [
    (Init::Default, "default"),
    (Init::Gaussian, "gaussian"),
    (Init::Orthogonal, "orthogonal"),
    (Init::Pissa, "pissa"),
    (Init::Olora, "olora"),
    (Init::Eva, "eva"),
    (Init::Loftq, "loftq"),
];

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(INITS.iter().find(|i| i.0 == *self).map_or("default", |i| i.1))
    }
}

impl Init {
    /// By name.
    pub fn parse(name: &str) -> Option<Init> {
        INITS.iter().find(|i| i.1 == name).map(|i| i.0)
    }

    /// Whether the factors start as a part of W, which is subtracted.
    pub(crate) fn subtracts(self) -> bool {
        match self {
            Init::Default | Init::Gaussian | Init::Orthogonal | Init::Eva | Init::Loftq => false,
            Init::Pissa | Init::Olora => true,
        }
    }

    /// Why these factors cannot start so.
    pub(crate) fn refused(self, config: &Config, target: &Target) -> Option<String> {
        let (rank, least) = (config.rank_of(target), target.in_features.min(target.out_features));
        match self {
            Init::Default | Init::Gaussian => None,
            Init::Orthogonal if rank % 2 != 0 => Some(format!("--init orthogonal needs an even rank, not {rank}")),
            Init::Orthogonal => None,
            Init::Eva if rank > target.in_features => {
                Some(format!("--init eva finds at most {} directions in its input, not {rank}", target.in_features))
            }
            Init::Eva => None,
            Init::Loftq if config.residual() != Residual::None => {
                let path = config.residual();
                Some(format!("--init loftq makes up for its own weight's error alone, and does not go with {path}"))
            }
            Init::Pissa | Init::Olora | Init::Loftq if rank > least => {
                Some(format!("--init {self} finds at most {least} directions in its weight, not {rank}"))
            }
            Init::Pissa | Init::Olora | Init::Loftq => None,
        }
    }
}

/// A number of the standard normal distribution.
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random_range(f64::MIN_POSITIVE..1.0), rng.random_range(0.0..1.0));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

pub(super) fn f32s(m: Array2<f64>) -> ArrayD<f32> {
    m.mapv(|x| x as f32).into_dyn()
}

/// A `[rank, in]`, normal of deviation 1 / rank.
pub(super) fn gaussian(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let deviation = 1.0 / call.shape[0] as f64;
    Ok(ArrayD::from_shape_simple_fn(call.shape.to_vec(), || (normal(call.rng) * deviation) as f32))
}

/// A of `--init orthogonal`: random combinations of every second row of an orthogonal matrix.
pub(super) fn orthogonal_a(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let (rank, columns) = (call.shape[0], call.shape[1]);
    let q = orthogonal(call, rank);
    let rows = q.slice(s![1..;2, ..]).to_owned();
    let random = Array2::from_shape_simple_fn((columns, rank / 2), || normal(call.rng) / 10.0);
    Ok(f32s(random.dot(&rows).reversed_axes()))
}

/// B, of the rows between those.
pub(super) fn orthogonal_b(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let (out, rank) = (call.shape[0], call.shape[1]);
    let q = orthogonal(call, rank);
    let rows = q.slice(s![0..;2, ..]).to_owned();
    let random = Array2::from_shape_simple_fn((out, rank / 2), || normal(call.rng) / 10.0);
    Ok(f32s(random.dot(&rows)))
}

/// An orthogonal matrix that depends on the seed and the target alone.
fn orthogonal(call: &Drawing, n: usize) -> Array2<f64> {
    use rand::SeedableRng;
    let path = call.target.map_or("", |t| t.path.as_str());
    let mark = path.bytes().fold(call.config.seed, |h, b| h.wrapping_mul(0x100_0000_01b3) ^ u64::from(b));
    let mut rng = ChaCha8Rng::seed_from_u64(mark);
    let random = Mat::from_fn(n, n, |_, _| normal(&mut rng));
    let q = random.qr().compute_thin_Q();
    Array2::from_shape_fn((n, n), |(i, j)| q[(i, j)])
}

/// The factors that `--init` takes out of W: A `[rank, in]` and B `[out, rank]`, of which `s B A` is that part.
fn parts(call: &Drawing) -> Result<[Array2<f64>; 2], String> {
    let (config, target) = (call.config, call.target.ok_or("it belongs to no target")?);
    let (rank, scale) = (config.rank_of(target), config.scale_of(target));
    let w = (call.weight)()?;
    match config.init {
        Init::Pissa => largest(&w, rank, scale),
        _ => {
            let m = Mat::from_fn(w.nrows(), w.ncols(), |i, j| w[(i, j)]);
            let array = |m: faer::MatRef<f64>| Array2::from_shape_fn((m.nrows(), m.ncols()), |(i, j)| m[(i, j)]);
            let qr = m.qr();
            let (q, r) = (array(qr.compute_thin_Q().as_ref()), array(qr.thin_R()));
            Ok([r.slice(s![..rank, ..]).to_owned(), q.slice(s![.., ..rank]).to_owned()])
        }
    }
}

/// Factors A `[rank, in]` and B `[out, rank]` with `scale B A` the best approximation of a matrix `[out, in]` of that rank. Each has
/// the roots of the singular values.
pub(super) fn largest(w: &Array2<f64>, rank: usize, scale: f64) -> Result<[Array2<f64>; 2], String> {
    let m = Mat::from_fn(w.nrows(), w.ncols(), |i, j| w[(i, j)]);
    let array = |m: faer::MatRef<f64>| Array2::from_shape_fn((m.nrows(), m.ncols()), |(i, j)| m[(i, j)]);
    let svd = m.thin_svd().map_err(|e| format!("its weight has no singular values: {e:?}"))?;
    let mut b = array(svd.U()).slice(s![.., ..rank]).to_owned();
    let mut a = array(svd.V()).slice(s![.., ..rank]).t().to_owned();
    for i in 0..rank {
        let root = (svd.S()[i] / scale).max(0.0).sqrt();
        b.column_mut(i).mapv_inplace(|x| x * root);
        a.row_mut(i).mapv_inplace(|x| x * root);
    }
    Ok([a, b])
}

/// A as a part of W.
pub(super) fn part_a(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    Ok(f32s(parts(call)?[0].clone()))
}

/// B as a part of W.
pub(super) fn part_b(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    Ok(f32s(parts(call)?[1].clone()))
}

/// A of `--init eva`: the first principal directions of the target's inputs.
pub(super) fn directions(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let found =
        call.directions.ok_or("--init eva has no directions of the target's inputs\nhint: give --init-data FILE")?;
    let rank = call.shape[0];
    if found.nrows() < rank {
        return Err(format!("--init eva found {} directions in its input, not {rank}", found.nrows()));
    }
    Ok(f32s(found.slice(s![..rank, ..]).to_owned()))
}

/// What a tensor that was started before this one holds.
pub(super) fn copy_of(call: &mut Drawing, suffix: &str) -> Result<ArrayD<f32>, String> {
    let found = call.earlier.iter().find(|e| e.0 == suffix).map(|e| e.1.clone());
    found.ok_or_else(|| format!("'{suffix}' was not started before it"))
}

/// Two factors one after the other along an axis.
pub(super) fn stacked(axis: usize, a: Array2<f64>, b: Array2<f64>) -> Array2<f64> {
    ndarray::concatenate(Axis(axis), &[a.view(), b.view()]).expect("factors of one target")
}
