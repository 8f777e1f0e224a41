//! `dora`: `b + (m / n) ∘ (W x + s B A x)`, n the row norms of `W + s B A`, through which no gradient flows (DoRA, arXiv 2402.09353).
//!
//! `n² = ‖w‖² + 2 s Σ_r B ∘ (W Aᵀ) + s² Σ_r (B A Aᵀ) ∘ B` row by row: W itself is read only as the linear node reads it, so that
//! a quantised one needs no second copy. For block-shortcut A and B are those of all blocks that the term sums over.

use super::{Block, Config, Drawing, Emitter, Entry, Fold, Form, Join, Residual, Spec, Start, Target, Term, lora};
use ndarray::{Array2, ArrayD, Axis};

const MAGNITUDE: &str = "lora_magnitude_vector";

pub const ENTRY: Entry = Entry {
    name: "dora",
    aliases: &[],
    help: "b + m (W x + s B A x) / norm of the rows of W + s B A",
    images: false,
    suffixes: &[lora::A, lora::B, MAGNITUDE],
    tensors,
    form: Form::Term(Term {
        carry: lora::carry,
        last: lora::last,
        factors: lora::factors,
        join: Some(Join { emit, fold }),
    }),
    ..lora::ENTRY
};

/// LoRA's, and m `[out]`, which starts as the row norms of W.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let mut specs = lora::tensors(config, target)?;
    specs.push(Spec::new(MAGNITUDE, [target.out_features], Start::Drawn(row_norms)));
    Ok(specs)
}

fn norms(weight: &Array2<f64>) -> ndarray::Array1<f64> {
    weight.map_axis(Axis(1), |row| row.iter().map(|w| w * w).sum::<f64>().sqrt())
}

fn row_norms(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let norms = norms(&(call.weight)()?);
    if norms.iter().any(|n| *n == 0.0) {
        return Err("a row of the weight is zero, so its norm cannot be divided by".into());
    }
    Ok(norms.mapv(|n| n as f32).into_dyn())
}

fn emit(e: &mut Emitter, block: &Block, term: &str) -> String {
    let config = block.config;
    let terms: Vec<&Target> = match config.residual() {
        Residual::BlockShortcut => {
            std::iter::once(block.target).chain(block.ancestors.iter().map(|(t, _)| *t)).collect()
        }
        Residual::None | Residual::InputShortcut | Residual::MiddleShortcut => vec![block.target],
    };
    let stack = |e: &mut Emitter, role: &str, suffix: &str, axis: i64| {
        let names: Vec<String> = terms.iter().map(|t| t.tensor(suffix)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if names.len() == 1 { names[0].to_string() } else { e.concat(role, &names, axis) }
    };
    // All of it in f32, as the factors are.
    let a = stack(e, "dora_A", lora::A, 0);
    let b = stack(e, "dora_B", lora::B, 1);
    let wa = e.again("dora_WA", block, &a);
    let wa = e.transpose("dora_WA.T", &wa, &[1, 0]);
    let cross = e.node("dora_cross", "Mul", &[&b, &wa]);
    let cross = e.sum("dora_cross_sum", &cross, 1);
    let a_t = e.transpose("dora_A.T", &a, &[1, 0]);
    let gram = e.node("dora_gram", "MatMul", &[&a, &a_t]);
    let bg = e.node("dora_BG", "MatMul", &[&b, &gram]);
    let own = e.node("dora_own", "Mul", &[&bg, &b]);
    let own = e.sum("dora_own_sum", &own, 1);
    let s = config.scale_of(block.target);
    let (two_s, s_s) = (e.wide_float(2.0 * s), e.wide_float(s * s));
    let cross = e.node("dora_cross_scaled", "Mul", &[&cross, &two_s]);
    let own = e.node("dora_own_scaled", "Mul", &[&own, &s_s]);
    let squares = || (block.weight)().map_axis(Axis(1), |row| row.iter().map(|w| w * w).sum()).to_vec();
    let w = e.computed(&block.target.tensor("dora_squares"), &[block.target.out_features], squares);
    let sum = e.node("dora_sum", "Add", &[&w, &cross]);
    let sum = e.node("dora_squared", "Add", &[&sum, &own]);
    let norm = e.node("dora_norm", "Sqrt", &[&sum]);
    let norm = e.detached("dora_norm.detached", &norm);
    let factor = e.node("dora_factor", "Div", &[&block.target.tensor(MAGNITUDE), &norm]);
    let factor = e.narrow("dora_factor.narrow", &factor);
    match block.bias {
        None => {
            let sum = e.node("lora_add", "Add", &[block.y, term]);
            e.node("dora_scaled", "Mul", &[&sum, &factor])
        }
        Some(bias) => {
            let product = e.node("dora_product", "Sub", &[block.y, bias]);
            let sum = e.node("lora_add", "Add", &[&product, term]);
            let scaled = e.node("dora_scaled", "Mul", &[&sum, &factor]);
            e.node("dora_bias", "Add", &[&scaled, bias])
        }
    }
}

/// `W' = diag(m / n) (W + ΔW)`. The norms are those of `W + s B A`, which an approximate change differs from.
fn fold(call: &Fold, changed: Array2<f64>) -> Array2<f64> {
    let m = call.values.vector(MAGNITUDE);
    let n = match call.config.residual() {
        Residual::None | Residual::BlockShortcut => norms(&changed),
        Residual::InputShortcut | Residual::MiddleShortcut => {
            let f = lora::factors(call.config, call.target, call.values);
            norms(&(call.weight + &(f.last.dot(&f.carry) * f.scale)))
        }
    };
    changed * (m / n).insert_axis(Axis(1))
}
