//! `oft`: `W (R x) + b`, R block-diagonal and orthogonal: `R = (I - Q)(I + Q)⁻¹` for skew-symmetric Q (OFT, arXiv 2306.07280).
//!
//! The inverse is found by Newton's iteration `X ← X (2 I - (I + Q) X)`, which plain products compute and differentiate. It starts
//! from a multiple of `I - Q` that the norm of Q gives, and squares its error each time.

use super::{
    Block, Config, Emitter, Entry, Fold, Folded, Folding, Form, Place, Setting, SettingKind, Spec, Start, Target, Whole,
};
use faer::Mat;
use faer::linalg::solvers::Solve;
use ndarray::{Array2, s};

const R: &str = "oft_R.weight";
const SIZE: &str = "block-size";
/// Enough for rotations whose Q has a norm of 14: the error of the start, below 0.98, is squared each time.
const ITERATIONS: usize = 10;

pub const ENTRY: Entry = Entry {
    name: "oft",
    aliases: &[],
    help: "W (R x) + b, R orthogonal in blocks",
    settings: &[Setting {
        name: SIZE,
        help: "features of a block that is rotated",
        kind: SettingKind::Count { default: Some(32), least: 2 },
    }],
    rank: false,
    alpha: false,
    dropout: false,
    residual: None,
    residuals: &[],
    images: false,
    reads_roles: false,
    suffixes: &[R],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Whole(Whole { place: |_, _| Place::Input, emit, folding: |_| Folding::Exact(fold) }),
};

fn size(config: &Config) -> usize {
    config.count(SIZE).and_then(|n| usize::try_from(n).ok()).expect("it has a default, and was checked")
}

/// `[in / size, size (size - 1) / 2]`: the elements above the diagonal of each block's Q, row by row.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let (k, n) = (size(config), target.in_features);
    if !n.is_multiple_of(k) {
        let fits: Vec<String> = (2..=n.min(256)).filter(|d| n.is_multiple_of(*d)).map(|d| d.to_string()).collect();
        let fits = if fits.is_empty() { "no size up to 256".into() } else { fits.join(", ") };
        return Err(format!("--block-size {k} does not divide its {n} inputs; these do: {fits}"));
    }
    Ok(vec![Spec::new(R, [n / k, k * (k - 1) / 2], Start::Zeros)])
}

/// Where each element of a block's Q is among `(v, -v, 0)`, row by row.
fn places(k: usize) -> Vec<usize> {
    let count = k * (k - 1) / 2;
    let above = |i: usize, j: usize| i * (2 * k - i - 1) / 2 + j - i - 1;
    let place = |(i, j): (usize, usize)| match i.cmp(&j) {
        std::cmp::Ordering::Less => above(i, j),
        std::cmp::Ordering::Greater => count + above(j, i),
        std::cmp::Ordering::Equal => 2 * count,
    };
    (0..k).flat_map(|i| (0..k).map(move |j| (i, j))).map(place).collect()
}

fn emit(e: &mut Emitter, block: &Block) -> String {
    let k = size(block.config);
    let blocks = block.target.in_features / k;
    // In f32, as the parameters are.
    let v = block.target.tensor(R);
    let minus = e.node("oft_minus", "Neg", &[&v]);
    let zero = e.wide_floats(&format!("reslora.zero.{blocks}x1"), &[blocks, 1], &vec![0.0; blocks]);
    let all = e.concat("oft_values", &[&v, &minus, &zero], 1);
    let at: Vec<i64> = places(k).into_iter().map(|p| p as i64).collect();
    let at = e.integers(&format!("reslora.skew.{k}"), &at);
    let q = e.node_with("oft_picked", "Gather", &[&all, &at], vec![("axis", crate::onnx::AttrValue::Int(1))]);
    let q = e.reshape("oft_Q", &q, &[blocks as i64, k as i64, k as i64]);
    let eye: Vec<f64> = (0..k * k).map(|i| if i % (k + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let double: Vec<f64> = eye.iter().map(|x| 2.0 * x).collect();
    let eye = e.wide_floats(&format!("reslora.eye.{k}"), &[k, k], &eye);
    let double = e.wide_floats(&format!("reslora.double_eye.{k}"), &[k, k], &double);
    let plus = e.node("oft_plus", "Add", &[&eye, &q]);
    let minus = e.node("oft_I_minus_Q", "Sub", &[&eye, &q]);
    // Eigenvalues of (I + Q)(I + Q)ᵀ are within 1 and 1 + ‖Q‖² / 2: those of Q come in pairs.
    let square = e.node("oft_square", "Mul", &[&q, &q]);
    let rows = e.sum("oft_rows", &square, -1);
    let norm = e.sum("oft_norm", &rows, -1);
    let norm = e.reshape("oft_norms", &norm, &[blocks as i64, 1, 1]);
    let (half, two) = (e.wide_float(0.5), e.wide_float(2.0));
    let norm = e.node("oft_half", "Mul", &[&norm, &half]);
    let bound = e.node("oft_bound", "Add", &[&norm, &two]);
    let start = e.node("oft_start", "Div", &[&two, &bound]);
    let mut x = e.node("oft_X0", "Mul", &[&minus, &start]);
    for i in 1..=ITERATIONS {
        let product = e.node(&format!("oft_AX{i}"), "MatMul", &[&plus, &x]);
        let rest = e.node(&format!("oft_rest{i}"), "Sub", &[&double, &product]);
        x = e.node(&format!("oft_X{i}"), "MatMul", &[&x, &rest]);
    }
    let rotation = e.node("oft_R", "MatMul", &[&minus, &x]);
    let rotation = e.narrow("oft_R.narrow", &rotation);
    let split = e.reshape("oft_blocks", block.x, &[-1, blocks as i64, k as i64]);
    let split = e.transpose("oft_by_block", &split, &[1, 0, 2]);
    let turned = e.node("oft_rotated", "MatMul", &[&split, &rotation]);
    let turned = e.transpose("oft_by_row", &turned, &[1, 0, 2]);
    e.reshape_like("oft_input", &turned, block.x)
}

/// `W' = W Rᵀ` in each block, since x is multiplied by R as a row.
fn fold(call: &Fold) -> Result<Folded, String> {
    let k = size(call.config);
    let values = call.values.matrix(R);
    let mut weight = call.weight.clone();
    for (b, v) in values.rows().into_iter().enumerate() {
        let list: Vec<f64> = v.iter().copied().chain(v.iter().map(|x| -x)).chain([0.0]).collect();
        let at = places(k);
        let q = |i: usize, j: usize| list[at[i * k + j]];
        let eye = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
        let plus = Mat::from_fn(k, k, |i, j| eye(i, j) + q(i, j));
        let minus = Mat::from_fn(k, k, |i, j| eye(i, j) - q(i, j));
        // The two commute, so that R is (I + Q)⁻¹ (I - Q) as well.
        let r = plus.partial_piv_lu().solve(&minus);
        let r = Array2::from_shape_fn((k, k), |(i, j)| r[(i, j)]);
        let columns = s![.., b * k..(b + 1) * k];
        let turned = call.weight.slice(columns).dot(&r.t());
        weight.slice_mut(columns).assign(&turned);
    }
    Ok(Folded { weight, bias: None })
}
