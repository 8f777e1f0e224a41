//! Starts that read more than the model: EVA its data, and LoftQ the weights from before a model was quantised.

use super::calibrating::Calibration;
use super::compile::{Signal, Tap};
use super::fitting::{over, with_signals};
use super::training::load;
use super::{Error, sample_values};
use crate::adapters::{Config, Target};
use crate::calibrate::{BUDGET, Directions, Scatter, WIDE, distribute, matrix};
use crate::device::Device;
use crate::inject::{self, Options};
use crate::onnx::{self, Linear, Model};
use regex::Regex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Completes options for `--init eva`: the principal directions of each target's inputs over all rows of the data, and ranks given to
/// targets by the variance that these explain. A target gets at most `rho` times its rank, and none where others explain more; all ranks
/// together stay what they were. Alpha changes as the rank does, so that each term keeps its scale. Also says what the ranks are.
///
/// # Errors
/// Data that does not fit the model, or has too few rows for so many directions.
pub fn with_directions(
    base: &Arc<Model>,
    options: &Options,
    c: &Calibration,
    rho: f64,
    device: &mut dyn Device,
) -> Result<(Options, String), Error> {
    if !(rho.is_finite() && rho >= 1.0) {
        return Err(Error::Usage(format!("--eva-rho {rho} must be a number from 1 up")));
    }
    let c = &c.clone().surveyed(base, device)?;
    let (config, linear) = targets(base, options)?;
    let inputs = inputs(&config, &linear);
    // Targets of one input get directions for the largest rank among them.
    let most = |t: &Target| (config.rank_of(t) as f64 * rho).round_ties_even() as usize;
    let wanted = |i: &Input| {
        let all = i.targets.iter().map(|&t| &config.targets[t]);
        all.map(|t| most(t).min(t.in_features)).max().unwrap_or(1)
    };
    let mut found: Vec<Directions> = Vec::new();
    let mut open = &inputs[..];
    while let Some(first) = open.first() {
        // As many inputs at once as fit; each round runs the data again.
        let bytes = |i: &Input| 8 * i.width.min(WIDE) * i.width;
        let mut used = bytes(first);
        let more = open[1..].iter().take_while(|i| {
            used += bytes(i);
            used <= BUDGET
        });
        let (group, rest) = open.split_at(1 + more.count());
        for (input, scatter) in group.iter().zip(gather(base, c, group, device)?) {
            let (path, k) = (&config.targets[input.targets[0]].path, wanted(input));
            if scatter.rows() < k {
                let (rows, file) = (scatter.rows(), c.data.path.display());
                let hint = "hint: give more examples, or a smaller --rank or --eva-rho";
                let why = format!("{file} has {rows} rows for the input of '{path}', too few for {k} directions");
                return Err(Error::Usage(format!("{why}\n{hint}")));
            }
            found.push(scatter.directions(k).map_err(|why| Error::Model(format!("target '{path}': {why}")))?);
        }
        open = rest;
    }
    let ranks = ranks(&config, &inputs, &found);
    let mut out = options.clone();
    for (input, found) in inputs.iter().zip(found) {
        for &t in &input.targets {
            out.directions.insert(config.targets[t].path.clone(), found.directions.clone());
        }
    }
    (out.rank_pattern, out.alpha_pattern) = (vec![], vec![]);
    for (t, &rank) in config.targets.iter().zip(&ranks) {
        let exactly = Regex::new(&format!("^{}$", regex::escape(&t.path))).expect("an escaped path");
        let alpha = t.alpha.unwrap_or(config.alpha) * rank as f64 / config.rank_of(t) as f64;
        match rank {
            0 => out.exclude.push(exactly),
            rank => {
                out.rank_pattern.push((exactly.clone(), rank));
                out.alpha_pattern.push((exactly, alpha));
            }
        }
    }
    Ok((out, said(&config, &ranks, c)))
}

/// Completes options for `--init loftq`: the weights of quantised targets as a model from before that has them, found by module path.
///
/// # Errors
/// No target is quantised, or the other model has no such layer.
pub fn with_originals(base: &Arc<Model>, options: &Options, original: &Model) -> Result<Options, Error> {
    let (config, _) = targets(base, options)?;
    let theirs = onnx::linear_nodes(original);
    let (file, mut out) = (original.path().display(), options.clone());
    for t in config.targets.iter().filter(|t| t.quantised) {
        let l = theirs.iter().find(|l| l.path == t.path).ok_or_else(|| {
            let near = onnx::nearest(&t.path, theirs.iter().map(|l| l.path.as_str()), 3).join(", ");
            let hint =
                format!("hint: --init-data takes the model from before it was quantised; the nearest are {near}");
            Error::Usage(format!("{file} has no layer '{}'\n{hint}", t.path))
        })?;
        let weight = l.multiplied(original).map_err(|why| Error::Model(format!("{file}: '{}': {why}", t.path)))?;
        if weight.dim() != (t.out_features, t.in_features) {
            let ((rows, columns), want) = (weight.dim(), format!("{} x {}", t.out_features, t.in_features));
            let why = format!("{file} is another model: the weight of '{}' is {rows} x {columns}, not {want}", t.path);
            return Err(Error::Usage(format!("{why}\nhint: give the model from before it was quantised")));
        }
        out.originals.insert(t.path.clone(), weight.mapv(|x| x as f32));
    }
    if out.originals.is_empty() {
        let why = "--init loftq takes --init-data for quantised weights, and the targets' are floats";
        return Err(Error::Usage(format!(
            "{why}\nhint: leave --init-data out; --loftq-bits says how they are quantised"
        )));
    }
    Ok(out)
}

fn targets(base: &Arc<Model>, options: &Options) -> Result<(Config, Vec<Linear>), Error> {
    let shapes = sample_values(base)?;
    Ok(inject::targets(base, options, &|name| shapes.get(name).cloned())?)
}

/// A value that targets read; several values where a module is called several times.
struct Input {
    taps: Vec<Tap>,
    width: usize,
    /// In execution order.
    targets: Vec<usize>,
}

/// What the targets read, in execution order. Those that read the same value share an input.
fn inputs(config: &Config, linear: &[Linear]) -> Vec<Input> {
    let mut out: Vec<Input> = Vec::new();
    for (i, t) in config.targets.iter().enumerate() {
        let own = linear.iter().filter(|l| l.path == t.path);
        let taps: Vec<Tap> = own.map(|l| Tap { value: l.x.clone(), strides: l.strides.clone() }).collect();
        match out.iter_mut().find(|o| o.taps == taps) {
            Some(known) => known.targets.push(i),
            None => out.push(Input { taps, width: t.in_features, targets: vec![i] }),
        }
    }
    out
}

/// Runs the data and gathers the rows of some inputs.
fn gather(
    base: &Arc<Model>,
    c: &Calibration,
    inputs: &[Input],
    device: &mut dyn Device,
) -> Result<Vec<Scatter>, Error> {
    let taps = inputs.iter().enumerate().flat_map(|(i, input)| input.taps.iter().map(move |t| (i, t.clone())));
    let (of, taps): (Vec<usize>, Vec<Tap>) = taps.unzip();
    let signals = taps.into_iter().map(|tap| Signal { x: Some(tap), t: None, sums: false }).collect();
    let mut scatters: Vec<Scatter> = inputs.iter().map(|i| Scatter::new(i.width)).collect();
    let trainee = with_signals(load(base, None)?, c, signals);
    let all: Vec<usize> = (0..c.data.len()).collect();
    let batches = c.data.batches(&trainee.feed, &all, c.batch_size);
    over(&trainee, c.data, &batches, device, &mut |_, fetched| {
        for (k, &i) in of.iter().enumerate() {
            let (x, mask) = (matrix(&fetched, k, "x").expect("the program gives it"), matrix(&fetched, k, "mask"));
            scatters[i].add(&x, |r| mask.as_ref().is_none_or(|m| m[(r, 0)] != 0.0));
        }
    })?;
    Ok(scatters)
}

/// The rank of each target. Of targets with the same input, the first in execution order comes first.
fn ranks(config: &Config, inputs: &[Input], found: &[Directions]) -> Vec<usize> {
    let firsts = inputs.iter().enumerate().map(|(i, input)| (i, input.targets[0]));
    let others = inputs.iter().enumerate().flat_map(|(i, input)| input.targets[1..].iter().map(move |&t| (i, t)));
    let order: Vec<(usize, usize)> = firsts.chain(others).collect();
    let ratios: Vec<&[f64]> = order.iter().map(|&(i, _)| &found[i].ratios[..]).collect();
    let counts = distribute(&ratios, config.targets.iter().map(|t| config.rank_of(t)).sum());
    let by_target: BTreeMap<usize, usize> = order.into_iter().map(|(_, t)| t).zip(counts).collect();
    by_target.into_values().collect()
}

/// What came of it, for the user.
fn said(config: &Config, ranks: &[usize], c: &Calibration) -> String {
    let none: Vec<&str> =
        config.targets.iter().zip(ranks).filter(|(_, r)| **r == 0).map(|(t, _)| t.path.as_str()).collect();
    let (least, largest) = (ranks.iter().filter(|r| **r > 0).min(), ranks.iter().max());
    let span = match (least, largest) {
        (Some(a), Some(b)) if a != b => format!("ranks from {a} to {b}"),
        (Some(a), _) => format!("rank {a}"),
        (None, _) => "no rank".into(),
    };
    let left = match none[..] {
        [] => String::new(),
        [..] => format!("; no adapter at {}, whose input others explain more of", none.join(", ")),
    };
    format!("eva gave {span} by the inputs of {} examples of {}{left}", c.data.len(), c.data.path.display())
}
