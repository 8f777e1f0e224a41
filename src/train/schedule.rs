//! Learning-rate schedules.

/// How the learning rate falls after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    Constant,
    /// Linearly to zero at the last step.
    Linear,
    /// Along half a cosine to zero at the last step.
    Cosine,
}

pub const SCHEDULES: &[(Schedule, &str)] =
    &[(Schedule::Constant, "constant"), (Schedule::Linear, "linear"), (Schedule::Cosine, "cosine")];

impl Schedule {
    pub fn parse(text: &str) -> Option<Schedule> {
        SCHEDULES.iter().find(|s| s.1 == text).map(|s| s.0)
    }

    /// The learning rate of step `step` (from 0) of `total`. While warming up, base × (step + 1) / warmup, so that the last of these
    /// steps has the full rate; then base × the schedule over the steps that remain: with `t = (step - warmup) / (total - warmup)`
    /// that is 1, `1 - t`, or `(1 + cos(π t)) / 2`, as in the schedulers of Hugging Face transformers.
    pub fn rate(self, base: f64, step: u64, total: u64, warmup: u64) -> f64 {
        if step < warmup {
            return base * (step + 1) as f64 / warmup as f64;
        }
        let done = ((step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64).min(1.0);
        base * match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn rates_at_the_corners() {
        let check = |s: Schedule, step, warmup, want: f64| {
            let got = s.rate(2.0, step, 100, warmup);
            assert!((got - want).abs() < 1e-12, "{s:?} step {step} of 100 after {warmup}: {got}, not {want}");
        };
        check(Schedule::Constant, 0, 10, 0.2);
        check(Schedule::Constant, 9, 10, 2.0);
        check(Schedule::Constant, 99, 10, 2.0);
        check(Schedule::Linear, 0, 0, 2.0);
        check(Schedule::Linear, 75, 0, 0.5);
        // The set rate is reached at the end of the warm-up, and holds for the step after it.
        check(Schedule::Linear, 4, 10, 1.0);
        check(Schedule::Linear, 9, 10, 2.0);
        check(Schedule::Linear, 10, 10, 2.0);
        check(Schedule::Linear, 55, 10, 1.0);
        check(Schedule::Cosine, 55, 10, 1.0);
        check(Schedule::Cosine, 0, 0, 2.0);
        check(Schedule::Cosine, 99, 100, 2.0);
    }
}
