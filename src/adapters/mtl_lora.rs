//! `mtl-lora`: `W x + s Σ_i p_ti B_i Λ_t A x` for an example of task t, `p_t = softmax(w_t / τ)` (MTL-LoRA, arXiv 2410.09437).

use super::{
    Block, Config, Emitter, Entry, Fold, Folded, Folding, Form, GraphInput, Group, Place, Setting, SettingKind, Spec,
    Start, Target, Whole, lora,
};
use crate::onnx::{AttrValue, ElementType};
use ndarray::{Array2, ArrayD, Axis, Ix2};

const LAMBDA: &str = "mtl_lambda";
const WEIGHT: &str = "mtl_weight";
const TASKS: &str = "tasks";
const UPS: &str = "ups";
/// The graph input that says each example's task.
const TASK: &str = "task";
/// τ
const TEMPERATURE: f64 = 0.5;

pub const ENTRY: Entry = Entry {
    name: "mtl-lora",
    aliases: &[],
    help: "W x + s (weighted sum of B's of the example's task) L_task A x; reads the graph input 'task'",
    settings: &[
        Setting { name: TASKS, help: "the number of tasks", kind: SettingKind::Count { default: None, least: 1 } },
        Setting { name: UPS, help: "the number of B's", kind: SettingKind::Count { default: Some(3), least: 1 } },
    ],
    rank: true,
    alpha: true,
    dropout: true,
    residual: None,
    residuals: &[],
    images: false,
    reads_roles: false,
    suffixes: &[lora::A, lora::B, LAMBDA, WEIGHT],
    tensors,
    shared: |_| vec![],
    inputs: &[GraphInput {
        name: TASK,
        element: ElementType::I64,
        help: "the task to fold in",
        count: Some(TASKS),
        range: None,
    }],
    form: Form::Whole(Whole { place: |_, _| Place::Product, emit, folding: |_| Folding::Chosen(TASK, fold) }),
};

fn count(config: &Config, name: &str) -> usize {
    config.count(name).and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

/// A `[rank, in]`, B `[ups, out, rank]`, Λ `[tasks, rank, rank]`, w `[tasks, ups]`.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let (tasks, ups, r) = (count(config, TASKS), count(config, UPS), config.rank_of(target));
    if tasks == 0 {
        return Err("mtl-lora needs --tasks N, the number of tasks in the data".into());
    }
    let identities =
        |call: &mut super::Drawing| Ok(ArrayD::from_shape_fn(call.shape, |at| if at[1] == at[2] { 1.0 } else { 0.0 }));
    Ok(vec![
        Spec::new(lora::A, [r, target.in_features], Start::KaimingUniform),
        Spec::new(lora::B, [ups, target.out_features, r], Start::Zeros).group(Group::OutputFactor),
        Spec::new(LAMBDA, [tasks, r, r], Start::Drawn(identities)),
        Spec::new(WEIGHT, [tasks, ups], Start::KaimingUniform),
    ])
}

fn emit(e: &mut Emitter, block: &Block) -> String {
    let (config, target) = (block.config, block.target);
    let (tasks, ups) = (count(config, TASKS) as i64, count(config, UPS) as i64);
    let (r, m) = (config.rank_of(target) as i64, target.out_features as i64);
    let x = e.dropped("lora_dropout", block.x);
    let z = e.product_down("lora_A", &x, &target.tensor(lora::A));
    let z = e.by_example("mtl_rows", &z, TASK, r as usize);
    let tau = e.wide_float(TEMPERATURE);
    let p = e.node("mtl_tempered", "Div", &[&target.tensor(WEIGHT), &tau]);
    let p = e.node_with("mtl_p", "Softmax", &[&p], vec![("axis", AttrValue::Int(-1))]);
    let ups = e.reshape("mtl_ups", &target.tensor(lora::B), &[ups, m * r]);
    let b = e.node("mtl_B", "MatMul", &[&p, &ups]);
    let b = e.reshape("mtl_B_of_task", &b, &[tasks, m, r]);
    // As operands on the right, by example.
    let mut of_example = |role: &str, all: &str| {
        let turned = e.transpose(&format!("{role}.T"), all, &[0, 2, 1]);
        let turned = e.narrow(&format!("{role}.narrow"), &turned);
        e.node(&format!("{role}.example"), "Gather", &[&turned, TASK])
    };
    let (b, lambda) = (of_example("mtl_last", &b), of_example("mtl_middle", &target.tensor(LAMBDA)));
    let z = e.node("mtl_turned", "MatMul", &[&z, &lambda]);
    let y = e.node("lora_B", "MatMul", &[&z, &b]);
    let scale = e.scale(config, target);
    let y = e.node("lora_scale", "Mul", &[&y, &scale]);
    let y = e.reshape_like("mtl_term", &y, block.y);
    e.node("lora_add", "Add", &[block.y, &y])
}

fn fold(call: &Fold, task: f64) -> Result<Folded, String> {
    let t = task as usize;
    let (b, lambda, w) = (call.values.tensor(lora::B), call.values.tensor(LAMBDA), call.values.matrix(WEIGHT));
    if t as f64 != task || t >= w.nrows() {
        return Err(format!("there is no task {task}: they are 0 to {}", w.nrows() - 1));
    }
    let row = w.row(t).mapv(|x| x / TEMPERATURE);
    let most = row.fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let p = row.mapv(|x| (x - most).exp());
    let p = &p / p.sum();
    let matrix = |all: &ArrayD<f64>, at: usize| -> Array2<f64> {
        all.index_axis(Axis(0), at).to_owned().into_dimensionality::<Ix2>().expect("three axes")
    };
    let (out, rank) = (call.target.out_features, lambda.shape()[1]);
    let sum = p.iter().enumerate().fold(Array2::zeros((out, rank)), |sum, (i, p)| sum + matrix(&b, i) * *p);
    let change = sum.dot(&matrix(&lambda, t)).dot(&call.values.matrix(lora::A)) * call.config.scale_of(call.target);
    Ok(Folded { weight: call.weight + &change, bias: None })
}
