//! `sltrain`: `W x + s B A x + S x`, S sparse with a fixed random support (SLTrain, arXiv 2406.02214, beside a frozen W).

use super::{
    Block, Config, Drawing, Emitter, Entry, Fold, Folded, Folding, Form, Place, Setting, SettingKind, Spec, Start,
    Target, Whole, lora,
};
use ndarray::{Array2, ArrayD};
use rand::seq::index::sample;

const VALUE: &str = "sparse_value";
const INDEX: &str = "sparse_index";
const DENSITY: &str = "density";

pub const ENTRY: Entry = Entry {
    name: "sltrain",
    aliases: &[],
    help: "W x + s B A x + S x, S sparse",
    settings: &[Setting {
        name: DENSITY,
        help: "the share of elements that S has",
        kind: SettingKind::Number { default: 0.03 },
    }],
    rank: true,
    alpha: true,
    dropout: false,
    residual: None,
    residuals: &[],
    images: false,
    reads_roles: false,
    suffixes: &[lora::A, lora::B, VALUE, INDEX],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Whole(Whole { place: |_, _| Place::Product, emit, folding: |_| Folding::Exact(fold) }),
};

/// LoRA's; the elements of S, and where they stand in `[out, in]` row by row, ascending.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let density = config.number(DENSITY);
    if !(density > 0.0 && density <= 1.0) {
        return Err(format!("--density {density} must be above 0 and at most 1"));
    }
    let all = target.in_features * target.out_features;
    // Half to even, as Python rounds.
    let count = ((density * all as f64).round_ties_even() as usize).max(1);
    let mut specs = lora::tensors(config, target)?;
    specs.push(Spec::new(VALUE, [count], Start::Zeros));
    specs.push(Spec::new(INDEX, [count], Start::Drawn(support)).frozen().integers());
    Ok(specs)
}

fn support(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let target = call.target.expect("each target has its own");
    let all = target.in_features * target.out_features;
    if all > 1 << 24 {
        return Err(format!("a sparse matrix of {all} elements is larger than the {} that are supported", 1 << 24));
    }
    let mut at = sample(call.rng, all, call.shape[0]).into_vec();
    at.sort_unstable();
    Ok(ArrayD::from_shape_vec(call.shape, at.into_iter().map(|i| i as f32).collect()).expect("as many as asked for"))
}

fn emit(e: &mut Emitter, block: &Block) -> String {
    let (config, target) = (block.config, block.target);
    let (m, n) = (target.out_features, target.in_features);
    let t = lora::carry(e, config, target, block.x, "");
    let low = lora::last(e, config, target, &t, "");
    let scale = e.scale(config, target);
    let low = e.node("lora_scale", "Mul", &[&low, &scale]);
    let sum = e.node("lora_add", "Add", &[block.y, &low]);
    let shape = e.integers(&format!("reslora.shape.{}", m * n), &[(m * n) as i64]);
    let empty = e.node("sparse_empty", "ConstantOfShape", &[&shape]);
    let at = e.reshape("sparse_at", &target.tensor(INDEX), &[-1, 1]);
    let flat = e.node("sparse_flat", "ScatterND", &[&empty, &at, &target.tensor(VALUE)]);
    let dense = e.reshape("sparse_S", &flat, &[m as i64, n as i64]);
    let more = e.product_down("sparse_term", block.x, &dense);
    e.node("sparse_add", "Add", &[&sum, &more])
}

fn fold(call: &Fold) -> Result<Folded, String> {
    let f = lora::factors(call.config, call.target, call.values);
    let mut sparse: Array2<f64> = Array2::zeros((call.target.out_features, call.target.in_features));
    for (at, value) in call.values.vector(INDEX).iter().zip(call.values.vector(VALUE)) {
        let at = *at as usize;
        let place = sparse.get_mut((at / call.target.in_features, at % call.target.in_features));
        *place.ok_or_else(|| format!("sparse_index {at} is beyond the weight"))? += value;
    }
    Ok(Folded { weight: call.weight + &(f.last.dot(&f.carry) * f.scale) + sparse, bias: None })
}
