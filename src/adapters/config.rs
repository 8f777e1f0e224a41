//! The configuration that an injected model carries in its metadata, and an adapter in its own.

use super::{ElsewhereFolding, Folding, Form, Init, Merge, Residual, SettingKind, Spec, Structure};
use crate::onnx::Role;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The key under which an injected model keeps its [`Config`], as JSON.
pub const CONFIG_KEY: &str = "reslora.config";
/// The key for the digest of the model that was injected into.
pub const BASE_KEY: &str = "reslora.base";

/// How a model was injected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The version of this form: 1.
    pub version: u32,
    /// The adapter.
    pub structure: Structure,
    /// The residual path put on the structure, where its name does not say one.
    #[serde(default, skip_serializing_if = "is_none")]
    pub residual: Residual,
    /// How many earlier blocks a block-shortcut or middle-shortcut reads; -1 for all.
    pub pre_num: i64,
    /// The rank of targets without one of their own.
    pub rank: usize,
    /// The alpha of targets without one of their own.
    pub alpha: f64,
    /// The probability of dropping an element of the adapter's input, in training.
    pub dropout: f64,
    /// Scale by `alpha / √rank` rather than `alpha / rank`.
    pub rslora: bool,
    /// What random starts are drawn from.
    pub seed: u64,
    /// Settings of the structure's own, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, Value>,
    /// Whether the first factor A keeps its start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freeze_a: bool,
    /// How the factors A and B start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub init: Init,
    /// In execution order.
    pub targets: Vec<Target>,
    /// Initializers that are trained themselves.
    pub also_train: Vec<String>,
}

fn is_default(init: &Init) -> bool {
    *init == Init::Default
}

fn is_none(residual: &Residual) -> bool {
    *residual == Residual::None
}

/// A linear node (or several that share weight and path) with an adapter, or another place that an adapter stands at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Module path.
    pub path: String,
    /// The initializer of the weight.
    pub weight: String,
    /// Elements of an input row.
    pub in_features: usize,
    /// Elements of an output row.
    pub out_features: usize,
    /// The block before this one in its chain.
    pub prev: Option<String>,
    /// What the node does, where the structure depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Its own rank, where `--rank-pattern` gives it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Its own alpha, where `--alpha-pattern` gives it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Whether the file holds the weight quantised, where the start depends on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quantised: bool,
    /// Names that an adapter which does not stand at a linear node has found in the base, by what they are to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<String, String>,
}

/// A tensor of an adapter: its name, the target that it belongs to (`None` for what targets share), and what it is.
pub type Tensor<'a> = (String, Option<&'a Target>, Spec);

impl Config {
    /// `s` of a target.
    pub fn scale_of(&self, target: &Target) -> f64 {
        if !self.structure.alpha {
            return 1.0;
        }
        let rank = self.rank_of(target) as f64;
        target.alpha.unwrap_or(self.alpha) / if self.rslora { rank.sqrt() } else { rank }
    }

    /// The rank of a target's factors.
    pub fn rank_of(&self, target: &Target) -> usize {
        target.rank.unwrap_or(self.rank)
    }

    /// The target of a module path.
    pub fn target(&self, path: &str) -> Option<&Target> {
        self.targets.iter().find(|t| t.path == path)
    }

    /// The residual path in force.
    pub fn residual(&self) -> Residual {
        self.structure.residual.unwrap_or(self.residual)
    }

    /// The blocks before `target` in its chain that its residual path reads, nearest first.
    pub fn ancestors(&self, target: &Target) -> Vec<&Target> {
        let limit = self.residual().limit(self.pre_num);
        let mut out = Vec::new();
        let mut at = target;
        while out.len() < limit {
            let Some(prev) = at.prev.as_ref().and_then(|p| self.target(p)) else { break };
            out.push(prev);
            at = prev;
        }
        out
    }

    /// How it merges.
    pub fn merge(&self) -> Merge<'static> {
        match &self.structure.form {
            Form::Term(_) if self.residual().is_exact() => Merge::Exact,
            Form::Term(_) => Merge::Approximate,
            Form::Whole(whole) => match (whole.folding)(self) {
                Folding::Exact(_) => Merge::Exact,
                Folding::Chosen(input, _) => Merge::Chosen(input),
                Folding::KeepsBranch(why) => Merge::KeepsBranch(why),
            },
            Form::Elsewhere(elsewhere) => match elsewhere.folding {
                ElsewhereFolding::Rewrites(_) => Merge::Exact,
                ElsewhereFolding::KeepsBranch(why) => Merge::KeepsBranch(why),
            },
        }
    }

    /// Whether a term is added to the product and nothing more, so that plain LoRA has the merged form.
    pub fn adds_alone(&self) -> bool {
        match &self.structure.form {
            Form::Term(term) => term.join.is_none(),
            Form::Whole(_) | Form::Elsewhere(_) => false,
        }
    }

    /// The tensors at a target, or why the target does not fit.
    pub fn specs(&self, target: &Target) -> Result<Vec<Spec>, String> {
        let mut specs = (self.structure.tensors)(self, target)?;
        let first = |s: &&mut Spec| self.freeze_a && s.suffix == "lora_A.weight";
        specs.iter_mut().filter(first).for_each(|s| s.trained = false);
        Ok(specs)
    }

    /// Every tensor of the adapter: its name and what it is. Tensors that targets share come last.
    ///
    /// # Errors
    /// The target that does not fit, and why.
    pub fn tensors(&self) -> Result<Vec<Tensor<'_>>, String> {
        let mut out = Vec::new();
        for target in &self.targets {
            let specs = self.specs(target).map_err(|why| format!("target '{}': {why}", target.path))?;
            out.extend(specs.into_iter().map(|s| (target.tensor(&s.suffix), Some(target), s)));
        }
        out.extend((self.structure.shared)(self).into_iter().map(|s| (s.suffix.clone(), None, s)));
        Ok(out)
    }

    /// Names of the adapter's tensors, of a configuration that was checked.
    pub fn tensor_names(&self) -> Vec<String> {
        self.tensors().unwrap_or_default().into_iter().map(|(name, _, _)| name).collect()
    }

    /// Names of those that are trained.
    pub fn trained_names(&self) -> Vec<String> {
        self.tensors().unwrap_or_default().into_iter().filter(|t| t.2.trained).map(|(name, _, _)| name).collect()
    }

    fn setting(&self, name: &str) -> Option<&Value> {
        self.settings.get(name)
    }

    fn kind(&self, name: &str) -> SettingKind {
        let setting = self.structure.settings.iter().find(|s| s.name == name);
        setting.unwrap_or_else(|| panic!("'{name}' is no setting of {}", self.structure)).kind
    }

    /// A whole number among the settings; `None` where it is not given and has no default.
    pub fn count(&self, name: &str) -> Option<i64> {
        let default = match self.kind(name) {
            SettingKind::Count { default, .. } => default,
            SettingKind::Number { .. } | SettingKind::Text { .. } | SettingKind::Tokens => None,
        };
        self.setting(name).and_then(Value::as_i64).or(default)
    }

    /// A number among the settings.
    ///
    /// # Panics
    /// If the structure has no setting of this name.
    pub fn number(&self, name: &str) -> f64 {
        let default = match self.kind(name) {
            SettingKind::Number { default } => default,
            SettingKind::Count { .. } | SettingKind::Text { .. } | SettingKind::Tokens => f64::NAN,
        };
        self.setting(name).and_then(Value::as_f64).unwrap_or(default)
    }

    /// A text among the settings.
    ///
    /// # Panics
    /// If the structure has no setting of this name.
    pub fn text(&self, name: &str) -> &str {
        let default = match self.kind(name) {
            SettingKind::Text { default } => default,
            SettingKind::Count { .. } | SettingKind::Number { .. } | SettingKind::Tokens => "",
        };
        self.setting(name).and_then(Value::as_str).unwrap_or(default)
    }

    /// A configuration of one target, for tests of the table.
    #[cfg(test)]
    pub fn sample(structure: Structure) -> Config {
        let target = Target {
            path: "m".into(),
            weight: "m.weight".into(),
            in_features: 8,
            out_features: 8,
            names: BTreeMap::from([("bias".to_string(), "m.bias".to_string())]),
            ..Target::default()
        };
        let fitting = [("tasks", 2), ("block-size", 4)].map(|(name, n)| (name.to_string(), Value::from(n)));
        let settings = fitting.into_iter().filter(|(n, _)| structure.settings.iter().any(|s| s.name == n)).collect();
        Config {
            version: 1,
            structure,
            residual: Residual::None,
            pre_num: -1,
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            rslora: false,
            seed: 0,
            settings,
            freeze_a: false,
            init: Init::Default,
            targets: vec![target],
            also_train: vec![],
        }
    }
}

impl Target {
    /// The name of one of its tensors.
    pub fn tensor(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.path)
    }
}

/// The value at the linear node at `path` that its adapter reads: what stood in the adapter's place before.
pub fn base_name(path: &str) -> String {
    format!("{path}.base")
}
