//! Successive halving over structure, rank, alpha and learning rate, within a budget of time: many candidates get a short run, the better
//! third of them one three times as long, and so on.

use super::Error;
use super::experimenting::{Ran, Run};
use crate::adapters::Structure;
use crate::device::Device;
use crate::inject::Options;
use crate::onnx::Model;
use crate::settings::TrainConfig;
use crate::train::Observer;
use crate::train::data::Dataset;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A third of the candidates goes on to runs three times as long.
const THIRD: usize = 3;
/// Rounds of runs.
const ROUNDS: u32 = 3;
/// The fewest steps of a run that says anything.
const LEAST_STEPS: u64 = 5;

/// The values to choose from.
pub struct Space {
    pub structures: Vec<Structure>,
    pub ranks: Vec<usize>,
    pub alphas: Vec<f64>,
    pub rates: Vec<f64>,
}

/// A choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    pub structure: Structure,
    pub rank: usize,
    pub alpha: f64,
    pub lr: f64,
}

/// A run of a candidate.
#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    #[serde(flatten)]
    pub candidate: Candidate,
    /// From 1.
    pub round: u32,
    pub steps: u64,
    /// The evaluation loss at the end; `None` where training broke down.
    pub loss: Option<f64>,
    pub accuracy: Option<f64>,
    pub seconds: f64,
}

/// What to search.
pub struct SearchRequest<'a> {
    pub base: &'a Arc<Model>,
    pub space: &'a Space,
    /// What every candidate has in common.
    pub options: &'a Options,
    pub config: &'a TrainConfig,
    pub data: &'a Dataset,
    pub eval: &'a Dataset,
    pub budget: Duration,
    /// For the runs.
    pub dir: &'a Path,
}

impl Space {
    /// Every combination, in an order that a seed draws.
    fn candidates(&self, seed: u64) -> Vec<Candidate> {
        let mut all = Vec::new();
        for &structure in &self.structures {
            for &rank in if structure.rank { &self.ranks[..] } else { &self.ranks[..1] } {
                for &alpha in if structure.alpha { &self.alphas[..] } else { &self.alphas[..1] } {
                    all.extend(self.rates.iter().map(|&lr| Candidate { structure, rank, alpha, lr }));
                }
            }
        }
        all.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        all
    }
}

/// Searches; `each` is told of every run before it and makes its observer. Attempts come in the order in which they were made.
pub fn search<O: Observer>(
    request: &SearchRequest,
    device: &mut dyn Device,
    each: &mut dyn FnMut(&Candidate, u32, u64) -> O,
) -> Result<Vec<Attempt>, Error> {
    let begun = Instant::now();
    let left = || request.budget.saturating_sub(begun.elapsed()).as_secs_f64();
    let mut pool = request.space.candidates(request.config.seed);
    let whole = request.config.steps(request.data.len());
    // The first candidate's short run says what runs cost.
    let mut steps = (whole / THIRD.pow(ROUNDS - 1) as u64).clamp(LEAST_STEPS.min(whole), whole);
    let mut attempts: Vec<Attempt> = Vec::new();
    for round in 1..=ROUNDS {
        let mut done: Vec<Attempt> = Vec::new();
        for candidate in &pool {
            // The dearest run so far of this length, or a third of that of the last.
            let dearest = |xs: &[Attempt]| xs.iter().map(|a| a.seconds).fold(0.0, f64::max);
            let next = if done.is_empty() { THIRD as f64 * dearest(&attempts) } else { dearest(&done) };
            // What comes later takes about as long as this round, once for each round.
            let later = f64::from(ROUNDS - round) * done.iter().map(|a| a.seconds).sum::<f64>();
            // One has to give a loss, however long that takes.
            if done.iter().any(|a| a.loss.is_some()) && next + later > left() {
                break;
            }
            if done.is_empty() && !attempts.is_empty() && next > left() {
                return Ok(attempts);
            }
            let mut observer = each(candidate, round, steps);
            done.push(attempt(request, candidate, round, steps, device, &mut observer)?);
        }
        done.sort_by(|a, b| a.loss.unwrap_or(f64::INFINITY).total_cmp(&b.loss.unwrap_or(f64::INFINITY)));
        let good = done.iter().filter(|a| a.loss.is_some());
        pool = good.take(done.len().div_ceil(THIRD)).map(|a| a.candidate.clone()).collect();
        attempts.extend(done);
        steps = (THIRD as u64 * steps).min(whole);
        if pool.is_empty() {
            break;
        }
    }
    Ok(attempts)
}

fn attempt(
    request: &SearchRequest,
    candidate: &Candidate,
    round: u32,
    steps: u64,
    device: &mut dyn Device,
    observer: &mut dyn Observer,
) -> Result<Attempt, Error> {
    let Candidate { structure, rank, alpha, lr } = candidate.clone();
    let warmup_steps = request.config.warmup_steps.min(steps / 2);
    let config =
        TrainConfig { lr, warmup_steps, max_steps: Some(steps), eval_every: Some(steps), ..request.config.clone() };
    let name = format!("{structure}-rank-{rank}-alpha-{alpha}-lr-{lr:e}-steps-{steps}");
    let options = Options { structure, rank, alpha, ..request.options.clone() };
    let &SearchRequest { base, data, eval, .. } = request;
    let begun = Instant::now();
    let run = Run { base, options, data, eval, config, dir: request.dir.join(name) };
    let last = match run.run(device, observer) {
        Ok(Ran { evaluations, .. }) => evaluations.last().cloned(),
        // A rate at which training breaks down is an answer.
        Err(Error::Train(crate::train::TrainError::NotFinite { .. } | crate::train::TrainError::Evaluation { .. })) => {
            None
        }
        Err(e) => return Err(e),
    };
    Ok(Attempt {
        candidate: candidate.clone(),
        round,
        steps,
        loss: last.as_ref().map(|e| e.eval_loss),
        accuracy: last.and_then(|e| e.eval_accuracy),
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// The best attempt: the lowest loss of the last round that ended.
pub fn best(attempts: &[Attempt]) -> Option<&Attempt> {
    let last = attempts.iter().filter(|a| a.loss.is_some()).map(|a| a.round).max()?;
    let of = attempts.iter().filter(|a| a.round == last && a.loss.is_some());
    of.min_by(|a, b| a.loss.unwrap_or(f64::INFINITY).total_cmp(&b.loss.unwrap_or(f64::INFINITY)))
}
