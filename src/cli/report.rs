//! `report`

use super::common::{Outcome, Printer, Usage};
use crate::train;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(override_usage = "reslora-compile report RUN_DIR... [-o FILE.html]")]
pub struct Args {
    /// Run directories; several are drawn over each other
    #[arg(required = true, value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// Where to write the page [default: report.html in the run directory]
    #[arg(short, long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// The page's title [default: the names of the runs]
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

#[derive(Serialize)]
struct Result_ {
    output: PathBuf,
    runs: Vec<PathBuf>,
}

pub fn run(args: &Args, printer: &Printer) -> Result<Outcome> {
    let output = match (&args.output, &args.runs[..]) {
        (Some(output), _) => output.clone(),
        (None, [run]) => run.join("report.html"),
        (None, _) => return Err(Usage("several runs need -o FILE.html".into()).into()),
    };
    let mut runs = Vec::new();
    for dir in &args.runs {
        if !dir.join("metrics.jsonl").is_file() {
            let hint = "hint: give the directory that train wrote";
            return Err(
                Usage(format!("{} holds no run: there is no metrics.jsonl in it\n{hint}", dir.display())).into()
            );
        }
        let run = train::ReportRun::read(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        runs.push(run);
    }
    let names = || args.runs.iter().map(|r| r.file_name().unwrap_or(r.as_os_str()).to_string_lossy().into_owned());
    let title = args.title.clone().unwrap_or_else(|| names().collect::<Vec<_>>().join(", "));
    train::report_page(&output, &title, &runs, None).with_context(|| format!("cannot write {}", output.display()))?;
    let result = Result_ { output, runs: args.runs.clone() };
    printer.result(&result, || format!("wrote {}", result.output.display()));
    Ok(Outcome::Done)
}
