//! Text from a decoder, token by token: with the model's key-value cache where that gives the same as the whole sequence, else by the
//! whole sequence for each token.

use super::running::because_unknown;
use super::training::{Trainee, load};
use super::{Error, input_specs};
use crate::adapter::Adapter;
use crate::adapters::PROMPT_IDS_KEY;
use crate::device::{Device, Run};
use crate::ir::{DType, Tensor};
use crate::onnx::Model;
use crate::train::data::{Axis, Batch, Feed, InputSpec, buckets};
use crate::train::{Purpose, Session};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What to generate.
pub struct GenerateRequest<'a> {
    pub model: &'a Arc<Model>,
    pub adapter: Option<&'a Adapter>,
    /// The tokens to go on from.
    pub prompt: &'a [i32],
    pub max_tokens: usize,
    /// 0 takes the likeliest token; else logits are divided by it and a token is drawn.
    pub temperature: f64,
    pub seed: u64,
    /// Tokens that end the text.
    pub ends: &'a [i32],
}

/// What a model generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Without the token that ended it.
    pub tokens: Vec<i32>,
    /// Whether such a token came.
    pub ended: bool,
    /// Whether the model's cache was used.
    pub cached: bool,
}

/// How far the logits of a step with the cache may be from those of the whole sequence, in parts of the largest.
const CACHE_TOLERANCE: f32 = 1e-3;

/// Generates text; `each` is told of every token as it comes.
pub fn generate(
    request: &GenerateRequest,
    device: &mut dyn Device,
    each: &mut dyn FnMut(i32),
) -> Result<Generated, Error> {
    if request.prompt.is_empty() {
        return Err(Error::Usage("the prompt has no token to go on from\nhint: --prompt TEXT".into()));
    }
    if !(request.temperature >= 0.0 && request.temperature.is_finite()) {
        return Err(Error::Usage(format!("--temperature {} is not 0 or more", request.temperature)));
    }
    let decoder = Decoder::of(request.model)?;
    let mut trainee = load(request.model, request.adapter)?;
    trainee.program.outputs = decoder.outputs();
    let prefix = prefix(request.model);
    let mut tokens = [&prefix[..], request.prompt].concat();
    let before = tokens.len();
    let last = before + request.max_tokens;
    let mut rng = ChaCha8Rng::seed_from_u64(request.seed);
    let (mut ended, mut cached) = (false, false);
    in_session(trainee, &decoder, before, device, |trainee, session| {
        let mut run = Runner { decoder: &decoder, feed: &trainee.feed, session };
        let mut cache = None;
        while tokens.len() < last {
            let logits = match &mut cache {
                Some(cache) => run.step(cache, &tokens)?,
                None if tokens.len() == before => {
                    let (logits, found) = run.first(&tokens, last)?;
                    cached = found.is_some();
                    cache = found;
                    logits
                }
                None => run.whole(&tokens, last)?,
            };
            let next = pick(&logits, request.temperature, &mut rng)?;
            if request.ends.contains(&next) {
                ended = true;
                break;
            }
            tokens.push(next);
            each(next);
        }
        Ok(())
    })?;
    Ok(Generated { tokens: tokens.split_off(before), ended, cached })
}

/// The token ids that a model with trained virtual tokens takes before every sequence.
fn prefix(model: &Model) -> Vec<i32> {
    let ids = model.metadata(PROMPT_IDS_KEY).unwrap_or_default();
    ids.split(',').filter_map(|id| id.trim().parse().ok()).collect()
}

/// Opens a session; where the model cannot be lowered without them, its other integer inputs are known while compiling.
fn in_session(
    mut trainee: Trainee,
    decoder: &Decoder,
    length: usize,
    device: &mut dyn Device,
    f: impl FnOnce(&Trainee, &mut Session) -> Result<(), Error>,
) -> Result<(), Error> {
    let batch = decoder.whole(&trainee.feed, &vec![0; length], length)?;
    if let Err(Error::Lower(first)) = trainee.program.forward(&batch.shapes(), Purpose::Infer) {
        let other = |i: &&InputSpec| i.dtype != DType::F32 && !VARYING.contains(&i.name.as_str());
        trainee.feed.known = decoder.inputs.iter().filter(other).map(|i| i.name.clone()).collect();
        let batch = decoder.whole(&trainee.feed, &vec![0; length], length)?;
        if trainee.feed.known.is_empty() || trainee.program.forward(&batch.shapes(), Purpose::Infer).is_err() {
            return Err(first.into());
        }
    }
    trainee.session(device, |session| f(&trainee, session))
}

/// Inputs whose values are others at each step.
const VARYING: [&str; 3] = ["input_ids", "attention_mask", "position_ids"];

/// What a decoder reads and gives.
struct Decoder {
    inputs: Vec<InputSpec>,
    /// The output of shape `(batch, sequence, vocabulary)`.
    logits: String,
    /// Past keys and values, and the outputs that hold them with those of the step; empty where the model has no such cache.
    cache: Vec<(InputSpec, String)>,
}

/// What a step with the cache needs: the keys and values of the tokens before, of so many positions, the last of them filled.
struct Cache {
    positions: usize,
    past: Vec<Tensor>,
}

impl Decoder {
    fn of(model: &Arc<Model>) -> Result<Decoder, Error> {
        let inputs = input_specs(model);
        let file = model.path().display();
        if !inputs.iter().any(|i| i.name == "input_ids") {
            return Err(Error::Model(format!("{file} does not read 'input_ids': generate needs a decoder of text")));
        }
        let outputs = model.outputs();
        let present = |name: &str| name.starts_with("present");
        let usable = |o: &&crate::onnx::Signature| {
            o.element.is_float() && !present(&o.name) && o.dims.as_ref().is_none_or(|d| d.len() == 3)
        };
        let logits = outputs.iter().filter(usable).find(|o| o.name == "logits").or(outputs.iter().find(usable));
        let logits = logits.map(|o| o.name.clone()).ok_or_else(|| {
            Error::Model(format!("{file} has no output of logits for each position: generate needs a decoder of text"))
        })?;
        let past = |i: &&InputSpec| i.name.starts_with("past");
        let pair = |i: &InputSpec| {
            let rest = i.name.strip_prefix("past_key_values").or(i.name.strip_prefix("past"))?;
            let growing = matches!(i.dims.as_deref(), Some([_, _, axis, _]) if !matches!(axis, Axis::Fixed(_)));
            let output = outputs.iter().find(|o| o.name.strip_prefix("present") == Some(rest)).filter(|_| growing)?;
            Some((i.clone(), output.name.clone()))
        };
        let all: Option<Vec<_>> = inputs.iter().filter(past).map(pair).collect();
        Ok(Decoder { logits, cache: all.unwrap_or_default(), inputs })
    }

    fn outputs(&self) -> Vec<String> {
        std::iter::once(&self.logits).chain(self.cache.iter().map(|(_, o)| o)).cloned().collect()
    }

    /// Examples that the model is declared with; all are the same.
    fn rows(&self) -> usize {
        let of = |i: &InputSpec| match (i.name.as_str(), i.dims.as_deref()) {
            ("input_ids", Some([Axis::Fixed(n), _])) => Some(*n),
            _ => None,
        };
        self.inputs.iter().find_map(of).unwrap_or(1)
    }

    /// Tokens padded behind to a length, which a decoder does not look at.
    fn whole(&self, feed: &Feed, tokens: &[i32], length: usize) -> Result<Batch, Error> {
        let rows = self.rows();
        let mut ids = tokens.to_vec();
        ids.resize(length, *tokens.last().expect("there is a token"));
        let mut mask = vec![1; tokens.len()];
        mask.resize(length, 0);
        let mut given = BTreeMap::new();
        given.insert("input_ids".to_string(), Tensor::i32([rows, length], ids.repeat(rows)));
        self.add_mask(&mut given, [rows, length], mask.repeat(rows));
        feed.complete(given, rows, length).map_err(Error::Model)
    }

    /// One token behind those that the cache holds.
    fn next(&self, feed: &Feed, cache: &Cache, tokens: &[i32]) -> Result<Batch, Error> {
        let (held, token) = (tokens.len() - 1, tokens[tokens.len() - 1]);
        let empty = cache.positions - held;
        let mask = (0..=cache.positions).map(|i| i32::from(i >= empty)).collect();
        let mut given = BTreeMap::new();
        given.insert("input_ids".to_string(), Tensor::i32([1, 1], vec![token]));
        given.insert("position_ids".to_string(), Tensor::i32([1, 1], vec![held as i32]));
        self.add_mask(&mut given, [1, cache.positions + 1], mask);
        for ((input, _), past) in self.cache.iter().zip(&cache.past) {
            given.insert(input.name.clone(), past.clone());
        }
        feed.complete(given, 1, 1).map_err(Error::Model)
    }

    /// The mask in the type that the model reads it in.
    fn add_mask(&self, given: &mut BTreeMap<String, Tensor>, shape: [usize; 2], mask: Vec<i32>) {
        let name = "attention_mask";
        let dtype = self.inputs.iter().find(|i| i.name == name).map(|i| i.dtype);
        let mask = match dtype {
            Some(DType::F32) => Tensor::f32(shape, mask.iter().map(|&x| x as f32).collect()),
            _ => Tensor::i32(shape, mask),
        };
        given.insert(name.to_string(), mask);
    }
}

/// A decoder in a session.
struct Runner<'a, 'b> {
    decoder: &'a Decoder,
    feed: &'a Feed,
    session: &'a mut Session<'b>,
}

impl Runner<'_, '_> {
    /// The outputs of a batch by name.
    fn run(&mut self, batch: Batch) -> Result<BTreeMap<String, Tensor>, Error> {
        let plan = self.session.plan(&batch, Purpose::Infer)?;
        self.session.device.submit(vec![Run { plan, inputs: batch.inputs }])?;
        Ok(self.session.collect(true)?.into_iter().flat_map(|f| f.runs).flatten().collect())
    }

    /// The logits behind the last token, from the whole sequence; `last` bounds how long it will become.
    fn whole(&mut self, tokens: &[i32], last: usize) -> Result<Vec<f32>, Error> {
        let fixed = self.feed.fixed_length();
        // Few lengths, so that few programs are compiled.
        let length = fixed.unwrap_or_else(|| buckets(last.min(tokens.len() + 64)).max(tokens.len()));
        if tokens.len() > length {
            return Err(Error::Model(format!(
                "the text is longer than the {length} positions that the model is declared with"
            )));
        }
        let batch = self.decoder.whole(self.feed, tokens, length)?;
        let mut outputs = self.run(batch)?;
        row(&mut outputs, &self.decoder.logits, length - tokens.len())
    }

    /// The first logits, and the cache if a step with it gives the same.
    fn first(&mut self, tokens: &[i32], last: usize) -> Result<(Vec<f32>, Option<Cache>), Error> {
        if self.decoder.cache.is_empty() || self.feed.fixed_length().is_some() || self.decoder.rows() != 1 {
            return Ok((self.whole(tokens, last)?, None));
        }
        let batch = self.decoder.whole(self.feed, tokens, tokens.len())?;
        let mut outputs = self.run(batch)?;
        let logits = row(&mut outputs, &self.decoder.logits, 0)?;
        // All but the last token, which the step has to give the same logits for.
        let (held, positions) = (tokens.len() - 1, buckets(last));
        let past = self.decoder.cache.iter().map(|(_, o)| padded(outputs.get(o)?, held, positions)).collect();
        let Some(past) = past else { return Ok((logits, None)) };
        let mut cache = Cache { positions, past };
        let again = match self.step(&mut cache, tokens) {
            Ok(again) => again,
            Err(Error::Train(e)) if because_unknown(&e) => return Ok((logits, None)),
            Err(Error::Model(_)) => return Ok((logits, None)),
            Err(e) => return Err(e),
        };
        let largest = logits.iter().fold(1.0, |most: f32, x| most.max(x.abs()));
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= CACHE_TOLERANCE * largest;
        let same = again.len() == logits.len() && again.iter().zip(&logits).all(near);
        Ok((logits, same.then_some(cache)))
    }

    /// The logits behind the last token, from the cache of those before it, which then holds it too.
    fn step(&mut self, cache: &mut Cache, tokens: &[i32]) -> Result<Vec<f32>, Error> {
        let batch = self.decoder.next(self.feed, cache, tokens)?;
        let mut outputs = self.run(batch)?;
        for ((_, output), past) in self.decoder.cache.iter().zip(&mut cache.past) {
            let present = outputs.get(output).and_then(|t| padded(t, cache.positions, cache.positions));
            *past =
                present.ok_or_else(|| Error::Model(format!("output '{output}' does not hold one position more")))?;
        }
        row(&mut outputs, &self.decoder.logits, 0)
    }
}

/// Keys or values `(1, heads, n, width)` with the last `held` of their first `held` or `held + 1` positions at the end of `positions`,
/// which is what a step leaves behind, or a whole sequence without its last token.
fn padded(t: &Tensor, held: usize, positions: usize) -> Option<Tensor> {
    let &[1, heads, n, width] = t.shape() else { return None };
    // A step adds its position at the end and the oldest falls out; of a whole sequence, the last one is not wanted.
    let from = match n.checked_sub(held)? {
        1 if held == positions => 1,
        0 | 1 => 0,
        _ => return None,
    };
    let x = t.as_f32()?;
    let mut out = vec![0.0; heads * positions * width];
    for h in 0..heads {
        let rows = &x[(h * n + from) * width..][..held * width];
        out[((h + 1) * positions - held) * width..][..held * width].copy_from_slice(rows);
    }
    Some(Tensor::f32([1, heads, positions, width], out))
}

/// The logits of the first example, so many positions before the last.
fn row(outputs: &mut BTreeMap<String, Tensor>, name: &str, before: usize) -> Result<Vec<f32>, Error> {
    let t = outputs.remove(name).ok_or_else(|| Error::Model(format!("output '{name}' was not computed")))?;
    let (&[_, n, width], Some(x)) = (t.shape(), t.as_f32()) else {
        return Err(Error::Model(format!("output '{name}' is {}, not logits for each position", t.ty())));
    };
    match n.checked_sub(before + 1) {
        Some(at) => Ok(x[at * width..][..width].to_vec()),
        // A model that gives those of the last position alone.
        None => Err(Error::Model(format!(
            "output '{name}' has {n} positions, fewer than the text\nhint: export the model with logits for all positions"
        ))),
    }
}

/// The next token.
fn pick(logits: &[f32], temperature: f64, rng: &mut ChaCha8Rng) -> Result<i32, Error> {
    if let Some(x) = logits.iter().find(|x| x.is_nan() || **x == f32::INFINITY) {
        return Err(Error::Model(format!("a logit is {x}: the model's outputs are not finite numbers")));
    }
    let best = logits.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
    if temperature == 0.0 {
        return Ok(best as i32);
    }
    let top = f64::from(logits[best]);
    let weights: Vec<f64> = logits.iter().map(|&x| ((f64::from(x) - top) / temperature).exp()).collect();
    let mut rest = rng.random::<f64>() * weights.iter().sum::<f64>();
    for (i, w) in weights.iter().enumerate() {
        rest -= w;
        if rest < 0.0 {
            return Ok(i as i32);
        }
    }
    Ok(best as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_keep_the_newest_positions_at_the_end() {
        let of = |n: usize| Tensor::f32([1, 2, n, 1], (0..2 * n).map(|i| i as f32).collect());
        // Of a sequence of three, the first two.
        assert_eq!(padded(&of(3), 2, 4).unwrap().as_f32().unwrap(), [0., 0., 0., 1., 0., 0., 3., 4.]);
        // Of a step with two positions of past, the newer two of three.
        assert_eq!(padded(&of(3), 2, 2).unwrap().as_f32().unwrap(), [1., 2., 4., 5.]);
        assert!(padded(&of(6), 2, 4).is_none());
    }

    #[test]
    fn tokens_are_drawn_as_their_probabilities_say() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let logits = [0.0, 3f32.ln(), f32::NEG_INFINITY];
        assert_eq!(pick(&logits, 0.0, &mut rng).unwrap(), 1);
        assert_eq!(pick(&[1.0, 1.0], 0.0, &mut rng).unwrap(), 0);
        let drawn: Vec<i32> = (0..4000).map(|_| pick(&logits, 1.0, &mut rng).unwrap()).collect();
        let ones = drawn.iter().filter(|t| **t == 1).count();
        assert!((2900..3100).contains(&ones) && !drawn.contains(&2), "{ones}");
        assert!(pick(&[0.0, f32::NAN], 1.0, &mut rng).is_err());
    }
}
