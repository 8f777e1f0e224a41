//! Along half a cosine to zero at the last step: `(1 + cos(π t)) / 2`, where `t` is the share of the steps that is done.

use super::Schedule;

pub const SCHEDULE: Schedule =
    Schedule { name: "cosine", reads_total: true, factor: |p| 0.5 * (1.0 + (std::f64::consts::PI * p.done).cos()) };

#[test]
fn the_rate_falls_along_a_cosine() {
    super::check(SCHEDULE, &[(55, 10, 1.0), (0, 0, 2.0), (99, 100, 2.0)]);
}
