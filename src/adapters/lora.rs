//! `lora`: `y + s B A x` (LoRA, arXiv 2106.09685; with `--rslora`, 2312.03732).

use super::{Config, Emitter, Entry, Factors, Form, Group, Residual, Spec, Start, Target, Term, Values};

pub const A: &str = "lora_A.weight";
pub const B: &str = "lora_B.weight";

pub const ENTRY: Entry = Entry {
    name: "lora",
    aliases: &["none"],
    help: "y + s B A x",
    settings: &[],
    rank: true,
    alpha: true,
    dropout: true,
    residual: None,
    residuals: &[Residual::InputShortcut, Residual::BlockShortcut, Residual::MiddleShortcut],
    images: true,
    reads_roles: false,
    suffixes: &[A, B],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Term(Term { carry, last, factors, join: None }),
};

/// A `[rank, in]`, B `[out, rank]`.
pub fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let rank = config.rank_of(target);
    Ok(vec![
        Spec::new(A, [rank, target.in_features], Start::KaimingUniform),
        Spec::new(B, [target.out_features, rank], Start::Zeros).group(Group::OutputFactor),
    ])
}

pub fn carry(e: &mut Emitter, _: &Config, target: &Target, x: &str, which: &str) -> String {
    e.product_down(&format!("lora_A{which}"), x, &target.tensor(A))
}

pub fn last(e: &mut Emitter, _: &Config, target: &Target, t: &str, which: &str) -> String {
    e.product_up(&format!("lora_B{which}"), t, &target.tensor(B))
}

pub fn factors(config: &Config, target: &Target, values: &Values) -> Factors {
    Factors { carry: values.matrix(A), last: values.matrix(B), scale: config.scale_of(target) }
}
