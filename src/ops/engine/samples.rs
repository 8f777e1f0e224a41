//! Small problems to try a primitive on, and drawing their inputs.

use crate::ir::{Attrs, Tensor, Type};

/// How the elements of a sample's input are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Standard normal.
    Normal,
    /// Uniform in (0.5, 2).
    Positive,
    /// Integers in `0..n`.
    Index(usize),
    /// Integers in `-1..n`, where -1 stands for a label that does not count (-100).
    Label(usize),
    /// 0 or 1.
    Flag,
    /// Standard normal, and frozen.
    Frozen,
    /// A frozen bias of scores: standard normal, and for one in three, but for the first of a row, so low that nothing is left.
    Mask,
    /// The same, low where a key (the last axis) comes after a query (the axis before) or more than this many before it.
    Window(usize),
    /// The same with -∞ where a key is masked, and throughout in every third row: what left padding leaves of a causal mask.
    Padded,
    /// These numbers, over and over.
    Values(&'static [f32]),
}

impl Fill {
    /// Whether a gradient is asked of such an input, floats being.
    pub fn frozen(self) -> bool {
        matches!(self, Fill::Frozen | Fill::Mask | Fill::Window(_) | Fill::Padded | Fill::Values(_))
    }
}

#[rustfmt::skip]
const ARGUMENTS: [f32; 42] = [
    f32::NAN, 0.0, -0.0, 1e-20, 0.3, -0.3, 0.5, 1.5, -1.5, 2.5, 1.0, -1.0, std::f32::consts::PI, 7.5, -9.3, 20.0, -20.0, 87.0, -87.0,
    100.0, -104.0, 999.0, 1e4, -1e4, 1e6, -1e6, 3e18,
    // And those at which adapters differ.
    1e-40, -3e-39, 1.175_494_4e-38, 88.8, 4095.7, -4096.3, 131_071.0, -131_071.0, 16_777_217.0, 2.2e9, -2.2e9, 3e38, -3e38,
    f32::INFINITY, f32::NEG_INFINITY,
];

/// Large and odd arguments: what positions of long texts, timesteps, scores and their differences come to, and the edges of f32.
pub const EDGES: &[f32] = &ARGUMENTS;

/// Those of them that every adapter tells from each other and can add up.
pub const FINITE: &[f32] = ARGUMENTS.split_at(27).0;

/// Scores and logits far apart.
#[rustfmt::skip]
pub const SCORES: &[f32] = &[
    1e4, -1e4, 9_999.5, 0.0, 12.0, -80.0, 1e4, 3.5, -1e30, 88.0, f32::NEG_INFINITY, 9_999.0, 40.0, 41.0, -1e-20, 100.5,
];

/// A small problem.
#[derive(Clone, Debug)]
pub struct Sample {
    pub inputs: Vec<(Type, Fill)>,
    pub attrs: Attrs,
}

impl Sample {
    pub fn new(inputs: Vec<(Type, Fill)>, attrs: Attrs) -> Sample {
        Sample { inputs, attrs }
    }

    /// A problem on standard normal floats of these shapes.
    pub fn normal(shapes: &[&[usize]]) -> Sample {
        Sample::new(shapes.iter().map(|s| (Type::f32(*s), Fill::Normal)).collect(), Attrs::new())
    }

    /// A problem on floats in (0.5, 2) of these shapes.
    pub fn positive(shapes: &[&[usize]]) -> Sample {
        Sample::new(shapes.iter().map(|s| (Type::f32(*s), Fill::Positive)).collect(), Attrs::new())
    }

    /// One operand of these numbers.
    pub fn of(values: &'static [f32]) -> Sample {
        Sample::new(vec![(Type::f32([values.len()]), Fill::Values(values))], Attrs::new())
    }

    /// These numbers, and as many standard normal ones.
    pub fn beside_normal(values: &'static [f32]) -> Sample {
        let ty = Type::f32([values.len()]);
        Sample::new(vec![(ty.clone(), Fill::Values(values)), (ty, Fill::Normal)], Attrs::new())
    }

    /// Every pair of these numbers.
    pub fn pairs(values: &'static [f32]) -> Sample {
        let n = values.len();
        let sides = [Type::f32([n, 1]), Type::f32([n])];
        Sample::new(sides.map(|ty| (ty, Fill::Values(values))).to_vec(), Attrs::new())
    }

    /// Whether its numbers differ so much in size that each result is compared by itself.
    pub fn edges(&self) -> bool {
        self.inputs.iter().any(|(_, fill)| matches!(fill, Fill::Values(_)))
    }

    pub fn with(mut self, attrs: Attrs) -> Sample {
        self.attrs = attrs;
        self
    }
}

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
