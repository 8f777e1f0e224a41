//! With one over the square root of the steps: `√(w / step)`, where `w` is the length of the warm-up, at least 1.

use super::{Point, Schedule};

pub const SCHEDULE: Schedule = Schedule { name: "inverse-sqrt", reads_total: false, factor };

fn factor(p: &Point) -> f64 {
    let warmup = p.warmup.max(1);
    (warmup as f64 / p.step.max(warmup) as f64).sqrt()
}

#[test]
fn the_rate_falls_with_the_square_root() {
    super::check(SCHEDULE, &[(0, 0, 2.0), (1, 0, 2.0), (4, 0, 1.0)]);
    // The set rate is reached at the end of the warm-up, and holds for the step after it.
    super::check(SCHEDULE, &[(4, 10, 1.0), (9, 10, 2.0), (10, 10, 2.0), (40, 10, 1.0)]);
}
