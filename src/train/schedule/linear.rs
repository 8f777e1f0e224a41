//! Linearly to zero at the last step: `1 - t`, where `t` is the share of the steps that is done.

use super::Schedule;

pub const SCHEDULE: Schedule = Schedule { name: "linear", reads_total: true, factor: |p| 1.0 - p.done };

#[test]
fn the_rate_falls_in_a_line() {
    super::check(SCHEDULE, &[(0, 0, 2.0), (75, 0, 0.5)]);
    // The set rate is reached at the end of the warm-up, and holds for the step after it.
    super::check(SCHEDULE, &[(4, 10, 1.0), (9, 10, 2.0), (10, 10, 2.0), (55, 10, 1.0)]);
}
