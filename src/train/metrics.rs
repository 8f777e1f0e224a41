//! Metrics of a run: `metrics.jsonl` and TensorBoard events.

use super::TrainError;
use super::data::{Dataset, Source};
use super::scores::Scores;
use protobuf::CodedOutputStream;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: u64,
    /// Mean loss over the counted labels of the step. Not finite (`null` in a file) where that is why the step was skipped.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The norm of all gradients together, before clipping. Not finite (`null` in a file) where the step was skipped.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// The learning rate of the step.
    pub lr: f64,
    /// Positions that were not padding (examples, where there are no positions).
    pub tokens: usize,
    /// Wall time of the step.
    pub seconds: f64,
    /// What the loss was multiplied by, under mixed precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Whether nothing was learnt from the step, since its gradients were not finite numbers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// The rows (examples, from 1) of a step that was skipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<usize>,
}

fn null_is_nan<'de, D: serde::Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// Steps done when it was made.
    pub step: u64,
    /// Mean loss over counted labels.
    pub eval_loss: f64,
    /// Share of counted labels that the largest logit hits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_accuracy: Option<f64>,
    /// `e^loss`, of language models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_perplexity: Option<f64>,
    /// The metrics that were asked for.
    #[serde(flatten)]
    pub scores: Scores,
    /// Wall time of the evaluation.
    pub seconds: f64,
}

impl EvalMetrics {
    /// Refuses a run's evaluation whose loss is not a number: it says nothing, and compares with nothing. `rows` are examples (from 0)
    /// that it comes from.
    pub(super) fn finite(&self, data: &Dataset, rows: &[usize]) -> Result<(), TrainError> {
        if self.eval_loss.is_finite() {
            return Ok(());
        }
        let rows: Vec<String> = rows.iter().map(|r| (r + 1).to_string()).collect();
        let from =
            if rows.is_empty() { String::new() } else { format!("; it comes from examples {}", rows.join(", ")) };
        let why =
            from + &unfit(data, "look at those rows; else a smaller --lr, longer --warmup-steps, or --clip-norm 1");
        Err(TrainError::Evaluation { path: data.path.clone(), step: Some(self.step), loss: self.eval_loss, why })
    }
}

/// Why a loss on a data set is not a number, with a hint: the data's first number that is none, if there is one.
pub fn unfit(data: &Dataset, otherwise: &str) -> String {
    let found = match &data.source {
        Source::Tensors { tensors, examples, .. } => tensors.iter().find_map(|(name, t)| {
            let values = t.as_f32()?;
            // Minus infinity is what masks are made of.
            let at = values.iter().position(|x| x.is_nan() || *x == f32::INFINITY)?;
            let what = if values[at].is_nan() { "NaN" } else { "infinity" };
            let example = at / (values.len() / (*examples).max(1)).max(1) + 1;
            Some(format!("'{name}' in {} holds {what} in example {example}", data.path.display()))
        }),
        Source::Text { .. } => None,
    };
    match found {
        Some(what) => format!(": {what}\nhint: mend the file, or take the example out"),
        None => format!("\nhint: {otherwise}"),
    }
}

/// The files of a run.
pub struct Writer {
    jsonl: File,
    events: File,
}

impl Writer {
    /// Opens a run's metrics. On resuming after `keep` steps, later lines are dropped and new ones appended.
    pub fn open(dir: &Path, keep: Option<u64>) -> std::io::Result<Writer> {
        let path = dir.join("metrics.jsonl");
        let mut kept = String::new();
        if let Some(keep) = keep {
            for line in BufReader::new(File::open(&path)?).lines() {
                let line = line?;
                let step = serde_json::from_str::<serde_json::Value>(&line).ok().and_then(|v| v["step"].as_u64());
                if step.is_some_and(|s| s <= keep) {
                    kept += &line;
                    kept.push('\n');
                }
            }
        }
        let mut jsonl = File::create(&path)?;
        jsonl.write_all(kept.as_bytes())?;
        let seconds = now();
        let mut events = File::create(dir.join(format!("events.out.tfevents.{}.reslora", seconds as u64)))?;
        write_record(&mut events, &event(seconds, 0, |out| out.write_string(3, "brain.Event:2"))?)?;
        Ok(Writer { jsonl, events })
    }

    pub fn step(&mut self, m: &StepMetrics) -> std::io::Result<()> {
        self.line(m)?;
        let mut values = vec![("train/loss", m.loss), ("train/grad_norm", m.grad_norm), ("train/lr", m.lr)];
        values.extend(m.loss_scale.map(|x| ("train/loss_scale", x)));
        self.scalars(m.step, &values)
    }

    pub fn evaluation(&mut self, m: &EvalMetrics) -> std::io::Result<()> {
        self.line(m)?;
        let mut values = vec![("eval/loss", m.eval_loss)];
        values.extend(m.eval_accuracy.map(|x| ("eval/accuracy", x)));
        values.extend(m.eval_perplexity.map(|x| ("eval/perplexity", x)));
        let more: Vec<(String, f64)> = m.scores.values.iter().map(|(n, x)| (format!("eval/{n}"), *x)).collect();
        let known: Vec<&str> = values.iter().map(|v| v.0).collect();
        let more: Vec<_> = more.iter().filter(|(n, _)| !known.contains(&n.as_str())).collect();
        values.extend(more.iter().map(|(n, x)| (n.as_str(), *x)));
        self.scalars(m.step, &values)
    }

    fn line(&mut self, m: &impl Serialize) -> std::io::Result<()> {
        let mut text = serde_json::to_string(m)?;
        text.push('\n');
        self.jsonl.write_all(text.as_bytes())
    }

    /// An Event whose summary holds one value for each scalar (tensorflow/core/framework/summary.proto).
    fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> std::io::Result<()> {
        let mut summary = Vec::new();
        {
            let mut out = CodedOutputStream::vec(&mut summary);
            for (tag, value) in values {
                let mut one = Vec::new();
                let mut inner = CodedOutputStream::vec(&mut one);
                inner.write_string(1, tag)?;
                inner.write_float(2, *value as f32)?;
                inner.flush()?;
                drop(inner);
                out.write_bytes(1, &one)?;
            }
            out.flush()?;
        }
        let event = event(now(), step, |out| out.write_bytes(5, &summary))?;
        write_record(&mut self.events, &event)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// An Event message (tensorflow/core/util/event.proto): wall time, step, and one more field.
fn event(
    time: f64,
    step: u64,
    more: impl FnOnce(&mut CodedOutputStream) -> protobuf::Result<()>,
) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    out.write_double(1, time)?;
    out.write_int64(2, step as i64)?;
    more(&mut out)?;
    out.flush()?;
    drop(out);
    Ok(bytes)
}

/// A TFRecord: length, its masked checksum, data, the data's masked checksum.
fn write_record(file: &mut File, data: &[u8]) -> std::io::Result<()> {
    let masked = |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let length = (data.len() as u64).to_le_bytes();
    let record = [&length[..], &masked(&length), data, &masked(data)].concat();
    file.write_all(&record)
}

/// Every line of a run's metrics: steps and evaluations.
pub fn read(dir: &Path) -> std::io::Result<(Vec<StepMetrics>, Vec<EvalMetrics>)> {
    let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
    for line in BufReader::new(File::open(dir.join("metrics.jsonl"))?).lines() {
        let line = line?;
        if let Ok(m) = serde_json::from_str(&line) {
            steps.push(m);
        } else if let Ok(m) = serde_json::from_str(&line) {
            evaluations.push(m);
        }
    }
    Ok((steps, evaluations))
}
