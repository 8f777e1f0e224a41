//! What to inject.

use super::head::Head;
use super::pool::Pooling;
use crate::adapter::Adapter;
use crate::adapters::{self, Config, Init, Loftq, Residual, Structure, Target};
use crate::onnx::Role;
use ndarray::Array2;
use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;

/// Which linear nodes to adapt.
#[derive(Clone, Debug)]
pub enum Selector {
    /// Searched in module paths.
    Path(Regex),
    /// By what the node does.
    Role(Role),
}

/// Which biases are trained besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Biases {
    /// None.
    #[default]
    None,
    /// Those of the targets' linear nodes.
    Targets,
    /// Those of every linear node, convolution and normalization layer.
    All,
}

/// Every choice with its name.
pub(crate) const BIASES: [(Biases, &str); 3] =
    [(Biases::None, "none"), (Biases::Targets, "targets"), (Biases::All, "all")];

/// What to inject.
#[derive(Clone, Debug)]
pub struct Options {
    /// Empty: those of the adapter; without one, the attention query and value projections, or every linear node if there are none.
    pub targets: Vec<Selector>,
    /// Searched in module paths: linear nodes to leave out.
    pub exclude: Vec<Regex>,
    /// The adapter.
    pub structure: Structure,
    /// The residual path to put on the structure, where its name does not say one.
    pub residual: Residual,
    /// How many earlier blocks a block-shortcut or middle-shortcut reads; -1 for all.
    pub pre_num: i64,
    /// The rank of the adapters, at least 1.
    pub rank: usize,
    /// The term is scaled by `alpha / rank`.
    pub alpha: f64,
    /// The probability of dropping an element of the adapter's input, in training: from 0 to below 1.
    pub dropout: f64,
    /// Scale by `alpha / √rank` instead (arXiv 2312.03732).
    pub rslora: bool,
    /// Ranks and alphas of targets whose path a pattern is found in; the first that is counts.
    pub rank_pattern: Vec<(Regex, usize)>,
    /// Alphas of targets whose path a pattern is found in; the first that is counts.
    pub alpha_pattern: Vec<(Regex, f64)>,
    /// Whether the first factor A keeps its start (LoRA-FA, arXiv 2308.03303).
    pub freeze_a: bool,
    /// How the factors A and B start.
    pub init: Init,
    /// Which biases are trained besides.
    pub bias: Biases,
    /// Settings of the structure's own, by name.
    pub settings: BTreeMap<String, Value>,
    /// Searched in initializer names and module paths. Empty: what the adapter trains whole.
    pub also_train: Vec<Regex>,
    /// A classifier to put in the place of the model's.
    pub head: Option<Head>,
    /// How hidden states become a sentence embedding, as a new output.
    pub pool: Option<Pooling>,
    /// Initializers to train fully besides, by name.
    pub whole: Vec<String>,
    /// What random starts are drawn from.
    pub seed: u64,
    /// Tokens of the text that a setting gives.
    pub tokens: Vec<usize>,
    /// For [`Init::Eva`]: the principal directions of the inputs of each target, `[k, in]`, the largest first; by module path.
    pub directions: BTreeMap<String, Array2<f64>>,
    /// For [`Init::Loftq`]: the weights of targets that the file holds quantised from before that, `[out, in]`; by module path.
    pub originals: BTreeMap<String, Array2<f32>>,
    /// For [`Init::Loftq`]: how weights that the file holds as floats are quantised.
    pub loftq: Loftq,
    /// Start from these factors rather than fresh ones. They must have been made as the other options say.
    pub adapter: Option<Adapter>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            targets: vec![],
            exclude: vec![],
            structure: adapters::standard(),
            residual: Residual::None,
            pre_num: 2,
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            rslora: false,
            rank_pattern: vec![],
            alpha_pattern: vec![],
            freeze_a: false,
            init: Init::Default,
            bias: Biases::None,
            settings: BTreeMap::new(),
            also_train: vec![],
            head: None,
            pool: None,
            whole: vec![],
            seed: 0,
            tokens: vec![],
            directions: BTreeMap::new(),
            originals: BTreeMap::new(),
            loftq: Loftq::default(),
            adapter: None,
        }
    }
}

impl Options {
    /// The configuration of a model with these targets.
    pub(super) fn config(&self, targets: Vec<Target>) -> Config {
        Config {
            version: 1,
            structure: self.structure,
            residual: self.residual,
            pre_num: self.pre_num,
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            rslora: self.rslora,
            seed: self.seed,
            settings: self.settings.clone(),
            freeze_a: self.freeze_a,
            init: self.init,
            targets,
            also_train: vec![],
        }
    }
}
