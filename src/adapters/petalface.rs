//! `petalface`: `W x + s (q B_h A_h + (1 - q) B_l A_l) x` for an example of quality q (PETALface, arXiv 2412.07771).

use super::{
    Block, Config, Emitter, Entry, Fold, Folded, Folding, Form, GraphInput, Group, Place, Spec, Start, Target, Whole,
};
use crate::onnx::ElementType;

const HIGH: [&str; 2] = ["lora_A_high.weight", "lora_B_high.weight"];
const LOW: [&str; 2] = ["lora_A_low.weight", "lora_B_low.weight"];
/// The graph input that says each example's quality, within 0 and 1.
const QUALITY: &str = "quality";

pub const ENTRY: Entry = Entry {
    name: "petalface",
    aliases: &[],
    help: "W x + s (q B_h A_h + (1 - q) B_l A_l) x; reads the graph input 'quality'",
    settings: &[],
    rank: true,
    alpha: true,
    dropout: true,
    residual: None,
    residuals: &[],
    images: false,
    reads_roles: false,
    suffixes: &[HIGH[0], HIGH[1], LOW[0], LOW[1]],
    tensors,
    shared: |_| vec![],
    inputs: &[GraphInput {
        name: QUALITY,
        element: ElementType::F32,
        help: "the quality to fold in, within 0 and 1",
        count: None,
        range: Some((0.0, 1.0)),
    }],
    form: Form::Whole(Whole { place: |_, _| Place::Product, emit, folding: |_| Folding::Chosen(QUALITY, fold) }),
};

/// A's `[rank, in]`, B's `[out, rank]`.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let rank = config.rank_of(target);
    let pair = |[a, b]: [&str; 2]| {
        [
            Spec::new(a, [rank, target.in_features], Start::KaimingUniform),
            Spec::new(b, [target.out_features, rank], Start::Zeros).group(Group::OutputFactor),
        ]
    };
    Ok([pair(HIGH), pair(LOW)].into_iter().flatten().collect())
}

fn emit(e: &mut Emitter, block: &Block) -> String {
    let (config, target) = (block.config, block.target);
    let x = e.dropped("lora_dropout", block.x);
    let of = |e: &mut Emitter, which: &str, [a, b]: [&str; 2]| {
        let t = e.product_down(&format!("lora_A_{which}"), &x, &target.tensor(a));
        let y = e.product_up(&format!("lora_B_{which}"), &t, &target.tensor(b));
        e.by_example(&format!("petal_{which}"), &y, QUALITY, target.out_features)
    };
    let (high, low) = (of(e, "high", HIGH), of(e, "low", LOW));
    let q = e.narrow("petal_narrow", QUALITY);
    let q = e.reshape("petal_quality", &q, &[-1, 1, 1]);
    // q (high - low) + low
    let rise = e.node("petal_rise", "Sub", &[&high, &low]);
    let rise = e.node("petal_share", "Mul", &[&rise, &q]);
    let sum = e.node("petal_sum", "Add", &[&low, &rise]);
    let scale = e.scale(config, target);
    let y = e.node("lora_scale", "Mul", &[&sum, &scale]);
    let y = e.reshape_like("petal_term", &y, block.y);
    e.node("lora_add", "Add", &[block.y, &y])
}

fn fold(call: &Fold, q: f64) -> Result<Folded, String> {
    if !(0.0..=1.0).contains(&q) {
        return Err(format!("quality {q} is not within 0 and 1"));
    }
    let of = |[a, b]: [&str; 2]| call.values.matrix(b).dot(&call.values.matrix(a));
    let change = (of(HIGH) * q + of(LOW) * (1.0 - q)) * call.config.scale_of(call.target);
    Ok(Folded { weight: call.weight + &change, bias: None })
}
