//! What a configuration says, looked up in the tables: settings, data sets and requests are made from it here and nowhere else.

use super::{
    Calibration, DeviceChoice, Error, EvalRequest, MergeRequest, Numbers, Terms, TrainRequest, open_device,
    within_positions,
};
use crate::adapter::Adapter;
use crate::adapters::{self, CONFIG_KEY, Config};
use crate::device::Device;
use crate::inject::LABELS_KEY;
use crate::ir::FloatType;
use crate::lower::loss::{self, LOSSES, Loss};
use crate::merge::Strategy;
use crate::onnx::{Dim, ElementType, Model};
use crate::optim::precondition::{self, PRECONDITIONS};
use crate::optim::{self, Hyper, OPTIMIZERS};
use crate::settings::{ConfigError, DataConfig, TrainConfig, defaults};
use crate::train::Settings;
use crate::train::data::{self, Dataset, Order};
use crate::train::schedule::{self, SCHEDULES, Schedule};
use crate::train::scores::Asked;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a run trains, in f32: in which type products multiply, the device decides too. Numbers that no run can have and names that no
/// table has are errors.
pub fn settings(config: &TrainConfig) -> Result<Settings, Error> {
    config.check_numbers()?;
    let optimizers = OPTIMIZERS.iter().map(|o| o.name);
    let optimizer =
        optim::find(&config.optimizer).ok_or_else(|| unknown("--optimizer", &config.optimizer, optimizers))?;
    let schedules = SCHEDULES.iter().map(|s| s.name);
    let schedule =
        schedule::find(&config.schedule).ok_or_else(|| unknown("--schedule", &config.schedule, schedules))?;
    Ok(Settings {
        batch_size: config.how.batch_size,
        accumulate: config.accumulate,
        epochs: config.epochs,
        max_steps: config.max_steps,
        optimizer,
        hyper: Hyper { weight_decay: config.weight_decay, momentum: config.momentum, ..optimizer.hyper },
        lr: config.lr,
        schedule,
        warmup_steps: config.warmup_steps,
        clip_norm: config.clip_norm,
        order: Order { shuffle: !config.no_shuffle, seed: config.seed },
        eval_every: config.eval_every,
        save_every: config.save_every,
        metrics: metrics(&config.metric)?,
        early_stopping: config.early_stopping,
        lora_plus: config.lora_plus,
        precondition: precondition::find(&config.precondition)
            .ok_or_else(|| unknown("--precondition", &config.precondition, PRECONDITIONS.iter().map(|p| p.name)))?,
        products: FloatType::F32,
    })
}

/// Metrics by their names.
pub fn metrics(names: &[String]) -> Result<Vec<Asked>, Error> {
    names.iter().map(|n| Asked::parse(n).map_err(|why| ConfigError::Value(why).into())).collect()
}

/// The loss of a name; `None` for the one that follows from the labels.
pub fn named_loss(name: &str) -> Result<Option<Loss>, Error> {
    if name == defaults::LOSS {
        return Ok(None);
    }
    let names = std::iter::once(defaults::LOSS).chain(LOSSES.iter().map(|l| l.name));
    loss::find(name).map(Some).ok_or_else(|| unknown("--loss", name, names))
}

/// The strategy of a name; `None` for the one that suits.
pub fn named_strategy(name: &str) -> Result<Option<Strategy>, Error> {
    if name == defaults::STRATEGY {
        return Ok(None);
    }
    let names = std::iter::once(defaults::STRATEGY).chain(Strategy::all().map(|s| s.name));
    Strategy::parse(name).map(Some).ok_or_else(|| unknown("--strategy", name, names))
}

fn unknown<'a>(flag: &str, name: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let names: Vec<&str> = names.collect();
    ConfigError::Value(format!("{flag} '{name}' is not known\nhint: {}", names.join(", "))).into()
}

/// Reads a data set for a model, whose folder may hold a tokenizer and the names of classes.
pub fn read_data(how: &DataConfig, given: &[PathBuf], model: &Arc<Model>) -> Result<Dataset, Error> {
    within_positions(model, data::read_all(given, &data_options(how, model)?)?)
}

/// How the data files of a model are read.
pub fn data_options(how: &DataConfig, model: &Arc<Model>) -> Result<data::Options, Error> {
    let folder = model.path().parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    Ok(data::Options {
        tokenizer: how.tokenizer.clone(),
        beside: folder.map(Path::to_path_buf),
        max_length: how.max_length,
        chat_template: how.chat_template.clone(),
        label_names: match how.label_names.is_empty() {
            true => class_names(model),
            false => how.label_names.clone(),
        },
        special_tokens: !how.no_special_tokens,
        columns: how.renamed()?,
        shift_labels: how.shift_labels,
        inputs: columns(model),
        decodes: model.inputs().iter().any(|i| i.name == "decoder_input_ids"),
        pixels: pixels(model),
        skip_bad_rows: how.skip_bad_rows,
    })
}

/// The graph input that takes images: floats of four axes, one of which is of three channels; none in a model that reads tokens too.
fn pixels(model: &Model) -> Option<data::Pixels> {
    let inputs = model.inputs();
    if inputs.iter().any(|i| i.name == "input_ids") {
        return None;
    }
    let mut found = inputs.iter().filter(|i| i.element.is_float() && i.dims.as_ref().is_some_and(|d| d.len() == 4));
    let (input, None) = (found.next()?, found.next()) else { return None };
    let of_three = |axis: usize| matches!(input.dims.as_deref().map(|d| &d[axis]), Some(Dim::Fixed(3)));
    let other = |axis: usize| matches!(input.dims.as_deref().map(|d| &d[axis]), Some(Dim::Fixed(n)) if *n != 3);
    let channels_last = of_three(3) && !of_three(1);
    (channels_last || !other(1)).then(|| data::Pixels { name: input.name.clone(), channels_last })
}

/// What a new head's classes are called, as `inject --head` wrote it into the model; empty where it says nothing.
fn class_names(model: &Model) -> Vec<String> {
    let labels = model.metadata(LABELS_KEY).and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let Some(labels) = labels.as_ref().and_then(|l| l.as_object()) else { return vec![] };
    let name = |i: usize| labels.get(&i.to_string())?.as_str().map(String::from);
    let names: Option<Vec<String>> = (0..labels.len()).map(name).collect();
    names.unwrap_or_default()
}

/// The graph inputs of adapters that a model has, which hold one number for each example.
fn columns(model: &Model) -> Vec<data::Column> {
    let config: Option<Config> = model.metadata(CONFIG_KEY).and_then(|text| serde_json::from_str(text).ok());
    let inputs = model.inputs();
    let mut out: Vec<data::Column> = Vec::new();
    for (structure, input) in adapters::all().into_iter().flat_map(|s| s.inputs.iter().map(move |i| (s, i))) {
        if !inputs.iter().any(|i| i.name == input.name) || out.iter().any(|c| c.name == input.name) {
            continue;
        }
        let own = config.as_ref().filter(|c| c.structure == structure);
        let count = own.and_then(|c| c.count(input.count?));
        let range = count.map(|n| (0.0, (n - 1) as f64)).or(input.range);
        let integer = input.element == ElementType::I64;
        out.push(data::Column { name: input.name.into(), integer, range });
    }
    out
}

/// A data set, as a configuration says that it is run.
pub fn calibration<'a>(how: &'a DataConfig, data: &'a Dataset) -> Result<Calibration<'a>, Error> {
    let (loss, loss_output) = (named_loss(&how.loss)?, how.loss_output.as_deref());
    let terms = Terms::configured(how)?;
    Ok(Calibration { loss, loss_output, terms, ..Calibration::new(data, how.batch_size, how.max_length) })
}

/// How a merged form is polished: as the run was trained, at a tenth of its learning rate, which falls to zero. `run` is `None` where that
/// is not known.
pub fn polishing(steps: u64, run: Option<&TrainConfig>, how: &DataConfig) -> Result<Settings, Error> {
    let mut settings = run.map_or(Ok(Settings::default()), settings)?;
    if run.is_none() {
        settings.batch_size = how.batch_size;
    }
    settings.lr *= defaults::POLISHING_RATE;
    settings.schedule = Schedule::LINEAR;
    (settings.warmup_steps, settings.max_steps) = (0, Some(steps));
    (settings.eval_every, settings.save_every) = (None, None);
    (settings.metrics, settings.early_stopping) = (vec![], None);
    Ok(settings)
}

/// The device that a configuration names, for its types of numbers.
pub fn device(config: &TrainConfig) -> Result<Box<dyn Device>, Error> {
    let choice = config.how.device.parse::<DeviceChoice>();
    let choice = choice.map_err(|why| Error::Usage(format!("--device '{}': {why}", config.how.device)))?;
    open_device(choice, Numbers::named(&config.precision, &config.weights))
}

impl<'a> TrainRequest<'a> {
    /// Trains as a configuration says, from the start; `settings` are those of the configuration.
    pub fn configured(
        config: &'a TrainConfig,
        settings: &'a Settings,
        model: &'a Arc<Model>,
        data: &'a Dataset,
        dir: &'a Path,
    ) -> Result<TrainRequest<'a>, Error> {
        Ok(TrainRequest {
            max_length: config.how.max_length,
            loss: named_loss(&config.how.loss)?,
            loss_output: config.how.loss_output.as_deref(),
            label_smoothing: config.label_smoothing,
            class_weights: &config.class_weights,
            packs: config.pack,
            terms: Terms::configured(&config.how)?,
            fuse: !config.no_fuse,
            ..TrainRequest::new(model, data, settings, dir)
        })
    }
}

impl<'a> EvalRequest<'a> {
    /// Evaluates a model as the file says, on data that is run as a configuration says.
    pub fn configured(how: &'a DataConfig, model: &'a Arc<Model>, data: &'a Dataset) -> Result<EvalRequest<'a>, Error> {
        Ok(EvalRequest {
            batch_size: how.batch_size,
            max_length: how.max_length,
            loss: named_loss(&how.loss)?,
            loss_output: how.loss_output.as_deref(),
            terms: Terms::configured(how)?,
            ..EvalRequest::new(model, data)
        })
    }
}

impl<'a> MergeRequest<'a> {
    /// Merges with whichever strategy suits, without data.
    pub fn new(injected: &'a Arc<Model>, adapter: &'a Adapter) -> MergeRequest<'a> {
        MergeRequest {
            injected,
            adapter,
            strategy: None,
            keep_branch: false,
            chosen: vec![],
            calibrate: None,
            fallback: None,
            ridge: None,
            sequential: false,
            polish: None,
            rescue: None,
            evaluate: None,
        }
    }
}
