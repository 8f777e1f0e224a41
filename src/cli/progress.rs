//! A run's progress on standard error: a bar on a terminal, a line now and then elsewhere.

use super::common::scores;
use crate::train::Observer;
use crate::train::metrics::{EvalMetrics, StepMetrics};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Follows a run, and stops it when the user interrupts.
pub struct Progress {
    bar: ProgressBar,
    total: u64,
    /// What a step's `tokens` are.
    unit: &'static str,
    counted: usize,
    /// Of steps alone: evaluations do not count.
    seconds: f64,
    stop: Arc<AtomicBool>,
    quiet: bool,
}

impl Progress {
    /// Ctrl-C ends the run after the step under way; a second one ends the program.
    pub fn new(quiet: bool, unit: &'static str) -> Progress {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        // A handler can be set once in a process; later runs of one process go without.
        let _ = ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("interrupted: saving after this step (again to quit at once)");
        });
        Progress { bar: ProgressBar::hidden(), total: 0, unit, counted: 0, seconds: 0.0, stop, quiet }
    }

    fn rate(&self) -> f64 {
        self.counted as f64 / self.seconds.max(1e-9)
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn note(&mut self, text: &str) {
        eprintln!("note: {text}");
    }

    fn started(&mut self, total: u64, done: u64) {
        self.total = total;
        if !self.quiet {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta} left");
            self.bar = ProgressBar::new(total).with_style(style.expect("a sound template")).with_position(done);
            self.bar.reset_eta();
        }
    }

    fn step(&mut self, m: &StepMetrics) {
        self.counted += m.tokens;
        self.seconds += m.seconds;
        let text = format!("loss {:.4} {:.0} {}/s", m.loss, self.rate(), self.unit);
        if self.bar.is_hidden() && !self.quiet {
            let every = (self.total / 10).max(1);
            if m.step.is_multiple_of(every) || m.step == self.total {
                eprintln!("step {}/{} {text}", m.step, self.total);
            }
        }
        self.bar.set_position(m.step);
        self.bar.set_message(text);
    }

    fn evaluated(&mut self, m: &EvalMetrics, best: bool) {
        if self.quiet {
            return;
        }
        let accuracy = m.eval_accuracy.map(|a| format!(", accuracy {a:.4}"));
        let other = accuracy.or(m.eval_perplexity.map(|p| format!(", perplexity {p:.3}"))).unwrap_or_default();
        let mark = if best { " (best)" } else { "" };
        let of = if m.step == 0 { " (the base)" } else { "" };
        let line = format!("step {}{of}: eval loss {:.4}{other}{}{mark}", m.step, m.eval_loss, scores(&m.scores));
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    fn stop(&mut self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}
