//! Evaluation from files.

use super::Error;
use super::surveying::survey;
use super::terms::Terms;
use super::training::{Asked, load};
use crate::adapter::Adapter;
use crate::device::Device;
use crate::ir::FloatType;
use crate::lower::loss::Loss;
use crate::onnx::Model;
use crate::settings::defaults;
use crate::train::data::{DataError, Dataset};
use crate::train::scores::{self, Answer, Kind, Scores};
use crate::train::{self, Totals};
use std::sync::Arc;

/// What to evaluate.
pub struct EvalRequest<'a> {
    pub model: &'a Arc<Model>,
    pub adapter: Option<&'a Adapter>,
    pub data: &'a Dataset,
    pub batch_size: usize,
    pub max_length: usize,
    pub loss: Option<Loss>,
    pub loss_output: Option<&'a str>,
    /// Numbers of losses, and the teacher.
    pub terms: Terms,
    /// The type to which products round their operands.
    pub products: FloatType,
    /// Rows that a mask leaves no key compute 0, as in training.
    pub guard: bool,
    /// What to measure besides the loss.
    pub metrics: &'a [scores::Asked],
    /// Whether to return what the model answers for each row.
    pub answers: bool,
}

impl<'a> EvalRequest<'a> {
    /// Evaluates a model as the file says, the loss chosen from the data.
    pub fn new(model: &'a Arc<Model>, data: &'a Dataset) -> EvalRequest<'a> {
        EvalRequest {
            model,
            adapter: None,
            data,
            batch_size: defaults::BATCH_SIZE,
            max_length: defaults::MAX_LENGTH,
            loss: None,
            loss_output: None,
            terms: Terms::default(),
            products: FloatType::F32,
            guard: false,
            metrics: &[],
            answers: false,
        }
    }
}

/// What an evaluation gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    pub(crate) totals: Totals,
    /// Mean loss over counted labels.
    pub loss: f64,
    /// Hits among counted labels, where labels are classes.
    pub accuracy: Option<f64>,
    /// `e^loss`, of language models.
    pub perplexity: Option<f64>,
    /// The metrics that were asked for.
    pub scores: Scores,
    /// What the model answers for each row, and what that is, where it was asked for.
    pub(crate) answers: Option<(Kind, Vec<Answer>)>,
    /// What a user should know about how it was measured.
    pub notes: Vec<String>,
}

/// Evaluates a model, with an adapter if it was injected for one. A loss that is not a finite number is an error.
pub fn evaluate(request: &EvalRequest, device: &mut dyn Device) -> Result<Evaluation, Error> {
    let mut trainee = load(request.model, request.adapter)?;
    trainee.program.products = request.products;
    trainee.program.guard = request.guard;
    trainee.feed.max_length = request.max_length;
    let asked = Asked { loss: request.loss, output: request.loss_output, terms: &request.terms };
    let mut notes = trainee.set_loss(request.data, request.batch_size, asked)?;
    trainee.measure(request.metrics)?;
    if request.answers && trainee.kind.is_none() {
        let why = "--predictions has no answers to write: the loss is the model's own";
        return Err(Error::Usage(format!("{why}\nhint: `run` writes every output")));
    }
    trainee.program.predicts |= request.answers;
    notes.extend(survey(&mut trainee, &[request.data], device)?);
    let mut totals = trainee.session(device, |session| Ok(session.evaluate(request.data, request.batch_size)?))?;
    let e = train::evaluation(&totals, request.data, 0, 0.0, trainee.kind, request.metrics);
    if !e.eval_loss.is_finite() {
        let rows: Vec<String> = totals.not_finite.iter().map(|r| (r + 1).to_string()).collect();
        let (path, rows) = (request.data.path.clone(), rows.join(", "));
        let why = format!(
            "the loss is {} (not a finite number); it comes from examples {rows}\n\
             hint: look at those rows, and at the model's outputs for them",
            e.eval_loss
        );
        return Err(DataError::Fit { path, why }.into());
    }
    let answers = std::mem::take(&mut totals.answers);
    let answers = trainee.kind.filter(|_| request.answers).map(|kind| (kind, answers));
    let (loss, accuracy, perplexity) = (e.eval_loss, e.eval_accuracy, e.eval_perplexity);
    Ok(Evaluation { totals, loss, accuracy, perplexity, scores: e.scores, answers, notes })
}
