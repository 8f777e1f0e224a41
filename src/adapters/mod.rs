//! ResLoRA's structures: what an adapter computes while it trains, as ONNX nodes.
//!
//! With `s = alpha / rank`, block `n` of a chain adds to its linear node's output (arXiv 2402.18039, equations 1 to 4):
//!
//! | structure | term | first block of a chain |
//! |---|---|---|
//! | `lora` | `s B_n A_n x_n` | same |
//! | `input-shortcut` | `s B_n A_n (x_n + x_{n-1})` | `x_{n-1} := x_n` |
//! | `block-shortcut` | `s (Σ_{k=0..m} B_{n-k} A_{n-k}) x_n` | fewer terms |
//! | `middle-shortcut` | `s B_n Σ_{k=0..m} A_{n-k} x_{n-k}` | fewer terms |

mod block_shortcut;
pub mod chain;
mod emit;
mod fit;
mod input_shortcut;
mod lora;
mod middle_shortcut;
mod names;

use serde::{Deserialize, Serialize};
use std::fmt;

pub use emit::{Block, Emitter, emit};
pub use fit::{Difference, FitError, Fitted, Made, Tensors, fit, own_targets};

/// Which residual paths join the adapters of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Structure {
    Lora,
    InputShortcut,
    BlockShortcut,
    MiddleShortcut,
}

/// One structure: its names, what it needs, and its nodes.
pub struct StructureInfo {
    pub structure: Structure,
    pub name: &'static str,
    pub alias: &'static str,
    /// Whether plain weights can compute exactly what it computes.
    pub exact: bool,
    /// Whether a block reads the input of another, whose leading axes must then be alike.
    pub reads_inputs: bool,
    /// Emits the nodes of one block; the result is the value to scale and add.
    pub emit: fn(&mut Emitter, &Block) -> String,
}

/// Every structure, with its aliases.
pub static STRUCTURES: &[StructureInfo] = &[
    StructureInfo {
        structure: Structure::Lora,
        name: "lora",
        alias: "none",
        exact: true,
        reads_inputs: false,
        emit: lora::emit,
    },
    StructureInfo {
        structure: Structure::InputShortcut,
        name: "input-shortcut",
        alias: "is",
        exact: false,
        reads_inputs: true,
        emit: input_shortcut::emit,
    },
    StructureInfo {
        structure: Structure::BlockShortcut,
        name: "block-shortcut",
        alias: "bs",
        exact: true,
        reads_inputs: false,
        emit: block_shortcut::emit,
    },
    StructureInfo {
        structure: Structure::MiddleShortcut,
        name: "middle-shortcut",
        alias: "ms",
        exact: false,
        reads_inputs: true,
        emit: middle_shortcut::emit,
    },
];

impl Structure {
    pub fn info(self) -> &'static StructureInfo {
        STRUCTURES.iter().find(|s| s.structure == self).expect("every structure is in the table")
    }

    /// Whether [`Config::pre_num`] says how many earlier blocks a block reads.
    pub fn reads_pre_num(self) -> bool {
        matches!(self, Structure::BlockShortcut | Structure::MiddleShortcut)
    }

    /// By name or alias.
    pub fn parse(text: &str) -> Option<Structure> {
        STRUCTURES.iter().find(|s| s.name == text || s.alias == text).map(|s| s.structure)
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}

/// The configuration that an injected model carries in its metadata, and an adapter in its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub version: u32,
    pub structure: Structure,
    /// How many earlier blocks a block-shortcut or middle-shortcut reads; -1 for all.
    pub pre_num: i64,
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    /// Scale by `alpha / √rank` rather than `alpha / rank`.
    pub rslora: bool,
    pub seed: u64,
    /// In execution order.
    pub targets: Vec<Target>,
    /// Initializers that are trained themselves.
    pub also_train: Vec<String>,
}

/// A linear node (or several that share weight and path) with an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    pub path: String,
    pub weight: String,
    pub in_features: usize,
    pub out_features: usize,
    /// The block before this one in its chain.
    pub prev: Option<String>,
}

/// The key under which an injected model keeps its [`Config`], as JSON.
pub const CONFIG_KEY: &str = "reslora.config";
/// The key for the digest of the model that was injected into.
pub const BASE_KEY: &str = "reslora.base";

impl Config {
    /// `s`
    pub fn scale(&self) -> f64 {
        self.alpha / if self.rslora { (self.rank as f64).sqrt() } else { self.rank as f64 }
    }

    pub fn target(&self, path: &str) -> Option<&Target> {
        self.targets.iter().find(|t| t.path == path)
    }

    /// The blocks before `target` in its chain that its structure reads, nearest first.
    pub fn ancestors(&self, target: &Target) -> Vec<&Target> {
        let limit = match (self.structure, self.pre_num) {
            (Structure::Lora, _) => 0,
            (Structure::InputShortcut, _) => 1,
            (_, m) if m < 0 => usize::MAX,
            (_, m) => m as usize,
        };
        let mut out = Vec::new();
        let mut at = target;
        while out.len() < limit {
            let Some(prev) = at.prev.as_ref().and_then(|p| self.target(p)) else { break };
            out.push(prev);
            at = prev;
        }
        out
    }
}

impl Target {
    pub fn a(&self) -> String {
        a_name(&self.path)
    }

    pub fn b(&self) -> String {
        b_name(&self.path)
    }
}

/// The initializer of `A`, `[rank, in]`, of the linear node at `path`.
pub fn a_name(path: &str) -> String {
    format!("{path}.lora_A.weight")
}

/// The initializer of `B`, `[out, rank]`.
pub fn b_name(path: &str) -> String {
    format!("{path}.lora_B.weight")
}

/// The output of the linear node at `path` before its adapter's term is added.
pub fn base_name(path: &str) -> String {
    format!("{path}.base")
}

/// The initializers that injection shares among all blocks: `s`, and the probability of dropping an element.
pub const SCALE: &str = "reslora.scale";
pub const DROPOUT_RATIO: &str = "reslora.dropout_ratio";
/// Shapes that make a factor a kernel of one place, `[0, 0, 1]` and `[0, 0, 1, 1]` (0: as it is), where convolutions of one
/// or two axes are adapted.
pub const KERNEL_SHAPES: [&str; 2] = ["reslora.kernel_shape_1d", "reslora.kernel_shape_2d"];
