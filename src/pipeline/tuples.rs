//! Chooses the loss for rows of several texts.

use super::Error;
use super::choosing::{Chosen, output_shape};
use super::compile::LossChoice;
use super::embedding;
use crate::lower::loss::{Labels, Loss};
use crate::onnx::Model;
use crate::train::Shapes;
use crate::train::data::{DataError, Dataset, LabelForm, Task};
use std::sync::Arc;

/// The loss of rows of several texts; `None` where rows hold one. A loss that does not go with the rows is an error.
pub fn choose(
    model: &Arc<Model>,
    shapes: &Shapes,
    asked: Option<Loss>,
    data: &Dataset,
    batch_size: usize,
) -> Result<Option<Chosen>, Error> {
    let (loss, why) = match data.task() {
        Task::Embed { scored: true, .. } => match asked {
            None => (Loss::COSINE_SIMILARITY, "rows hold two texts and their score"),
            Some(l) if l == Loss::CONTRASTIVE || l == Loss::COSINE_SIMILARITY => {
                (Loss::COSINE_SIMILARITY, "rows hold two texts and their score")
            }
            Some(other) => return Err(unfit(other, data, "contrastive, or auto")),
        },
        Task::Embed { texts, .. } => match asked {
            None => (Loss::CONTRASTIVE, "rows hold an anchor and a positive"),
            Some(l) if l == Loss::CONTRASTIVE => (l, "--loss asks for it"),
            Some(l) if l == Loss::TRIPLET && texts == 3 => (l, "--loss asks for it"),
            Some(l) if l == Loss::TRIPLET => {
                let why = format!("triplet reads one 'negative' in each row, and the rows of {}", data.path.display());
                let hint = "hint: add the column, or --loss contrastive";
                return Err(Error::Usage(format!("{why} have {}\n{hint}", texts - 2)));
            }
            Some(other) => return Err(unfit(other, data, "contrastive, or triplet")),
        },
        Task::Prefer => match asked {
            None => (Loss::DPO, "rows hold a preferred and a rejected answer"),
            Some(l) if l == Loss::DPO => (l, "--loss asks for it"),
            Some(other) => return Err(unfit(other, data, "dpo, or auto")),
        },
        Task::Classify | Task::LanguageModel | Task::SequenceToSequence | Task::Tensors => {
            let columns = match asked.map(|l| l.labels) {
                Some(Labels::Tuples) if asked == Some(Loss::TRIPLET) => "'anchor', 'positive' and 'negative'",
                Some(Labels::Tuples) => "'anchor' and 'positive', or 'text1', 'text2' and 'score'",
                Some(Labels::Scores) => "'text1', 'text2' and 'score'",
                Some(Labels::Preferences) => "'prompt', 'chosen' and 'rejected'",
                Some(Labels::Classes | Labels::Numbers) | None => return Ok(None),
            };
            let (name, file) = (asked.map_or("", |l| l.name), data.path.display());
            let why = format!("--loss {name} reads rows of text with the columns {columns}, and {file} has others");
            return Err(Error::Usage(format!(
                "{why}\nhint: --columns anchor=query,positive=passage names other columns"
            )));
        }
    };
    if loss == Loss::CONTRASTIVE && batch_size < 2 && data.task().texts() == 2 {
        let why = "--batch-size 1 leaves contrastive without a negative: the other rows of a batch are the negatives";
        return Err(Error::Usage(format!("{why}\nhint: a larger --batch-size, or a column 'negative'")));
    }
    let output = match loss.labels {
        Labels::Preferences => {
            let all = model.outputs();
            let found = all.iter().find(|o| o.name == "logits").or(all.iter().find(|o| o.element.is_float()));
            found.ok_or_else(|| Error::Model("the model has no float output to train on".into()))?.name.clone()
        }
        _ => embedding::output(model, shapes)?.ok_or_else(|| Error::Model("the model has no embedding".into()))?,
    };
    let (shape, graph) = output_shape(model, shapes, &output)?;
    let wanted = if loss.labels == Labels::Preferences { 3 } else { 2 };
    if shape.len() != wanted {
        let want = if wanted == 3 { "(batch, sequence, vocabulary)" } else { "(batch, hidden)" };
        let why = format!("{} is taken on {want}, and output '{output}' is {shape:?}", loss.name);
        return Err(DataError::Fit { path: data.path.clone(), why }.into());
    }
    let why = format!("the loss is {} of '{output}': {why}", loss.title);
    let choice = LossChoice::Added { loss, logits: output, class_axis: None, probabilities: false };
    Ok(Some(Chosen { choice, form: LabelForm::AsGiven, why, shape, graph }))
}

fn unfit(asked: Loss, data: &Dataset, hint: &str) -> Error {
    let file = data.path.display();
    Error::Usage(format!("--loss {} does not go with the columns of {file}\nhint: --loss {hint}", asked.name))
}
