//! Fitting plain projections to what a structure computes: gathering moments on a device, and least squares on the host.

use super::calibrating::Calibration;
use super::compile::{Signal, Tap};
use super::training::{Trainee, load};
use super::{Error, inferring};
use crate::adapter::{Adapter, Moments, Norms};
use crate::adapters::{self, Config, Emission, Target};
use crate::calibrate::{self, BUDGET, Fetched, Gathering, Solution, WIDE, folds, matrix};
use crate::device::{Device, Run};
use crate::merge::{self, Delta, Prepared, Statistics, Strategy};
use crate::onnx::{self, Linear, Model, NodeId};
use crate::train::Purpose;
use crate::train::data::{Dataset, Feed};
use ndarray::{Array2, Axis};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// The values that a block's regression reads: its own input, and the signal that its last factor multiplies.
fn taps(emission: &Emission, linear: &[Linear], path: &str) -> Result<(Tap, Tap), Error> {
    let missing = || Error::Model(format!("'{path}' is not in the file"));
    let block = emission.blocks.iter().find(|b| b.path == path).ok_or_else(missing)?;
    let l = linear.iter().find(|l| l.path == path).ok_or_else(missing)?;
    let signal = block.signal.clone().ok_or_else(missing)?;
    // What a convolution has projected, its strides have thinned out already.
    let dense = l.strides.as_ref().map(|s| vec![1; s.len()]);
    Ok((Tap { value: block.x.clone(), strides: l.strides.clone() }, Tap { value: signal, strides: dense }))
}

/// Runs a program's signals over batches of examples.
pub(super) fn over(
    trainee: &Trainee,
    data: &Dataset,
    batches: &[Vec<usize>],
    device: &mut dyn Device,
    each: &mut dyn FnMut(usize, Fetched),
) -> Result<(), Error> {
    trainee.session(device, |session| {
        for (k, examples) in batches.iter().enumerate() {
            let batch = data.batch(session.feed, examples)?;
            let plan = session.plan(&batch, Purpose::Calibrate)?;
            session.device.submit(vec![Run { plan, inputs: batch.inputs }])?;
            each(k, session.collect(true)?.into_iter().flat_map(|f| f.runs).flatten().collect());
        }
        Ok(())
    })
}

/// The batches of the examples that are never held back (part 0) and of each fold, with the part that each belongs to.
fn batches(c: &Calibration) -> Vec<(usize, Vec<usize>)> {
    let folds = folds(c.data.len());
    let kept = folds.last().map_or(c.data.len(), |f| f.start);
    let feed = Feed { padding: c.padding, ..Feed::default() };
    let chunks = |range: Range<usize>| c.data.batches(&feed, &range.collect::<Vec<_>>(), c.batch_size);
    let never = chunks(0..kept).into_iter().map(|b| (0, b));
    let held = folds.iter().enumerate().flat_map(|(k, f)| chunks(f.clone()).into_iter().map(move |b| (k + 1, b)));
    never.chain(held).collect()
}

/// A program that gives signals, fed as a calibration says.
pub(super) fn with_signals(mut trainee: Trainee, c: &Calibration, signals: Vec<Signal>) -> Trainee {
    trainee.feed = c.feed(&trainee.program.model);
    trainee.program.signals = signals;
    trainee
}

/// Moments of every block of an injected model, its structure live, handed to `each` as they come. `widths` says how many numbers
/// a target's signal has.
pub fn moments(
    injected: &Arc<Model>,
    adapter: &Adapter,
    widths: &dyn Fn(&Target) -> usize,
    c: &Calibration,
    device: &mut dyn Device,
    each: &mut dyn FnMut(&str, Vec<Moments>),
) -> Result<(), Error> {
    let config = merge::config(injected)?;
    let (emission, linear) = (adapters::emit_again(injected, &config), onnx::linear_nodes(injected));
    let batches = batches(c);
    let count = folds(c.data.len()).len() + 1;
    let examples: Vec<Vec<usize>> = batches.iter().map(|b| b.1.clone()).collect();
    let mut open: Vec<&Target> = config.targets.iter().collect();
    while !open.is_empty() {
        // As many blocks at once as fit; each round runs the data again.
        let bytes = |n: usize| 8 * count.max(2) * n.min(WIDE) * n.max(WIDE.min(n));
        let mut group = Vec::new();
        let mut used = 0;
        while let Some(t) = open.first() {
            used += bytes(t.in_features);
            if !group.is_empty() && used > BUDGET {
                break;
            }
            group.push(open.remove(0));
        }
        let mut signals = Vec::new();
        for t in &group {
            let (x, s) = taps(&emission, &linear, &t.path)?;
            signals.push(Signal { x: Some(x), t: Some(s), sums: t.in_features <= WIDE });
        }
        let mut parts: Vec<Vec<Gathering>> =
            signals.iter().map(|s| (0..count).map(|_| Gathering::new(s.sums)).collect()).collect();
        let trainee = with_signals(load(injected, Some(adapter))?, c, signals.clone());
        over(&trainee, c.data, &examples, device, &mut |k, fetched| {
            for (i, (signal, part)) in signals.iter().zip(&mut parts).enumerate() {
                let part = &mut part[batches[k].0];
                let get = |name: &str| matrix(&fetched, i, name).expect("the program gives it");
                if signal.sums {
                    part.add_sums([get("xx"), get("tx"), get("tt")]);
                } else {
                    let mask = matrix(&fetched, i, "mask");
                    part.add_rows(&get("x"), &get("t"), |r| mask.as_ref().is_none_or(|m| m[(r, 0)] != 0.0));
                }
            }
        })?;
        for (t, parts) in group.into_iter().zip(parts) {
            let size = [t.in_features, widths(t)];
            each(&t.path, parts.into_iter().map(|p| p.finish(size)).collect());
        }
    }
    Ok(())
}

/// The projections that least squares finds, and for each the error of the adapter's contribution on held-back rows.
pub struct Fitted {
    pub solutions: BTreeMap<String, Solution>,
}

impl Fitted {
    /// Projections from all rows, or from those outside one fold.
    pub fn projections(&self, without: Option<usize>) -> BTreeMap<String, Array2<f64>> {
        let pick = |s: &Solution| match without {
            None => s.a.clone(),
            Some(fold) => s.a_fit[fold].clone(),
        };
        self.solutions.iter().map(|(path, s)| (path.clone(), pick(s))).collect()
    }
}

/// The start of every regression: `A₀` of input-norm.
fn starts(p: &Prepared, norms: &BTreeMap<String, Norms>) -> Result<BTreeMap<String, Array2<f64>>, Error> {
    let statistics = Statistics { norms: norms.clone(), ..Statistics::default() };
    let deltas = merge::deltas(p, Strategy::INPUT_NORM, &statistics)?;
    Ok(deltas.into_iter().filter_map(|d| Some((d.path, d.a?))).collect())
}

/// Errors of each block's contribution on held-back rows, for several choices of projections; and least squares, if asked for.
pub struct Judged {
    pub fitted: Fitted,
    /// For each choice, the errors by module path.
    pub errors: Vec<BTreeMap<String, f64>>,
}

/// What is fitted, on what.
pub struct Task<'a> {
    pub prepared: &'a Prepared,
    pub injected: &'a Arc<Model>,
    pub adapter: &'a Adapter,
    pub data: &'a Calibration<'a>,
    pub norms: &'a BTreeMap<String, Norms>,
    pub ridge: Option<f64>,
}

/// Fits every block with x and t of the live model, and finds the errors of `choices` on the way.
pub fn fit(task: &Task, choices: &[Vec<Delta>], device: &mut dyn Device) -> Result<Judged, Error> {
    let Task { prepared: p, injected, adapter, data: c, norms, ridge } = *task;
    let starts = starts(p, norms)?;
    let mut fitted = Fitted { solutions: BTreeMap::new() };
    let mut errors = vec![BTreeMap::new(); choices.len() + 1];
    let widths = |t: &Target| p.factors[&t.path].carry.nrows();
    moments(injected, adapter, &widths, c, device, &mut |path, parts| {
        let b = &p.factors[path].last;
        let solution = calibrate::solve(&parts, &starts[path], b, ridge);
        errors[choices.len()].insert(path.to_string(), calibrate::error(&parts[1..], &solution.a_fit, b));
        for (choice, errors) in choices.iter().zip(&mut errors) {
            if let Some(a) = choice.iter().find(|d| d.path == path).and_then(|d| d.a.as_ref()) {
                let same = vec![a.clone(); parts.len() - 1];
                errors.insert(path.to_string(), calibrate::error(&parts[1..], &same, b));
            }
        }
        fitted.solutions.insert(path.to_string(), solution);
    })?;
    Ok(Judged { fitted, errors })
}

/// Fits block by block in graph order: x from the model merged so far, t from the live one. Blocks that read nothing of each
/// other are fitted together.
pub fn fit_in_order(task: &Task, device: &mut dyn Device) -> Result<Judged, Error> {
    let Task { prepared: p, injected, adapter, data: c, norms, ridge } = *task;
    let starts = starts(p, norms)?;
    let batches = batches(c);
    let examples: Vec<Vec<usize>> = batches.iter().map(|b| b.1.clone()).collect();
    let (emission, linear) = (adapters::emit_again(injected, &p.config), onnx::linear_nodes(injected));
    let mut fitted = Fitted { solutions: BTreeMap::new() };
    let mut errors = BTreeMap::new();
    // One model merged from all rows, which the file will hold, and for each fold one from the rows outside it, to judge by.
    let count = folds(c.data.len()).len() + 1;
    let mut merged = vec![p.model.clone(); count];
    for group in stages(&p.model, &p.config) {
        let mut taken = Vec::new();
        for path in &group {
            taken.push(taps(&emission, &linear, path)?);
        }
        let live: Vec<Signal> =
            taken.iter().map(|(_, t)| Signal { x: None, t: Some(t.clone()), sums: false }).collect();
        let plain: Vec<Signal> =
            taken.iter().map(|(x, _)| Signal { x: Some(x.clone()), t: None, sums: false }).collect();
        let live = with_signals(load(injected, Some(adapter))?, c, live);
        let mut ts: Vec<Fetched> = Vec::new();
        over(&live, c.data, &examples, device, &mut |_, fetched| ts.push(fetched))?;
        let mut found: Vec<Vec<Vec<Moments>>> = vec![vec![]; count];
        for (model, found) in merged.iter().zip(found.iter_mut()) {
            let model = Arc::new(model.clone());
            let trainee = Trainee {
                program: inferring(&model),
                feed: c.feed(&model),
                parameters: BTreeMap::new(),
                frozen: BTreeMap::new(),
                base: None,
                kind: None,
            };
            let trainee = with_signals(trainee, c, plain.clone());
            let sums = |path: &String| starts[path].ncols() <= WIDE;
            let mut parts: Vec<Vec<Gathering>> =
                group.iter().map(|g| (0..count).map(|_| Gathering::new(sums(g))).collect()).collect();
            over(&trainee, c.data, &examples, device, &mut |k, fetched| {
                for (i, part) in parts.iter_mut().enumerate() {
                    let part = &mut part[batches[k].0];
                    let x = matrix(&fetched, i, "x").expect("the program gives it");
                    let t = matrix(&ts[k], i, "t").expect("the program gives it");
                    let mask = matrix(&fetched, i, "mask");
                    let counts = |r: usize| mask.as_ref().is_none_or(|m| m[(r, 0)] != 0.0);
                    match part {
                        Gathering::Rows { .. } => part.add_rows(&x, &t, counts),
                        Gathering::Sums(_) => {
                            let rows: Vec<usize> = (0..x.nrows()).filter(|&r| counts(r)).collect();
                            let (x, t) = (x.select(Axis(0), &rows), t.select(Axis(0), &rows));
                            part.add_sums([x.t().dot(&x), t.t().dot(&x), t.t().dot(&t)]);
                        }
                    }
                }
            })?;
            for (path, parts) in group.iter().zip(parts) {
                let size = [starts[path].ncols(), starts[path].nrows()];
                found.push(parts.into_iter().map(|p| p.finish(size)).collect());
            }
        }
        let mut projections: Vec<BTreeMap<String, Array2<f64>>> = vec![BTreeMap::new(); count];
        for (i, path) in group.iter().enumerate() {
            let b = &p.factors[path].last;
            // The inputs of each fold's own model; where there is no fold, nothing is judged.
            let own: Vec<Solution> =
                (1..count).map(|k| calibrate::solve(&found[k][i], &starts[path], b, ridge)).collect();
            let ridge = own.first().map_or(ridge, |s| Some(s.ridge));
            let whole = calibrate::solve(&found[0][i], &starts[path], b, ridge);
            let a_fit: Vec<Array2<f64>> = own.iter().enumerate().map(|(k, s)| s.a_fit[k].clone()).collect();
            let held: Vec<Moments> = (1..count).map(|k| found[k][i][k].clone()).collect();
            errors.insert(path.clone(), calibrate::error(&held, &a_fit, b));
            for (a, projections) in std::iter::once(&whole.a).chain(&a_fit).zip(&mut projections) {
                projections.insert(path.clone(), a.clone());
            }
            fitted.solutions.insert(path.clone(), Solution { a_fit, ..whole });
        }
        for (model, projections) in merged.iter_mut().zip(projections) {
            let statistics = Statistics { projections, ..Statistics::default() };
            let deltas = merge::deltas_of(p, &group, Strategy::LEAST_SQUARES, &statistics)?;
            merge::fold(model, &p.config, &deltas, &mut vec![])?;
        }
    }
    Ok(Judged { fitted, errors: vec![errors] })
}

/// The targets in an order of execution, together where none depends on another of its stage.
fn stages(model: &Model, config: &Config) -> Vec<Vec<String>> {
    let linear = onnx::linear_nodes(model);
    let nodes: HashMap<NodeId, &str> =
        linear.iter().filter(|l| config.target(&l.path).is_some()).map(|l| (l.node, l.path.as_str())).collect();
    // The stage after the last target that each value depends on.
    let mut after: HashMap<&str, usize> = HashMap::new();
    let mut stage: BTreeMap<&str, usize> = BTreeMap::new();
    let mut seen = HashSet::new();
    for (id, node) in model.nodes() {
        let mut level = node.inputs().iter().filter_map(|i| after.get(i.as_str())).copied().max().unwrap_or(0);
        if let Some(path) = nodes.get(&id) {
            // A module that is called again has had its turn.
            if seen.insert(*path) {
                stage.insert(path, level);
            }
            level = level.max(stage[path] + 1);
        }
        after.extend(node.outputs().iter().map(|o| (o.as_str(), level)));
    }
    let mut out: Vec<Vec<String>> = vec![vec![]; stage.values().max().map_or(0, |m| m + 1)];
    for t in &config.targets {
        if let Some(&s) = stage.get(t.path.as_str()) {
            out[s].push(t.path.clone());
        }
    }
    out.retain(|g| !g.is_empty());
    out
}
