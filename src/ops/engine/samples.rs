//! Drawing the inputs of samples.

use super::primitive::Fill;
use crate::ir::{Tensor, Type};

/// The bias of what is masked.
const HIDDEN: f64 = -1e30;

/// Deterministic draws for a sample's inputs.
pub fn draw(ty: &Type, fill: Fill, seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..8).for_each(|_| {
        uniform();
    });
    let n = ty.elements();
    let mut float =
        |f: &mut dyn FnMut(f64, f64) -> f64| -> Vec<f32> { (0..n).map(|_| f(uniform(), uniform()) as f32).collect() };
    let gauss = |a: f64, b: f64| (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    match fill {
        Fill::Normal | Fill::Frozen => Tensor::f32(ty.shape.clone(), float(&mut { gauss })),
        Fill::Mask => {
            let mut values = float(&mut |a, b| if a * 3.0 < 1.0 { HIDDEN } else { gauss(a, b) });
            values.iter_mut().step_by(ty.shape[ty.rank() - 1]).for_each(|x| *x = x.max(0.0));
            Tensor::f32(ty.shape.clone(), values)
        }
        Fill::Window(before) => {
            let (rows, n) = (ty.shape[ty.rank() - 2], ty.shape[ty.rank() - 1]);
            let mut values = float(&mut { gauss });
            for (i, x) in values.iter_mut().enumerate() {
                let (query, key) = (i / n % rows, i % n);
                if key > query || query - key >= before {
                    *x = HIDDEN as f32;
                }
            }
            Tensor::f32(ty.shape.clone(), values)
        }
        Fill::Padded => {
            let n = ty.shape[ty.rank() - 1];
            let mut values = float(&mut |a, b| if a * 3.0 < 1.0 { f64::NEG_INFINITY } else { gauss(a, b) });
            for (r, row) in values.chunks_exact_mut(n).enumerate() {
                match r % 3 {
                    0 => row.fill(f32::NEG_INFINITY),
                    _ => row[0] = row[0].max(0.0),
                }
            }
            Tensor::f32(ty.shape.clone(), values)
        }
        Fill::Values(values) => Tensor::f32(ty.shape.clone(), values.iter().copied().cycle().take(n).collect()),
        Fill::Positive => Tensor::f32(ty.shape.clone(), float(&mut |a, _| 0.5 + 1.5 * a)),
        Fill::Index(k) => {
            let ints = float(&mut |a, _| (a * k as f64).floor()).into_iter().map(|x| x as i32).collect();
            Tensor::i32(ty.shape.clone(), ints)
        }
        Fill::Label(k) => {
            let ints = float(&mut |a, _| (a * (k + 1) as f64).floor() - 1.0).into_iter().map(|x| x as i32).collect();
            Tensor::i32(ty.shape.clone(), ints)
        }
        Fill::Flag => {
            Tensor::bool(ty.shape.clone(), float(&mut |a, _| a).into_iter().map(|x| (x < 0.5) as u32).collect())
        }
    }
}
