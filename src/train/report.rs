//! `report.html`: a self-contained page about a run.

use super::metrics::{EvalMetrics, StepMetrics};
use atomic_write_file::AtomicWriteFile;
use plotters::prelude::*;
use std::io::Write;
use std::path::Path;

/// Writes the page: loss over steps, evaluations, and the settings. `unit` is what a step's `tokens` are.
pub fn write(
    dir: &Path,
    title: &str,
    config: &str,
    unit: &str,
    steps: &[StepMetrics],
    evals: &[EvalMetrics],
) -> std::io::Result<()> {
    let chart = chart(steps, evals).unwrap_or_default();
    let row = |e: &EvalMetrics| {
        let other = e.eval_accuracy.map(|a| format!("accuracy {a:.4}"));
        let other = other.or(e.eval_perplexity.map(|p| format!("perplexity {p:.3}"))).unwrap_or_default();
        format!("<tr><td>{}</td><td>{:.4}</td><td>{other}</td></tr>", e.step, e.eval_loss)
    };
    let rows: String = evals.iter().map(row).collect();
    let last = steps.last();
    let tokens: usize = steps.iter().map(|s| s.tokens).sum();
    let seconds: f64 = steps.iter().map(|s| s.seconds).sum();
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
         td,th{{padding:.2rem .8rem;text-align:right}}pre{{background:#f4f4f4;padding:1rem;overflow:auto}}</style>\
         <h1>{title}</h1><p>{} steps, final loss {:.4}, {tokens} {unit} in {seconds:.1} s ({:.0} a second).</p>{chart}\
         <h2>Evaluations</h2><table><tr><th>step</th><th>loss</th><th></th></tr>{rows}</table>\
         <h2>Settings</h2><pre>{}</pre></html>",
        steps.len(),
        last.map_or(f64::NAN, |s| s.loss),
        tokens as f64 / seconds.max(1e-9),
        escape(config),
        title = escape(title),
    );
    let mut file = AtomicWriteFile::open(dir.join("report.html"))?;
    file.write_all(html.as_bytes())?;
    file.commit()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The loss of each step, a running mean of it, and the evaluations.
fn chart(steps: &[StepMetrics], evals: &[EvalMetrics]) -> Option<String> {
    let points: Vec<(f64, f64)> =
        steps.iter().filter(|s| s.loss.is_finite()).map(|s| (s.step as f64, s.loss)).collect();
    let checks: Vec<(f64, f64)> =
        evals.iter().filter(|e| e.eval_loss.is_finite()).map(|e| (e.step as f64, e.eval_loss)).collect();
    let all = points.iter().chain(&checks);
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(a, b), p| (a.min(p.1), b.max(p.1)));
    let last = points.last()?.0.max(2.0);
    let margin = ((high - low) * 0.05).max(1e-6);
    let mut mean = points[0].1;
    let smooth: Vec<(f64, f64)> = points
        .iter()
        .map(|&(x, y)| {
            mean += (y - mean) * 0.1;
            (x, mean)
        })
        .collect();
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (900, 420)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..last, low - margin..high + margin)
            .ok()?;
        chart.configure_mesh().x_desc("step").y_desc("loss").draw().ok()?;
        chart.draw_series(LineSeries::new(points, RGBColor(170, 190, 220))).ok()?;
        chart.draw_series(LineSeries::new(smooth, RGBColor(30, 80, 160).stroke_width(2))).ok()?;
        chart.draw_series(checks.into_iter().map(|p| Circle::new(p, 4, RGBColor(200, 60, 40).filled()))).ok()?;
        root.present().ok()?;
    }
    Some(svg)
}
