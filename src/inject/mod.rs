//! Puts adapters into a model: chooses linear nodes, links their chains, and adds each structure's nodes.
//!
//! The result is valid ONNX. With B = 0 it computes what the base computes, and [`crate::merge`] takes the nodes out again.

mod check;
mod choose;
mod elsewhere;
mod error;
mod head;
mod options;
mod pool;
mod start;

pub use error::InjectError;
pub(crate) use head::replaced;
pub use head::{Head, LABELS_KEY};
pub(crate) use options::BIASES;
pub use options::{Biases, Options, Selector};
pub use pool::Pooling;
pub(crate) use pool::{EMBEDDING, POOLINGS, hidden_states, pooled};

use crate::adapters::chain::{self, Break, Link};
use crate::adapters::{self, BASE_KEY, CONFIG_KEY, Config, Form, Init, Made, Merge, OwnTargets, Residual, Target};
use crate::onnx::{self, Linear, Model};
use check::{check, check_start};
use choose::{also_trained, biases, choose};
use regex::Regex;
use start::add_initializers;

/// What was injected.
#[derive(Clone, Debug)]
pub struct Report {
    /// How the model was injected.
    pub config: Config,
    /// Where chains end although another block of the same name follows.
    pub breaks: Vec<Break>,
    /// Trained numbers: in adapters, and in tensors trained themselves.
    pub adapter_parameters: usize,
    /// Trained numbers in tensors that are trained whole.
    pub also_trained_parameters: usize,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Injects adapters into `base`. `shape_of` gives the shape of a value at a sample batch shape; chains of structures that
/// read other blocks' inputs need it.
pub fn inject(
    base: &Model,
    options: &Options,
    shape_of: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Result<(Model, Report), InjectError> {
    let Planned { config, breaks, mut notes, linear, own, made } = plan(base, options, shape_of)?;
    let start = match (&options.adapter, own, made) {
        (Some(a), Some(own), Some(made)) => {
            let mut claimed = config.clone();
            if made.also_train.is_none() {
                // A tensor that the adapter does not train may be trained from now on.
                claimed.also_train.retain(|n| own.whole.contains(n));
            }
            let fitted = adapters::fit(&claimed, base, a.config.as_deref(), &a.tensors)?;
            notes.extend(fitted.notes);
            Some(fitted.tensors)
        }
        _ => None,
    };

    let mut model = base.clone();
    let emission = adapters::emit(base, &config);
    emission.put_into(&mut model);
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
    check_start(&config, options)?;
    let adapter_parameters = add_initializers(&mut model, base, &config, &emission, start.as_ref(), &linear, options)?;
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

/// The targets that adapters would stand at, and the linear nodes of the model.
pub fn targets(
    base: &Model,
    options: &Options,
    shape_of: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Result<(Config, Vec<Linear>), InjectError> {
    let planned = plan(base, options, shape_of)?;
    Ok((planned.config, planned.linear))
}

/// Numbers that an adapter would train at its targets.
pub fn parameters(
    base: &Model,
    options: &Options,
    shape_of: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Result<usize, InjectError> {
    let config = plan(base, options, shape_of)?.config;
    let tensors = config.tensors().map_err(InjectError::Target)?;
    let trained = tensors.iter().filter(|(_, _, spec)| spec.trained);
    Ok(trained.map(|(_, _, spec)| spec.shape.iter().product::<usize>()).sum())
}

/// What will be injected, and where.
struct Planned {
    config: Config,
    breaks: Vec<Break>,
    notes: Vec<String>,
    linear: Vec<Linear>,
    /// Targets of the adapter to start from, and what it trains whole.
    own: Option<OwnTargets>,
    made: Option<Made>,
}

/// Chooses targets and links their chains.
fn plan(
    base: &Model,
    options: &Options,
    shape_of: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Result<Planned, InjectError> {
    if base.metadata(CONFIG_KEY).is_some() {
        return Err(InjectError::Injected);
    }
    check(base, options)?;
    let linear = onnx::linear_nodes(base);
    let mut notes = Vec::new();
    if let Some(given) = options.adapter.as_ref().and_then(|a| a.base.as_ref()).filter(|b| **b != base.digest()) {
        notes
            .push(format!("the adapter was trained on another base (digest {given}): used as the starting point here"));
    }
    let made = options.adapter.as_ref().map(|a| Made::read(a.config.as_deref(), &a.tensors)).transpose()?;
    let (sites, own) = match &options.structure.form {
        Form::Elsewhere(elsewhere) => {
            let places = elsewhere::places(base, options, elsewhere, shape_of)?;
            let paths: Vec<String> = places.iter().map(|t| t.path.clone()).collect();
            let own = own_targets(base, options, made.as_ref(), &paths)?;
            let chosen = elsewhere::choose(options, elsewhere, places, own.as_ref().map(|o| &o.paths[..]))?;
            (Sites::Elsewhere(chosen), own)
        }
        Form::Term(_) | Form::Whole(_) => {
            let paths: Vec<String> = linear.iter().map(|l| l.path.clone()).collect();
            let own = own_targets(base, options, made.as_ref(), &paths)?;
            let (chosen, more) = choose(base, &linear, options, own.as_ref().map(|o| &o.paths[..]))?;
            notes.extend(more);
            check_nodes(base, options, &chosen)?;
            (Sites::linear(chosen), own)
        }
    };
    let mut targets = sites.targets(base, options, &linear);
    for target in &mut targets {
        // Without patterns, as the adapter has them.
        let (rank, alpha) = own.as_ref().map_or((None, None), |o| o.numbers(&target.path));
        let rank = rank.filter(|_| options.rank_pattern.is_empty());
        let alpha = alpha.filter(|_| options.alpha_pattern.is_empty());
        target.rank = of_pattern(&options.rank_pattern, &target.path).or(rank).filter(|r| *r != options.rank);
        target.alpha = of_pattern(&options.alpha_pattern, &target.path).or(alpha).filter(|a| *a != options.alpha);
        let path = &target.path;
        let quantised = || linear.iter().any(|l| l.path == *path && l.quantised(base).is_some());
        target.quantised = options.init == Init::Loftq && quantised();
    }
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
    let links = sites.links(reads, shape_of);
    if reads && links.iter().any(|l| l.leading.is_none()) {
        notes.push("input shapes unknown: chains joined without checking them".into());
    }
    let mut breaks = chain::link(&mut targets, &links);
    if residual == Residual::None {
        // Its blocks read nothing of each other.
        breaks.clear();
    }
    let also_train: Vec<String> = match &own {
        Some(own) if options.also_train.is_empty() && options.bias == Biases::None => {
            base.initializers().filter(|n| own.whole.iter().any(|w| w == n)).map(String::from).collect()
        }
        _ => {
            let mut names = also_trained(base, &linear, options)?;
            let biases = biases(base, &linear, options.bias, &targets)?;
            names.extend(biases.into_iter().filter(|b| !names.contains(b)).collect::<Vec<_>>());
            base.initializers().filter(|n| names.iter().any(|b| b == n)).map(String::from).collect()
        }
    };
    let whole = |n: &&str| also_train.iter().any(|a| a == n) || options.whole.iter().any(|w| w == n);
    let also_train = base.initializers().filter(whole).map(String::from).collect();
    let config = Config { also_train, ..options.config(targets) };
    Ok(Planned { config, breaks, notes, linear, own, made })
}

/// The targets that an adapter was made for, and what it trains whole; `None` without an adapter.
fn own_targets(
    base: &Model,
    options: &Options,
    made: Option<&Made>,
    paths: &[String],
) -> Result<Option<OwnTargets>, InjectError> {
    let Some((a, made)) = options.adapter.as_ref().zip(made) else { return Ok(None) };
    Ok(Some(adapters::own_targets(base, options.structure, made, &a.tensors, paths)?))
}

/// Where adapters will stand.
enum Sites<'a> {
    /// Linear nodes, those of one path together.
    Linear(Vec<Vec<&'a Linear>>),
    Elsewhere(Vec<Target>),
}

impl<'a> Sites<'a> {
    fn linear(chosen: Vec<&'a Linear>) -> Sites<'a> {
        let mut sites: Vec<Vec<&Linear>> = Vec::new();
        for l in chosen {
            match sites.iter_mut().find(|s| s[0].path == l.path) {
                Some(site) => site.push(l),
                None => sites.push(vec![l]),
            }
        }
        Sites::Linear(sites)
    }

    fn targets(&self, base: &Model, options: &Options, linear: &[Linear]) -> Vec<Target> {
        let sites = match self {
            Sites::Elsewhere(targets) => return targets.clone(),
            Sites::Linear(sites) => sites,
        };
        let roles = if options.structure.reads_roles { onnx::roles(base, linear) } else { vec![] };
        let target = |s: &Vec<&Linear>| Target {
            path: s[0].path.clone(),
            weight: s[0].weight.clone(),
            in_features: s[0].in_features,
            out_features: s[0].out_features,
            role: roles.iter().zip(linear).find(|(_, l)| l.node == s[0].node).and_then(|(r, _)| *r),
            ..Target::default()
        };
        sites.iter().map(target).collect()
    }

    /// What joins each with its neighbours in a chain.
    fn links(&self, reads: bool, shape_of: &dyn Fn(&str) -> Option<Vec<usize>>) -> Vec<Link> {
        let link = |s: &Vec<&Linear>| Link {
            leading: reads.then(|| shape_of(&s[0].x)).flatten().map(|d| leading(d, s[0].strides.as_deref())),
            alone: s.len() > 1,
        };
        match self {
            Sites::Linear(sites) => sites.iter().map(link).collect(),
            Sites::Elsewhere(targets) => targets.iter().map(|_| Link { leading: None, alone: false }).collect(),
        }
    }
}

/// Whether the structure can stand beside these nodes.
fn check_nodes(base: &Model, options: &Options, chosen: &[&Linear]) -> Result<(), InjectError> {
    let structure = options.structure;
    let refused = |l: &Linear, why: String| Err(InjectError::Target(format!("target '{}': {why}", l.path)));
    for l in chosen {
        if l.strides.is_some() && !structure.images {
            return refused(l, format!("it is a convolution, and {structure} reads vectors alone"));
        }
        if let (Form::Term(adapters::Term { join: Some(_), .. }), Err(why)) = (&structure.form, l.check_weight(base)) {
            return refused(l, format!("its weight cannot be read: {why}"));
        }
        if let Some(why) = l.odd_bias(base).filter(|_| structure.form.reads_bias()) {
            return refused(l, format!("{why}, which {structure} cannot read"));
        }
    }
    Ok(())
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
