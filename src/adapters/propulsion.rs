//! `propulsion`: outputs scaled by a power, `(W x + b) ∘ z^k` (Propulsion, arXiv 2409.10927).

use super::{
    Block, Config, Emitter, Entry, Fold, Folded, Folding, Form, Place, Setting, SettingKind, Spec, Start, Target, Whole,
};
use ndarray::Axis;

const Z: &str = "propulsion_z";
const DEGREE: &str = "degree";

pub const ENTRY: Entry = Entry {
    name: "propulsion",
    aliases: &[],
    help: "(W x + b) * z^k",
    settings: &[Setting {
        name: DEGREE,
        help: "the power k",
        kind: SettingKind::Count { default: Some(15), least: 1 },
    }],
    rank: false,
    alpha: false,
    dropout: false,
    residual: None,
    residuals: &[],
    images: true,
    reads_roles: false,
    suffixes: &[Z],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Whole(Whole { place: |_, _| Place::Output, emit, folding: |_| Folding::Exact(fold) }),
};

fn degree(config: &Config) -> f64 {
    config.count(DEGREE).expect("it has a default") as f64
}

/// `[out]`
fn tensors(_: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    Ok(vec![Spec::new(Z, [target.out_features], Start::Full(1.0))])
}

fn emit(e: &mut Emitter, block: &Block) -> String {
    let z = e.tensor(&block.target.tensor(Z));
    let k = e.float(degree(block.config));
    let power = e.node("propulsion_power", "Pow", &[&z, &k]);
    let power = e.per_output("propulsion_vector", &power);
    e.node("propulsion_scaled", "Mul", &[block.y, &power])
}

fn fold(call: &Fold) -> Result<Folded, String> {
    let k = degree(call.config);
    let z = call.values.vector(Z).mapv(|z| z.powf(k));
    let bias = call.bias.map(|b| b * &z);
    Ok(Folded { weight: call.weight * &z.insert_axis(Axis(1)), bias })
}
