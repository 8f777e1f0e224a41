//! The set rate until a fifth of the steps is left, then linearly to zero at the last step (MiniCPM, arXiv 2404.06395, whose last tenth or
//! fifth decays).

use super::Schedule;

/// The share of the steps that decays.
const DECAY: f64 = 0.2;

pub const SCHEDULE: Schedule =
    Schedule { name: "warmup-stable-decay", reads_total: true, factor: |p| ((1.0 - p.done) / DECAY).min(1.0) };

#[test]
fn the_rate_holds_and_then_falls_in_a_line() {
    super::check(SCHEDULE, &[(4, 10, 1.0), (10, 10, 2.0), (80, 0, 2.0), (90, 0, 1.0), (82, 10, 2.0), (91, 10, 1.0)]);
}
