//! `bench`

use super::common::{DeviceArg, LossArg, Outcome, Printer, TypeArgs, Usage, grouped, stem, table};
use crate::pipeline::{self, Bench, BenchRequest, Span};
use crate::settings::defaults;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,
    /// Examples to a step
    #[arg(long, default_value_t = defaults::BENCH_BATCH, value_name = "N")]
    batch: usize,
    /// Positions of each example
    #[arg(long, default_value_t = defaults::BENCH_POSITIONS, value_name = "N")]
    seq: usize,
    /// Steps that are timed, after two that are not
    #[arg(long, default_value_t = defaults::BENCH_STEPS, value_name = "N")]
    steps: usize,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten)]
    loss: LossArg,
    #[command(flatten)]
    types: TypeArgs,
    /// Leave out the optimisations that are not necessary
    #[arg(long)]
    no_fuse: bool,
    /// Also time every kernel of one forward and backward pass, and write a trace for chrome://tracing or Perfetto
    #[arg(long)]
    profile: bool,
    /// Where the trace goes [default: MODEL.trace.json in the current folder]
    #[arg(long, value_name = "FILE", requires = "profile")]
    trace: Option<PathBuf>,
}

#[derive(Serialize)]
struct Result_ {
    model: PathBuf,
    device: String,
    precision: String,
    /// The type in which products multiplied.
    products: &'static str,
    weights: String,
    batch: usize,
    seq: usize,
    #[serde(flatten)]
    bench: Bench,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<PathBuf>,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    for (flag, n) in [("--batch", args.batch), ("--seq", args.seq), ("--steps", args.steps)] {
        if n == 0 {
            return Err(Usage(format!("{flag} must be at least 1")).into());
        }
    }
    let model = pipeline::read(&args.model)?;
    let mut device = args.device.open_for(&args.types)?;
    let products = args.types.products(device.as_ref(), printer);
    let request = BenchRequest {
        batch: args.batch,
        seq: args.seq,
        steps: args.steps,
        loss: pipeline::named_loss(&args.loss.name)?,
        fuse: !args.no_fuse,
        products,
        profile: args.profile,
        ..BenchRequest::new(&model)
    };
    let bench = pipeline::bench(&request, device.as_mut())?;
    let mut trace = None;
    if let Some(profile) = &bench.profile {
        let path = args.trace.clone().unwrap_or_else(|| PathBuf::from(format!("{}.trace.json", stem(&args.model))));
        write_trace(&profile.spans, &path)?;
        trace = Some(path);
    }
    let result = Result_ {
        model: args.model.clone(),
        device: device.name(),
        precision: args.types.precision.clone(),
        products: products.name(),
        weights: args.types.weights.clone(),
        batch: args.batch,
        seq: args.seq,
        bench,
        trace,
    };
    printer.result(&result, || text(&result));
    Ok(Outcome::Done)
}

/// The trace event format: one complete event a kernel, in microseconds.
fn write_trace(spans: &[Span], path: &Path) -> Result<()> {
    let event = |s: &Span| {
        serde_json::json!({
            "name": s.kernel, "cat": "kernel", "ph": "X", "pid": 0, "tid": 0, "ts": s.start, "dur": s.duration,
            "args": { "node": s.origin, "shapes": s.shape },
        })
    };
    let events: Vec<serde_json::Value> = spans.iter().map(event).collect();
    let text = serde_json::json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string();
    let failed = || format!("cannot write {}", path.display());
    let mut file = atomic_write_file::AtomicWriteFile::open(path).with_context(failed)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).and_then(|()| file.commit()).with_context(failed)
}

fn text(r: &Result_) -> String {
    let b = &r.bench;
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let (min, max) = b.steps_ms.iter().fold((f64::INFINITY, 0.0f64), |(a, z), &x| (a.min(x), z.max(x)));
    let rows = vec![
        vec!["step".into(), format!("{:.2} ms (median of {}; {min:.2} to {max:.2})", b.step_ms, b.steps_ms.len())],
        vec!["tokens/s".into(), grouped(b.tokens_per_s as usize)],
        vec![
            "arithmetic".into(),
            format!(
                "{:.1} GFLOP/s, {:.1} % of this machine's matmul peak ({:.1} GFLOP/s)",
                b.model_gflops_per_s,
                100.0 * b.utilisation,
                b.ceiling_gflops_per_s
            ),
        ],
        vec![
            "memory".into(),
            format!(
                "{} in use; values {} (at least {}){}",
                mib(b.memory),
                mib(b.arenas),
                mib(b.arenas_least),
                b.peak_rss.map_or(String::new(), |n| format!("; process peak {}", mib(n)))
            ),
        ],
        vec!["compile".into(), format!("{:.2} s, {:.2} s of it on the host", b.compile_s, b.plan_s)],
        vec!["kernels".into(), grouped(b.kernels)],
    ];
    let title = format!("{} x {} on {}", r.batch, r.seq, r.device);
    let mut out = table(&[r.model.to_string_lossy().as_ref(), title.as_str()], rows);
    if let Some(p) = &b.profile {
        let rows = p.kernels.iter().map(|k| {
            vec![
                k.kernel.clone(),
                grouped(k.count),
                format!("{:.2}", k.ms),
                format!("{:.1} %", 100.0 * k.share),
                format!("{:.1}", k.gflops_per_s),
                format!("{:.1}", k.gbytes_per_s),
            ]
        });
        out += "\n\nforward and backward, kernel by kernel\n";
        out += &table(&["kernel", "runs", "ms", "share", "GFLOP/s", "GB/s"], rows.collect());
    }
    if let Some(path) = &r.trace {
        out += &format!("\n\nwrote {}", path.display());
    }
    out
}
