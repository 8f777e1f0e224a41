//! Optimisers as graphs over the flat buffers of parameters, gradients and moments: no kernel of their own.
//!
//! A new optimiser is one file with its update rule and one line in [`OPTIMIZERS`].

mod adamw;
mod lion;
pub mod precondition;
mod sgd;

use crate::ir::{Attrs, BuildError, Builder, Graph, Rules, Sink, Type, Value};
use crate::settings::defaults;
use precondition::{Pair, Precondition};

/// Settings of an optimiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub weight_decay: f64,
    pub momentum: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
}

impl Hyper {
    /// What optimisers start from; an optimiser with other numbers of its own says so in [`Optimizer::hyper`].
    pub const USUAL: Hyper = Hyper {
        weight_decay: defaults::WEIGHT_DECAY,
        momentum: defaults::MOMENTUM,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
    };
}

impl Default for Hyper {
    fn default() -> Hyper {
        Hyper::USUAL
    }
}

/// One optimiser.
#[derive(Debug)]
pub struct Optimizer {
    pub name: &'static str,
    /// Its settings where nothing else is said.
    pub hyper: Hyper,
    /// Whether [`Hyper::momentum`] is one of its settings.
    pub takes_momentum: bool,
    /// Buffers beside the parameters, each as long as they are; zero at the start.
    pub moments: fn(&Hyper) -> &'static [&'static str],
    /// Numbers that change from step to step, computed on the host in f64; `step` counts from 1.
    pub scalars: fn(&Hyper, lr: f64, step: u64) -> Vec<(&'static str, f64)>,
    /// New parameters and moments.
    pub update: Update,
}

/// An optimiser's rule: new parameters and new moments.
pub type Update = fn(&mut Builder, &Hyper, &Operands) -> Result<(Value, Vec<Value>), BuildError>;

/// What an update rule reads.
pub struct Operands<'a> {
    pub parameters: Value,
    pub gradients: Value,
    pub moments: &'a [Value],
    pub scalars: &'a [(&'static str, Value)],
}

impl Operands<'_> {
    pub fn scalar(&self, name: &str) -> Value {
        self.scalars.iter().find(|s| s.0 == name).expect("the optimiser's own scalars").1
    }
}

/// Every optimiser.
pub static OPTIMIZERS: &[Optimizer] = &[adamw::OPTIMIZER, sgd::OPTIMIZER, lion::OPTIMIZER];

pub fn find(name: &str) -> Option<&'static Optimizer> {
    OPTIMIZERS.iter().find(|o| o.name == name)
}

/// One flat buffer to update: the names of its states, and its words.
#[derive(Clone, Debug, PartialEq)]
pub struct Flat {
    pub parameters: String,
    pub gradients: String,
    pub moments: Vec<String>,
    /// The state that holds 1 where the raised rate applies and 0 elsewhere; `None` where one rate is for all.
    pub raised: Option<String>,
    pub words: usize,
}

/// The name of a moment's state beside the parameters' state.
pub fn moment_state(moment: &str, parameters: &str) -> String {
    format!("{moment}.{parameters}")
}

/// The run's input that carries an optimiser's scalar.
pub fn scalar_input(name: &str) -> String {
    format!("optimizer.{name}")
}

/// The name of a scalar for the parameters whose rate is raised.
pub fn raised_scalar(name: &str) -> String {
    format!("raised.{name}")
}

/// The scalar of [`step`] that undoes a loss scale.
pub const UNSCALE: &str = "unscale";

/// One optimiser step over all buffers. Gradients are scaled by `min(1, clip / (norm + 1e-6))` if `clip` is positive;
/// the norm before that is fetched as `grad_norm`. Where it is not finite, nothing changes. Then the precondition changes those of pairs
/// of factors. With `scaled`, gradients are those of a scaled loss: they are multiplied by the scalar [`UNSCALE`] first.
pub fn step(
    rules: Rules,
    optimizer: &Optimizer,
    hyper: &Hyper,
    clip: f64,
    scaled: bool,
    flats: &[Flat],
    (precondition, pairs): (&Precondition, &[Pair]),
) -> Result<Graph, BuildError> {
    let mut b = Builder::new(rules);
    b.set_origin(optimizer.name);
    let mut gradients: Vec<Value> = flats.iter().map(|f| b.state(&f.gradients, Type::f32([f.words]))).collect();
    if scaled {
        let unscale = b.input(&scalar_input(UNSCALE), Type::f32([]));
        for g in &mut gradients {
            *g = b.mul(*g, unscale)?;
        }
    }
    let norm = norm(&mut b, &gradients)?;
    b.output("grad_norm", norm, Sink::Fetch);
    let one = b.scalar(1.0);
    let clipped = match clip > 0.0 {
        true => {
            let (tiny, limit) = (b.scalar(1e-6), b.scalar(clip));
            let safe = b.add(norm, tiny)?;
            let ratio = b.div(limit, safe)?;
            b.binary("min", ratio, one)?
        }
        false => one,
    };
    let (most, nan) = (b.scalar(f32::MAX as f64), b.unary("is_nan", norm)?);
    let (number, bounded) = (b.unary("not", nan)?, b.binary("less_equal", norm, most)?);
    let (counts, none) = (b.binary("and", number, bounded)?, b.scalar(f64::NAN));
    // Through the gradients, each element is told that its step does not count, without reading one buffer more.
    let coefficient = b.select(counts, clipped, none)?;
    let names = (optimizer.scalars)(hyper, 0.0, 1);
    let scalars: Vec<(&'static str, Value)> =
        names.iter().map(|(name, _)| (*name, b.input(&scalar_input(name), Type::f32([])))).collect();
    for g in &mut gradients {
        *g = b.mul(*g, coefficient)?;
    }
    let skips = gradients.iter().map(|&g| b.unary("is_nan", g)).collect::<Result<Vec<Value>, BuildError>>()?;
    let all: Vec<Value> = flats.iter().map(|f| b.state(&f.parameters, Type::f32([f.words]))).collect();
    if let Some(apply) = precondition.apply {
        let words: Vec<usize> = flats.iter().map(|f| f.words).collect();
        gradients = apply(&mut b, &words, &all, &gradients, pairs)?;
    }
    for (((flat, parameters), gradients), skip) in flats.iter().zip(all).zip(gradients).zip(skips) {
        let ty = Type::f32([flat.words]);
        let moments: Vec<Value> = flat.moments.iter().map(|m| b.state(m, ty.clone())).collect();
        let own = match &flat.raised {
            None => scalars.clone(),
            Some(mask) => raised(&mut b, &scalars, mask, flat.words)?,
        };
        let operands = Operands { parameters, gradients, moments: &moments, scalars: &own };
        let (new, new_moments) = (optimizer.update)(&mut b, hyper, &operands)?;
        let names = [&flat.parameters].into_iter().chain(&flat.moments);
        let old = [parameters].into_iter().chain(moments);
        for ((name, old), new) in names.zip(old).zip([new].into_iter().chain(new_moments)) {
            let value = b.select(skip, old, new)?;
            b.output(name.clone(), value, Sink::State(name.clone()));
        }
    }
    Ok(b.graph)
}

/// The scalars, each `base + mask × (raised - base)` element by element.
fn raised(
    b: &mut Builder,
    scalars: &[(&'static str, Value)],
    mask: &str,
    words: usize,
) -> Result<Vec<(&'static str, Value)>, BuildError> {
    let mask = b.state(mask, Type::f32([words]));
    let mut out = Vec::new();
    for &(name, base) in scalars {
        let raised = b.input(&scalar_input(&raised_scalar(name)), Type::f32([]));
        let more = b.sub(raised, base)?;
        let share = b.mul(mask, more)?;
        out.push((name, b.add(share, base)?));
    }
    Ok(out)
}

/// The norm of all gradients together, summed in rows of 64 so that many workgroups share the work.
fn norm(b: &mut Builder, gradients: &[Value]) -> Result<Value, BuildError> {
    let mut total: Option<Value> = None;
    for &g in gradients {
        let n = b.shape(g).elements();
        let rows = if n.is_multiple_of(64) { [n / 64, 64, 1] } else { [1, n, 1] };
        let rows = b.reshape(g, rows)?;
        let partial = b.emit("reduce_sum_square", &[rows], Attrs::new())?;
        let sum = b.reduce_sum(partial, &[0, 1], false)?;
        total = Some(match total {
            Some(t) => b.add(t, sum)?,
            None => sum,
        });
    }
    let total = total.expect("training has parameters");
    b.unary("sqrt", total)
}

/// `to := from`, or `to := to + from`, over all buffers: how micro-batches accumulate.
pub fn accumulate(rules: Rules, first: bool, buffers: &[(String, String, usize)]) -> Result<Graph, BuildError> {
    let mut b = Builder::new(rules);
    b.set_origin("accumulate");
    for (from, to, words) in buffers {
        let ty = Type::f32([*words]);
        let new = b.state(from, ty.clone());
        let sum = match first {
            true => new,
            false => {
                let old = b.state(to, ty);
                b.add(old, new)?
            }
        };
        b.output(to.clone(), sum, Sink::State(to.clone()));
    }
    Ok(b.graph)
}
