//! `diff`

use super::common::{Outcome, Printer, grouped, table};
use crate::pipeline::{self, FileDiff};
use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    first: PathBuf,
    second: PathBuf,
}

#[derive(Serialize)]
struct Result_ {
    first: PathBuf,
    second: PathBuf,
    /// Whether nothing but tensors' elements and metadata differs.
    same_graph: bool,
    #[serde(flatten)]
    diff: FileDiff,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let (first, second) = (pipeline::read(&args.first)?, pipeline::read(&args.second)?);
    let diff = pipeline::diff(&first, &second);
    let result =
        Result_ { first: args.first.clone(), second: args.second.clone(), same_graph: diff.same_graph(), diff };
    printer.result(&result, || text(&result));
    Ok(Outcome::Done)
}

fn text(r: &Result_) -> String {
    let d = &r.diff;
    let mut out = format!(
        "{} and {}\n\n{} tensors are equal, {} differ; {} nodes are equal, {} differ",
        r.first.display(),
        r.second.display(),
        grouped(d.tensors_equal),
        grouped(d.tensors.len()),
        grouped(d.nodes_equal),
        grouped(d.nodes.len())
    );
    if !d.tensors.is_empty() {
        let rows = d.tensors.iter().map(|t| {
            let form = if t.types[0] == t.types[1] { t.types[0].clone() } else { t.types.join(" -> ") };
            let changed = t.changed.map_or("-".into(), |n| format!("{} of {}", grouped(n), grouped(t.elements)));
            let number = |x: Option<f64>| match x {
                None => "-".into(),
                Some(x) if x.is_nan() => "NaN".into(),
                Some(x) if x.is_infinite() => "infinite".into(),
                Some(x) => format!("{x:.2e}"),
            };
            let module = t.module.clone().unwrap_or("-".into());
            vec![t.name.clone(), module, form, changed, number(t.relative), number(t.largest)]
        });
        out += "\n\n";
        let odd: Vec<String> =
            d.tensors.iter().filter_map(|t| Some(format!("\n{}: {}", t.name, t.not_finite.as_ref()?))).collect();
        out += &table(&["tensor", "module", "type", "changed", "relative", "largest"], rows.collect());
        out += &odd.concat();
    }
    let lists = [
        ("tensors only in the first", &d.tensors_removed),
        ("tensors only in the second", &d.tensors_added),
        ("nodes only in the first", &d.nodes_removed),
        ("nodes only in the second", &d.nodes_added),
        ("nodes that differ", &d.nodes),
        ("metadata that differs", &d.metadata),
    ];
    for (what, names) in lists.iter().filter(|l| !l.1.is_empty()) {
        out += &format!("\n{what}: {}", names.join(", "));
    }
    for (said, so) in [("node order differs", d.reordered), ("inputs, outputs or annotations differ", d.signature)] {
        if so {
            out += &format!("\n{said}");
        }
    }
    if let Some([a, b]) = &d.opsets {
        out += &format!("\noperator sets {a}, then {b}");
    }
    d.header.iter().for_each(|line| out += &format!("\n{line}"));
    out + match r.same_graph {
        true => "\nsame graph: only tensor values and metadata differ",
        false => "\nthe graphs differ",
    }
}
