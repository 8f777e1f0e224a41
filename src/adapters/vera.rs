//! `vera`: `W x + λ_b ∘ B (λ_d ∘ A x)`, A and B frozen and shared by all targets (VeRA, arXiv 2310.11454).

use super::{Config, Drawing, Emitter, Entry, Factors, Form, Residual, Spec, Start, Target, Term, Values};
use ndarray::{ArrayD, Axis, s};
use rand::Rng;

const A: &str = "vera_A";
const B: &str = "vera_B";
const D: &str = "vera_lambda_d";
const LAMBDA_B: &str = "vera_lambda_b";

pub const ENTRY: Entry = Entry {
    name: "vera",
    aliases: &[],
    help: "W x + b * (B (d * A x)), A and B frozen and shared",
    settings: &[],
    rank: true,
    alpha: false,
    dropout: true,
    residual: None,
    residuals: &[Residual::InputShortcut, Residual::BlockShortcut, Residual::MiddleShortcut],
    images: false,
    reads_roles: false,
    suffixes: &[D, LAMBDA_B, A, B],
    tensors,
    shared,
    inputs: &[],
    form: Form::Term(Term { carry, last, factors, join: None }),
};

/// λ_d `[rank]`, λ_b `[out]`.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    Ok(vec![Spec::new(LAMBDA_B, [target.out_features], Start::Zeros), Spec::new(D, [config.rank], Start::Full(0.1))])
}

/// A `[rank, widest in]`, B `[widest out, rank]`; a target takes `A[:, :in]` and `B[:out]`.
fn shared(config: &Config) -> Vec<Spec> {
    let widest = |f: fn(&Target) -> usize| config.targets.iter().map(f).max().unwrap_or(1);
    vec![
        Spec::new(A, [config.rank, widest(|t| t.in_features)], Start::Drawn(uniform)).frozen(),
        Spec::new(B, [widest(|t| t.out_features), config.rank], Start::Drawn(uniform)).frozen(),
    ]
}

/// Kaiming-uniform with gain √2: within `√(6 / columns)`.
fn uniform(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let bound = (6.0 / call.shape[1] as f32).sqrt();
    Ok(ArrayD::from_shape_simple_fn(call.shape, || call.rng.random_range(-bound..bound)))
}

fn carry(e: &mut Emitter, config: &Config, target: &Target, x: &str, which: &str) -> String {
    let whole = shared(config)[0].shape[1] == target.in_features;
    let n = target.in_features;
    let a = if whole { A.to_string() } else { e.slice(&format!("vera_part_A{which}"), A, 1, 0, n) };
    let t = e.product_down(&format!("vera_A{which}"), x, &a);
    let d = e.tensor(&target.tensor(D));
    e.node(&format!("vera_d{which}"), "Mul", &[&t, &d])
}

fn last(e: &mut Emitter, config: &Config, target: &Target, t: &str, which: &str) -> String {
    let whole = shared(config)[1].shape[0] == target.out_features;
    let m = target.out_features;
    let b = if whole { B.to_string() } else { e.slice(&format!("vera_part_B{which}"), B, 0, 0, m) };
    let y = e.product_up(&format!("vera_B{which}"), t, &b);
    let scale = e.tensor(&target.tensor(LAMBDA_B));
    e.node(&format!("vera_b{which}"), "Mul", &[&y, &scale])
}

fn factors(_: &Config, target: &Target, values: &Values) -> Factors {
    let (a, b) = (values.matrix(A), values.matrix(B));
    let (d, lambda) = (values.vector(D).insert_axis(Axis(1)), values.vector(LAMBDA_B).insert_axis(Axis(1)));
    let carry = &a.slice(s![.., ..target.in_features]) * &d;
    let last = &b.slice(s![..target.out_features, ..]) * &lambda;
    Factors { carry, last, scale: 1.0 }
}
