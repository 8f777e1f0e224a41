//! The table of strategies.

use super::strategy::StrategyInfo;
use super::{exact, input_norm, least_squares, weight_norm};
use std::fmt;
use std::ops::Deref;

/// Every strategy, exact first.
static STRATEGIES: &[&StrategyInfo] =
    &[&exact::STRATEGY, &input_norm::STRATEGY, &weight_norm::STRATEGY, &least_squares::STRATEGY];

/// A strategy of the table; two are equal if their names are.
#[derive(Clone, Copy)]
pub struct Strategy(&'static StrategyInfo);

impl Strategy {
    pub const EXACT: Strategy = Strategy(&exact::STRATEGY);
    /// The start of every regression, and its limit for a large ridge.
    pub const INPUT_NORM: Strategy = Strategy(&input_norm::STRATEGY);
    pub const LEAST_SQUARES: Strategy = Strategy(&least_squares::STRATEGY);

    pub fn all() -> impl Iterator<Item = Strategy> {
        STRATEGIES.iter().map(|s| Strategy(s))
    }

    pub fn parse(text: &str) -> Option<Strategy> {
        Strategy::all().find(|s| s.name == text)
    }
}

impl Deref for Strategy {
    type Target = StrategyInfo;

    fn deref(&self) -> &StrategyInfo {
        self.0
    }
}

impl PartialEq for Strategy {
    fn eq(&self, other: &Strategy) -> bool {
        self.name == other.name
    }
}

impl Eq for Strategy {}

impl fmt::Debug for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
