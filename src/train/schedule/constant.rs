//! The set rate at every step: 1.

use super::Schedule;

pub const SCHEDULE: Schedule = Schedule { name: "constant", reads_total: false, factor: |_| 1.0 };

#[test]
fn the_rate_stays() {
    super::check(SCHEDULE, &[(0, 10, 0.2), (9, 10, 2.0), (99, 10, 2.0)]);
}
