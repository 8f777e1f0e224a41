//! `lora`: `y + s B A x` (LoRA, arXiv 2106.09685; with `--rslora`, 2312.03732).

use super::{
    Config, Emitter, Entry, Factors, Form, Group, Init, Residual, Spec, Start, Target, Term, Values, init, loftq,
};

pub const A: &str = "lora_A.weight";
pub const B: &str = "lora_B.weight";
/// What they start as, where `--init` subtracts that.
pub const A0: &str = "lora_A0.weight";
const B0: &str = "lora_B0.weight";

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
    suffixes: &[A, B, A0, B0, loftq::ERROR],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Term(Term { carry, last, factors, join: None }),
};

/// A `[rank, in]`, B `[out, rank]`; and frozen copies of how they start, or the error of a quantised weight, where that is subtracted.
pub fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let (rank, init) = (config.rank_of(target), config.init);
    if let Some(why) = init.refused(config, target) {
        return Err(why);
    }
    let [a, b] = match init {
        Init::Default => [Start::KaimingUniform, Start::Zeros],
        Init::Gaussian => [Start::Drawn(init::gaussian), Start::Zeros],
        Init::Orthogonal => [Start::Drawn(init::orthogonal_a), Start::Drawn(init::orthogonal_b)],
        Init::Pissa | Init::Olora => [Start::Drawn(init::part_a), Start::Drawn(init::part_b)],
        Init::Eva => [Start::Drawn(init::directions), Start::Zeros],
        Init::Loftq => [Start::Drawn(loftq::a), Start::Drawn(loftq::b)],
    };
    let (shape_a, shape_b) = ([rank, target.in_features], [target.out_features, rank]);
    // A and B read the error, which therefore comes first.
    let mut specs: Vec<Spec> = if init == Init::Loftq { loftq::tensors(target).into_iter().collect() } else { vec![] };
    specs.extend([Spec::new(A, shape_a, a), Spec::new(B, shape_b, b).group(Group::OutputFactor)]);
    if init.subtracts() {
        specs.push(Spec::new(A0, shape_a, Start::Drawn(|call| init::copy_of(call, A))).frozen());
        specs.push(Spec::new(B0, shape_b, Start::Drawn(|call| init::copy_of(call, B))).frozen());
    }
    Ok(specs)
}

pub fn carry(e: &mut Emitter, config: &Config, target: &Target, x: &str, which: &str) -> String {
    let role = format!("lora_A{which}");
    if !config.init.subtracts() {
        return e.product_down(&role, x, &target.tensor(A));
    }
    let both = e.concat(&format!("{role}.both"), &[&target.tensor(A), &target.tensor(A0)], 0);
    e.product_down(&role, x, &both)
}

pub fn last(e: &mut Emitter, config: &Config, target: &Target, t: &str, which: &str) -> String {
    let role = format!("lora_B{which}");
    if !config.init.subtracts() {
        return e.product_up(&role, t, &target.tensor(B));
    }
    let start = e.node(&format!("{role}.start"), "Neg", &[&target.tensor(B0)]);
    let both = e.concat(&format!("{role}.both"), &[&target.tensor(B), &start], 1);
    e.product_up(&role, t, &both)
}

pub fn factors(config: &Config, target: &Target, values: &Values) -> Factors {
    let (mut carry, mut last) = (values.matrix(A), values.matrix(B));
    if config.init.subtracts() {
        carry = init::stacked(0, carry, values.matrix(A0));
        last = init::stacked(1, last, -values.matrix(B0));
    }
    Factors { carry, last, scale: config.scale_of(target) }
}
