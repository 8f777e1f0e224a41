//! `inspect`

use super::common::{DeviceArg, Outcome, Printer, grouped, table};
use crate::inject::Options;
use crate::pipeline::{self, Inspection, MemoryNeed};
use crate::settings::defaults;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,
    /// Also write the graph in Graphviz form, residual edges drawn
    #[arg(long, value_name = "FILE")]
    dot: Option<PathBuf>,
    /// Examples of the step whose memory is estimated
    #[arg(long, default_value_t = defaults::BENCH_BATCH, value_name = "N")]
    batch: usize,
    /// Positions of the step whose memory is estimated
    #[arg(long, default_value_t = defaults::BENCH_POSITIONS, value_name = "N")]
    seq: usize,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(Serialize)]
struct Result_ {
    model: PathBuf,
    opset: i64,
    nodes: usize,
    inputs: Vec<String>,
    outputs: Vec<String>,
    linear: Vec<Row>,
    /// Operators without a lowering, and the nodes that use them.
    unsupported: Vec<(String, Vec<String>)>,
    /// Targets that no gradient reaches.
    unreached: Vec<String>,
    /// What each structure would train at the targets that it takes by itself.
    structures: Vec<StructureRow>,
    device: String,
    memory: Option<MemoryNeed>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    path: String,
    role: Option<String>,
    weight: String,
    element: String,
    in_features: usize,
    out_features: usize,
    chain: String,
    target: bool,
}

#[derive(Serialize)]
struct StructureRow {
    name: &'static str,
    /// `None` where it does not fit.
    parameters: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let model = pipeline::read(&args.model)?;
    if let Some(path) = &args.dot {
        super::output::guard_always(path, [("the model", &*args.model)], &[&*model])?;
        std::fs::write(path, pipeline::dot(&model)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let device = args.device.open()?;
    let Inspection { found, unsupported, memory, unreached, structures, notes } =
        pipeline::inspect(&model, &Options::default(), args.batch, args.seq, device.limits())?;
    let signature = |s: &crate::onnx::Signature| {
        let dim = |d: &crate::onnx::Dim| match d {
            crate::onnx::Dim::Fixed(n) => n.to_string(),
            crate::onnx::Dim::Named(n) => n.clone(),
            crate::onnx::Dim::Unknown => "?".into(),
        };
        let dims: Vec<String> = s.dims.iter().flatten().map(dim).collect();
        format!("{}: {}[{}]", s.name, s.element, dims.join(", "))
    };
    let result = Result_ {
        model: args.model.clone(),
        opset: model.opset(""),
        nodes: model.nodes().count(),
        inputs: model.inputs().iter().map(signature).collect(),
        outputs: model.outputs().iter().map(signature).collect(),
        linear: found
            .into_iter()
            .map(|f| Row {
                role: f.role.map(|r| r.to_string()),
                element: model.initializer_type(&f.linear.weight).map_or(String::new(), |t| t.0.to_string()),
                path: f.linear.path,
                weight: f.linear.weight,
                in_features: f.linear.in_features,
                out_features: f.linear.out_features,
                chain: f.chain,
                target: f.target,
            })
            .collect(),
        unsupported: unsupported.into_iter().map(|u| (u.operator, u.nodes)).collect(),
        unreached,
        structures: structures
            .into_iter()
            .map(|(name, parameters)| StructureRow {
                name,
                why: parameters.as_ref().err().cloned(),
                parameters: parameters.ok(),
            })
            .collect(),
        device: device.name(),
        memory,
        notes,
    };
    printer.result(&result, || text(&result));
    Ok(Outcome::Done)
}

fn text(r: &Result_) -> String {
    let mut out = format!("{}: {} nodes, operator set {}\n", r.model.display(), r.nodes, r.opset);
    for line in &r.inputs {
        out += &format!("  in  {line}\n");
    }
    for line in &r.outputs {
        out += &format!("  out {line}\n");
    }
    let rows = r.linear.iter().map(|l| {
        vec![
            if l.target { "*".into() } else { String::new() },
            l.path.clone(),
            l.role.clone().unwrap_or("-".into()),
            format!("{} x {}", l.out_features, l.in_features),
            l.element.clone(),
            l.chain.clone(),
        ]
    });
    out += &format!("\n{}\n", table(&["", "linear node", "role", "weight", "type", "chain"], rows.collect()));
    let targets = r.linear.iter().filter(|l| l.target).count();
    out += &format!("\n{} linear nodes; {targets} (*) are adapted", r.linear.len());
    if !r.structures.is_empty() {
        let first_line =
            |why: &Option<String>| why.as_deref().and_then(|w| w.lines().next()).unwrap_or("-").to_string();
        let rows = r
            .structures
            .iter()
            .map(|s| vec![s.name.to_string(), s.parameters.map_or_else(|| first_line(&s.why), grouped)]);
        out += &format!("\n\n{}", table(&["--structure", "trained parameters, by default"], rows.collect()));
    }
    match r.unsupported.as_slice() {
        [] => out += "\nall operators are supported",
        list => {
            out += "\nunsupported operators:";
            for (operator, nodes) in list {
                out += &format!("\n  {operator} ({})", nodes.join(", "));
            }
        }
    }
    match r.unreached.as_slice() {
        [] if r.memory.is_some() => out += "\nevery adapter gets a gradient",
        [] => {}
        list => out += &format!("\nno gradient for: {}", list.join(", ")),
    }
    if let Some(m) = &r.memory {
        let kib = |bytes: usize| format!("{} KiB", grouped(bytes.div_ceil(1024)));
        out += &format!(
            "\na training step of {} x {} on {}: weights {}, parameters and optimiser {}, values {} (at least {})",
            m.batch,
            m.seq,
            r.device,
            kib(m.weights),
            kib(m.states),
            kib(m.arenas),
            kib(m.lower_bound)
        );
    }
    for note in &r.notes {
        out += &format!("\nnote: {note}");
    }
    out
}
