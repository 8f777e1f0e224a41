//! `ia3`: outputs scaled, `(W x + b) ∘ l`; at feed-forward down projections the input, `W (x ∘ l) + b` ((IA)³, arXiv 2205.05638).

use super::{Block, Config, Emitter, Entry, Fold, Folded, Folding, Form, Place, Spec, Start, Target, Whole};
use crate::onnx::Role;
use ndarray::Axis;

const L: &str = "ia3_l";

pub const ENTRY: Entry = Entry {
    name: "ia3",
    aliases: &[],
    help: "(W x + b) * l, or W (x * l) + b at feed-forward down projections",
    settings: &[],
    rank: false,
    alpha: false,
    dropout: false,
    residual: None,
    residuals: &[],
    images: true,
    reads_roles: true,
    suffixes: &[L],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Whole(Whole { place, emit, folding: |_| Folding::Exact(fold) }),
};

fn scales_input(target: &Target) -> bool {
    target.role == Some(Role::MlpDown)
}

fn place(_: &Config, target: &Target) -> Place {
    if scales_input(target) { Place::Input } else { Place::Output }
}

/// `[1, in]` where the input is scaled, else `[out, 1]`, as peft has them.
fn tensors(_: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let shape = if scales_input(target) { [1, target.in_features] } else { [target.out_features, 1] };
    Ok(vec![Spec::new(L, shape, Start::Full(1.0))])
}

fn emit(e: &mut Emitter, block: &Block) -> String {
    let l = e.tensor(&block.target.tensor(L));
    let l = e.per_output("ia3_vector", &l);
    let what = if scales_input(block.target) { block.x } else { block.y };
    e.node("ia3_scaled", "Mul", &[what, &l])
}

fn fold(call: &Fold) -> Result<Folded, String> {
    let l = call.values.matrix(L);
    let bias = call.bias.filter(|_| !scales_input(call.target)).map(|b| b * &l.index_axis(Axis(1), 0));
    Ok(Folded { weight: call.weight * &l, bias })
}
