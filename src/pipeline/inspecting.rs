//! Reports on a model before anything is allocated.

use super::compile::{self, LossChoice, Program};
use super::{Error, training};
use crate::adapters;
use crate::adapters::CONFIG_KEY;
use crate::inject::{self, Options};
use crate::ir::Sink;
use crate::lower::loss::Loss;
use crate::lower::{self, LowerError, Unsupported};
use crate::onnx::{self, Linear, Model, Role};
use crate::plan::{self, Layout, Limits, Plan};
use crate::train::{Purpose, Shapes};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A linear node with what is known of it.
pub struct Found {
    pub linear: Linear,
    pub role: Option<Role>,
    /// Its module path with digits blanked: blocks of one chain share it.
    pub chain: String,
    /// Whether `inject` without flags adapts it, or the model carries an adapter for it.
    pub target: bool,
}

/// Memory of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryNeed {
    pub batch: usize,
    pub seq: usize,
    /// Frozen weights, in bytes.
    pub weights: usize,
    /// Parameters, gradients and AdamW's moments.
    pub states: usize,
    /// Values of a step.
    pub arenas: usize,
    /// The least that values of a step need at once.
    pub lower_bound: usize,
}

/// Positions that every model takes.
const SHORT: usize = 8;

/// What inspection finds.
pub struct Inspection {
    pub found: Vec<Found>,
    pub unsupported: Vec<Unsupported>,
    pub memory: Option<MemoryNeed>,
    /// Targets that no gradient reaches.
    pub unreached: Vec<String>,
    /// Every structure with the numbers that it would train at its targets, or why it does not fit; empty for an injected model.
    pub structures: Vec<(&'static str, Result<usize, String>)>,
    pub notes: Vec<String>,
}

/// Inspects a model; an injected one as it is, any other with the adapters that `inject` puts in by default.
pub fn inspect(
    model: &Arc<Model>,
    options: &Options,
    batch: usize,
    seq: usize,
    limits: Limits,
) -> Result<Inspection, Error> {
    let linear = adapters::layers(model);
    let roles = onnx::roles(model, &linear);
    let unsupported = lower::unsupported(model);
    let mut notes = Vec::new();
    let packed = model.nodes().filter(|(_, n)| n.operator() == "com.microsoft:Attention").count();
    if packed > 0 {
        notes.push(format!(
            "{packed} com.microsoft:Attention nodes contain the q, k and v weights, which cannot be adapted"
        ));
    }
    let (injected, config) = match model.metadata(CONFIG_KEY) {
        Some(_) => (model.clone(), Some(crate::merge::config(model)?)),
        None if linear.is_empty() => (model.clone(), None),
        None => match inject::inject(model, options, &|_| None) {
            Ok((m, report)) => (Arc::new(m), Some(report.config)),
            Err(e) => {
                notes.push(e.to_string());
                (model.clone(), None)
            }
        },
    };
    let targets: BTreeSet<&str> = config.iter().flat_map(|c| &c.targets).map(|t| t.path.as_str()).collect();
    let found = linear
        .into_iter()
        .zip(roles)
        .map(|(l, role)| Found {
            role,
            chain: crate::adapters::chain::key(&l.path),
            target: targets.contains(l.path.as_str()),
            linear: l,
        })
        .collect();
    let structures = match model.metadata(CONFIG_KEY) {
        Some(_) => vec![],
        None => structures(model, options),
    };
    let mut out = Inspection { found, unsupported, memory: None, unreached: vec![], structures, notes };
    if out.unsupported.is_empty()
        && let Some(config) = &config
    {
        // A model whose positions do not reach that far still shows what a gradient reaches at a short sequence.
        let mut tried = (seq, trial(&injected, batch, seq, limits));
        if let (Err(e), true) = (&tried.1, seq > SHORT)
            && !matches!(e, Error::Lower(LowerError::Unsupported { .. }))
        {
            out.notes.push(format!("at {seq} positions: {e}"));
            tried = (SHORT, trial(&injected, batch, SHORT, limits));
        }
        let (seq, planned) = tried;
        match planned {
            Ok((plan, states)) => {
                let reached: BTreeSet<&str> = plan
                    .graph
                    .outputs
                    .iter()
                    .filter_map(|o| match &o.sink {
                        Sink::Gradient(name) => Some(name.as_str()),
                        _ => None,
                    })
                    .collect();
                out.unreached = config
                    .targets
                    .iter()
                    .filter(|t| {
                        let specs = config.specs(t).unwrap_or_default().into_iter().filter(|s| s.trained);
                        specs.into_iter().any(|s| !reached.contains(t.tensor(&s.suffix).as_str()))
                    })
                    .map(|t| t.path.clone())
                    .collect();
                out.memory = Some(MemoryNeed {
                    batch,
                    seq,
                    weights: plan.weight_bytes(),
                    states,
                    arenas: plan.arena_bytes(),
                    lower_bound: plan.lower_bound * 4,
                });
            }
            // Inside branches and loops, which only lowering goes through.
            Err(Error::Lower(LowerError::Unsupported { operators, .. })) => out.unsupported = operators,
            Err(e) => out.notes.push(e.to_string()),
        }
    }
    Ok(out)
}

/// Plans a training step at a shape; the loss is the mean square of the first float output, which costs what others do.
fn trial(model: &Arc<Model>, batch: usize, seq: usize, limits: Limits) -> Result<(Plan, usize), Error> {
    let trainee = training::load(model, None)?;
    let outputs = model.outputs();
    let first = outputs.iter().find(|o| o.name == "logits").or(outputs.iter().find(|o| o.element.is_float()));
    let first = first.ok_or_else(|| Error::Model("the model has no float output".into()))?;
    let loss = Some(LossChoice::Added {
        loss: Loss::MEAN_SQUARE,
        logits: first.name.clone(),
        class_axis: None,
        probabilities: false,
    });
    let program = Program { loss, ..trainee.program };
    let shapes: Shapes = compile::shapes_at(&model.inputs(), batch, seq);
    let graph = program.graph(&shapes, Purpose::Train { statistics: false }, limits)?;
    let sizes = program.parameters();
    let layout = Layout::new(sizes.iter().map(|(n, s)| (n.as_str(), *s)), limits.value_words);
    let words: usize = layout.segments.iter().map(|s| s.words).sum();
    Ok((plan::plan(graph, &layout, limits)?, words * 4 * 4))
}

/// The model's nodes as a Graphviz file, residual edges between adapters drawn apart.
pub fn dot(model: &Model) -> String {
    onnx::dot(model)
}

/// What every structure would train, at the targets that it takes by itself.
fn structures(model: &Arc<Model>, options: &Options) -> Vec<(&'static str, Result<usize, String>)> {
    let shapes = super::compile::value_shapes(model).unwrap_or_default();
    let shape_of = |name: &str| shapes.get(name).cloned();
    let one = |structure: adapters::Structure| {
        let options = Options { structure, ..options.clone() };
        (structure.entry().name, inject::parameters(model, &options, &shape_of).map_err(|e| e.to_string()))
    };
    adapters::all().into_iter().map(one).collect()
}
