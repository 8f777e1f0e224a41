//! The whole pipeline: each step is one module's entry function from one plain data type to the next.
//!
//! ```text
//! model.onnx -> read -> Model -> inject -> Model with adapters -> write -> model.reslora.onnx
//! model.reslora.onnx -> read -> lower -> Graph -> recognise -> differentiate -> fuse -> plan -> device -> train -> Adapter
//! model.reslora.onnx + Adapter (+ statistics) -> merge -> write -> merged.onnx
//! ```

mod approximating;
mod benching;
mod calibrating;
mod choosing;
mod comparing;
mod compile;
mod configured;
mod devices;
pub mod digits;
mod doctor;
mod dumping;
mod embedding;
mod error;
mod evaluating;
mod experimenting;
mod fitting;
mod folding;
mod generating;
mod improving;
mod inspecting;
mod integers;
mod judging;
mod merge_request;
mod merging;
mod metric;
mod packing;
pub mod precision;
mod recording;
mod rehearsing;
mod reshaping;
mod running;
mod searching;
mod showing;
mod starting;
mod surveying;
mod terms;
mod training;
mod tuples;
mod verifying;
mod weighing;

pub use benching::{Bench, BenchRequest, KernelTime, Profile, Span, bench};
pub use calibrating::{Calibration, calibrate};
pub use comparing::{compare_outputs, infer, synthetic};
pub use compile::{LossChoice, ModelCompiler, Program, index_bounds, sample_shapes};
pub use configured::{
    calibration, data_options, device, metrics, named_loss, named_strategy, polishing, read_data, settings,
};
pub use devices::{DeviceChoice, DeviceInfo, Numbers, list_devices, open_device};
pub use doctor::{KERNEL_TOLERANCE, KernelCheck, TRAINING_TOLERANCE, TrainingCheck, self_check, training_check};
pub use dumping::dump_ir;
pub use error::Error;
pub use evaluating::{EvalRequest, Evaluation, evaluate};
pub use experimenting::{
    Comparison, ExperimentRequest, Mean, Row as ComparedRow, Trial, Variant, experiment, variants,
};
pub use generating::{GenerateRequest, Generated, generate};
pub use inspecting::{Found, Inspection, MemoryNeed, dot, inspect};
pub use merge_request::{MergeRequest, Merged, Polished};
pub use merging::{merge, read_adapter};
pub use metric::{KEPT, Metric};
pub use recording::MERGE_KEY;
pub use rehearsing::{Rehearsal, rehearse};
pub use reshaping::inject;
pub use running::{Ran, run, save};
pub use searching::{Attempt, Candidate, SearchRequest, Space, best as best_attempt, search};
pub use showing::{Class, Example, Lengths, Shown, show};
pub use starting::{with_directions, with_originals};
pub use surveying::within_positions;
pub use terms::{Teacher, Terms};
pub use training::{Asked, TrainRequest, Trainee, check, load, train};
pub use verifying::{Verification, VerifyRequest, against_ours, verify};

pub use crate::onnx::{FileDiff, diff};

use crate::adapters;
use crate::inject::Options;
use crate::ir::{DType, FloatType};
use crate::lower::{self, loss};
use crate::onnx::{self, Dim, Model};
use crate::train::data::{self, Axis, InputSpec};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Reads a model.
pub fn read(path: &Path) -> Result<Arc<Model>, Error> {
    Ok(Arc::new(onnx::read(path)?))
}

/// The tokens of the text among a structure's settings, by the tokenizer that is given or lies beside the model; none where there is
/// no text.
pub fn setting_tokens(base: &Model, options: &Options, tokenizer: Option<&Path>) -> Result<Vec<usize>, Error> {
    let kind = |s: &&adapters::Setting| matches!(s.kind, adapters::SettingKind::Tokens);
    let setting = options.structure.settings.iter().find(kind);
    let text = setting.and_then(|s| options.settings.get(s.name)?.as_str()).filter(|t| !t.is_empty());
    let Some(text) = text.filter(|_| options.adapter.is_none()) else { return Ok(vec![]) };
    let beside = base.path().parent().map(Path::to_path_buf);
    let how = data::Options {
        tokenizer: tokenizer.map(Path::to_path_buf),
        beside,
        special_tokens: false,
        ..data::Options::default()
    };
    let tokenizer = data::open_tokenizer(base.path(), &how).map_err(|e| match (e, setting) {
        (data::DataError::NoTokenizer { .. }, Some(s)) => Error::Usage(format!(
            "--{} needs a tokenizer\nhint: give --tokenizer FILE, or put tokenizer.json beside the model",
            s.name
        )),
        (e, _) => e.into(),
    })?;
    let tokens = tokenizer.language(text, usize::MAX).map_err(Error::Model)?;
    Ok(tokens.ids.into_iter().filter_map(|id| usize::try_from(id).ok()).collect())
}

/// The shapes of a base's values at a sample shape; none where it cannot be lowered at that shape.
fn sample_values(base: &Arc<Model>) -> Result<ValueShapes, Error> {
    match compile::value_shapes(base) {
        Err(Error::Lower(lower::LowerError::Node { .. })) => Ok(HashMap::new()),
        shapes => shapes,
    }
}

/// What a user should know of how a file is taken.
pub fn model_notes(model: &Model) -> Vec<String> {
    let trains = |n: &onnx::Node| n.op_type() == "BatchNormalization" && n.attr_int("training_mode").unwrap_or(0) != 0;
    let found: Vec<String> = model.nodes().map(|(_, n)| n).filter(|n| trains(n)).map(onnx::Node::label).collect();
    let Some(first) = found.first() else { return vec![] };
    vec![format!(
        "{} BatchNormalization nodes ('{first}') are in training mode: using their running statistics, unchanged",
        found.len()
    )]
}

/// The graph inputs as the data set sees them. Types without arithmetic count as integers, which no data will fit.
pub fn input_specs(model: &Model) -> Vec<InputSpec> {
    let axis = |d: &Dim| match d {
        Dim::Fixed(n) => Axis::Fixed(*n),
        Dim::Named(n) => Axis::Named(n.clone()),
        Dim::Unknown => Axis::Unknown,
    };
    let spec = |s: onnx::Signature| InputSpec {
        dtype: lower::dtype(s.element).unwrap_or(DType::I32),
        dims: s.dims.map(|d| d.iter().map(axis).collect()),
        name: s.name,
    };
    model.inputs().into_iter().filter(|s| lower::branch_input(s).is_none()).map(spec).collect()
}

/// A program that gives a model's outputs as they are.
pub fn inferring(model: &Arc<Model>) -> Program {
    let outputs = model.outputs().into_iter().map(|o| o.name).collect();
    let trained = std::collections::BTreeSet::new();
    Program {
        model: model.clone(),
        trained,
        loss: None,
        config: None,
        outputs,
        signals: vec![],
        fuse: true,
        form: loss::Form::default(),
        class_weights: vec![],
        predicts: false,
        reference: None,
        products: FloatType::F32,
        guard: false,
        packs: false,
    }
}

/// Names of a model's values and their shapes at a sample batch.
pub type ValueShapes = HashMap<String, Vec<usize>>;
