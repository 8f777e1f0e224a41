//! Puts adapters into a model: chooses linear nodes, links their chains, and adds each structure's nodes.
//!
//! The result is valid ONNX. With B = 0 it computes what the base computes, and [`crate::merge`] takes the nodes out again.

use crate::adapter::Adapter;
use crate::adapters::chain::{self, Break, Link};
use crate::adapters::{
    self, BASE_KEY, CONFIG_KEY, Config, Drawing, Emission, FitError, Made, Merge, Place, Residual, SettingKind, Start,
    Structure, Target,
};
use crate::onnx::{self, ElementType, Linear, Model, Role};
use ndarray::ArrayD;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use regex::Regex;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Which linear nodes to adapt.
#[derive(Clone, Debug)]
pub enum Selector {
    /// Searched in module paths.
    Path(Regex),
    /// By what the node does.
    Role(Role),
}

/// What to inject.
#[derive(Clone, Debug)]
pub struct Options {
    /// Empty: those of the adapter; without one, the attention query and value projections, or every linear node if there are none.
    pub targets: Vec<Selector>,
    pub exclude: Vec<Regex>,
    pub structure: Structure,
    /// The residual path to put on the structure, where its name does not say one.
    pub residual: Residual,
    pub pre_num: i64,
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub rslora: bool,
    /// Ranks and alphas of targets whose path a pattern is found in; the first that is counts.
    pub rank_pattern: Vec<(Regex, usize)>,
    pub alpha_pattern: Vec<(Regex, f64)>,
    /// Whether the first factor A keeps its start (LoRA-FA, arXiv 2308.03303).
    pub freeze_a: bool,
    /// Settings of the structure's own, by name.
    pub settings: BTreeMap<String, Value>,
    /// Searched in initializer names and module paths. Empty: what the adapter trains whole.
    pub also_train: Vec<Regex>,
    pub seed: u64,
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
            settings: BTreeMap::new(),
            also_train: vec![],
            seed: 0,
            adapter: None,
        }
    }
}

/// What was injected.
#[derive(Clone, Debug)]
pub struct Report {
    pub config: Config,
    pub breaks: Vec<Break>,
    /// Trained numbers: in adapters, and in tensors trained themselves.
    pub adapter_parameters: usize,
    pub also_trained_parameters: usize,
    pub notes: Vec<String>,
}

/// Why nothing was injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    #[error("the model already carries adapters\nhint: merge it first, or inject into its base")]
    Injected,
    #[error("the model has no linear node (MatMul, Gemm or MatMulNBits with a constant weight) to adapt")]
    NoLinear,
    #[error(
        "--target '{pattern}' matches none of the model's {count} linear nodes\nhint: {}the nearest are:\n  {}",
        either(pattern, *list), nearest.join("\n  ")
    )]
    NoMatch { pattern: String, count: usize, nearest: Vec<String>, list: bool },
    #[error("every target is excluded by --exclude")]
    AllExcluded,
    #[error(
        "--also-train '{pattern}' matches no float initializer by name or module path\nhint: {}the nearest are:\n  {}",
        either(pattern, *list), nearest.join("\n  ")
    )]
    NoInitializer { pattern: String, nearest: Vec<String>, list: bool },
    #[error("{0}")]
    Option(String),
    #[error("{0}\nhint: leave the target out with --exclude, or take another setting")]
    Target(String),
    #[error(transparent)]
    Adapter(#[from] FitError),
    #[error(
        "the adapter's '{name}' would hold {what} as {element}\nhint: inject into a base of a wider type (float32)"
    )]
    NotFinite { name: String, element: ElementType, what: &'static str },
    #[error(
        "operator set {opset} is too old for {what}\nhint: convert the model with onnx.version_converter to opset 13 or later"
    )]
    Opset { opset: i64, what: String },
}

/// What to write for several patterns, where a comma stood between them.
fn either(pattern: &str, list: bool) -> String {
    if list { format!("for either of several, write '{}'; ", pattern.replace(',', "|")) } else { String::new() }
}

/// Whether a pattern that matches nothing is a list: with `|` for its commas it would match.
fn is_list<'a>(re: &Regex, mut names: impl Iterator<Item = &'a str>) -> bool {
    let pattern = re.as_str();
    let wider = pattern.contains(',').then(|| Regex::new(&pattern.replace(',', "|")).ok()).flatten();
    wider.is_some_and(|re| names.any(|n| re.is_match(n)))
}

/// Injects adapters into `base`. `shape_of` gives the shape of a value at a sample batch shape; chains of structures that
/// read other blocks' inputs need it.
pub fn inject(
    base: &Model,
    options: &Options,
    shape_of: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Result<(Model, Report), InjectError> {
    if base.metadata(CONFIG_KEY).is_some() {
        return Err(InjectError::Injected);
    }
    check(base, options)?;
    let linear = onnx::linear_nodes(base);
    let own = match &options.adapter {
        Some(a) => {
            let made = Made::read(a.config.as_deref(), &a.tensors)?;
            Some((adapters::own_targets(base, options.structure, &made, &a.tensors)?, made))
        }
        None => None,
    };
    let (chosen, mut notes) = choose(base, &linear, options, own.as_ref().map(|o| &o.0.0[..]))?;
    if let Some(given) = options.adapter.as_ref().and_then(|a| a.base.as_ref()).filter(|b| **b != base.digest()) {
        notes
            .push(format!("the adapter was trained on another base (digest {given}): used as the starting point here"));
    }
    if let Some(l) = chosen.iter().find(|l| l.strides.is_some() && !options.structure.images) {
        let why = format!("target '{}': it is a convolution, and {} reads vectors alone", l.path, options.structure);
        return Err(InjectError::Target(why));
    }
    let mut sites: Vec<Vec<&Linear>> = Vec::new();
    for l in chosen {
        match sites.iter_mut().find(|s| s[0].path == l.path) {
            Some(site) => site.push(l),
            None => sites.push(vec![l]),
        }
    }
    let roles = if options.structure.reads_roles { onnx::roles(base, &linear) } else { vec![] };
    let mut targets: Vec<Target> = sites
        .iter()
        .map(|s| Target {
            path: s[0].path.clone(),
            weight: s[0].weight.clone(),
            in_features: s[0].in_features,
            out_features: s[0].out_features,
            prev: None,
            role: roles.iter().zip(&linear).find(|(_, l)| l.node == s[0].node).and_then(|(r, _)| *r),
            rank: of_pattern(&options.rank_pattern, &s[0].path).filter(|r| *r != options.rank),
            alpha: of_pattern(&options.alpha_pattern, &s[0].path).filter(|a| *a != options.alpha),
        })
        .collect();
    for (flag, patterns) in [
        ("--rank-pattern", options.rank_pattern.iter().map(|p| &p.0).collect::<Vec<_>>()),
        ("--alpha-pattern", options.alpha_pattern.iter().map(|p| &p.0).collect()),
    ] {
        if let Some(re) = patterns.into_iter().find(|re| !targets.iter().any(|t| re.is_match(&t.path))) {
            return Err(InjectError::Option(format!("{flag} '{}' matches no target", re.as_str())));
        }
    }
    let low_rank = |t: &&Target| options.rank >= t.in_features.min(t.out_features);
    if let Some(t) = targets.iter().filter(|_| options.structure.rank).find(low_rank) {
        let features = t.in_features.min(t.out_features);
        notes.push(format!("rank {} is not below the {features} features of {}", options.rank, t.path));
    }
    let residual = options.structure.residual.unwrap_or(options.residual);
    let reads = residual.reads_inputs();
    let links: Vec<Link> = sites
        .iter()
        .map(|s| Link {
            leading: reads.then(|| shape_of(&s[0].x)).flatten().map(|d| leading(d, s[0].strides.as_deref())),
            alone: s.len() > 1,
        })
        .collect();
    if reads && links.iter().any(|l| l.leading.is_none()) {
        notes.push("input shapes unknown: chains joined without checking them".into());
    }
    let mut breaks = chain::link(&mut targets, &links);
    if residual == Residual::None {
        // Its blocks read nothing of each other.
        breaks.clear();
    }
    let config = Config {
        version: 1,
        structure: options.structure,
        residual: options.residual,
        pre_num: options.pre_num,
        rank: options.rank,
        alpha: options.alpha,
        dropout: options.dropout,
        rslora: options.rslora,
        seed: options.seed,
        settings: options.settings.clone(),
        freeze_a: options.freeze_a,
        targets,
        also_train: match &own {
            Some(((_, whole), _)) if options.also_train.is_empty() => {
                base.initializers().filter(|n| whole.iter().any(|w| w == n)).map(String::from).collect()
            }
            _ => also_trained(base, &linear, options)?,
        },
    };
    let start = match (&options.adapter, own) {
        (Some(a), Some(((_, whole), made))) => {
            let mut claimed = config.clone();
            if made.also_train.is_none() {
                // A tensor that the adapter does not train may be trained from now on.
                claimed.also_train.retain(|n| whole.contains(n));
            }
            let fitted = adapters::fit(&claimed, base, a.config.as_deref(), &a.tensors)?;
            notes.extend(fitted.notes);
            Some(fitted.tensors)
        }
        _ => None,
    };

    let mut model = base.clone();
    let emission = adapters::emit(base, &config);
    for block in &emission.blocks {
        match block.place {
            Place::Input => {
                model.insert_before(block.node, block.nodes.clone());
                model.node_mut(block.node).rename_input(&block.old, &block.new);
            }
            Place::Product | Place::Output => {
                model.node_mut(block.node).rename_output(&block.old, &block.new);
                model.insert_after(block.node, block.nodes.clone());
            }
        }
    }
    // The first axis of the model's first input is the batch.
    let batch = base.inputs().into_iter().find_map(|i| i.dims?.into_iter().next()).unwrap_or(onnx::Dim::Unknown);
    for input in config.structure.inputs {
        if base.inputs().iter().any(|i| i.name == input.name) {
            let (name, structure) = (input.name, config.structure);
            return Err(InjectError::Option(format!(
                "the model has an input '{name}' already, which {structure} would add"
            )));
        }
        model.add_input(input.name, input.element, &batch);
    }
    let adapter_parameters = add_initializers(&mut model, base, &config, &emission, start.as_ref(), &linear)?;
    model.set_metadata(CONFIG_KEY, Some(serde_json::to_string(&config).expect("a configuration serialises")));
    model.set_metadata(BASE_KEY, Some(base.digest()));
    let count = |name: &String| base.initializer_type(name).map_or(0, |(_, dims)| dims.iter().product());
    if let Merge::KeepsBranch(why) = config.merge() {
        notes.push(format!("{} cannot be folded into weights ({why}): merge keeps it as a branch", config.structure));
    }
    let report = Report {
        adapter_parameters,
        also_trained_parameters: config.also_train.iter().map(count).sum(),
        config,
        breaks,
        notes,
    };
    Ok((model, report))
}

/// The number of the first pattern that is found in a path.
fn of_pattern<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(re, _)| re.is_match(path)).map(|(_, n)| *n)
}

/// The extents of a linear node's rows: all but the channels of its input, and what a convolution keeps of them.
fn leading(mut shape: Vec<usize>, strides: Option<&[i64]>) -> Vec<usize> {
    match strides {
        None => drop(shape.pop()),
        Some(strides) => {
            shape.remove(1);
            shape.extend(strides.iter().map(|&s| s as usize));
        }
    }
    shape
}

fn check(base: &Model, o: &Options) -> Result<(), InjectError> {
    let bad = |why: String| Err(InjectError::Option(why));
    if o.rank == 0 {
        return bad("--rank must be at least 1".into());
    }
    if !(o.alpha.is_finite() && o.alpha > 0.0) {
        return bad(format!("--alpha {} must be a positive number", o.alpha));
    }
    if !(0.0..1.0).contains(&o.dropout) {
        return bad(format!("--dropout {} must be at least 0 and below 1", o.dropout));
    }
    if o.pre_num < -1 {
        return bad(format!("--pre-num {} must be -1 (all earlier blocks) or more", o.pre_num));
    }
    let structure = o.structure;
    if o.residual != Residual::None && !structure.residuals.contains(&o.residual) {
        let paths: Vec<String> = structure.residuals.iter().map(ToString::to_string).collect();
        let takes = if paths.is_empty() { "none".into() } else { paths.join(", ") };
        return bad(format!("--residual {} does not go with {structure}\nhint: it takes {takes}", o.residual));
    }
    if o.dropout > 0.0 && !structure.dropout {
        return bad(format!("--dropout does not go with {structure}, which has no place for it"));
    }
    if !structure.rank && !o.rank_pattern.is_empty() || !structure.alpha && !o.alpha_pattern.is_empty() {
        return bad(format!("--rank-pattern and --alpha-pattern do not go with {structure}, which has no such number"));
    }
    if o.rank_pattern.iter().any(|p| p.1 == 0) {
        return bad("--rank-pattern must give a rank of at least 1".into());
    }
    if let Some((_, a)) = o.alpha_pattern.iter().find(|p| !(p.1.is_finite() && p.1 > 0.0)) {
        return bad(format!("--alpha-pattern {a} must be a positive number"));
    }
    if o.freeze_a && !structure.suffixes.contains(&"lora_A.weight") {
        return bad(format!("--freeze-a does not go with {structure}, which has no factor A"));
    }
    check_settings(o)?;
    let opset = base.opset("");
    if o.dropout > 0.0 && opset < 12 {
        return Err(InjectError::Opset { opset, what: "dropout that is active in training only".into() });
    }
    Ok(())
}

/// Checks the settings of a structure's own.
fn check_settings(o: &Options) -> Result<(), InjectError> {
    let bad = |why: String| Err(InjectError::Option(why));
    for (name, value) in &o.settings {
        let Some(setting) = o.structure.settings.iter().find(|s| s.name == name) else {
            let own: Vec<String> = o.structure.settings.iter().map(|s| format!("--{}", s.name)).collect();
            let own = if own.is_empty() {
                "it has no settings of its own".into()
            } else {
                format!("it takes {}", own.join(", "))
            };
            return bad(format!("--{name} means nothing to {}\nhint: {own}", o.structure));
        };
        match setting.kind {
            SettingKind::Count { least, .. } if value.as_i64().is_none_or(|n| n < least) => {
                return bad(format!("--{name} {value} must be a whole number, at least {least}"));
            }
            SettingKind::Number { .. } if value.as_f64().is_none_or(|x| !x.is_finite()) => {
                return bad(format!("--{name} {value} must be a number"));
            }
            SettingKind::Text { .. } if !value.is_string() => return bad(format!("--{name} {value} must be text")),
            SettingKind::Count { .. } | SettingKind::Number { .. } | SettingKind::Text { .. } => {}
        }
    }
    Ok(())
}

/// The linear nodes to adapt, in execution order.
fn choose<'a>(
    model: &Model,
    linear: &'a [Linear],
    o: &Options,
    own: Option<&[String]>,
) -> Result<(Vec<&'a Linear>, Vec<String>), InjectError> {
    if linear.is_empty() {
        return Err(InjectError::NoLinear);
    }
    let roles = onnx::roles(model, linear);
    let mut notes = Vec::new();
    let mut keep = vec![false; linear.len()];
    for selector in &o.targets {
        let hits: Vec<usize> = (0..linear.len())
            .filter(|&i| match selector {
                Selector::Path(re) => re.is_match(&linear[i].path),
                Selector::Role(role) => roles[i] == Some(*role),
            })
            .collect();
        if hits.is_empty() {
            return Err(no_match(selector, linear, &roles));
        }
        hits.into_iter().for_each(|i| keep[i] = true);
    }
    if let Some(own) = own.filter(|_| o.targets.is_empty()) {
        keep.iter_mut().zip(linear).for_each(|(k, l)| *k = own.contains(&l.path));
    } else if o.targets.is_empty() {
        let wanted = [Role::AttentionQ, Role::AttentionV, Role::AttentionQkv];
        for (k, role) in keep.iter_mut().zip(&roles) {
            *k = role.is_some_and(|r| wanted.contains(&r));
        }
        if !keep.contains(&true) {
            keep.fill(true);
            notes.push("no attention found: targeting every linear node".into());
        }
    }
    for re in o.exclude.iter().filter(|re| !linear.iter().any(|l| re.is_match(&l.path))) {
        let hint = either(re.as_str(), is_list(re, linear.iter().map(|l| l.path.as_str())));
        let hint = hint.strip_suffix("; ").map_or(String::new(), |h| format!(": {h}"));
        notes.push(format!("--exclude '{}' matches no linear node{hint}", re.as_str()));
    }
    for (k, l) in keep.iter_mut().zip(linear) {
        *k &= !o.exclude.iter().any(|re| re.is_match(&l.path));
    }
    let chosen: Vec<&Linear> = linear.iter().zip(&keep).filter(|(_, k)| **k).map(|(l, _)| l).collect();
    if chosen.is_empty() { Err(InjectError::AllExcluded) } else { Ok((chosen, notes)) }
}

fn no_match(selector: &Selector, linear: &[Linear], roles: &[Option<Role>]) -> InjectError {
    let paths = || linear.iter().map(|l| l.path.as_str());
    let list = matches!(selector, Selector::Path(re) if is_list(re, paths()));
    let (pattern, nearest) = match selector {
        Selector::Path(re) => {
            let paths = paths();
            (re.as_str().to_string(), onnx::nearest(re.as_str(), paths, 8).into_iter().map(String::from).collect())
        }
        Selector::Role(role) => {
            let mut found: Vec<String> = roles.iter().flatten().map(|r| format!("role:{r}")).collect();
            found.sort();
            found.dedup();
            (format!("role:{role}"), found)
        }
    };
    InjectError::NoMatch { pattern, count: linear.len(), nearest, list }
}

/// Float initializers whose name, or the module path of a node that reads them, a pattern matches.
fn also_trained(model: &Model, linear: &[Linear], o: &Options) -> Result<Vec<String>, InjectError> {
    let mut paths: HashMap<&str, Vec<String>> = HashMap::new();
    for (_, node) in model.nodes() {
        for input in node.inputs().iter().filter(|i| model.is_initializer(i)) {
            let name = model.initializers().find(|n| n == input).expect("just asked");
            paths.entry(name).or_default().push(onnx::module_path(node, None));
        }
    }
    for l in linear {
        if let Some(name) = model.initializers().find(|n| *n == l.weight) {
            paths.entry(name).or_default().push(l.path.clone());
        }
    }
    let trainable = |name: &&str| {
        model
            .initializer_type(name)
            .is_some_and(|(element, dims)| element.is_float() && dims.iter().product::<usize>() > 1)
    };
    let candidates: Vec<&str> = model.initializers().filter(trainable).collect();
    let mut chosen: HashSet<&&str> = HashSet::new();
    for re in &o.also_train {
        let hit = |n: &&&str| re.is_match(n) || paths.get(**n).is_some_and(|p| p.iter().any(|p| re.is_match(p)));
        let hits: Vec<&&str> = candidates.iter().filter(hit).collect();
        if hits.is_empty() {
            let nearest = onnx::nearest(re.as_str(), candidates.iter().copied(), 8);
            return Err(InjectError::NoInitializer {
                pattern: re.as_str().into(),
                nearest: nearest.into_iter().map(String::from).collect(),
                list: is_list(re, candidates.iter().copied()) || is_list(re, linear.iter().map(|l| l.path.as_str())),
            });
        }
        chosen.extend(hits);
    }
    Ok(candidates.iter().filter(|n| chosen.contains(n)).map(|n| n.to_string()).collect())
}

/// Adds what the nodes read, and the tensors as they start. The number of trained numbers.
fn add_initializers(
    model: &mut Model,
    base: &Model,
    config: &Config,
    emission: &Emission,
    start: Option<&adapters::Tensors>,
    linear: &[Linear],
) -> Result<usize, InjectError> {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    for (name, constant) in &emission.constants {
        model.add_initializer(name, constant.element, &constant.dims, constant.bytes.clone());
    }
    let mut parameters = 0;
    let mut earlier: Vec<(String, ArrayD<f32>)> = Vec::new();
    let mut of = None;
    for (name, target, spec) in config.tensors().map_err(InjectError::Target)? {
        if of != target.map(|t| &t.path) {
            earlier.clear();
            of = target.map(|t| &t.path);
        }
        if base.is_constant(&name) {
            let hint = "fold the adapter that the model was exported with into its weights first";
            return Err(InjectError::Option(format!("the model holds a tensor '{name}' already\nhint: {hint}")));
        }
        let weight = || {
            let path = target.map(|t| &t.path);
            let l = linear.iter().find(|l| Some(&l.path) == path).expect("a target is a linear node");
            let w = l.weight_matrix(base).expect("checked when the targets were chosen");
            if l.alpha == 1.0 { w } else { w * f64::from(l.alpha) }
        };
        let count: usize = spec.shape.iter().product();
        let fresh = match spec.start {
            Start::Zeros => ArrayD::zeros(spec.shape.clone()),
            Start::Full(x) => ArrayD::from_elem(spec.shape.clone(), x),
            Start::KaimingUniform => {
                let columns = spec.shape.last().copied().unwrap_or(1);
                let bound = 1.0 / (columns as f32).sqrt();
                let values = (0..count).map(|_| rng.random_range(-bound..bound)).collect();
                ArrayD::from_shape_vec(spec.shape.clone(), values).expect("as many as the shape holds")
            }
            Start::Drawn(draw) => {
                let (shape, rng) = (&spec.shape[..], &mut rng);
                let call = &mut Drawing { rng, config, target, shape, weight: &weight, earlier: &earlier };
                draw(call).map_err(|why| InjectError::Option(format!("'{name}': {why}")))?
            }
        };
        let values = start.map_or(&fresh, |tensors| &tensors[&name]);
        let list: Vec<f32> = values.iter().copied().collect();
        match spec.integer {
            true => {
                let whole = list.iter().flat_map(|x| (*x as i64).to_le_bytes()).collect();
                model.add_initializer(&name, ElementType::I64, &spec.shape, whole);
            }
            false => model.add_initializer(&name, ElementType::F32, &spec.shape, bytes(&list)),
        }
        parameters += if spec.trained { count } else { 0 };
        earlier.push((spec.suffix, fresh));
    }
    for (name, given) in start.into_iter().flatten().filter(|(n, _)| config.also_train.contains(n)) {
        let element = model.initializer_type(name).expect("also-trained tensors are initializers").0;
        let values: Vec<f64> = given.iter().map(|&x| x as f64).collect();
        let bytes = onnx::encode_floats(element, &values).expect("also-trained tensors are floats");
        if let Some(what) = onnx::not_finite(element, &bytes) {
            return Err(InjectError::NotFinite { name: name.clone(), element, what });
        }
        model.replace_data(name, bytes);
    }
    Ok(parameters)
}
