//! `lokr`: `W x + s (w1 ⊗ w2) x`, ⊗ the Kronecker product (LoKr, arXiv 2309.14859).
//!
//! `out = a c` and `in = b d`. With x read as X `[b, d]`, the term is `w1 X w2ᵀ` as `[a, c]`. Residual paths carry `X w2_bᵀ`
//! `[b, rank]`, or `X w2ᵀ` `[b, c]` where w2 is whole.

use super::{Config, Emitter, Entry, Factors, Form, Residual, Setting, SettingKind, Spec, Start, Target, Term, Values};
use ndarray::Array2;

const W1: &str = "lokr_w1";
const W2: &str = "lokr_w2";
const W2_A: &str = "lokr_w2_a";
const W2_B: &str = "lokr_w2_b";
const FACTOR: &str = "decompose-factor";

pub const ENTRY: Entry = Entry {
    name: "lokr",
    aliases: &[],
    help: "W x + s kron(w1, w2) x",
    settings: &[Setting {
        name: FACTOR,
        help: "the first factor of both dimensions, where it divides them; -1 for the one nearest to their square root",
        kind: SettingKind::Count { default: Some(-1), least: -1 },
    }],
    rank: true,
    alpha: true,
    dropout: true,
    residual: None,
    residuals: &[Residual::InputShortcut, Residual::BlockShortcut, Residual::MiddleShortcut],
    images: false,
    reads_roles: false,
    suffixes: &[W1, W2, W2_A, W2_B],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Term(Term { carry, last, factors, join: None }),
};

/// The dimensions of a target: `out = a c`, `in = b d`.
struct Split {
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    /// w2 is one matrix rather than two factors.
    whole: bool,
}

impl Split {
    /// Numbers that a path carries for each of the b parts.
    fn width(&self, config: &Config, target: &Target) -> usize {
        if self.whole { self.c } else { config.rank_of(target) }
    }
}

fn split(config: &Config, target: &Target) -> Split {
    let factor = config.count(FACTOR).unwrap_or(-1);
    let (a, c) = factor_pair(target.out_features, factor);
    let (b, d) = factor_pair(target.in_features, factor);
    Split { a, b, c, d, whole: 2 * config.rank_of(target) >= c.max(d) }
}

/// The two factors of `n` that are nearest to a square, the first at most `factor` (no bound at -1); `factor` itself where it
/// divides `n`.
fn factor_pair(n: usize, factor: i64) -> (usize, usize) {
    let bound = usize::try_from(factor).ok().filter(|f| *f > 0);
    if let Some(f) = bound.filter(|f| n.is_multiple_of(*f)) {
        return (f, n / f);
    }
    let small = (1..=n.isqrt()).rev().find(|m| n.is_multiple_of(*m) && bound.is_none_or(|f| *m <= f));
    let small = small.unwrap_or(1);
    (small, n / small)
}

/// w1 `[a, b]`, and w2 `[c, d]` or w2_a `[c, rank]` and w2_b `[rank, d]`.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let (s, r) = (split(config, target), config.rank_of(target));
    if config.count(FACTOR) == Some(0) {
        return Err("--decompose-factor 0 splits nothing: give -1 or a divisor".into());
    }
    let mut specs = vec![Spec::new(W1, [s.a, s.b], Start::Zeros)];
    if s.whole {
        specs.push(Spec::new(W2, [s.c, s.d], Start::KaimingUniform));
    } else {
        specs.push(Spec::new(W2_A, [s.c, r], Start::KaimingUniform));
        specs.push(Spec::new(W2_B, [r, s.d], Start::KaimingUniform));
    }
    Ok(specs)
}

fn carry(e: &mut Emitter, config: &Config, target: &Target, x: &str, which: &str) -> String {
    let s = split(config, target);
    let x = e.reshape_last(&format!("lokr_x{which}"), x, 1, &[s.b as i64, s.d as i64]);
    let right = if s.whole { W2 } else { W2_B };
    let t = e.product_down(&format!("lokr_carry{which}"), &x, &target.tensor(right));
    // One vector for each row, as signals are.
    e.reshape_last(&format!("lokr_signal{which}"), &t, 2, &[(s.b * s.width(config, target)) as i64])
}

fn last(e: &mut Emitter, config: &Config, target: &Target, t: &str, which: &str) -> String {
    let s = split(config, target);
    let w1 = e.tensor(&target.tensor(W1));
    let shape = [s.b as i64, s.width(config, target) as i64];
    let t = e.reshape_last(&format!("lokr_t{which}"), t, 1, &shape);
    let mut y = e.node(&format!("lokr_left{which}"), "MatMul", &[&w1, &t]);
    if !s.whole {
        y = e.product_up(&format!("lokr_right{which}"), &y, &target.tensor(W2_A));
    }
    e.reshape_last(&format!("lokr_last{which}"), &y, 2, &[target.out_features as i64])
}

fn factors(config: &Config, target: &Target, values: &Values) -> Factors {
    let s = split(config, target);
    let w1 = values.matrix(W1);
    // carry: [b, k] from x, k the rows of the right factor; last: [out, b k].
    let right = values.matrix(if s.whole { W2 } else { W2_B });
    let left = if s.whole { Array2::eye(s.c) } else { values.matrix(W2_A) };
    let k = right.nrows();
    let carry = Array2::from_shape_fn((s.b * k, target.in_features), |(row, i)| {
        if row / k == i / s.d { right[(row % k, i % s.d)] } else { 0.0 }
    });
    let last = Array2::from_shape_fn((target.out_features, s.b * k), |(o, column)| {
        w1[(o / s.c, column / k)] * left[(o % s.c, column % k)]
    });
    Factors { carry, last, scale: config.scale_of(target) }
}

#[cfg(test)]
mod tests {
    use super::factor_pair;

    #[test]
    fn dimensions_split_as_peft_splits_them() {
        assert_eq!(factor_pair(128, -1), (8, 16));
        assert_eq!(factor_pair(250, -1), (10, 25));
        assert_eq!(factor_pair(360, 4), (4, 90));
        assert_eq!(factor_pair(512, 7), (4, 128));
        assert_eq!(factor_pair(1024, -1), (32, 32));
        assert_eq!(factor_pair(7, 3), (1, 7));
    }
}
