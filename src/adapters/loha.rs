//! `loha`: `W x + s ((w1a w1b) ∘ (w2a w2b)) x` (LoHa, after FedPara, arXiv 2108.06098).
//!
//! The same as two factors of rank²: with p, q over the two ranks, `carry(x)[p, q] = Σ_i w1b[p, i] w2b[q, i] x[i]` and
//! `last(t)[o] = Σ_pq w1a[o, p] w2a[o, q] t[p, q]`.

use super::{Config, Emitter, Entry, Factors, Form, Residual, Spec, Start, Target, Term, Values};
use ndarray::{Array2, Axis};

const W1_A: &str = "hada_w1_a";
const W1_B: &str = "hada_w1_b";
const W2_A: &str = "hada_w2_a";
const W2_B: &str = "hada_w2_b";

pub const ENTRY: Entry = Entry {
    name: "loha",
    aliases: &[],
    help: "W x + s ((w1a w1b) * (w2a w2b)) x",
    settings: &[],
    rank: true,
    alpha: true,
    dropout: true,
    residual: None,
    residuals: &[Residual::InputShortcut, Residual::BlockShortcut, Residual::MiddleShortcut],
    images: true,
    reads_roles: false,
    suffixes: &[W1_A, W1_B, W2_A, W2_B],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Term(Term { carry, last, factors, join: None }),
};

/// `w*_a` `[out, rank]`, `w*_b` `[rank, in]`.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let (r, n, m) = (config.rank_of(target), target.in_features, target.out_features);
    Ok(vec![
        Spec::new(W1_A, [m, r], Start::KaimingUniform),
        Spec::new(W1_B, [r, n], Start::KaimingUniform),
        Spec::new(W2_A, [m, r], Start::KaimingUniform),
        Spec::new(W2_B, [r, n], Start::Zeros),
    ])
}

fn carry(e: &mut Emitter, config: &Config, target: &Target, x: &str, which: &str) -> String {
    let (r, n) = (config.rank_of(target) as i64, target.in_features as i64);
    let first = e.reshape(&format!("hada_1b{which}"), &target.tensor(W1_B), &[r, 1, n]);
    let second = e.reshape(&format!("hada_2b{which}"), &target.tensor(W2_B), &[1, r, n]);
    let pair = e.node(&format!("hada_b{which}"), "Mul", &[&first, &second]);
    let pair = e.reshape(&format!("hada_pair_b{which}"), &pair, &[r * r, n]);
    e.product_down(&format!("hada_carry{which}"), x, &pair)
}

fn last(e: &mut Emitter, config: &Config, target: &Target, t: &str, which: &str) -> String {
    let (r, m) = (config.rank_of(target) as i64, target.out_features as i64);
    let first = e.reshape(&format!("hada_1a{which}"), &target.tensor(W1_A), &[m, r, 1]);
    let second = e.reshape(&format!("hada_2a{which}"), &target.tensor(W2_A), &[m, 1, r]);
    let pair = e.node(&format!("hada_a{which}"), "Mul", &[&first, &second]);
    let pair = e.reshape(&format!("hada_pair_a{which}"), &pair, &[m, r * r]);
    e.product_up(&format!("hada_last{which}"), t, &pair)
}

fn factors(config: &Config, target: &Target, values: &Values) -> Factors {
    let [w1a, w1b, w2a, w2b] = [W1_A, W1_B, W2_A, W2_B].map(|s| values.matrix(s));
    let r = w1b.nrows();
    let carry = Array2::from_shape_fn((r * r, w1b.len_of(Axis(1))), |(k, i)| w1b[(k / r, i)] * w2b[(k % r, i)]);
    let last = Array2::from_shape_fn((w1a.nrows(), r * r), |(o, k)| w1a[(o, k / r)] * w2a[(o, k % r)]);
    Factors { carry, last, scale: config.scale_of(target) }
}
