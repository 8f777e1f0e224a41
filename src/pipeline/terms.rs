//! Numbers of losses, and the second model that some of them read.

use super::Error;
use super::compile::Reference;
use crate::lower::loss::Form;
use crate::merge;
use crate::onnx::Model;
use crate::settings::{DataConfig, defaults};
use std::path::Path;
use std::sync::Arc;

/// The model whose logits `distill` and `dpo` compare with.
#[derive(Clone)]
pub enum Teacher {
    /// The model without its adapters.
    Base,
    /// Another model that reads the same batches.
    Model(Arc<Model>),
}

/// Numbers of losses, each read by one of them.
#[derive(Clone)]
pub struct Terms {
    pub scale: f64,
    pub margin: f64,
    pub beta: f64,
    pub temperature: f64,
    pub teacher: Teacher,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            scale: defaults::SCALE,
            margin: defaults::MARGIN,
            beta: defaults::BETA,
            temperature: defaults::TEMPERATURE,
            teacher: Teacher::Base,
        }
    }
}

impl Terms {
    /// As a configuration has them; reads the teacher's file.
    pub fn configured(how: &DataConfig) -> Result<Terms, Error> {
        let teacher = match how.teacher.as_deref() {
            None | Some("base") => Teacher::Base,
            Some(path) => Teacher::Model(super::read(Path::new(path))?),
        };
        let DataConfig { scale, margin, beta, temperature, .. } = *how;
        Ok(Terms { scale, margin, beta, temperature, teacher })
    }

    /// How a loss of rows of so many texts is taken.
    pub(super) fn form(&self, texts: usize) -> Form {
        let Terms { scale, margin, beta, temperature, .. } = *self;
        Form { texts, scale, margin, beta, temperature, ..Form::default() }
    }

    /// The second model, for a loss on `logits` of a model that may carry adapters.
    pub(super) fn reference(&self, model: &Arc<Model>, logits: &str) -> Result<Reference, Error> {
        let other = match &self.teacher {
            Teacher::Model(other) => other.clone(),
            Teacher::Base if model.metadata(crate::adapters::CONFIG_KEY).is_none() => model.clone(),
            Teacher::Base => Arc::new(merge::strip(model, &merge::config(model)?)?),
        };
        let outputs = other.outputs();
        let named = outputs.iter().any(|o| o.name == logits) || other.producers().contains_key(logits);
        let found = if named { Some(logits.to_string()) } else { output(&other) };
        let missing = || Error::Usage(format!("--teacher {}: it has no output 'logits'", other.path().display()));
        let logits = found.ok_or_else(missing)?;
        Ok(Reference { model: other, logits })
    }
}

/// The output that holds logits: the one that is called so, else the first of floats.
fn output(model: &Model) -> Option<String> {
    let all = model.outputs();
    all.iter().find(|o| o.name == "logits").or(all.iter().find(|o| o.element.is_float())).map(|o| o.name.clone())
}
