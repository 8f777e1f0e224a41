//! A run in progress: what is on the device, what is being read back, and what has been written.

use super::checkpoint::{self, Checkpoint, Progress};
use super::data::{Dataset, Padding};
use super::metrics::{EvalMetrics, StepMetrics, Writer, unfit};
use super::scale::LossScale;
use super::scores::Asked;
use super::trace;
use super::{Observer, Outcome, Purpose, STATISTICS_STEPS, Session, Settings, TrainError, Trained, evaluation};
use crate::adapter::{self, Adapter, Norms};
use crate::device::{Fetched, PlanId, Run};
use crate::ir::{Graph, Rules, Tensor, outputs};
use crate::optim::precondition::{Matrix, Pair};
use crate::optim::{self, Flat};
use crate::plan::{self, Limits, gradients_state, parameters_state};
use ndarray::ArrayD;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Instant;

/// So many steps in a row that are skipped end a run.
const MOST_SKIPPED: u64 = 5;

/// A step that is on the device.
struct Pending {
    step: u64,
    lr: f64,
    tokens: usize,
    /// Examples, from 0.
    rows: Vec<usize>,
}

/// A run in progress.
pub(super) struct RunState<'a, 'b> {
    session: &'a mut Session<'b>,
    trained: &'a Trained,
    data: &'a Dataset,
    settings: &'a Settings,
    dir: &'a Path,
    flats: Vec<Flat>,
    optimizer_plan: PlanId,
    /// Plans that start and go on accumulating; `None` where a step is one micro-batch.
    accumulate: Option<[PlanId; 2]>,
    pub(super) total: u64,
    pub(super) steps_per_epoch: usize,
    /// Steps handed to the device, and steps whose results are back.
    pub(super) submitted: u64,
    pub(super) done: u64,
    /// Under mixed precision. The host then waits for each step, since the next one depends on whether this one counts.
    scale: Option<LossScale>,
    pending: VecDeque<Pending>,
    losses: Vec<f64>,
    /// Steps that were skipped, and how many of the last ones.
    pub(super) skipped: u64,
    skipped_in_a_row: u64,
    evaluations: Vec<EvalMetrics>,
    statistics: VecDeque<Vec<f32>>,
    /// What the best adapter was chosen by (the smaller the better), its step, and the adapter.
    best: Option<(f64, u64, Adapter)>,
    /// Evaluations since then.
    pub(super) idle: u64,
    epoch: Option<(usize, Vec<Vec<usize>>)>,
    writer: Writer,
    trace: trace::Writer,
    clock: Instant,
    identity: BTreeMap<String, String>,
}

impl<'a, 'b> RunState<'a, 'b> {
    pub(super) fn new(
        session: &'a mut Session<'b>,
        rules: Rules,
        trained: &'a Trained,
        data: &'a Dataset,
        settings: &'a Settings,
        dir: &'a Path,
        resume: Option<Checkpoint>,
    ) -> Result<RunState<'a, 'b>, TrainError> {
        let fail = |error| TrainError::Write { path: dir.to_path_buf(), error };
        std::fs::create_dir_all(dir).map_err(fail)?;
        let batches = data.len().div_ceil(settings.batch_size);
        let steps_per_epoch = batches.div_ceil(settings.accumulate).max(1);
        let total = settings.max_steps.unwrap_or((settings.epochs * steps_per_epoch) as u64);
        let identity = BTreeMap::from([
            ("data".to_string(), data.digest.clone()),
            ("batch_size".into(), settings.batch_size.to_string()),
            ("accumulate".into(), settings.accumulate.to_string()),
            ("optimizer".into(), settings.optimizer.name.to_string()),
            ("shuffle".into(), settings.order.shuffle.to_string()),
            ("seed".into(), settings.order.seed.to_string()),
            ("base".into(), trained.base.clone().unwrap_or_default()),
            ("precision".into(), settings.products.name().to_string()),
        ]);
        let plus = (settings.lora_plus != 1.0).then(|| ("lora_plus".to_string(), settings.lora_plus.to_string()));
        let precondition = settings.precondition;
        let by = precondition.apply.map(|_| ("precondition".to_string(), precondition.name.to_string()));
        let identity: BTreeMap<String, String> = identity.into_iter().chain(plus).chain(by).collect();
        // Texts of one batch that may not be padded run one length after the other.
        let accumulates = settings.accumulate > 1 || session.feed.padding == Padding::Never;
        let flats = reserve(session, trained, settings, accumulates)?;
        let limits = session.device.limits();
        let (clip, scaled) = (settings.clip_norm, settings.products.needs_loss_scale());
        let pairs = pairs(session, trained);
        let by = (precondition, &pairs[..]);
        let graph = optim::step(rules, settings.optimizer, &settings.hyper, clip, scaled, &flats, by)?;
        let optimizer_plan = session.load_small(graph, limits)?;
        let accumulate = match accumulates {
            true => {
                let buffers: Vec<(String, String, usize)> = (session.layout.segments.iter().enumerate())
                    .map(|(i, s)| (gradients_state(i), accumulated_state(i), s.words))
                    .collect();
                let first = session.load_small(optim::accumulate(rules, true, &buffers)?, limits)?;
                let next = session.load_small(optim::accumulate(rules, false, &buffers)?, limits)?;
                Some([first, next])
            }
            false => None,
        };

        let done = resume.as_ref().map_or(0, |c| c.progress.step);
        let scale = resume.as_ref().and_then(|c| c.progress.loss_scale).unwrap_or_default();
        let mut statistics = VecDeque::new();
        let (mut best, idle) = (None, resume.as_ref().map_or(0, |c| c.progress.idle));
        if let Some(c) = resume {
            for (name, values) in &c.states {
                let known = flats.iter().find(|f| f.parameters == *name || f.moments.contains(name));
                // States of an optimiser that the run no longer uses are left.
                let Some(flat) = known else { continue };
                if values.len() != flat.words {
                    let why = format!("'{name}' has {} numbers, but the model trains {}", values.len(), flat.words);
                    let hint = "hint: give the model that the run began with";
                    return Err(TrainError::Resume { path: dir.join("last"), why: format!("{why}\n{hint}") });
                }
                session.device.write(name, 0, bytemuck::cast_slice(values))?;
            }
            statistics = c.statistics.into();
            if let Some(loss) = c.progress.best_loss {
                best = Some((loss, c.progress.best_step, adapter::read(dir)?));
            }
        } else {
            for (name, values) in &trained.parameters {
                let slot = session.layout.slot(name).expect("the layout holds every parameter");
                let values: Vec<f32> = values.iter().copied().collect();
                session.device.write(&parameters_state(slot.segment), slot.offset, bytemuck::cast_slice(&values))?;
            }
        }
        let keep = (done > 0).then_some(done);
        let (writer, trace) = (Writer::open(dir, keep).map_err(fail)?, trace::Writer::open(dir, keep).map_err(fail)?);
        Ok(RunState {
            session,
            trained,
            data,
            settings,
            dir,
            flats,
            optimizer_plan,
            accumulate,
            total,
            steps_per_epoch,
            submitted: done,
            done,
            scale: settings.products.needs_loss_scale().then_some(scale),
            pending: VecDeque::new(),
            losses: vec![],
            skipped: 0,
            skipped_in_a_row: 0,
            evaluations: vec![],
            statistics,
            best,
            idle,
            epoch: None,
            writer,
            trace,
            clock: Instant::now(),
            identity,
        })
    }

    /// Makes the largest plans that the run will need, while nothing has been computed that a lack of memory could lose.
    pub(super) fn prepare(&mut self, eval: Option<&Dataset>) -> Result<(), TrainError> {
        let size = self.settings.batch_size;
        self.session.prepare(self.data, size, Purpose::Train { statistics: false })?;
        eval.map_or(Ok(()), |eval| self.session.prepare(eval, size, Purpose::Evaluate))
    }

    /// The micro-batches of a step (from 0), as lists of examples.
    fn examples(&mut self, step: u64) -> Vec<Vec<usize>> {
        let per = self.steps_per_epoch as u64;
        let epoch = (step / per) as usize;
        if self.epoch.as_ref().is_none_or(|e| e.0 != epoch) {
            let batches = self.settings.order.epoch(epoch, self.data.len(), self.settings.batch_size);
            self.epoch = Some((epoch, batches));
        }
        let batches = &self.epoch.as_ref().expect("just set").1;
        let first = (step % per) as usize * self.settings.accumulate;
        batches[first..(first + self.settings.accumulate).min(batches.len())].to_vec()
    }

    /// Hands one optimiser step to the device, as one submission.
    pub(super) fn submit_step(&mut self) -> Result<(), TrainError> {
        let step = self.submitted;
        let examples = self.examples(step);
        let micro: Vec<_> = examples
            .iter()
            .flat_map(|e| self.data.batches(self.session.feed, e, self.settings.batch_size))
            .map(|e| self.data.batch(self.session.feed, &e))
            .collect::<Result<_, _>>()?;
        let (weights, total) = self.session.weights(&micro)?;
        if total == 0.0 || micro.iter().all(|b| b.counted == 0) {
            return Err(TrainError::NothingCounts { step: step + 1 });
        }
        let scale = self.scale.map_or(1.0, |s| s.scale);
        let statistics = !self.trained.blocks.is_empty() && step + STATISTICS_STEPS >= self.total;
        let mut runs = Vec::new();
        for (k, (batch, weight)) in micro.iter().zip(weights).filter(|(_, w)| *w != 0.0).enumerate() {
            let plan = self.session.plan(batch, Purpose::Train { statistics })?;
            let seed = draw_seed(self.settings.order.seed, step, k);
            runs.push(self.session.run(plan, batch, weight, total / scale, seed));
            if let Some(plans) = self.accumulate {
                runs.push(Run { plan: plans[(k > 0) as usize], inputs: vec![] });
            }
        }
        let s = self.settings;
        let lr = s.schedule.rate(s.lr, step, self.total, s.warmup_steps);
        // Steps that were skipped do not count for the optimiser.
        let counts = step - self.scale.map_or(0, |s| s.skipped);
        let mut scalars = (s.optimizer.scalars)(&s.hyper, lr, counts + 1);
        if self.scale.is_some() {
            scalars.push((optim::UNSCALE, 1.0 / scale));
        }
        let mut scalars: Vec<(String, f64)> = scalars.into_iter().map(|(n, x)| (n.to_string(), x)).collect();
        if s.lora_plus != 1.0 {
            let raised = (s.optimizer.scalars)(&s.hyper, lr * s.lora_plus, counts + 1);
            scalars.extend(raised.into_iter().map(|(n, x)| (optim::raised_scalar(n), x)));
        }
        let inputs = scalars.iter().map(|(n, x)| (optim::scalar_input(n), Tensor::scalar(*x as f32))).collect();
        runs.push(Run { plan: self.optimizer_plan, inputs });
        self.session.device.submit(runs)?;
        let tokens = micro.iter().map(|b| b.tokens).sum();
        self.pending.push_back(Pending { step, lr, tokens, rows: examples.concat() });
        self.submitted += 1;
        Ok(())
    }

    /// Takes in the results that are back.
    pub(super) fn drain(&mut self, observer: &mut dyn Observer, wait: bool) -> Result<(), TrainError> {
        let all = self.session.collect(wait || self.scale.is_some())?;
        // Results that come back together share the time since the last ones.
        let seconds = self.clock.elapsed().as_secs_f64() / all.len().max(1) as f64;
        if !all.is_empty() {
            self.clock = Instant::now();
        }
        let mut fault = None;
        for fetched in all {
            let Pending { step, lr, tokens, rows } = self.pending.pop_front().expect("one submission a step");
            let (scaled, grad_norm) = self.take(fetched);
            let loss_scale = self.scale.map(|s| s.scale);
            let loss = scaled / loss_scale.unwrap_or(1.0);
            // The device left everything as it was.
            let skipped = !grad_norm.is_finite();
            let rows = if skipped { rows.iter().map(|row| row + 1).collect() } else { vec![] };
            let metrics =
                StepMetrics { step: step + 1, loss, grad_norm, lr, tokens, seconds, loss_scale, skipped, rows };
            self.writer.step(&metrics).map_err(|error| TrainError::Write { path: self.dir.to_path_buf(), error })?;
            observer.step(&metrics);
            self.losses.push(loss);
            self.done = step + 1;
            // A scale that was too large is no fault of the batch's.
            let overflow = skipped && loss.is_finite() && self.scale.is_some();
            let goes_on = self.scale.as_mut().is_none_or(|s| s.update(!skipped));
            if skipped && !overflow {
                (self.skipped, self.skipped_in_a_row) = (self.skipped + 1, self.skipped_in_a_row + 1);
            } else if !skipped {
                self.skipped_in_a_row = 0;
            }
            let all = self.skipped_in_a_row == self.total;
            if !goes_on || self.skipped_in_a_row >= MOST_SKIPPED || all || !skipped && !loss.is_finite() {
                fault.get_or_insert(metrics);
            }
        }
        let Some(fault) = fault else { return Ok(()) };
        // Steps that are on the device already are done too.
        if !self.pending.is_empty() {
            self.drain(observer, true)?;
        }
        self.give_up(&fault)
    }

    /// Ends a run from whose steps nothing can be learnt: what it has learnt before is kept.
    fn give_up(&mut self, last: &StepMetrics) -> Result<(), TrainError> {
        let (what, value) =
            if last.loss.is_finite() { ("gradient's norm", last.grad_norm) } else { ("loss", last.loss) };
        let mut why = match self.skipped_in_a_row {
            0 | 1 => String::new(),
            n => format!(", the {n}th step in a row from which nothing can be learnt"),
        };
        if !last.rows.is_empty() {
            let rows: Vec<String> = last.rows.iter().take(8).map(usize::to_string).collect();
            let more = if last.rows.len() > rows.len() { ", ..." } else { "" };
            why += &format!("; it comes from rows {}{more}", rows.join(", "));
        }
        why += &unfit(self.data, "a smaller --lr, longer --warmup-steps, or --clip-norm 1");
        if self.done > self.skipped_in_a_row && last.skipped {
            self.save()?;
            why += "\nhint: the last good state is kept";
        }
        Err(TrainError::NotFinite { what, step: last.step, value, why })
    }

    /// Loss and gradient norm of a step; its statistics go on record.
    fn take(&mut self, fetched: Fetched) -> (f64, f64) {
        let (mut loss, mut norm, mut statistics) = (0.0, 0.0, Vec::new());
        for (name, t) in fetched.runs.into_iter().flatten() {
            let values = t.as_f32().unwrap_or_default();
            match name.as_str() {
                outputs::LOSS => loss += values[0] as f64,
                "grad_norm" => norm = values[0] as f64,
                outputs::STATISTICS => {
                    statistics.resize(values.len(), 0.0);
                    statistics.iter_mut().zip(values).for_each(|(s, &v)| *s += v);
                }
                _ => {}
            }
        }
        if !statistics.is_empty() && statistics.iter().all(|s| s.is_finite()) {
            self.statistics.push_back(statistics);
            while self.statistics.len() > STATISTICS_STEPS as usize {
                self.statistics.pop_front();
            }
        }
        (loss, norm)
    }

    pub(super) fn evaluate(&mut self, eval: &Dataset, observer: &mut dyn Observer) -> Result<(), TrainError> {
        if self.evaluations.last().is_some_and(|e| e.step == self.done) {
            return Ok(());
        }
        let start = Instant::now();
        let totals = self.session.evaluate(eval, self.settings.batch_size)?;
        let (kind, asked) = (self.session.kind, &self.settings.metrics);
        let metrics = evaluation(&totals, eval, self.done, start.elapsed().as_secs_f64(), kind, asked);
        if let Err(error) = metrics.finite(eval, &totals.not_finite) {
            // The run can go on from here once the evaluation is mended.
            self.save()?;
            return Err(error);
        }
        // The base is there to compare with; it is no result of training.
        let counts = self.done > 0;
        let chosen_by = chosen_by(&metrics, asked);
        let better = counts && self.best.as_ref().is_none_or(|b| chosen_by < b.0);
        self.idle = if better { 0 } else { self.idle + u64::from(counts) };
        if better {
            let adapter = self.adapter()?;
            adapter::write(&adapter, &self.dir.join("adapter.safetensors"))?;
            self.best = Some((chosen_by, self.done, adapter));
        }
        self.writer.evaluation(&metrics).map_err(|error| TrainError::Write { path: self.dir.to_path_buf(), error })?;
        observer.evaluated(&metrics, better);
        self.evaluations.push(metrics);
        self.clock = Instant::now();
        Ok(())
    }

    /// The adapter as the device has it now.
    fn adapter(&mut self) -> Result<Adapter, TrainError> {
        let mut states: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        let mut tensors = self.trained.frozen.clone();
        for (name, first) in &self.trained.parameters {
            let slot = self.session.layout.slot(name).expect("the layout holds every parameter");
            if let std::collections::btree_map::Entry::Vacant(e) = states.entry(slot.segment) {
                e.insert(self.session.device.read(&parameters_state(slot.segment))?);
            }
            let words = &states[&slot.segment][slot.offset..slot.offset + slot.words];
            let values: Vec<f32> = words.iter().map(|&w| f32::from_bits(w)).collect();
            tensors.insert(name.clone(), ArrayD::from_shape_vec(first.shape(), values).expect("as many as the first"));
        }
        let mut statistics: BTreeMap<String, Norms> = BTreeMap::new();
        for row in &self.statistics {
            for (path, s) in self.trained.blocks.iter().zip(row.chunks_exact(3)) {
                let sum = statistics.entry(path.clone()).or_default();
                sum.x += s[0] as f64;
                sum.xa += s[1] as f64;
                sum.rows += s[2] as f64;
            }
        }
        let (base, config) = (self.trained.base.clone(), Some(self.trained.config.clone()));
        Ok(Adapter { tensors, base, config, statistics })
    }

    /// Writes down how far the adapters have come.
    pub(super) fn trace(&mut self) -> Result<(), TrainError> {
        let now = self.adapter()?;
        let point = trace::point(self.done, &self.trained.parameters, &now.tensors, &self.trained.paths);
        self.trace.write(&point).map_err(|error| TrainError::Write { path: self.dir.to_path_buf(), error })?;
        self.clock = Instant::now();
        Ok(())
    }

    /// Writes `last/`.
    pub(super) fn save(&mut self) -> Result<(), TrainError> {
        let mut states = BTreeMap::new();
        for flat in &self.flats {
            for name in [&flat.parameters].into_iter().chain(&flat.moments) {
                states.insert(name.clone(), bytemuck::cast_vec(self.session.device.read(name)?));
            }
        }
        let progress = Progress {
            step: self.done,
            seconds: 0.0,
            best_loss: self.best.as_ref().map(|b| b.0),
            idle: self.idle,
            best_step: self.best.as_ref().map_or(0, |b| b.1),
            identity: self.identity.clone(),
            loss_scale: self.scale,
            states: None,
        };
        let statistics = self.statistics.iter().cloned().collect();
        checkpoint::write(&self.dir.join("last"), &Checkpoint { progress, states, statistics })
    }

    pub(super) fn finish(
        mut self,
        evaluated: bool,
        interrupted: bool,
        stopped_early: bool,
    ) -> Result<Outcome, TrainError> {
        let (adapter, adapter_step) = match self.best.take().filter(|_| evaluated) {
            Some((_, step, adapter)) => (adapter, step),
            None => {
                let adapter = self.adapter()?;
                adapter::write(&adapter, &self.dir.join("adapter.safetensors"))?;
                (adapter, self.done)
            }
        };
        Ok(Outcome {
            steps: self.done,
            losses: self.losses,
            skipped: self.skipped,
            evaluations: self.evaluations,
            adapter,
            interrupted,
            stopped_early,
            adapter_step,
            update: self.optimizer_plan,
        })
    }
}

/// What the best adapter is chosen by, the smaller the better: the first number that is asked for, else the loss.
fn chosen_by(metrics: &EvalMetrics, asked: &[Asked]) -> f64 {
    match asked.iter().find(|a| a.is_number()) {
        None => metrics.eval_loss,
        // A metric that is not defined is worse than any other.
        Some(a) => metrics.scores.values.get(&a.name()).map_or(f64::MAX, |x| if a.metric.higher { -x } else { *x }),
    }
}

fn accumulated_state(segment: usize) -> String {
    format!("accumulated.{segment}")
}

/// Makes the device's states, and lists them as flat buffers.
fn reserve(
    session: &mut Session,
    trained: &Trained,
    settings: &Settings,
    accumulates: bool,
) -> Result<Vec<Flat>, TrainError> {
    let mut flats = Vec::new();
    for (i, segment) in session.layout.segments.iter().enumerate() {
        let (parameters, words) = (parameters_state(i), segment.words);
        let gradients = if accumulates { accumulated_state(i) } else { gradients_state(i) };
        let names = (settings.optimizer.moments)(&settings.hyper);
        let moments: Vec<String> = names.iter().map(|m| optim::moment_state(m, &parameters)).collect();
        for name in [&parameters, &gradients_state(i), &gradients].into_iter().chain(&moments) {
            session.device.reserve(name, words)?;
        }
        let raised = match settings.lora_plus == 1.0 {
            true => None,
            false => Some(mask(session, trained, i)?),
        };
        flats.push(Flat { parameters, gradients, moments, raised, words });
    }
    Ok(flats)
}

/// Where the pairs of factors stand in the flat buffers.
fn pairs(session: &Session, trained: &Trained) -> Vec<Pair> {
    let place = |name: &str| {
        let slot = session.layout.slot(name)?;
        let [rows, columns] = *trained.parameters.get(name)?.shape() else { return None };
        Some(Matrix { flat: slot.segment, offset: slot.offset, rows, columns })
    };
    trained.pairs.iter().filter_map(|(a, b)| Some(Pair { a: place(a)?, b: place(b)? })).collect()
}

/// Writes the state that says which parameters of a segment have the raised rate, and returns its name.
fn mask(session: &mut Session, trained: &Trained, segment: usize) -> Result<String, TrainError> {
    let name = format!("raised.{segment}");
    session.device.reserve(&name, session.layout.segments[segment].words)?;
    for parameter in &trained.raised {
        let slot = session.layout.slot(parameter).filter(|s| s.segment == segment);
        if let Some(slot) = slot {
            let ones = vec![1f32; trained.parameters[parameter].len()];
            session.device.write(&name, slot.offset, bytemuck::cast_slice(&ones))?;
        }
    }
    Ok(name)
}

/// A seed for the draws of one micro-batch: a hash, so that neighbouring steps draw alike in nothing.
fn draw_seed(seed: u64, step: u64, micro: usize) -> i32 {
    let mut h = seed ^ step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (micro as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    h = (h ^ h >> 33).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    h = (h ^ h >> 33).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    (h >> 33) as i32
}

impl Session<'_> {
    /// Plans and loads a graph over states alone.
    fn load_small(&mut self, graph: Graph, limits: Limits) -> Result<PlanId, TrainError> {
        let graph = self.compiler.finish(graph).map_err(TrainError::Compile)?;
        Ok(self.device.load(plan::plan(graph, self.layout, limits)?)?)
    }
}
