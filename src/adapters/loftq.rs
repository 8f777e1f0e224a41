//! `--init loftq` (LoftQ, arXiv 2310.08659), as `peft` does it: A and B start as the largest singular directions of what quantising W
//! loses, so that `Q x + s B A x` starts near `W x`.
//!
//! A weight that the file holds quantised is Q itself, and the original W comes from another file. A weight that the file holds as floats
//! is quantised here: the frozen tensor `loftq_error` is `W - Q`, which the graph subtracts and a merge takes out of W. With more than one
//! iteration, Q is that of `W - s B A` of the iteration before.
//!
//! `peft` leaves s out, so its numbers are these where s is 1.

use super::{Config, Drawing, Loftq, Spec, Start, Target, init};
use ndarray::{Array2, ArrayD, Ix2};

/// `W - Q`, `[out, in]`.
pub const ERROR: &str = "loftq_error";

/// The 16 values of NF4: quantiles of the normal distribution (QLoRA, arXiv 2305.14314, appendix E).
const NF4: [f64; 16] = [
    -1.0,
    -0.696_192_800_998_687_7,
    -0.525_073_051_452_636_7,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];
/// Elements that share a scale in NF4.
const BLOCK: usize = 64;

/// The frozen error, where the file holds floats.
pub fn tensors(target: &Target) -> Option<Spec> {
    let shape = [target.out_features, target.in_features];
    (!target.quantised).then(|| Spec::new(ERROR, shape, Start::Drawn(error)).frozen())
}

/// Q of a weight `[out, in]`.
fn quantised(w: &Array2<f64>, bits: usize) -> Result<Array2<f64>, String> {
    match bits {
        4 => Ok(nf4(w)),
        8 => Ok(int8(w)),
        _ => Err(format!("--loftq-bits {bits} must be 4 or 8")),
    }
}

/// Runs of 64 elements, by rows, scaled by their largest magnitude to the nearest of [`NF4`].
fn nf4(w: &Array2<f64>) -> Array2<f64> {
    let mut values: Vec<f64> = w.iter().copied().collect();
    for block in values.chunks_mut(BLOCK) {
        let most = block.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let nearest = |x: f64| {
            let off = |v: &f64| (v - x / most).abs();
            NF4.into_iter().min_by(|a, b| off(a).total_cmp(&off(b))).expect("there are 16")
        };
        block.iter_mut().filter(|_| most > 0.0).for_each(|x| *x = nearest(*x) * most);
    }
    Array2::from_shape_vec(w.raw_dim(), values).expect("as many elements")
}

/// Rows of halves, scaled by their largest magnitude to whole numbers from -127 to 127.
fn int8(w: &Array2<f64>) -> Array2<f64> {
    let mut out = w.mapv(|x| half::f16::from_f64(x).to_f64());
    for mut row in out.rows_mut() {
        let most = row.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        row.iter_mut().filter(|_| most > 0.0).for_each(|x| *x = (*x * 127.0 / most).round_ties_even() * most / 127.0);
    }
    out
}

/// What is known of a call's target: its rank and scale.
fn size(call: &Drawing) -> Result<(usize, f64), String> {
    let target = call.target.ok_or("it belongs to no target")?;
    Ok((call.config.rank_of(target), call.config.scale_of(target)))
}

/// `W - Q` of a weight of floats.
fn error(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let (rank, scale) = size(call)?;
    let Loftq { bits, iterations } = call.loftq;
    let w = (call.weight)()?;
    let mut error = &w - &quantised(&w, bits)?;
    for _ in 1..iterations {
        let [a, b] = init::largest(&error, rank, scale)?;
        error = &w - &quantised(&(&w - &(b.dot(&a) * scale)), bits)?;
    }
    Ok(init::f32s(error))
}

/// What quantising has lost: of floats, as it was just started; of a quantised weight, against the original.
fn lost(call: &Drawing) -> Result<Array2<f64>, String> {
    if let Some((_, error)) = call.earlier.iter().find(|e| e.0 == ERROR) {
        return Ok(error.mapv(f64::from).into_dimensionality::<Ix2>().expect("two axes"));
    }
    let original = call.original.ok_or("its weight from before it was quantised is not known")?;
    let q = (call.weight)()?;
    if original.dim() != q.dim() {
        let (have, want) = (original.dim(), q.dim());
        return Err(format!("its original weight is {} x {}, not {} x {}", have.0, have.1, want.0, want.1));
    }
    Ok(original.mapv(f64::from) - q)
}

/// A as it makes up for what was lost.
pub fn a(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let (rank, scale) = size(call)?;
    let [a, _] = init::largest(&lost(call)?, rank, scale)?;
    Ok(init::f32s(a))
}

/// B as it makes up for what was lost.
pub fn b(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let (rank, scale) = size(call)?;
    let [_, b] = init::largest(&lost(call)?, rank, scale)?;
    Ok(init::f32s(b))
}

impl Config {
    /// The name of a frozen tensor `[out, in]` that is taken out of a target's weight, if there is one.
    pub fn taken_out(&self, target: &Target) -> Option<String> {
        (self.init == super::Init::Loftq && !target.quantised).then(|| target.tensor(ERROR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_code_stay() {
        let w = Array2::from_shape_fn((2, 32), |(i, j)| NF4[(i * 32 + j) % 16] * 0.5);
        assert_eq!(nf4(&w), w);
        let zeros: Array2<f64> = Array2::zeros((1, 3));
        assert_eq!(nf4(&zeros), zeros);
        let rows = Array2::from_shape_fn((2, 3), |(i, j)| (1 + i) as f64 * [127.0, -5.0, 0.0][j]);
        assert_eq!(int8(&rows), rows);
    }
}
