//! `loreft`: `h + Rᵀ (U h + c - R h)` on the linear node's output h, R with orthonormal rows (LoReFT, arXiv 2404.03592).
//!
//! The trained tensor is G; `R` is G's rows made orthonormal, first to last, and gradients flow through that.

use super::{
    Block, Config, Drawing, Emitter, Entry, Fold, Folded, Folding, Form, Place, Setting, SettingKind, Spec, Start,
    Target, Whole, init,
};
use crate::onnx::{AttrValue, ElementType};
use ndarray::{Array2, ArrayD};

const G: &str = "loreft_R.weight";
const U: &str = "loreft_W.weight";
const C: &str = "loreft_W.bias";
const POSITIONS: &str = "positions";
const MASK: &str = "attention_mask";

pub const ENTRY: Entry = Entry {
    name: "loreft",
    aliases: &[],
    help: "h + R^T (U h + c - R h), h = W x + b",
    settings: &[Setting {
        name: POSITIONS,
        help: "where it acts: all, or first:N or last:N of the positions that attention_mask keeps",
        kind: SettingKind::Text { default: "all" },
    }],
    rank: true,
    alpha: false,
    dropout: false,
    residual: None,
    residuals: &[],
    images: false,
    reads_roles: false,
    suffixes: &[G, U, C],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Whole(Whole { place: |_, _| Place::Output, emit, folding }),
};

/// The positions that it acts at.
enum Positions {
    All,
    First(usize),
    Last(usize),
}

fn positions(config: &Config) -> Result<Positions, String> {
    let text = config.text(POSITIONS);
    let number = |n: &str| n.parse().ok().filter(|n| *n > 0);
    let parts = text.split_once(':').and_then(|(end, n)| Some((end, number(n)?)));
    match (text, parts) {
        ("all", _) => Ok(Positions::All),
        (_, Some(("first", n))) => Ok(Positions::First(n)),
        (_, Some(("last", n))) => Ok(Positions::Last(n)),
        (_, Some(_) | None) => Err(format!("--positions {text} is not known: give all, first:N or last:N")),
    }
}

fn folding(config: &Config) -> Folding {
    match positions(config) {
        Ok(Positions::All) => Folding::Exact(fold),
        Ok(Positions::First(_) | Positions::Last(_)) | Err(_) => {
            Folding::KeepsBranch("it acts at some positions alone, and a weight acts at all")
        }
    }
}

/// G and U `[rank, out]`, c `[rank]`.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    positions(config)?;
    let (r, m) = (config.rank_of(target), target.out_features);
    if r > m {
        return Err(format!("{r} orthonormal rows do not fit into {m} outputs: a smaller --rank would"));
    }
    let same = |call: &mut Drawing| Ok(call.earlier[0].1.clone());
    Ok(vec![
        Spec::new(G, [r, m], Start::Drawn(orthonormal_rows)),
        Spec::new(U, [r, m], Start::Drawn(same)),
        Spec::new(C, [r], Start::Zeros),
    ])
}

fn orthonormal_rows(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let drawn = Array2::from_shape_simple_fn((call.shape[0], call.shape[1]), || init::normal(call.rng));
    Ok(orthonormal(&drawn).mapv(|x| x as f32).into_dyn())
}

/// Gram and Schmidt's method over rows, first to last.
fn orthonormal(g: &Array2<f64>) -> Array2<f64> {
    let mut out = g.clone();
    for i in 0..g.nrows() {
        for j in 0..i {
            let dot = out.row(i).dot(&out.row(j));
            let earlier = out.row(j).to_owned();
            out.row_mut(i).scaled_add(-dot, &earlier);
        }
        let norm = out.row(i).dot(&out.row(i)).sqrt();
        out.row_mut(i).mapv_inplace(|x| x / norm);
    }
    out
}

fn emit(e: &mut Emitter, block: &Block) -> String {
    let (config, target) = (block.config, block.target);
    let r = config.rank_of(target);
    let g = target.tensor(G);
    let mut rows: Vec<String> = Vec::new();
    for i in 0..r {
        let mut v = e.slice(&format!("loreft_row{i}"), &g, 0, i, i + 1);
        for (j, q) in rows.clone().iter().enumerate() {
            let product = e.node(&format!("loreft_product{i}_{j}"), "Mul", &[&v, q]);
            let dot = e.node_with(&format!("loreft_dot{i}_{j}"), "ReduceSum", &[&product], vec![]);
            let part = e.node(&format!("loreft_part{i}_{j}"), "Mul", &[&dot, q]);
            v = e.node(&format!("loreft_cleared{i}_{j}"), "Sub", &[&v, &part]);
        }
        let square = e.node(&format!("loreft_square{i}"), "Mul", &[&v, &v]);
        let square = e.node_with(&format!("loreft_norm2_{i}"), "ReduceSum", &[&square], vec![]);
        let norm = e.node(&format!("loreft_norm{i}"), "Sqrt", &[&square]);
        rows.push(e.node(&format!("loreft_unit{i}"), "Div", &[&v, &norm]));
    }
    let names: Vec<&str> = rows.iter().map(String::as_str).collect();
    let basis = if r == 1 { names[0].to_string() } else { e.concat("loreft_R", &names, 0) };
    let h = block.y;
    let u = e.product_up("loreft_U", h, &target.tensor(U));
    let c = e.tensor(&target.tensor(C));
    let u = e.node("loreft_c", "Add", &[&u, &c]);
    let own = e.product_up("loreft_Rh", h, &basis);
    let change = e.node("loreft_difference", "Sub", &[&u, &own]);
    let basis = e.narrow("loreft_R.narrow", &basis);
    let change = e.node("loreft_change", "MatMul", &[&change, &basis]);
    let (first, n) = match positions(config) {
        Ok(Positions::First(n)) => (true, n),
        Ok(Positions::Last(n)) => (false, n),
        Ok(Positions::All) | Err(_) => return e.node("loreft_add", "Add", &[h, &change]),
    };
    let new = e.node("loreft_new", "Add", &[h, &change]);
    let chosen = chosen(e, block, first, n);
    e.node("loreft_add", "Where", &[&chosen, &new, h])
}

/// Which positions it acts at, `(.., 1)`.
fn chosen(e: &mut Emitter, block: &Block, first: bool, n: usize) -> String {
    let zero = e.integers("reslora.at.0", &[0]);
    let kept = match block.has_input(MASK) {
        true => {
            let mask = e.cast_to("loreft_mask", MASK, ElementType::I64);
            let kept = e.node("loreft_masked", "Equal", &[&mask, &zero]);
            e.node("loreft_kept", "Not", &[&kept])
        }
        false => {
            let shape = e.node("loreft_shape", "Shape", &[block.y]);
            let (start, end) = (zero.clone(), e.integers("reslora.at.2", &[2]));
            let leading = e.node("loreft_leading", "Slice", &[&shape, &start, &end]);
            let empty = e.node("loreft_zeros", "ConstantOfShape", &[&leading]);
            let zero = e.wide_float(0.0);
            e.node("loreft_kept", "Equal", &[&empty, &zero])
        }
    };
    let ones = e.cast_to("loreft_ones", &kept, ElementType::F32);
    let axis = e.integers("reslora.at.1", &[1]);
    let axis = e.reshape("loreft_axis", &axis, &[]);
    let reverse = vec![("reverse", AttrValue::Int(i64::from(!first)))];
    let count = e.node_with("loreft_count", "CumSum", &[&ones, &axis], reverse);
    let limit = e.wide_float(n as f64 + 0.5);
    let near = e.node("loreft_near", "Less", &[&count, &limit]);
    let both = e.node("loreft_chosen", "And", &[&near, &kept]);
    // As the output has its rows, which a model may have folded into one axis.
    let one = e.integers("reslora.at.1", &[1]);
    let all = e.node("loreft_rows", "Shape", &[block.y]);
    let end = e.integers("reslora.at.-1", &[-1]);
    let rows = e.node("loreft_row_axes", "Slice", &[&all, &zero, &end]);
    let shape = e.concat("loreft_at_shape", &[&rows, &one], 0);
    e.node("loreft_at", "Reshape", &[&both, &shape])
}

/// `K = I + Rᵀ (U - R)`, `W' = K W`, `b' = K b + Rᵀ c`.
fn fold(call: &Fold) -> Result<Folded, String> {
    let (r, u, c) = (orthonormal(&call.values.matrix(G)), call.values.matrix(U), call.values.vector(C));
    let k = Array2::eye(r.ncols()) + r.t().dot(&(u - &r));
    let more = r.t().dot(&c);
    let bias = match call.bias {
        Some(b) => Some(k.dot(b) + more),
        None => Some(more).filter(|m| m.iter().any(|x| *x != 0.0)),
    };
    Ok(Folded { weight: k.dot(call.weight), bias })
}
