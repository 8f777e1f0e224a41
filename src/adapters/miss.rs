//! `miss`: `W x + D compress(x)`, where compress adds groups of `rank` features up (MiSS, once Bone, arXiv 2409.15371).

use super::{Config, Emitter, Entry, Factors, Form, Spec, Start, Target, Term, Values};
use ndarray::Array2;

const BLOCK: &str = "miss_block";

pub const ENTRY: Entry = Entry {
    name: "miss",
    aliases: &["bone"],
    help: "W x + D (sum of groups of x)",
    settings: &[],
    rank: true,
    alpha: false,
    dropout: true,
    residual: None,
    residuals: &[],
    images: false,
    reads_roles: false,
    suffixes: &[BLOCK],
    tensors,
    shared: |_| vec![],
    inputs: &[],
    form: Form::Term(Term { carry, last, factors, join: None }),
};

/// `[rank, out]`
fn tensors(config: &Config, target: &Target) -> Result<Vec<Spec>, String> {
    let rank = config.rank_of(target);
    if rank > target.in_features {
        return Err(format!(
            "groups of {rank} features do not fit into {} inputs: a smaller --rank would",
            target.in_features
        ));
    }
    Ok(vec![Spec::new(BLOCK, [rank, target.out_features], Start::Zeros)])
}

fn carry(e: &mut Emitter, config: &Config, target: &Target, x: &str, which: &str) -> String {
    let (r, n) = (config.rank_of(target), target.in_features);
    let (groups, rest) = (n / r, n % r);
    let whole = if rest == 0 { x.to_string() } else { e.slice(&format!("miss_whole{which}"), x, -1, 0, n - rest) };
    let blocks = e.reshape_last(&format!("miss_groups{which}"), &whole, 1, &[groups as i64, r as i64]);
    let sum = e.sum(&format!("miss_sum{which}"), &blocks, -2);
    if rest == 0 {
        return sum;
    }
    // The features that fill no group are added to the first of each.
    let tail = e.slice(&format!("miss_rest{which}"), x, -1, n - rest, n);
    let first = e.slice(&format!("miss_first{which}"), &sum, -1, 0, rest);
    let others = e.slice(&format!("miss_others{which}"), &sum, -1, rest, r);
    let first = e.node(&format!("miss_filled{which}"), "Add", &[&first, &tail]);
    e.concat(&format!("miss_all{which}"), &[&first, &others], -1)
}

fn last(e: &mut Emitter, _: &Config, target: &Target, t: &str, which: &str) -> String {
    let d = e.tensor(&target.tensor(BLOCK));
    e.node(&format!("miss_last{which}"), "MatMul", &[t, &d])
}

fn factors(_: &Config, target: &Target, values: &Values) -> Factors {
    let d = values.matrix(BLOCK);
    let r = d.nrows();
    let carry = Array2::from_shape_fn((r, target.in_features), |(j, i)| if i % r == j { 1.0 } else { 0.0 });
    Factors { carry, last: d.reversed_axes(), scale: 1.0 }
}
