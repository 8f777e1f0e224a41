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

    /// The learning rate of step `step` (from 0) of `total`: base × min(1, (step + 1) / warmup) × schedule. The schedule
    /// starts to fall when warm-up ends.
    pub fn rate(self, base: f64, step: u64, total: u64, warmup: u64) -> f64 {
        let ramp = if warmup == 0 { 1.0 } else { ((step + 1) as f64 / warmup as f64).min(1.0) };
        let span = total.saturating_sub(warmup).max(1) as f64;
        let done = (step.saturating_sub(warmup) as f64 / span).min(1.0);
        let fall = match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        base * ramp * fall
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn rates_at_the_corners() {
        let rate = |s: Schedule, step| s.rate(2.0, step, 110, 10);
        for s in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            assert!((rate(s, 0) - 0.2).abs() < 1e-12);
            assert!((rate(s, 9) - 2.0).abs() < 1e-12);
            assert!((rate(s, 10) - 2.0).abs() < 1e-12);
        }
        assert!((rate(Schedule::Constant, 109) - 2.0).abs() < 1e-12);
        assert!((rate(Schedule::Linear, 60) - 1.0).abs() < 1e-12);
        assert!((rate(Schedule::Cosine, 60) - 1.0).abs() < 1e-12);
        assert!((Schedule::Linear.rate(1.0, 0, 4, 0) - 1.0).abs() < 1e-12);
        assert!((Schedule::Linear.rate(1.0, 3, 4, 0) - 0.25).abs() < 1e-12);
    }
}
