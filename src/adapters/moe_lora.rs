//! `moe-lora`: `W x + s Σ_e g_e B_e A_e x`, g a softmax over the k experts that the router G x ranks highest for each token
//! (MixLoRA, arXiv 2404.15159, at one layer). Ties go to the lower expert; the selection has no gradient.

use super::{
    Block, Config, Drawing, Emitter, Entry, Folding, Form, Group, Place, Setting, SettingKind, Spec, Start, Target,
    Whole, lora,
};
use crate::onnx::{AttrValue, ElementType};
use ndarray::ArrayD;
use rand::Rng;

const ROUTER: &str = "moe_router.weight";
const EXPERTS: &str = "experts";
const TOP_K: &str = "top-k";

pub const ENTRY: Entry = Entry {
    name: "moe-lora",
    aliases: &[],
    help: "W x + s (sum over the k best experts of g_e B_e A_e x)",
    settings: &[
        Setting {
            name: EXPERTS,
            help: "the number of experts",
            kind: SettingKind::Count { default: Some(4), least: 1 },
        },
        Setting {
            name: TOP_K,
            help: "the number of experts that each token uses",
            kind: SettingKind::Count { default: Some(2), least: 1 },
        },
    ],
    rank: true,
    alpha: true,
    dropout: true,
    residual: None,
    residuals: &[],
    images: false,
    reads_roles: false,
    suffixes: &[lora::A, lora::B, ROUTER],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Whole(Whole {
        place: |_, _| Place::Product,
        emit,
        folding: |_| Folding::KeepsBranch("a router chooses experts token by token"),
    }),
};

fn count(config: &Config, name: &str) -> usize {
    config.count(name).and_then(|n| usize::try_from(n).ok()).expect("it has a default, and was checked")
}

/// A `[experts, rank, in]`, B `[experts, out, rank]`, G `[experts, in]`.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let (e, k, r) = (count(config, EXPERTS), count(config, TOP_K), config.rank_of(target));
    if k > e {
        return Err(format!("--top-k {k} is more than the {e} --experts"));
    }
    Ok(vec![
        Spec::new(lora::A, [e, r, target.in_features], Start::KaimingUniform),
        Spec::new(lora::B, [e, target.out_features, r], Start::Zeros).group(Group::OutputFactor),
        Spec::new(ROUTER, [e, target.in_features], Start::Drawn(normal)),
    ])
}

/// Normal with standard deviation 0.02 (Box and Muller).
fn normal(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    Ok(ArrayD::from_shape_simple_fn(call.shape, || {
        let (u, v): (f64, f64) = (call.rng.random_range(f64::MIN_POSITIVE..1.0), call.rng.random_range(0.0..1.0));
        (0.02 * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }))
}

fn emit(e: &mut Emitter, block: &Block) -> String {
    let (config, target) = (block.config, block.target);
    let (n, k) = (count(config, EXPERTS), count(config, TOP_K));
    let (r, m, width) = (config.rank_of(target) as i64, target.out_features as i64, target.in_features as i64);
    let router = e.product_down("moe_router", block.x, &target.tensor(ROUTER));
    // How many experts come before each one: those with more, and the lower ones with as much.
    let own = e.reshape_last("moe_own", &router, 1, &[n as i64, 1]);
    let others = e.reshape_last("moe_others", &router, 1, &[1, n as i64]);
    let more = e.node("moe_more", "Greater", &[&others, &own]);
    let same = e.node("moe_same", "Equal", &[&others, &own]);
    let lower: Vec<bool> = (0..n * n).map(|i| i % n < i / n).collect();
    let lower = e.booleans(&format!("reslora.lower.{n}"), &[n, n], &lower);
    let tie = e.node("moe_tie", "And", &[&same, &lower]);
    let before = e.node("moe_before", "Or", &[&more, &tie]);
    let before = e.cast_to("moe_count", &before, ElementType::F32);
    let place = e.sum("moe_place", &before, -1);
    let limit = e.wide_float(k as f64);
    let chosen = e.node("moe_chosen", "Less", &[&place, &limit]);
    let nothing = e.lowest();
    let logits = e.node("moe_logits", "Where", &[&chosen, &router, &nothing]);
    let gate = e.node_with("moe_gate", "Softmax", &[&logits], vec![("axis", AttrValue::Int(-1))]);
    let gate = e.reshape_last("moe_gates", &gate, 1, &[n as i64, 1]);
    let x = e.dropped("lora_dropout", block.x);
    let a = e.reshape("moe_A", &target.tensor(lora::A), &[n as i64 * r, width]);
    let z = e.product_down("lora_A", &x, &a);
    let z = e.reshape_last("moe_split", &z, 1, &[n as i64, r]);
    let z = e.node("moe_gated", "Mul", &[&z, &gate]);
    let z = e.reshape_last("moe_joined", &z, 2, &[n as i64 * r]);
    let b = e.transpose("moe_B", &target.tensor(lora::B), &[1, 0, 2]);
    let b = e.reshape("moe_B_all", &b, &[m, n as i64 * r]);
    let y = e.product_up("lora_B", &z, &b);
    let scale = e.scale(config, target);
    let y = e.node("lora_scale", "Mul", &[&y, &scale]);
    e.node("lora_add", "Add", &[block.y, &y])
}
