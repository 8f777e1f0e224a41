//! Puts adapters into a model: chooses linear nodes, links their chains, and adds each structure's nodes.
//!
//! The result is valid ONNX. With B = 0 it computes what the base computes, and [`crate::merge`] takes the nodes out again.

mod check;
mod choose;
mod error;
mod options;
mod start;

pub use error::InjectError;
pub use options::{Options, Selector};

use crate::adapters::chain::{self, Break, Link};
use crate::adapters::{self, BASE_KEY, CONFIG_KEY, Config, Form, Made, Merge, Place, Residual, Target};
use crate::onnx::{self, Linear, Model};
use check::check;
use choose::{also_trained, choose};
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
    if let Form::Term(adapters::Term { join: Some(_), .. }) = &options.structure.form
        && let Some((l, why)) = chosen.iter().find_map(|l| Some((l, l.check_weight(base).err()?)))
    {
        return Err(InjectError::Target(format!("target '{}': its weight cannot be read: {why}", l.path)));
    }
    if options.structure.form.reads_bias()
        && let Some((l, why)) = chosen.iter().find_map(|l| Some((l, l.odd_bias(base)?)))
    {
        return Err(InjectError::Target(format!(
            "target '{}': {why}, which {} cannot read",
            l.path, options.structure
        )));
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
