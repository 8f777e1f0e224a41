//! Runs two files on the same inputs with tract, an independent engine, and compares their outputs.

use super::comparing::{Inputs, infer, synthetic};
use super::devices::{DeviceChoice, Numbers, open_device};
use super::training::load;
use super::{Error, input_specs, read};
use crate::adapter::Adapter;
use crate::adapters::CONFIG_KEY;
use crate::ir::Tensor;
use crate::merge;
use crate::onnx::{self, Model};
use crate::settings::DataConfig;
use crate::train::data::{self, Dataset};
use crate::verify::{self, Difference, EngineError, Feed, Output};
use std::path::Path;
use std::sync::Arc;

/// What to compare. Both models are run as their files are, so a model that was changed must be written first.
pub struct VerifyRequest<'a> {
    pub first: &'a Arc<Model>,
    pub second: &'a Arc<Model>,
    /// Goes into whichever of the two is injected (the first, if both are).
    pub adapter: Option<&'a Adapter>,
    /// `None` compares on synthetic inputs.
    pub data: Option<&'a Dataset>,
    /// Its batch size and length of texts count.
    pub how: &'a DataConfig,
}

/// How far two files are apart.
#[derive(Clone, Debug)]
pub struct Verification {
    /// What ran the files: tract, or the cpu device where tract could not.
    pub engine: String,
    /// Batches that were run.
    pub batches: usize,
    /// How far each output is from the other file's.
    pub outputs: Vec<Difference>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// The most batches of a data set that are run.
const BATCHES: usize = 4;

/// Runs both files on the same inputs and compares every output.
pub fn verify(request: &VerifyRequest) -> Result<Verification, Error> {
    let (mut first, mut second) = (request.first.clone(), request.second.clone());
    let mut notes = Vec::new();
    // Kept as long as the models that are mapped from it.
    let folder = tempfile::tempdir().map_err(|e| Error::Model(format!("no temporary folder: {e}")))?;
    if let Some(adapter) = request.adapter {
        let injected = |m: &Arc<Model>| m.metadata(CONFIG_KEY).is_some();
        let model = match (injected(&first), injected(&second)) {
            (false, false) => {
                let why = "neither file carries adapters\nhint: --adapter is for a file that inject wrote";
                return Err(Error::Usage(why.into()));
            }
            (false, true) => &mut second,
            (true, both) => {
                if both {
                    let file = first.path().display();
                    notes.push(format!("both files carry adapters: --adapter goes into {file}"));
                }
                &mut first
            }
        };
        let (adapter, unchecked) = merge::fit(model, adapter)?;
        notes.extend(unchecked);
        *model = with_adapter(model, &adapter, folder.path())?;
    }
    let batches: Vec<Inputs> = match request.data {
        Some(data) => {
            let feed = data::Feed::new(input_specs(&first), request.how.max_length);
            let all: Vec<usize> = (0..data.len()).collect();
            let batches = all.chunks(request.how.batch_size).take(BATCHES);
            batches.map(|rows| Ok(data.batch(&feed, rows)?.inputs)).collect::<Result<_, Error>>()?
        }
        None => vec![synthetic(&first, 0)?],
    };
    let (engine, outputs, more) = compare(&first, &second, &batches)?;
    notes.extend(more);
    notes.extend(outputs.iter().filter_map(|d| Some(format!("output '{}' {}", d.output, d.not_finite.as_ref()?))));
    Ok(Verification { engine, batches: batches.len(), outputs, notes })
}

/// An injected model as a file that holds the adapter's factors, for an engine that reads files.
fn with_adapter(injected: &Arc<Model>, adapter: &Adapter, folder: &Path) -> Result<Arc<Model>, Error> {
    let (model, _) = merge::keep_branch(injected, adapter)?;
    let path = folder.join(injected.path().file_name().unwrap_or("model.onnx".as_ref()));
    onnx::write(&model, &path)?;
    read(&path)
}

/// Runs both files on every batch with one engine, and joins the differences of each output over batches.
fn compare(
    first: &Arc<Model>,
    second: &Arc<Model>,
    batches: &[Inputs],
) -> Result<(String, Vec<Difference>, Vec<String>), Error> {
    let mut notes = Vec::new();
    let tract = |m: &Arc<Model>| -> Result<Vec<Output>, EngineError> {
        let runs: Result<Vec<_>, _> = batches.iter().map(|b| verify::run(m, &feeds(b))).collect();
        Ok(joined(runs?))
    };
    let (engine, a, b) = match (tract(first), tract(second)) {
        (Ok(a), Ok(b)) => ("tract".to_string(), a, b),
        (a, b) => {
            notes.extend(a.err().into_iter().chain(b.err()).map(|e| e.to_string()));
            notes.push("the cpu device ran both files instead".into());
            ("the cpu device".to_string(), ours(first, batches)?, ours(second, batches)?)
        }
    };
    let outputs = verify::compare(&a, &b).map_err(Error::Model)?;
    Ok((engine, outputs, notes))
}

/// Runs one file with tract and on the cpu device; returns the engine and the largest relative difference of an output.
pub fn against_ours(model: &Arc<Model>, batch: &Inputs) -> Result<(String, f64), Error> {
    let own = ours(model, std::slice::from_ref(batch))?;
    let other = verify::run(model, &feeds(batch)).map_err(|e| Error::Model(e.to_string()))?;
    let differences = verify::compare(&own, &other).map_err(Error::Model)?;
    Ok(("tract".into(), differences.iter().map(|d| d.relative).fold(0.0, |a, b| if b.is_nan() { b } else { a.max(b) })))
}

fn feeds(batch: &Inputs) -> Vec<Feed> {
    let feed = |(name, t): &(String, Tensor)| Feed {
        name: name.clone(),
        dims: t.shape().to_vec(),
        values: match (t.as_f32(), t.as_i32()) {
            (Some(x), _) => x.iter().map(|&x| x as f64).collect(),
            (_, Some(x)) => x.iter().map(|&x| x as f64).collect(),
            _ => vec![],
        },
    };
    batch.iter().map(feed).collect()
}

/// One output from those of all batches, end to end.
fn joined(runs: Vec<Vec<Output>>) -> Vec<Output> {
    let mut runs = runs.into_iter();
    let mut all = runs.next().unwrap_or_default();
    for run in runs {
        for (sum, more) in all.iter_mut().zip(run) {
            sum.values.extend(more.values);
            sum.dims = vec![sum.values.len()];
        }
    }
    all
}

fn ours(model: &Arc<Model>, batches: &[Inputs]) -> Result<Vec<Output>, Error> {
    let trainee = load(model, None)?;
    let mut device = open_device(DeviceChoice::Cpu, Numbers::default())?;
    let outputs = infer(&trainee, batches, device.as_mut())?;
    let values = |ts: &[Tensor]| -> Vec<f64> {
        ts.iter().flat_map(|t| feeds(&vec![(String::new(), t.clone())])[0].values.clone()).collect()
    };
    Ok(outputs
        .into_iter()
        .map(|(name, ts)| {
            let values = values(&ts);
            let dims = if ts.len() == 1 { ts[0].shape().to_vec() } else { vec![values.len()] };
            Output { name, dims, values }
        })
        .collect())
}
