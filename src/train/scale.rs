//! Dynamic loss scaling for mixed precision, with the rule and constants of PyTorch's `GradScaler`. Scaling the loss keeps small gradients
//! from vanishing when they are rounded to halves. A step whose gradients overflow is skipped and the scale halved; after a number of
//! good steps in a row it is doubled. Scales are powers of two, so scaling rounds nothing.

use serde::{Deserialize, Serialize};

/// Good steps in a row that double the scale.
const GROWTH_INTERVAL: u32 = 2000;
/// A scale below which gradients overflow for another reason than the scale.
const LEAST: f64 = 1.0 / 65536.0;

/// The scale, and what decides over it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    pub scale: f64,
    /// Steps in a row whose gradients were finite.
    pub good: u32,
    /// Steps that were skipped.
    pub skipped: u64,
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale { scale: 65536.0, good: 0, skipped: 0 }
    }
}

impl LossScale {
    /// Takes in a step. False if its gradients are not finite and a smaller scale will not help.
    pub fn update(&mut self, finite: bool) -> bool {
        if !finite {
            self.scale *= 0.5;
            (self.good, self.skipped) = (0, self.skipped + 1);
            return self.scale >= LEAST;
        }
        self.good += 1;
        if self.good == GROWTH_INTERVAL {
            (self.scale, self.good) = (self.scale * 2.0, 0);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{GROWTH_INTERVAL, LossScale};

    #[test]
    fn overflow_halves_and_good_steps_in_a_row_double() {
        let mut s = LossScale::default();
        assert!(s.update(false));
        assert_eq!(s, LossScale { scale: 32768.0, good: 0, skipped: 1 });
        (1..GROWTH_INTERVAL).for_each(|_| assert!(s.update(true)));
        assert_eq!(s.scale, 32768.0);
        s.update(false);
        assert_eq!(s, LossScale { scale: 16384.0, good: 0, skipped: 2 });
        (0..GROWTH_INTERVAL).for_each(|_| assert!(s.update(true)));
        assert_eq!(s, LossScale { scale: 32768.0, good: 0, skipped: 2 });
        while s.update(false) {
            assert!(s.scale >= 1e-5);
        }
    }
}
