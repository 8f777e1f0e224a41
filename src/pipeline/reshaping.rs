//! Puts adapters into a base, after it got a new classifier or a sentence embedding where that is asked for.

use super::{Error, compile, sample_values};
use crate::inject::{self, Options, POOLINGS, Report, hidden_states, pooled, replaced};
use crate::onnx::{Model, Signature};
use regex::Regex;
use std::sync::Arc;

/// Injects adapters. The base is lowered at a sample shape first: that finds operators without a lowering before anything
/// is written, and the shapes that chains depend on. A file that cannot be lowered at that shape, as one whose shapes were
/// fixed when it was traced, is injected without.
pub fn inject(base: &Arc<Model>, options: &Options) -> Result<(Model, Report), Error> {
    let Reshaped { base, options, notes } = reshaped(base, options)?;
    let shapes = sample_values(&base)?;
    let lookup = |name: &str| shapes.get(name).cloned();
    let (model, mut report) = inject::inject(&base, &options, &lookup)?;
    report.notes.splice(0..0, notes);
    Ok((model, report))
}

/// A base as adapters are put into it.
struct Reshaped {
    base: Arc<Model>,
    /// What is new is trained whole, and gets no adapter.
    options: Options,
    notes: Vec<String>,
}

/// The base with the classifier and the embedding that the options ask for.
fn reshaped(base: &Arc<Model>, options: &Options) -> Result<Reshaped, Error> {
    let mut out = Reshaped { base: base.clone(), options: options.clone(), notes: vec![] };
    let carries = base.metadata(crate::adapters::CONFIG_KEY).is_some();
    if carries {
        // Said by inject, with what to do.
        return Ok(out);
    }
    if let Some(head) = &options.head {
        let headed = replaced(&out.base, head, options.seed)?;
        let model = Arc::new(headed.model);
        if let (Ok(_), Err(e)) = (compile::value_shapes(base), compile::value_shapes(&model)) {
            let why =
                format!("--head {}: the model does not go on from a classifier of that size: {e}", head.names.len());
            return Err(Error::Usage(format!(
                "{why}\nhint: export the model so that its shapes follow the classifier's"
            )));
        }
        out.base = model;
        out.options.whole.extend(headed.tensors);
        out.options.exclude.push(Regex::new(&format!("^{}$", regex::escape(&headed.path))).expect("an escaped path"));
        out.notes.push(headed.note);
    }
    if let Some(pooling) = options.pool {
        let values = sample_values(&out.base)?;
        let rank = |o: &Signature| o.dims.as_ref().map(Vec::len).or_else(|| values.get(&o.name).map(Vec::len));
        let hidden = hidden_states(&out.base, &rank)?;
        out.base = Arc::new(pooled(&out.base, &hidden, pooling, false)?);
        let name = POOLINGS.iter().find(|p| p.0 == pooling).map_or("", |p| p.1);
        out.notes.push(format!("output 'sentence_embedding' is new: the {name} of '{}'", hidden.name));
    }
    Ok(out)
}
