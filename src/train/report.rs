//! `report.html`: a self-contained page about one run or several, which draws itself from the numbers inside it.

use super::metrics::{self, EvalMetrics, StepMetrics};
use super::record;
use super::trace::{self, Point};
use crate::adapter;
use atomic_write_file::AtomicWriteFile;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// The page without its title and numbers.
const PAGE: &str = include_str!("report.html");

/// A run as the page shows it.
#[derive(Serialize)]
pub struct Run {
    name: String,
    /// What runs of one kind share, which have one colour; empty for a run of its own.
    group: String,
    /// What a step's `tokens` are.
    unit: String,
    steps: Vec<StepMetrics>,
    evals: Vec<EvalMetrics>,
    trace: Vec<Point>,
    /// Module paths in order, each with the one before it in its chain.
    chains: Vec<(String, Option<String>)>,
    /// The adapter's structure; empty where that is not known.
    structure: String,
    /// What the last merge of the run did to each layer; null where there was none.
    merge: Value,
    /// As TOML.
    config: String,
}

impl Run {
    /// Reads a run directory.
    pub fn read(dir: &Path) -> std::io::Result<Run> {
        let (steps, evals) = metrics::read(dir)?;
        let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let adapter: Value =
            adapter::read(dir).ok().and_then(|a| serde_json::from_str(&a.config?).ok()).unwrap_or_default();
        let target = |t: &Value| Some((t["path"].as_str()?.to_string(), t["prev"].as_str().map(String::from)));
        Ok(Run {
            name: dir.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned()),
            group: String::new(),
            unit: record::read(dir).ok().flatten().and_then(|r| r.unit).unwrap_or_else(|| "tokens".into()),
            steps,
            evals,
            trace: trace::read(dir)?,
            chains: adapter["targets"].as_array().into_iter().flatten().filter_map(target).collect(),
            structure: adapter["structure"].as_str().unwrap_or_default().to_string(),
            merge: serde_json::from_str(&text("merge.json")).unwrap_or_default(),
            config: text("config.toml"),
        })
    }

    /// The run as one of a kind.
    pub fn of(self, group: &str) -> Run {
        Run { group: group.to_string(), ..self }
    }
}

/// Writes a run's page into its directory.
pub fn write(dir: &Path, title: &str) -> std::io::Result<()> {
    let run = Run::read(dir)?;
    page(&dir.join("report.html"), &format!("{title} · {}", run.name), &[run], None)
}

/// Writes a page about runs, and what a comparison of them gave.
pub fn page(path: &Path, title: &str, runs: &[Run], comparison: Option<&Value>) -> std::io::Result<()> {
    // Inside a script element, `<` could end it.
    let numbers = json!({"title": title, "runs": runs, "comparison": comparison}).to_string().replace('<', "\\u003c");
    let html = PAGE.replacen("{{title}}", &escape(title), 1).replacen("{{numbers}}", &numbers, 1);
    let mut file = AtomicWriteFile::open(path)?;
    file.write_all(html.as_bytes())?;
    file.commit()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
