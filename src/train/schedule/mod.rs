//! Learning-rate schedules.
//!
//! A new schedule is one file with its factor and one line in [`SCHEDULES`].

mod constant;
mod cosine;
mod inverse_sqrt;
mod linear;
mod warmup_stable_decay;

/// How the learning rate goes on after warm-up.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub name: &'static str,
    /// Whether the rate of a step depends on how many steps there are.
    pub reads_total: bool,
    /// The share of the set rate.
    pub factor: fn(&Point) -> f64,
}

/// A step after warm-up.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// The step's number, from 0.
    pub step: u64,
    /// Steps of the warm-up before.
    pub warmup: u64,
    /// `(step - warmup) / (total - warmup)`, at most 1.
    pub done: f64,
}

/// Every schedule.
pub const SCHEDULES: &[Schedule] =
    &[constant::SCHEDULE, linear::SCHEDULE, cosine::SCHEDULE, inverse_sqrt::SCHEDULE, warmup_stable_decay::SCHEDULE];

pub fn find(name: &str) -> Option<Schedule> {
    SCHEDULES.iter().find(|s| s.name == name).copied()
}

impl Schedule {
    /// The set rate at every step.
    pub const CONSTANT: Schedule = constant::SCHEDULE;
    /// Linearly to zero at the last step.
    pub const LINEAR: Schedule = linear::SCHEDULE;

    /// The learning rate of step `step` (from 0) of `total`. While warming up, base × (step + 1) / warmup, so that the last of these
    /// steps has the full rate; then base × the schedule's factor, as in the schedulers of Hugging Face transformers.
    pub fn rate(self, base: f64, step: u64, total: u64, warmup: u64) -> f64 {
        if step < warmup {
            return base * (step + 1) as f64 / warmup as f64;
        }
        let done = ((step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64).min(1.0);
        base * (self.factor)(&Point { step, warmup, done })
    }
}

/// Checks rates of a run of 100 steps at a base rate of 2: the step, the steps of the warm-up before, and the rate.
#[cfg(test)]
fn check(schedule: Schedule, rates: &[(u64, u64, f64)]) {
    for &(step, warmup, want) in rates {
        let got = schedule.rate(2.0, step, 100, warmup);
        let name = schedule.name;
        assert!((got - want).abs() < 1e-12, "{name}: step {step} of 100 after {warmup}: {got}, not {want}");
    }
}
