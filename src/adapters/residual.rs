//! Residual paths between the adapters of a chain (ResLoRA, arXiv 2402.18039, equations 2 to 4), for any adapter whose term
//! is `s · last(carry(x))`.
//!
//! | path | term of block n | first block of a chain |
//! |---|---|---|
//! | none | `last_n(carry_n(x_n))` | same |
//! | input-shortcut | `last_n(carry_n(x_n + x_{n-1}))` | `x_{n-1} := x_n` |
//! | block-shortcut | `Σ_{k=0..m} last_{n-k}(carry_{n-k}(x_n))` | fewer terms |
//! | middle-shortcut | `last_n(Σ_{k=0..m} carry_{n-k}(x_{n-k}))` | fewer terms |

use super::{Block, Emitter, Term};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which residual path joins the adapters of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Residual {
    /// No path: each adapter reads its own block alone.
    #[default]
    None,
    /// The input of the block before is added to the block's own.
    InputShortcut,
    /// The terms of earlier blocks are added, each of this block's input.
    BlockShortcut,
    /// What earlier blocks carry, of their own inputs, is added before the last map.
    MiddleShortcut,
}

/// Every residual path with its name and alias.
pub const RESIDUALS: [(Residual, &str, &str); 4] = [
    (Residual::None, "none", "no"),
    (Residual::InputShortcut, "input-shortcut", "is"),
    (Residual::BlockShortcut, "block-shortcut", "bs"),
    (Residual::MiddleShortcut, "middle-shortcut", "ms"),
];

impl fmt::Display for Residual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = RESIDUALS.iter().find(|r| r.0 == *self);
        f.write_str(entry.map_or("none", |r| r.1))
    }
}

impl Residual {
    /// By name or alias.
    pub fn parse(text: &str) -> Option<Residual> {
        RESIDUALS.iter().find(|r| r.1 == text || r.2 == text).map(|r| r.0)
    }

    /// The most earlier blocks that a block reads, where `pre_num` (-1: all) is asked for.
    pub fn limit(self, pre_num: i64) -> usize {
        match self {
            Residual::None => 0,
            Residual::InputShortcut => 1,
            Residual::BlockShortcut | Residual::MiddleShortcut => usize::try_from(pre_num).unwrap_or(usize::MAX),
        }
    }

    /// Whether `--pre-num` means anything to it.
    pub fn reads_pre_num(self) -> bool {
        match self {
            Residual::None | Residual::InputShortcut => false,
            Residual::BlockShortcut | Residual::MiddleShortcut => true,
        }
    }

    /// Whether a block reads the input of another, whose leading axes must then be alike.
    pub fn reads_inputs(self) -> bool {
        match self {
            Residual::None | Residual::BlockShortcut => false,
            Residual::InputShortcut | Residual::MiddleShortcut => true,
        }
    }

    /// Whether the term is a function of the block's own input, so that plain weights can compute it.
    pub fn is_exact(self) -> bool {
        !self.reads_inputs()
    }

    /// The nodes of one block's term, without `s`. Dropout: input-shortcut drops the sum, middle-shortcut reuses each block's
    /// dropped projection, block-shortcut draws a mask for each term.
    pub(super) fn emit(self, e: &mut Emitter, term: &Term, block: &Block) -> String {
        let own = |e: &mut Emitter, x: &str| {
            let x = e.dropped("lora_dropout", x);
            let t = (term.carry)(e, block.config, block.target, &x, "");
            e.carried(block.target, &t);
            t
        };
        let last = |e: &mut Emitter, t: &str| {
            e.signal(block.target, t);
            (term.last)(e, block.config, block.target, t, "")
        };
        match self {
            Residual::None => {
                let t = own(e, block.x);
                last(e, &t)
            }
            Residual::InputShortcut => {
                let before = block.ancestors.first().map_or(block.x, |(_, x)| x);
                let sum = e.node("residual", "Add", &[block.x, before]);
                let t = own(e, &sum);
                last(e, &t)
            }
            Residual::MiddleShortcut => {
                let own = own(e, block.x);
                let earlier = block.ancestors.iter().enumerate();
                let t = earlier.fold(own, |sum, (k, (target, _))| {
                    let carried = e.carried_by(target);
                    e.node(&format!("residual{}", k + 1), "Add", &[&sum, &carried])
                });
                last(e, &t)
            }
            Residual::BlockShortcut => {
                let t = own(e, block.x);
                let own = last(e, &t);
                let earlier = block.ancestors.iter().enumerate();
                earlier.fold(own, |sum, (k, (target, _))| {
                    let which = format!(".back{}", k + 1);
                    let x = e.dropped(&format!("lora_dropout{which}"), block.x);
                    let t = (term.carry)(e, block.config, target, &x, &which);
                    let more = (term.last)(e, block.config, target, &t, &which);
                    e.node(&format!("residual{}", k + 1), "Add", &[&sum, &more])
                })
            }
        }
    }
}
