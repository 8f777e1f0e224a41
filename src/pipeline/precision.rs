//! In which type products multiply: what `--precision` says, on the device at hand.

use super::Error;
use super::surveying::survey;
use super::training::{TrainRequest, prepare};
use crate::device::{self, Device};
use crate::ir::{FloatType, outputs};
use crate::plan::gradients_state;
use crate::train::{Purpose, Session};
use std::time::Instant;

/// A choice, and why it was made where that is worth saying.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub products: FloatType,
    pub why: Option<String>,
}

impl Choice {
    fn plain(products: FloatType) -> Choice {
        Choice { products, why: None }
    }
}

/// What `f32` and `mixed` mean on a device. `auto` is f32 here; [`proven`] looks further.
pub fn named(precision: &str, device: &dyn Device) -> Choice {
    match (precision, device.fast_products()) {
        ("mixed", FloatType::F32) => Choice {
            products: FloatType::F32,
            why: Some(
                "this processor has no units for products of bf16: --precision mixed computes in f32 here\n\
                 hint: --weights bf16 halves the memory of frozen weights"
                    .into(),
            ),
        },
        ("mixed", fast) => Choice::plain(fast),
        _ => Choice::plain(FloatType::F32),
    }
}

/// What a precision means for a run that starts.
pub fn chosen(precision: &str, request: &TrainRequest, device: &dyn Device) -> Result<Choice, Error> {
    if precision == "auto" { proven(request, device) } else { Ok(named(precision, device)) }
}

/// The choice that a run's record has, if the device can go on with it.
pub fn recorded(name: &str, device: &dyn Device) -> Result<Choice, Error> {
    let products = FloatType::parse(name).unwrap_or_default();
    if products == FloatType::F32 || products == device.fast_products() {
        return Ok(Choice::plain(products));
    }
    let text = format!("the run multiplies in {name}, which {} has no units for", device.name());
    let hint = "go on on a device like the one that the run began on, or start again with --precision f32";
    Err(Error::Usage(format!("{text}\nhint: {hint}")))
}

/// Steps that take less time than this stay in f32: there is nothing to gain.
const LEAST_SECONDS: f64 = 0.05;
/// How much faster a step must be.
const FASTER: f64 = 0.8;
/// How far the loss of a batch may be off.
const LOSS_OFF: f64 = 0.01;

/// What `auto` means for a run on the cpu device: a forward and backward pass of its first batch is run in f32 and in bf16, and bf16 taken
/// where it is clearly faster and the losses agree.
fn proven(request: &TrainRequest, device: &dyn Device) -> Result<Choice, Error> {
    if device.fast_products() != FloatType::Bf16 {
        return Ok(Choice::plain(FloatType::F32));
    }
    // On a device of its own, so that the weights of the type that is not taken are not kept.
    let full = trial(request, &mut device::Cpu::new(None), FloatType::F32)?;
    if full.seconds < LEAST_SECONDS {
        return Ok(Choice::plain(FloatType::F32));
    }
    let short = trial(request, &mut device::Cpu::new(None), FloatType::Bf16)?;
    Ok(weigh(full, short))
}

/// One pass in one type.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Of a forward and backward pass of the first batch.
    pub seconds: f64,
    /// Its mean loss.
    pub loss: f64,
}

fn weigh(full: Trial, short: Trial) -> Choice {
    let off = (short.loss - full.loss).abs() / full.loss.abs().max(1e-3);
    let ratio = short.seconds / full.seconds;
    let losses = format!("its loss is {:.4}, in f32 {:.4}", short.loss, full.loss);
    let (products, why) = match () {
        _ if off.is_nan() || off > LOSS_OFF => {
            (FloatType::F32, format!("products in f32: bf16 is not exact enough here, {losses}"))
        }
        _ if ratio > FASTER => (FloatType::F32, format!("products in f32: bf16 takes {ratio:.2} of its time here")),
        _ => (FloatType::Bf16, format!("products in bf16: a pass takes {ratio:.2} of the time of f32, {losses}")),
    };
    Choice { products, why: Some(why) }
}

/// Runs the first batch twice, and times the second run.
pub fn trial(request: &TrainRequest, device: &mut dyn Device, products: FloatType) -> Result<Trial, Error> {
    let settings = crate::train::Settings { products, ..request.settings.clone() };
    let terms = request.terms.clone();
    let (mut trainee, _, _) = prepare(&TrainRequest { settings: &settings, terms, resume: false, ..*request })?;
    survey(&mut trainee, &[request.data], device)?;
    let size = request.settings.batch_size;
    trainee.session(device, |session| Ok(timed(session, request, size)?))
}

fn timed(session: &mut Session, request: &TrainRequest, size: usize) -> Result<Trial, crate::train::TrainError> {
    let examples: Vec<usize> = (0..request.data.len().min(size)).collect();
    let parts = request.data.batches(session.feed, &examples, size);
    let batches = parts.iter().map(|e| request.data.batch(session.feed, e)).collect::<Result<Vec<_>, _>>()?;
    let (weights, total) = session.weights(&batches)?;
    for (i, segment) in session.layout.segments.iter().enumerate() {
        session.device.reserve(&gradients_state(i), segment.words)?;
    }
    let mut trial = Trial { seconds: 0.0, loss: 0.0 };
    for _ in 0..2 {
        let mut runs = vec![];
        for (batch, weight) in batches.iter().zip(&weights).filter(|(_, w)| **w != 0.0) {
            let plan = session.plan(batch, Purpose::Train { statistics: false })?;
            runs.push(session.run(plan, batch, *weight, total, 0));
        }
        let began = Instant::now();
        session.device.submit(runs)?;
        let done = session.collect(true)?;
        trial.seconds = began.elapsed().as_secs_f64();
        let fetched = done.iter().flat_map(|f| &f.runs).flatten().filter(|(name, _)| name == outputs::LOSS);
        trial.loss = fetched.filter_map(|(_, t)| t.as_f32().map(|x| x[0] as f64)).sum();
    }
    Ok(trial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_taken_where_it_is_faster_and_exact() {
        let of = |seconds, loss| Trial { seconds, loss };
        let full = of(1.0, 2.0);
        assert_eq!(weigh(full, of(0.4, 2.01)).products, FloatType::Bf16);
        for other in [of(0.9, 2.0), of(0.4, 2.1), of(0.4, f64::NAN)] {
            assert_eq!(weigh(full, other).products, FloatType::F32, "{other:?}");
        }
    }
}
