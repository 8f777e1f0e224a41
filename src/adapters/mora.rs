//! `mora`: `W x + expand(M compress(x))`, M square (MoRA, arXiv 2405.12130). Compressing and expanding have no parameters.
//!
//! The input is cut into groups of q features, the last filled up with the first features. Kind 1 sums the groups, and repeats
//! the q outputs. Kind 6 turns group i as RoPE turns position i, applies M to every group, and puts the groups one after the other.

use super::{Config, Emitter, Entry, Factors, Form, Residual, Setting, SettingKind, Spec, Start, Target, Term, Values};
use ndarray::Array2;

const M: &str = "mora_M.weight";
const KIND: &str = "mora-kind";

pub const ENTRY: Entry = Entry {
    name: "mora",
    aliases: &[],
    help: "W x + expand(M compress(x)), M square",
    settings: &[Setting {
        name: KIND,
        help: "how features are grouped: 1 adds groups up, 6 rotates them",
        kind: SettingKind::Count { default: Some(1), least: 1 },
    }],
    rank: true,
    alpha: false,
    dropout: true,
    residual: None,
    residuals: &[Residual::InputShortcut, Residual::BlockShortcut, Residual::MiddleShortcut],
    images: false,
    reads_roles: false,
    suffixes: &[M],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Term(Term { carry, last, factors, join: None }),
};

struct Shape {
    rotates: bool,
    /// Features of a group.
    q: usize,
    groups: usize,
}

fn shape(config: &Config, target: &Target) -> Shape {
    let rotates = config.count(KIND) == Some(6);
    let parameters = ((target.in_features + target.out_features) * config.rank_of(target)) as f64;
    let q = (parameters.sqrt() + 0.5) as usize;
    let q = if rotates { q / 2 * 2 } else { q };
    Shape { rotates, q, groups: target.in_features.div_ceil(q.max(1)) }
}

/// M `[q, q]`, q the root of `(in + out) rank`: as many parameters as LoRA has.
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    if !matches!(config.count(KIND), Some(1 | 6)) {
        return Err(format!("--mora-kind {} is not known: there are 1 and 6", config.count(KIND).unwrap_or(0)));
    }
    let s = shape(config, target);
    if s.q == 0 || s.groups * s.q - target.in_features > target.in_features {
        let (q, n) = (s.q, target.in_features);
        return Err(format!("a group of {q} features does not fit into {n} inputs: a smaller --rank would"));
    }
    Ok(vec![Spec::new(M, [s.q, s.q], Start::Zeros)])
}

fn carry(e: &mut Emitter, config: &Config, target: &Target, x: &str, which: &str) -> String {
    let s = shape(config, target);
    let missing = s.groups * s.q - target.in_features;
    let mut x = x.to_string();
    if missing > 0 {
        let first = e.slice(&format!("mora_first{which}"), &x, -1, 0, missing);
        x = e.concat(&format!("mora_full{which}"), &[&x, &first], -1);
    }
    let groups = e.reshape_last(&format!("mora_groups{which}"), &x, 1, &[s.groups as i64, s.q as i64]);
    if !s.rotates {
        return e.sum(&format!("mora_sum{which}"), &groups, -2);
    }
    let half = s.q / 2;
    let (cos, sin) = rotations(&s);
    let name = |part: &str| format!("reslora.mora.{}x{half}.{part}", s.groups);
    let cos = e.floats(&name("cos"), &[s.groups, half], &cos);
    let sin = e.floats(&name("sin"), &[s.groups, half], &sin);
    let u = e.slice(&format!("mora_u{which}"), &groups, -1, 0, half);
    let v = e.slice(&format!("mora_v{which}"), &groups, -1, half, s.q);
    let mut part = |role: &str, a: &str, b: &str, op: &str| {
        let first = e.node(&format!("mora_{role}_cos{which}"), "Mul", &[a, &cos]);
        let second = e.node(&format!("mora_{role}_sin{which}"), "Mul", &[b, &sin]);
        e.node(&format!("mora_{role}{which}"), op, &[&first, &second])
    };
    let (left, right) = (part("left", &u, &v, "Sub"), part("right", &v, &u, "Add"));
    let all = e.concat(&format!("mora_rotated{which}"), &[&left, &right], -1);
    // One vector for each row, as signals are.
    e.reshape_last(&format!("mora_signal{which}"), &all, 2, &[(s.groups * s.q) as i64])
}

/// Cosines and sines `[groups, q / 2]`.
fn rotations(s: &Shape) -> (Vec<f64>, Vec<f64>) {
    let angle = |group: usize, l: usize| group as f64 * 10000f64.powf(-2.0 * l as f64 / s.q as f64);
    let all = (0..s.groups).flat_map(|g| (0..s.q / 2).map(move |l| (g, l)));
    all.map(|(g, l)| angle(g, l)).map(|a| (a.cos(), a.sin())).unzip()
}

fn last(e: &mut Emitter, config: &Config, target: &Target, t: &str, which: &str) -> String {
    let (s, out) = (shape(config, target), target.out_features);
    let mut t = t.to_string();
    if s.rotates {
        t = e.reshape_last(&format!("mora_t{which}"), &t, 1, &[s.groups as i64, s.q as i64]);
    }
    let mut y = e.product_up(&format!("mora_M{which}"), &t, &target.tensor(M));
    let mut width = s.q;
    if s.rotates {
        width = s.groups * s.q;
        y = e.reshape_last(&format!("mora_joined{which}"), &y, 2, &[width as i64]);
    }
    let copies = out.div_ceil(width);
    if copies > 1 {
        y = e.concat(&format!("mora_copies{which}"), &vec![y.as_str(); copies], -1);
    }
    if copies * width > out {
        y = e.slice(&format!("mora_cut{which}"), &y, -1, 0, out);
    }
    y
}

fn factors(config: &Config, target: &Target, values: &Values) -> Factors {
    let s = shape(config, target);
    let (m, n, out) = (values.matrix(M), target.in_features, target.out_features);
    let source = |feature: usize| if feature < n { feature } else { feature - n };
    if !s.rotates {
        let mut carry = Array2::zeros((s.q, n));
        (0..s.groups * s.q).for_each(|f| carry[(f % s.q, source(f))] += 1.0);
        let last = Array2::from_shape_fn((out, s.q), |(o, j)| m[(o % s.q, j)]);
        return Factors { carry, last, scale: 1.0 };
    }
    let (half, width) = (s.q / 2, s.groups * s.q);
    let (cos, sin) = rotations(&s);
    let mut carry = Array2::zeros((width, n));
    for group in 0..s.groups {
        for l in 0..half {
            let (c, s_) = (cos[group * half + l], sin[group * half + l]);
            let (u, v) = (group * s.q + l, group * s.q + half + l);
            carry[(u, source(u))] += c;
            carry[(u, source(v))] -= s_;
            carry[(v, source(v))] += c;
            carry[(v, source(u))] += s_;
        }
    }
    let last = Array2::from_shape_fn((out, width), |(o, column)| {
        let flat = o % width;
        if flat / s.q == column / s.q { m[(flat % s.q, column % s.q)] } else { 0.0 }
    });
    Factors { carry, last, scale: 1.0 }
}
