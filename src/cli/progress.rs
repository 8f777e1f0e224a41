//! A run's progress on standard error: a bar on a terminal, a line now and then elsewhere, or a JSON object for each event.

use super::common::scores;
use crate::train::metrics::{EvalMetrics, StepMetrics};
use crate::train::{Observer, trace};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Follows a run, and stops it when the user interrupts.
pub struct Progress {
    bar: ProgressBar,
    total: u64,
    /// What a step's `tokens` are.
    unit: &'static str,
    counted: usize,
    /// Of steps alone: evaluations do not count.
    seconds: f64,
    /// The mean of the losses so far, later ones weighing more, and the weight of all.
    smoothed: [f64; 2],
    /// Bytes of the process, and when they were looked up.
    memory: Option<(u64, Instant)>,
    stop: Arc<AtomicBool>,
    log: Log,
}

/// How a run is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Log {
    /// A bar on a terminal, lines elsewhere
    Text,
    /// A JSON object a line: notes, every step, every evaluation
    Json,
    #[value(skip)]
    Quiet,
}

impl Log {
    /// What suits a command that prints its result as JSON, or as text.
    pub fn beside(json: bool) -> Log {
        if json { Log::Quiet } else { Log::Text }
    }
}

impl Progress {
    /// Ctrl-C ends the run after the step under way; a second one ends the program.
    pub fn new(log: Log, unit: &'static str) -> Progress {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        // A handler can be set once in a process; later runs of one process go without.
        let _ = ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("interrupted: saving after this step (again to quit at once)");
        });
        Progress {
            bar: ProgressBar::hidden(),
            total: 0,
            unit,
            counted: 0,
            seconds: 0.0,
            smoothed: [0.0; 2],
            memory: None,
            stop,
            log,
        }
    }

    fn rate(&self) -> f64 {
        self.counted as f64 / self.seconds.max(1e-9)
    }

    /// An event as a line of JSON.
    fn event(&self, name: &str, value: Value) {
        let mut all = json!({"event": name});
        if let (Value::Object(all), Value::Object(more)) = (&mut all, value) {
            all.extend(more);
        }
        eprintln!("{all}");
    }

    /// The running mean with one more loss in it.
    fn smooth(&mut self, loss: f64) -> f64 {
        if loss.is_finite() {
            self.smoothed = [0.9 * self.smoothed[0] + 0.1 * loss, 0.9 * self.smoothed[1] + 0.1];
        }
        self.smoothed[0] / self.smoothed[1]
    }

    /// MiB of the process, looked up once a second.
    fn mebibytes(&mut self) -> String {
        if self.memory.is_none_or(|m| m.1.elapsed() > Duration::from_secs(1)) {
            self.memory = trace::memory().map(|bytes| (bytes, Instant::now()));
        }
        self.memory.map(|m| format!(" {} MiB", m.0 >> 20)).unwrap_or_default()
    }

    /// A line that stays.
    fn line(&self, text: String) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn note(&mut self, text: &str) {
        match self.log {
            Log::Json => self.event("note", json!({"text": text})),
            _ => eprintln!("note: {text}"),
        }
    }

    fn started(&mut self, total: u64, done: u64) {
        self.total = total;
        if self.log == Log::Json {
            self.event("started", json!({"steps": total, "done": done}));
        }
        if self.log == Log::Text {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta} left");
            self.bar = ProgressBar::new(total).with_style(style.expect("a sound template")).with_position(done);
            self.bar.reset_eta();
        }
    }

    fn step(&mut self, m: &StepMetrics) {
        if self.log == Log::Json {
            self.event("step", serde_json::to_value(m).unwrap_or_default());
            return;
        }
        // A loss scale that is too large for halves is part of finding it.
        if m.skipped && !(m.loss_scale.is_some() && m.loss.is_finite()) {
            let rows: Vec<String> = m.rows.iter().take(8).map(usize::to_string).collect();
            let more = if m.rows.len() > rows.len() { ", ..." } else { "" };
            let (what, value) = if m.loss.is_finite() { ("gradient's norm", m.grad_norm) } else { ("loss", m.loss) };
            self.line(format!("step {}: skipped, its {what} is {value} (rows {}{more})", m.step, rows.join(", ")));
        }
        self.counted += m.tokens;
        self.seconds += m.seconds;
        let loss = self.smooth(m.loss);
        let memory = self.mebibytes();
        let text = format!("loss {loss:.4} lr {:.1e} {:.0} {}/s{memory}", m.lr, self.rate(), self.unit);
        if self.bar.is_hidden() && self.log == Log::Text {
            let every = (self.total / 10).max(1);
            if m.step.is_multiple_of(every) || m.step == self.total {
                eprintln!("step {}/{} {text}", m.step, self.total);
            }
        }
        self.bar.set_position(m.step);
        self.bar.set_message(text);
    }

    fn evaluated(&mut self, m: &EvalMetrics, best: bool) {
        match self.log {
            Log::Quiet => return,
            Log::Json => return self.event("evaluation", evaluated(m, best)),
            Log::Text => {}
        }
        let accuracy = m.eval_accuracy.map(|a| format!(", accuracy {a:.4}"));
        let other = accuracy.or(m.eval_perplexity.map(|p| format!(", perplexity {p:.3}"))).unwrap_or_default();
        let mark = if best { " (best)" } else { "" };
        let of = if m.step == 0 { " (the base)" } else { "" };
        self.line(format!("step {}{of}: eval loss {:.4}{other}{}{mark}", m.step, m.eval_loss, scores(&m.scores)));
    }

    fn stop(&mut self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// An evaluation as an event has it.
fn evaluated(m: &EvalMetrics, best: bool) -> Value {
    let mut value = serde_json::to_value(m).unwrap_or_default();
    value["best"] = best.into();
    value
}
