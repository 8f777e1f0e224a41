//! Taking adapters out again: the model with the bytes of its weights changed and nothing else.
//!
//! Pure functions of model, adapter and statistics: [`prepare`] takes an injected model apart, a strategy finds the change of each
//! weight ([`deltas`]), and [`fold`] stores it.

mod bias;
mod branch;
mod encode;
mod error;
mod exact;
mod fold;
mod input_norm;
mod least_squares;
mod own_weight;
mod report;
mod rewrite;
mod strategy;
mod strip;
mod table;
mod weight_norm;

pub use branch::keep_branch;
pub use error::MergeError;
pub use fold::fold;
pub use report::{LayerReport, Report};
pub use rewrite::adapted;
pub use strategy::{Delta, Inputs};
pub use strip::strip;
pub use table::Strategy;

use crate::adapter::{Adapter, Norms};
use crate::adapters::{self, BASE_KEY, CONFIG_KEY, Config, Factors, Form, Target, Values};
use crate::onnx::{self, Linear, Model};
use encode::place;
use ndarray::{Array2, ArrayD};
use std::collections::{BTreeMap, HashMap};

/// What a merge reads besides the model and the adapter.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Norms of each block, by module path; strategies that need none take none.
    pub norms: BTreeMap<String, Norms>,
    /// The projections that least-squares found, by module path.
    pub projections: BTreeMap<String, Array2<f64>>,
    /// Graph inputs of the adapter that are folded in, with their values.
    pub chosen: Vec<(String, f64)>,
}

/// The configuration that an injected model carries.
pub fn config(model: &Model) -> Result<Config, MergeError> {
    let file = model.path().display().to_string();
    let text = model.metadata(CONFIG_KEY).ok_or_else(|| MergeError::NotInjected { file: file.clone() })?;
    serde_json::from_str(text).map_err(|e| MergeError::Config { file, why: e.to_string() })
}

/// Checks that an adapter belongs to an injected model; returns a note if it cannot be told.
pub fn check_base(model: &Model, adapter: &Adapter) -> Result<Option<String>, MergeError> {
    match (&adapter.base, model.metadata(BASE_KEY)) {
        (Some(a), Some(m)) if a != m => Err(MergeError::OtherBase { adapter: a.clone(), model: m.into() }),
        (Some(_), Some(_)) => Ok(None),
        _ => Ok(Some("the adapter does not record its base: accepted without that check".into())),
    }
}

/// An adapter under the names that an injected model has, checked to be for that model and to be used as it was made; and notes on
/// what could not be checked. Done again to what it gives, it changes and notes nothing.
pub fn fit(injected: &Model, adapter: &Adapter) -> Result<(Adapter, Vec<String>), MergeError> {
    let config = config(injected)?;
    let mut notes: Vec<String> = check_base(injected, adapter)?.into_iter().collect();
    let fitted = adapters::fit(&config, injected, adapter.config.as_deref(), &adapter.tensors)?;
    notes.extend(fitted.notes);
    let [base, config] = [BASE_KEY, CONFIG_KEY].map(|key| injected.metadata(key).map(String::from));
    Ok((Adapter { tensors: fitted.tensors, base, config, statistics: adapter.statistics.clone() }, notes))
}

/// An injected model taken apart: its base with the trained tensors in place, and the adapter's factors.
pub struct Prepared {
    pub model: Model,
    pub config: Config,
    /// The adapter's tensors by name.
    pub tensors: BTreeMap<String, ArrayD<f32>>,
    /// The two maps of each term by module path; empty where the adapter is no term.
    pub factors: BTreeMap<String, Factors>,
    pub notes: Vec<String>,
}

/// Takes an injected model apart and checks that the adapter fits it.
pub fn prepare(injected: &Model, adapter: &Adapter) -> Result<Prepared, MergeError> {
    let config = config(injected)?;
    let (adapter, notes) = fit(injected, adapter)?;
    let factors = factors(&config, &adapter);
    let mut model = strip(injected, &config)?;
    let linear = if rewrite::of(&config).is_some() { vec![] } else { onnx::linear_nodes(&model) };
    for l in linear.iter().filter(|l| config.target(&l.path).is_some()) {
        let refused = |why: String| MergeError::Quantised { weight: l.weight.clone(), path: l.path.clone(), why };
        l.check_weight(&model).map_err(refused)?;
    }
    // Tensors that are trained themselves first: a target's weight may be one of them.
    for name in &config.also_train {
        place(&mut model, name, &adapter.tensors[name])?;
    }
    Ok(Prepared { model, config, tensors: adapter.tensors, factors, notes })
}

/// The maps of every term of an adapter that fits.
fn factors(config: &Config, adapter: &Adapter) -> BTreeMap<String, Factors> {
    let Form::Term(term) = &config.structure.form else { return BTreeMap::new() };
    let of = |t: &Target| (term.factors)(config, t, &Values { tensors: &adapter.tensors, target: t });
    config.targets.iter().map(|t| (t.path.clone(), of(t))).collect()
}

/// Checks that a strategy applies to a structure.
pub fn check_strategy(config: &Config, strategy: Strategy) -> Result<(), MergeError> {
    if (strategy.applies)(config) {
        return Ok(());
    }
    let others: Vec<&str> = Strategy::all().filter(|s| (s.applies)(config)).map(|s| s.name).collect();
    let hint = match others.is_empty() {
        true => "--keep-branch".to_string(),
        false => format!("--strategy {}", others.join(" or ")),
    };
    Err(MergeError::Strategy { strategy: strategy.name.into(), structure: config.structure, hint })
}

/// The change of every target's weight.
pub fn deltas(p: &Prepared, strategy: Strategy, statistics: &Statistics) -> Result<Vec<Delta>, MergeError> {
    deltas_in(p, &p.config, strategy, statistics)
}

/// The change of the weights of some targets, found without the others.
pub fn deltas_of(
    p: &Prepared,
    paths: &[String],
    strategy: Strategy,
    statistics: &Statistics,
) -> Result<Vec<Delta>, MergeError> {
    let mut config = p.config.clone();
    config.targets.retain(|t| paths.contains(&t.path));
    deltas_in(p, &config, strategy, statistics)
}

fn deltas_in(
    p: &Prepared,
    config: &Config,
    strategy: Strategy,
    statistics: &Statistics,
) -> Result<Vec<Delta>, MergeError> {
    check_strategy(config, strategy)?;
    if (strategy.needs_norms)(config) && config.targets.iter().any(|t| !statistics.norms.contains_key(&t.path)) {
        return Err(MergeError::NoNorms { strategy: strategy.name.into(), structure: config.structure });
    }
    let linear = onnx::linear_nodes(&p.model);
    let by_path: HashMap<&str, &Linear> = linear.iter().rev().map(|l| (l.path.as_str(), l)).collect();
    let consumers = p.model.consumers();
    let weights = |t: &Target| by_path[t.path.as_str()].multiplied(&p.model).expect("checked when it was prepared");
    let biases = |t: &Target| bias::read(&p.model, by_path[t.path.as_str()], &consumers);
    (strategy.deltas)(&Inputs {
        config,
        tensors: &p.tensors,
        factors: &p.factors,
        weights: &weights,
        biases: &biases,
        norms: &statistics.norms,
        projections: &statistics.projections,
        chosen: &statistics.chosen,
    })
}

/// Folds an adapter into the model it was injected into.
pub fn merge(
    injected: &Model,
    adapter: &Adapter,
    strategy: Strategy,
    statistics: &Statistics,
) -> Result<(Model, Report), MergeError> {
    let mut p = prepare(injected, adapter)?;
    let layers = match rewrite::of(&p.config) {
        Some(rewrites) => {
            check_strategy(&p.config, strategy)?;
            rewrite::apply(&mut p, rewrites)?
        }
        None => {
            let deltas = deltas(&p, strategy, statistics)?;
            fold(&mut p.model, &p.config, &deltas, &mut p.notes)?
        }
    };
    let report =
        Report { strategy: strategy.name.into(), layers, also_trained: p.config.also_train.clone(), notes: p.notes };
    Ok((p.model, report))
}
