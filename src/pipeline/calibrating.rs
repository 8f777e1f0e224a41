//! Data that a merge gathers statistics on, and the norms gathered on it.

use super::surveying::survey;
use super::terms::Terms;
use super::training::{Asked, load};
use super::{Error, input_specs};
use crate::adapter::{Adapter, Norms};
use crate::calibrate::Accumulator;
use crate::device::{Device, Run};
use crate::ir::outputs;
use crate::lower::loss::Loss;
use crate::onnx::Model;
use crate::train::Purpose;
use crate::train::data::{Dataset, Feed, Padding};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Data to gather statistics on.
#[derive(Clone)]
pub struct Calibration<'a> {
    pub data: &'a Dataset,
    pub batch_size: usize,
    pub max_length: usize,
    pub loss: Option<Loss>,
    pub loss_output: Option<&'a str>,
    /// Numbers of losses, and the teacher.
    pub terms: Terms,
    /// Whether texts may be padded, as [`merge`] finds out.
    pub padding: Padding,
    /// Inputs that shapes depend on, which are found likewise.
    pub known: BTreeSet<String>,
}

impl<'a> Calibration<'a> {
    /// With the loss that data and model suggest.
    pub fn new(data: &'a Dataset, batch_size: usize, max_length: usize) -> Calibration<'a> {
        let (padding, known) = (Padding::default(), BTreeSet::new());
        let (loss, loss_output, terms) = (None, None, Terms::default());
        Calibration { data, batch_size, max_length, loss, loss_output, terms, padding, known }
    }

    /// How batches are made for a model.
    pub fn feed(&self, model: &Model) -> Feed {
        let known = self.known.clone();
        Feed { padding: self.padding, known, ..Feed::new(input_specs(model), self.max_length) }
    }

    /// Finds out whether texts may be padded, and which inputs programs are made for by value.
    pub(super) fn surveyed(mut self, model: &Arc<Model>, device: &mut dyn Device) -> Result<Calibration<'a>, Error> {
        if self.data.has_labels() {
            let mut trainee = load(model, None)?;
            trainee.feed = self.feed(model);
            let asked = Asked { loss: self.loss, output: self.loss_output, terms: &self.terms };
            trainee.set_loss(self.data, self.batch_size, asked)?;
            survey(&mut trainee, &[self.data], device)?;
            (self.padding, self.known) = (trainee.feed.padding, trainee.feed.known);
        }
        Ok(self)
    }
}

/// Runs an injected model over a whole data set and sums the norms of its blocks.
pub fn calibrate(
    injected: &Arc<Model>,
    adapter: &Adapter,
    c: &Calibration,
    device: &mut dyn Device,
) -> Result<BTreeMap<String, Norms>, Error> {
    let mut trainee = load(injected, Some(adapter))?;
    trainee.feed = c.feed(injected);
    let mut sums = Accumulator::new(&trainee.program.blocks());
    trainee.session(device, |session| {
        let all: Vec<usize> = (0..c.data.len()).collect();
        for examples in c.data.batches(session.feed, &all, c.batch_size) {
            let batch = c.data.batch(session.feed, &examples)?;
            let plan = session.plan(&batch, Purpose::Calibrate)?;
            session.device.submit(vec![Run { plan, inputs: batch.inputs }])?;
            for (name, t) in session.collect(true)?.into_iter().flat_map(|f| f.runs).flatten() {
                if name == outputs::STATISTICS {
                    sums.add(t.as_f32().unwrap_or_default());
                }
            }
        }
        Ok(())
    })?;
    Ok(sums.finish())
}
