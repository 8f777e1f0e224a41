//! Whether trained factors fit a model's configuration: factors are used only as they were made.
//!
//! [`fit`] gives an adapter's tensors the model's own names. It refuses an adapter that was made with another structure, scale,
//! rank, chain or list of targets, and one with a tensor too many or too few.

use super::{Config, Init, Residual, Structure, Target, Tensors, names};
use crate::onnx::{self, Linear, Model};
use ndarray::ArrayD;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What an adapter says of how it was made; `None` where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Made {
    /// There in files of our own, which say everything.
    pub version: Option<u32>,
    pub structure: Option<Structure>,
    pub residual: Option<Residual>,
    pub pre_num: Option<i64>,
    pub rank: Option<usize>,
    pub alpha: Option<f64>,
    pub dropout: Option<f64>,
    pub rslora: Option<bool>,
    pub freeze_a: Option<bool>,
    pub init: Option<Init>,
    pub seed: Option<u64>,
    pub settings: Option<BTreeMap<String, Value>>,
    pub targets: Option<Vec<Target>>,
    pub also_train: Option<Vec<String>>,
    /// PEFT's patterns: regular expressions that end a path, of which the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    pub alpha_pattern: Vec<(String, f64)>,
    /// Weights are as PyTorch keeps them: those of linear layers are `[out, in]`.
    pub torch: bool,
}

impl Made {
    /// From the configuration in an adapter's file; the rank is seen from the factors where that does not say it.
    pub fn read(config: Option<&str>, tensors: &Tensors) -> Result<Made, FitError> {
        let mut made: Made = match config {
            Some(text) => serde_json::from_str(text).map_err(|e| FitError::Config(e.to_string()))?,
            None => Made::default(),
        };
        if made.version.is_some() {
            made.residual.get_or_insert_default();
            made.init.get_or_insert_default();
            made.settings.get_or_insert_default();
        }
        let factors = tensors.iter().filter(|(n, t)| n.ends_with(".lora_A.weight") && t.ndim() != 3);
        let ranks: BTreeSet<usize> = factors.filter_map(|(_, t)| t.shape().first().copied()).collect();
        // Several ranks are those of patterns.
        made.rank = made.rank.or_else(|| ranks.first().copied().filter(|_| ranks.len() == 1));
        Ok(made)
    }
}

/// A rank and an alpha that a target has of its own; `None` where it has those of all.
type Own = (Option<usize>, Option<f64>);

impl Made {
    /// What the adapter says of the targets at its own paths.
    fn own<'a>(&self, paths: impl IntoIterator<Item = &'a str>) -> Result<BTreeMap<String, Own>, FitError> {
        if let Some(targets) = &self.targets {
            return Ok(targets.iter().map(|t| (t.path.clone(), (t.rank, t.alpha))).collect());
        }
        let (ranks, alphas) = (ending(&self.rank_pattern)?, ending(&self.alpha_pattern)?);
        let own = |path: &str| {
            let rank = first(&ranks, path).filter(|r| self.rank != Some(*r));
            (path.to_string(), (rank, first(&alphas, path).filter(|a| self.alpha != Some(*a))))
        };
        Ok(paths.into_iter().map(own).collect())
    }
}

/// PEFT's patterns as expressions that are searched in a whole path.
fn ending<T: Copy>(rules: &[(String, T)]) -> Result<Vec<(Regex, T)>, FitError> {
    let compiled = rules.iter().map(|(rule, value)| {
        let re = Regex::new(&format!(r"^(?:.*\.)?(?:{rule})$"));
        re.map(|re| (re, *value)).map_err(|e| FitError::Config(format!("'{rule}' is no regular expression: {e}")))
    });
    compiled.collect()
}

/// The number of the first expression that is found in a path.
fn first<T: Copy>(rules: &[(Regex, T)], path: &str) -> Option<T> {
    rules.iter().find(|(re, _)| re.is_match(path)).map(|(_, value)| *value)
}

/// One setting that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub what: String,
    pub adapter: String,
    pub model: String,
    /// The flag of `inject` that gives the model what the adapter has.
    pub flag: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} in the adapter, {} in the model", self.what, self.adapter, self.model)
    }
}

/// Why an adapter does not fit.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FitError {
    #[error("the configuration in the adapter's file cannot be read: {0}")]
    Config(String),
    #[error(
        "the adapter holds no factor: none of its tensors is called {{module path}}.{suffix}{}\nhint: give a file of {structure} tensors, \
         or the run directory that train wrote", list(.nearest)
    )]
    Empty { structure: Structure, suffix: &'static str, nearest: Vec<String> },
    #[error("{0}\nhint: leave the target out with --exclude, or take another setting")]
    Target(String),
    #[error("the adapter was made with another configuration:\n  {}\nhint: {}", lines(.0), flags(.0))]
    Configuration(Vec<Difference>),
    #[error("the adapter's tensor '{name}' belongs to no target of the model{}\nhint: {hint}", list(.nearest))]
    Stray { name: String, nearest: Vec<String>, hint: String },
    #[error(
        "the adapter holds no '{name}'{}\nhint: inject the base again with --adapter FILE, which takes the adapter's own targets",
        list(.nearest)
    )]
    Missing { name: String, nearest: Vec<String> },
    #[error("the adapter's '{name}' is {have:?}, not {want:?}")]
    Shape { name: String, have: Vec<usize>, want: Vec<usize> },
    #[error(
        "the adapter's '{name}' could belong to {}\nhint: rename the tensors in the file after the model's module paths, \
         which `reslora-compile inspect MODEL` lists",
        candidates.join(" or to ")
    )]
    Ambiguous { name: String, candidates: Vec<String> },
    #[error("the adapter's '{first}' and '{second}' both belong to '{target}'")]
    Twice { first: String, second: String, target: String },
}

fn lines(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

fn flags(differences: &[Difference]) -> String {
    let flags: Vec<&str> = differences.iter().filter_map(|d| d.flag.as_deref()).collect();
    let whole = "with --adapter FILE, which takes everything from the adapter";
    match flags.is_empty() {
        true => format!("inject the base again {whole}"),
        false => format!("inject the base again with {}, or {whole}", flags.join(" ")),
    }
}

/// The module paths of an adapter's tensors.
fn paths(structure: Structure, tensors: &Tensors) -> Result<BTreeSet<&str>, FitError> {
    let paths: BTreeSet<&str> = tensors.keys().filter_map(|n| names::split(n, structure)).map(|f| f.0).collect();
    // Tensors that all targets share have no path.
    let shared = tensors.keys().any(|n| structure.suffixes.contains(&n.as_str()));
    match paths.is_empty() && !shared {
        true => {
            let suffix = structure.suffixes.first().copied().unwrap_or("*");
            Err(FitError::Empty { structure, suffix, nearest: tensors.keys().take(3).cloned().collect() })
        }
        false => Ok(paths),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; the nearest are {}", names.join(", ")) }
}

/// An adapter's tensors under the model's names, and what a user should know.
#[derive(Clone, Debug)]
pub struct Fitted {
    pub tensors: Tensors,
    pub notes: Vec<String>,
}

/// Checks an adapter, whose file says `made` of itself, against the configuration of a model. `model` is the injected model or
/// its base.
pub fn fit(config: &Config, model: &Model, made: Option<&str>, tensors: &Tensors) -> Result<Fitted, FitError> {
    let (bare, made) = (made.is_none(), Made::read(made, tensors)?);
    let mut notes = Vec::new();
    let structure = config.structure;
    let paths = paths(structure, tensors)?;
    let wanted = config.tensors().map_err(FitError::Target)?;
    let shapes: BTreeMap<&str, &[usize]> = wanted.iter().map(|(n, _, s)| (n.as_str(), &s.shape[..])).collect();
    let shared = |n: &str| wanted.iter().any(|(name, target, _)| name == n && target.is_none());
    let known = |n: &String| match names::split(n, structure) {
        Some((path, _)) => config.target(path).is_some(),
        None => shared(n) || config.also_train.contains(n),
    };
    let strange = made.torch || !tensors.keys().all(known);
    let linear: Vec<Linear> = if strange { names::layers(model) } else { vec![] };
    let targets: Vec<&str> = config.targets.iter().map(|t| t.path.as_str()).collect();
    let all: Vec<&str> = linear.iter().map(|l| l.path.as_str()).chain(targets.iter().copied()).collect();
    let renamed = names::resolve(&paths, &all, &targets)?;
    notes.extend(renamed.note());

    check(config, &made, &renamed.paths)?;
    if bare || made.alpha.is_none() {
        let structure =
            if made.structure.is_none() { format!("structure {} and ", config.structure) } else { String::new() };
        let alpha = config.alpha;
        notes.push(format!(
            "the adapter does not say how it was made: {structure}alpha {alpha} as the model has it is taken for its own"
        ));
    }
    let mut out = Tensors::new();
    let mut origin: BTreeMap<String, &str> = BTreeMap::new();
    for (name, t) in tensors {
        let (to, t) = match names::split(name, structure) {
            _ if shared(name) => (name.clone(), shaped(name, t, shapes[name.as_str()])?),
            Some((path, suffix)) => {
                let target = renamed.paths.get(path).and_then(|p| config.target(p));
                let to = target.map(|t| t.tensor(suffix)).filter(|n| shapes.contains_key(n.as_str()));
                let to = to.ok_or_else(|| stray(name, path, config))?;
                let t = shaped(name, t, shapes[to.as_str()])?;
                (to, t)
            }
            None => also_trained(&renamed.renamed(name), t, config, model, &linear, made.torch)?,
        };
        if let Some(first) = origin.insert(to.clone(), name) {
            return Err(FitError::Twice { first: first.into(), second: name.clone(), target: to });
        }
        out.insert(to, t);
    }
    let mut wanted = wanted.iter().map(|(name, _, _)| name).chain(&config.also_train).cloned();
    if let Some(name) = wanted.find(|n| !out.contains_key(n)) {
        let nearest = onnx::nearest(&name, tensors.keys().map(String::as_str), 3);
        return Err(FitError::Missing { nearest: nearest.into_iter().map(String::from).collect(), name });
    }
    Ok(Fitted { tensors: out, notes })
}

/// Everything in which an adapter was made otherwise than the model is configured.
fn check(config: &Config, made: &Made, renamed: &BTreeMap<String, String>) -> Result<(), FitError> {
    let mut out: Vec<Difference> = Vec::new();
    let mut differ = |what: &str, adapter: String, model: String, flag: Option<String>| {
        out.push(Difference { what: what.into(), adapter, model, flag });
    };
    if let Some(s) = made.structure.filter(|s| *s != config.structure) {
        differ("structure", s.to_string(), config.structure.to_string(), Some(format!("--structure {s}")));
    }
    let alike = made.structure.is_none_or(|s| s == config.structure);
    if let Some(r) = made.residual.filter(|r| alike && *r != config.residual) {
        differ("residual", r.to_string(), config.residual.to_string(), Some(format!("--residual {r}")));
    }
    if let Some(i) = made.init.filter(|i| alike && *i != config.init) {
        differ("init", i.to_string(), config.init.to_string(), Some(format!("--init {i}")));
    }
    for setting in config.structure.settings.iter().filter(|_| alike && made.settings.is_some()) {
        let [theirs, ours] =
            [made.settings.as_ref(), Some(&config.settings)].map(|s| s.and_then(|s| s.get(setting.name)));
        if theirs != ours {
            let [a, b] = [theirs, ours].map(|v| v.map_or("not given".to_string(), Value::to_string));
            let flag = theirs.map(|v| format!("--{} {}", setting.name, v.as_str().map_or(v.to_string(), String::from)));
            differ(setting.name, a, b, flag);
        }
    }
    if let Some(r) = made.rank.filter(|r| config.structure.rank && *r != config.rank) {
        differ("rank", r.to_string(), config.rank.to_string(), Some(format!("--rank {r}")));
    }
    if let Some(a) = made.alpha.filter(|a| config.structure.alpha && *a != config.alpha) {
        differ("alpha", a.to_string(), config.alpha.to_string(), Some(format!("--alpha {a}")));
    }
    if let Some(r) = made.rslora.filter(|r| *r != config.rslora) {
        let flag = if r { "--rslora" } else { "no --rslora" };
        differ("rslora", r.to_string(), config.rslora.to_string(), Some(flag.into()));
    }
    if let Some(n) = made.pre_num.filter(|n| alike && config.residual().reads_pre_num() && *n != config.pre_num) {
        differ("pre-num", n.to_string(), config.pre_num.to_string(), Some(format!("--pre-num {n}")));
    }
    let own = |path: &String| renamed.get(path).unwrap_or(path).clone();
    if let Some(targets) = &made.targets {
        let theirs: BTreeMap<String, Option<String>> =
            targets.iter().map(|t| (own(&t.path), t.prev.as_ref().map(own))).collect();
        let ours: BTreeSet<&String> = config.targets.iter().map(|t| &t.path).collect();
        for path in theirs.keys().filter(|p| !ours.contains(p)) {
            differ(&format!("target {path}"), "there".into(), "not".into(), None);
        }
        for t in &config.targets {
            let none = || "the first of its chain".to_string();
            match theirs.get(&t.path) {
                None => differ(&format!("target {}", t.path), "not".into(), "there".into(), None),
                Some(prev) if *prev != t.prev && config.residual() != Residual::None => {
                    let [a, b] = [prev, &t.prev].map(|p| p.as_ref().map_or_else(none, |p| format!("after {p}")));
                    differ(&format!("{} in its chain", t.path), a, b, None);
                }
                Some(_) => {}
            }
        }
    }
    let theirs = made.own(renamed.keys().map(String::as_str))?;
    // Ranks that nothing is said of are seen from shapes.
    let ranks = alike && config.structure.rank && (made.targets.is_some() || !made.rank_pattern.is_empty());
    let alphas = alike && config.structure.alpha && made.alpha == Some(config.alpha);
    for (path, (rank, alpha)) in &theirs {
        let Some(t) = config.target(&own(path)) else { continue };
        let exactly = format!("'^{}$", regex::escape(&t.path));
        if ranks && made.rank == Some(config.rank) && *rank != t.rank {
            let r = rank.unwrap_or(config.rank);
            let flag = format!("--rank-pattern {exactly}={r}'");
            differ(&format!("rank of {}", t.path), r.to_string(), config.rank_of(t).to_string(), Some(flag));
        }
        if alphas && *alpha != t.alpha {
            let [a, b] = [*alpha, t.alpha].map(|a| a.unwrap_or(config.alpha));
            let flag = format!("--alpha-pattern {exactly}={a}'");
            differ(&format!("alpha of {}", t.path), a.to_string(), b.to_string(), Some(flag));
        }
    }
    if let Some(theirs) = &made.also_train {
        let (theirs, ours): (BTreeSet<&String>, BTreeSet<&String>) =
            (theirs.iter().collect(), config.also_train.iter().collect());
        for name in theirs.symmetric_difference(&ours) {
            let [a, b] = [&theirs, &ours].map(|s| if s.contains(name) { "trained" } else { "frozen" }.to_string());
            let flag = theirs.contains(name).then(|| format!("--also-train '^{name}$'"));
            differ(&format!("tensor {name}"), a, b, flag);
        }
    }
    if out.is_empty() { Ok(()) } else { Err(FitError::Configuration(out)) }
}

fn stray(name: &str, path: &str, config: &Config) -> FitError {
    let nearest = onnx::nearest(path, config.targets.iter().map(|t| t.path.as_str()), 3);
    FitError::Stray {
        name: name.into(),
        nearest: nearest.into_iter().map(String::from).collect(),
        hint: "inject the base again with --adapter FILE, which takes the adapter's own targets".into(),
    }
}

/// A factor as two axes: the kernel of a pointwise convolution has axes of one element behind them.
fn shaped(name: &str, t: &ArrayD<f32>, want: &[usize]) -> Result<ArrayD<f32>, FitError> {
    let plain = t.shape().iter().skip(want.len()).all(|&d| d == 1);
    if !plain || t.shape().get(..want.len()) != Some(want) {
        return Err(FitError::Shape { name: name.into(), have: t.shape().to_vec(), want: want.to_vec() });
    }
    Ok(t.clone().into_shape_with_order(want.to_vec()).expect("as many elements"))
}

/// The one of some initializers that a tensor is for: of the same name, else called so from another root, or read as the weight of a
/// module that is called so.
fn initializer<'a>(
    name: &str,
    among: impl Iterator<Item = &'a str>,
    linear: &[Linear],
    hint: &str,
) -> Result<&'a str, FitError> {
    let among: Vec<&str> = among.collect();
    if let Some(same) = among.iter().find(|n| **n == name) {
        return Ok(same);
    }
    let module = |n: &str| linear.iter().find(|l| l.weight == n).map(|l| format!("{}.weight", l.path));
    let called = |n: &&str| names::tails(name, n) || module(n).is_some_and(|m| names::tails(name, &m));
    let found: Vec<&str> = among.iter().copied().filter(called).collect();
    match found[..] {
        [one] => Ok(one),
        [] => {
            let nearest = onnx::nearest(name, among.iter().copied(), 3).into_iter().map(String::from).collect();
            Err(FitError::Stray { name: name.into(), nearest, hint: hint.into() })
        }
        _ => Err(FitError::Ambiguous { name: name.into(), candidates: found.into_iter().map(String::from).collect() }),
    }
}

/// A tensor that is trained itself, under its initializer's name and in its layout.
fn also_trained(
    name: &str,
    t: &ArrayD<f32>,
    config: &Config,
    model: &Model,
    linear: &[Linear],
    torch: bool,
) -> Result<(String, ArrayD<f32>), FitError> {
    let hint = "a tensor that the adapter trains whole (modules_to_save) needs --also-train when the base is injected";
    let to = initializer(name, config.also_train.iter().map(String::as_str), linear, hint)?.to_string();
    let read_by = linear.iter().find(|l| l.weight == to);
    let (_, want) =
        model.initializer_type(&to).ok_or_else(|| FitError::Missing { name: to.clone(), nearest: vec![] })?;
    let turned = torch && t.ndim() == 2 && read_by.is_some_and(|l| !l.transposed);
    let t = if turned { t.t().as_standard_layout().into_owned() } else { t.clone() };
    if t.shape() != want {
        return Err(FitError::Shape { name: name.into(), have: t.shape().to_vec(), want });
    }
    Ok((to, t))
}

/// What an adapter was made for, under a model's names.
pub struct OwnTargets {
    /// Module paths of its targets.
    pub paths: Vec<String>,
    /// What it trains whole.
    pub whole: Vec<String>,
    /// Ranks and alphas that targets have of their own.
    numbers: BTreeMap<String, Own>,
}

impl OwnTargets {
    /// The rank and the alpha that the target at a path has of its own.
    pub fn numbers(&self, path: &str) -> (Option<usize>, Option<f64>) {
        self.numbers.get(path).copied().unwrap_or_default()
    }
}

/// The targets that an adapter was made for, of those that a model has; and the names of what it trains whole.
pub fn own_targets(
    model: &Model,
    structure: Structure,
    made: &Made,
    tensors: &Tensors,
    all: &[String],
) -> Result<OwnTargets, FitError> {
    let linear = names::layers(model);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let paths = paths(structure, tensors)?;
    let renamed = names::resolve(&paths, &all, &all)?;
    if let Some(path) = paths.iter().find(|p| !renamed.paths.contains_key(**p)) {
        let nearest = onnx::nearest(path, all.iter().copied(), 3).into_iter().map(String::from).collect();
        let hint = "the model has no target of that name: was the adapter made for this model?".into();
        let of_path = tensors.keys().find(|n| names::split(n, structure).is_some_and(|f| f.0 == *path));
        let name = of_path.map_or(path.to_string(), String::from);
        return Err(FitError::Stray { name, nearest, hint });
    }
    let whole = match &made.also_train {
        Some(names) => names.clone(),
        None => {
            let hint = "the model has no weight of that name";
            let own = |n: &&String| names::split(n, structure).is_some() || structure.suffixes.contains(&n.as_str());
            let others = tensors.keys().filter(|n| !own(n)).map(|n| renamed.renamed(n));
            let found = others.map(|n| Ok(initializer(&n, model.initializers(), &linear, hint)?.to_string()));
            found.collect::<Result<_, FitError>>()?
        }
    };
    let under = |path: String| renamed.paths.get(&path).cloned().unwrap_or(path);
    let numbers = made.own(paths)?.into_iter().map(|(path, own)| (under(path), own)).collect();
    Ok(OwnTargets { paths: renamed.paths.values().cloned().collect(), whole, numbers })
}
