//! Training from files.

use super::choosing::{self, Chosen};
use super::compile::{self, LossChoice, ModelCompiler, Program};
use super::surveying::survey;
use super::terms::{Teacher, Terms};
use super::{Error, embedding, input_specs, integers, tuples};
use crate::adapter::Adapter;
use crate::adapters::{BASE_KEY, Config, Group, Spec, Target};
use crate::device::Device;
use crate::ir::inputs::SEGMENTS;
use crate::ir::{DType, FloatType, Graph};
use crate::lower::LowerError;
use crate::lower::loss::{Form, Labels, Loss};
use crate::merge;
use crate::onnx::Model;
use crate::ops::RULES;
use crate::plan::{Layout, parameters_state};
use crate::settings::defaults;
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::data::{DataError, Dataset, Feed, InputSpec, LabelForm, Task};
use crate::train::scores::{self, Kind, METRICS};
use crate::train::{self, Observer, Outcome, Session, Settings, Shapes, TrainError, Trained};
use ndarray::ArrayD;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

/// A model with what is trained in it, ready to be compiled for a device.
#[derive(Clone)]
pub struct Trainee {
    pub program: Program,
    /// How batches are made for it.
    pub feed: Feed,
    /// First values of the parameters.
    pub parameters: BTreeMap<String, ArrayD<f32>>,
    /// Tensors of the adapter that are not trained.
    pub frozen: BTreeMap<String, ArrayD<f32>>,
    pub base: Option<String>,
    /// What the model's answers are, once the loss is chosen; `None` for a loss of the model's own.
    pub kind: Option<Kind>,
}

/// Loads a model for training or evaluation. `adapter` replaces the values that the file has; a model without adapters has
/// nothing to train.
pub fn load(model: &Arc<Model>, adapter: Option<&Adapter>) -> Result<Trainee, Error> {
    let config: Option<Config> = match model.metadata(crate::adapters::CONFIG_KEY) {
        Some(_) => Some(merge::config(model)?),
        None => None,
    };
    let mut trained = BTreeSet::new();
    if let Some(c) = &config {
        trained.extend(c.trained_names());
        trained.extend(c.also_train.iter().cloned());
    }
    let mut parameters = BTreeMap::new();
    for name in &trained {
        parameters.insert(name.clone(), held(model, name)?);
    }
    let mut frozen = BTreeMap::new();
    for name in config.iter().flat_map(Config::tensor_names).filter(|n| !trained.contains(n)) {
        frozen.insert(name.clone(), held(model, &name)?);
    }
    if let Some(adapter) = adapter {
        if config.is_none() {
            let file = model.path().display().to_string();
            return Err(merge::MergeError::NotInjected { file }.into());
        }
        let (adapter, _) = merge::fit(model, adapter)?;
        for (name, value) in &mut parameters {
            *value = adapter.tensors[name].clone();
        }
        if let Some((name, _)) = frozen.iter().find(|(name, value)| adapter.tensors[*name] != **value) {
            let file = model.path().display();
            return Err(Error::Model(format!(
                "the adapter's '{name}', which is not trained, differs from that in {file}\nhint: inject the base again with --adapter FILE"
            )));
        }
    }
    let outputs = model.outputs().into_iter().map(|o| o.name).collect();
    let model = model.clone();
    let program = Program {
        model,
        trained,
        loss: None,
        config,
        outputs,
        signals: vec![],
        fuse: true,
        form: Form::default(),
        class_weights: vec![],
        predicts: false,
        reference: None,
        products: FloatType::F32,
        guard: false,
        packs: false,
    };
    let base = program.model.metadata(BASE_KEY).map(String::from);
    let feed = Feed::new(input_specs(&program.model), usize::MAX);
    Ok(Trainee { program, feed, parameters, frozen, base, kind: None })
}

/// A tensor of an adapter as the file has it.
fn held(model: &Model, name: &str) -> Result<ArrayD<f32>, Error> {
    let view = model.initializer(name).ok_or_else(|| Error::Model(format!("the model has no initializer '{name}'")))?;
    let integers = || Some(view.to_i64()?.into_iter().map(|n| n as f32).collect());
    let values = view.to_f32().or_else(integers);
    let values = values.ok_or_else(|| Error::Model(format!("'{name}' is {}, not a float", view.element)))?;
    Ok(ArrayD::from_shape_vec(view.dims.clone(), values).expect("checked when the file was read"))
}

/// What to train.
#[derive(Clone)]
pub struct TrainRequest<'a> {
    pub model: &'a Arc<Model>,
    pub data: &'a Dataset,
    pub eval: Option<&'a Dataset>,
    pub settings: &'a Settings,
    pub max_length: usize,
    pub loss: Option<Loss>,
    pub loss_output: Option<&'a str>,
    /// The share of a label that is spread over all classes evenly.
    pub label_smoothing: f64,
    /// What each class counts, or each yes of an output; empty for all the same.
    pub class_weights: &'a [f64],
    /// The data's rows hold several texts ([`Dataset::packed`]).
    pub packs: bool,
    /// Numbers of losses, and the teacher.
    pub terms: Terms,
    pub fuse: bool,
    pub dir: &'a Path,
    pub resume: bool,
}

impl<'a> TrainRequest<'a> {
    /// A fresh run without evaluation, the loss chosen from the data.
    pub fn new(model: &'a Arc<Model>, data: &'a Dataset, settings: &'a Settings, dir: &'a Path) -> TrainRequest<'a> {
        TrainRequest {
            model,
            data,
            eval: None,
            settings,
            max_length: defaults::MAX_LENGTH,
            loss: None,
            loss_output: None,
            label_smoothing: 0.0,
            class_weights: &[],
            packs: false,
            terms: Terms::default(),
            fuse: true,
            dir,
            resume: false,
        }
    }
}

/// Everything about a request that can be wrong before a device is used: the model's adapters, the data, the checkpoint.
pub fn check(request: &TrainRequest) -> Result<(), Error> {
    prepare(request).map(|_| ())
}

/// The trainee, the checkpoint to go on from, and what a user should know.
pub(super) fn prepare(request: &TrainRequest) -> Result<(Trainee, Option<Checkpoint>, Vec<String>), Error> {
    let mut trainee = load(request.model, None)?;
    if trainee.program.trained.is_empty() {
        let file = request.model.path().display().to_string();
        let hint = "hint: reslora-compile inject MODEL puts adapters into it";
        return Err(Error::Model(format!("{file} has no adapters to train\n{hint}")));
    }
    trainee.program.fuse = request.fuse;
    trainee.program.products = request.settings.products;
    trainee.program.guard = true;
    if request.packs {
        (trainee.program.packs, trainee.feed.packs) = (true, true);
        let segments = InputSpec { name: SEGMENTS.into(), dtype: DType::I32, dims: None };
        trainee.feed.inputs.push(segments);
    }
    let size = request.settings.batch_size;
    trainee.feed.max_length = request.max_length;
    let asked = Asked { loss: request.loss, output: request.loss_output, terms: &request.terms };
    let notes = trainee.set_loss(request.data, size, asked)?;
    trainee.program.form.smoothing = request.label_smoothing;
    let classes = matches!(&trainee.program.loss, Some(LossChoice::Added { loss, .. }) if *loss == Loss::CROSS_ENTROPY);
    if request.label_smoothing > 0.0 && !classes {
        let why = "--label-smoothing is for cross-entropy of classes, which is not this model's loss";
        return Err(Error::Usage(format!("{why}\nhint: leave it out, or give --loss cross-entropy")));
    }
    trainee.weigh_classes(request.class_weights, request.label_smoothing)?;
    trainee.measure(&request.settings.metrics)?;
    if let (Teacher::Model(file), None) = (&request.terms.teacher, &trainee.program.reference) {
        let why = format!("--teacher {}: this run's loss reads no second model", file.path().display());
        return Err(Error::Usage(format!("{why}\nhint: --loss distill or --loss dpo")));
    }
    if let Some(eval) = request.eval {
        if eval.task().texts() != request.data.task().texts() {
            let (have, want) = (eval.task().texts(), request.data.task().texts());
            let (eval, data) = (eval.path.display(), request.data.path.display());
            let why = format!("rows of {eval} hold {have} texts, and those of {data} {want}");
            return Err(Error::Usage(format!("{why}\nhint: give both the same columns")));
        }
        trainee.check(eval, size)?;
    }
    let resume = match request.resume {
        true => Some(checkpoint::read(&request.dir.join("last"))?),
        false => None,
    };
    Ok((trainee, resume, notes))
}

/// Trains an injected model. Where memory does not hold its micro-batches, smaller ones are taken, and as many more to a step.
pub fn train(request: &TrainRequest, device: &mut dyn Device, observer: &mut dyn Observer) -> Result<Outcome, Error> {
    let mut settings = request.settings.clone();
    loop {
        let error = match train_as_it_is(&TrainRequest { settings: &settings, ..request.clone() }, device, observer) {
            Err(Error::Train(TrainError::NoRoom(error))) => error,
            outcome => return outcome,
        };
        if request.data.task().negatives() && request.loss != Some(Loss::TRIPLET) {
            // Smaller micro-batches have fewer negatives: that would be another loss.
            return Err(TrainError::NoRoom(error).into());
        }
        let size = settings.batch_size;
        let Some(smaller) = (1..size).rev().find(|n| size.is_multiple_of(*n)) else {
            return Err(TrainError::NoRoom(error).into());
        };
        (settings.batch_size, settings.accumulate) = (smaller, settings.accumulate * size / smaller);
        let why = error.to_string().lines().next().unwrap_or_default().to_string();
        observer.note(&format!(
            "{why}: micro-batches hold {smaller} examples instead, {} to a step, which gives the same steps",
            settings.accumulate
        ));
    }
}

fn train_as_it_is(
    request: &TrainRequest,
    device: &mut dyn Device,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    let (mut trainee, resume, notes) = prepare(request)?;
    notes.iter().for_each(|n| observer.note(n));
    let sets: Vec<&Dataset> = std::iter::once(request.data).chain(request.eval).collect();
    survey(&mut trainee, &sets, device)?.iter().for_each(|n| observer.note(n));
    let config = request.model.metadata(crate::adapters::CONFIG_KEY).unwrap_or_default().to_string();
    let blocks = trainee.program.blocks();
    let tensors = trainee.program.config.as_ref().map(|c| c.tensors().unwrap_or_default()).unwrap_or_default();
    let trained = |name: &String| tensors.iter().any(|(n, _, spec)| n == name && spec.trained && spec.shape.len() == 2);
    let pairs: Vec<(String, String)> = tensors
        .iter()
        .filter_map(|(a, _, _)| Some((a.clone(), format!("{}lora_B.weight", a.strip_suffix("lora_A.weight")?))))
        .filter(|(a, b)| trained(a) && trained(b))
        .collect();
    if request.settings.precondition.apply.is_some() && pairs.is_empty() {
        let (name, what) = (request.settings.precondition.name, "this adapter trains no pair of factors A and B");
        return Err(Error::Usage(format!("--precondition {name} has nothing to do: {what}")));
    }
    let path =
        |(name, target, _): &(String, Option<&Target>, Spec)| Some((name.clone(), target.as_ref()?.path.clone()));
    let paths = tensors.iter().filter_map(path).collect();
    let raised: Vec<String> = tensors
        .into_iter()
        .filter(|(_, _, spec)| spec.trained && spec.group == Group::OutputFactor)
        .map(|(name, _, _)| name)
        .collect();
    if request.settings.lora_plus != 1.0 && raised.is_empty() {
        let what = "no tensor of this adapter is an output factor";
        return Err(Error::Usage(format!("--lora-plus has nothing to raise: {what}")));
    }
    let trained = Trained {
        parameters: trainee.parameters.clone(),
        frozen: trainee.frozen.clone(),
        base: trainee.base.clone(),
        config,
        raised,
        pairs,
        paths,
        blocks,
    };
    trainee.session(device, |session| {
        let r = request;
        let task =
            train::Task { trained: &trained, data: r.data, eval: r.eval, settings: r.settings, dir: r.dir, resume };
        Ok(train::train(session, RULES, task, observer)?)
    })
}

/// What is asked of a loss.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// `None`: what follows from the data.
    pub loss: Option<Loss>,
    /// A scalar output that is the loss.
    pub output: Option<&'a str>,
    pub terms: &'a Terms,
}

impl Trainee {
    /// Chooses the loss from what was asked and what the data holds, and checks the data against the model. Returns why.
    pub fn set_loss(&mut self, data: &Dataset, batch_size: usize, asked: Asked) -> Result<Vec<String>, Error> {
        data.check_tensors(&self.feed.inputs)?;
        data.check_values()?;
        let mut notes = Vec::new();
        if matches!(data.task(), Task::Embed { .. }) {
            let found = embedding::found(&self.program.model, &self.shapes(data, batch_size)?)?;
            if let Some((model, note)) = found {
                self.program.model = model;
                notes.push(note);
            }
        }
        let mut by_value = None;
        let chosen = match self.choose(data, batch_size, asked) {
            Err(e @ Error::Lower(LowerError::Node { .. })) => {
                by_value = self.find_known(data, batch_size)?;
                if by_value.is_none() {
                    return Err(e);
                }
                self.choose(data, batch_size, asked)?
            }
            chosen => chosen?,
        };
        let Chosen { choice, form, why, shape, graph } = chosen;
        self.feed.holds_loss = matches!(choice, LossChoice::Held { .. });
        self.feed.labels = form;
        self.program.form = asked.terms.form(data.task().texts());
        if let LossChoice::Added { loss, logits, .. } = &choice
            && loss.reads_reference()
        {
            let reference = asked.terms.reference(&self.program.model, logits)?;
            let more = input_specs(&reference.model);
            let known: Vec<String> = self.feed.inputs.iter().map(|i| i.name.clone()).collect();
            self.feed.inputs.extend(more.into_iter().filter(|i| !known.contains(&i.name)));
            self.program.reference = Some(reference);
        }
        self.kind = kind(&choice, &shape, data);
        self.program.loss = Some(choice);
        self.check_against(data, batch_size, &shape, &graph)?;
        if let Some(reference) = &self.program.reference {
            let theirs = compile::shape_of(&reference.model, &self.shapes(data, batch_size)?, &reference.logits)?;
            if theirs != shape {
                let (file, name) = (reference.model.path().display(), &reference.logits);
                let why = format!("--teacher {file}: output '{name}' is {theirs:?}, and the model's is {shape:?}");
                return Err(Error::Usage(format!("{why}\nhint: both must have the same classes or vocabulary")));
            }
        }
        Ok([why].into_iter().chain(notes).chain(by_value).collect())
    }

    fn choose(&self, data: &Dataset, batch_size: usize, asked: Asked) -> Result<Chosen, Error> {
        let (model, shapes) = (&self.program.model, self.shapes(data, batch_size)?);
        match tuples::choose(model, &shapes, asked.loss, data, batch_size)? {
            Some(chosen) => Ok(chosen),
            None => choosing::choose(model, &shapes, asked.loss, asked.output, data),
        }
    }

    /// Finds the integer inputs that shapes depend on, for which programs are made by value. `None` where that does not help.
    fn find_known(&mut self, data: &Dataset, batch_size: usize) -> Result<Option<String>, Error> {
        let model = self.program.model.clone();
        let outputs = model.outputs().into_iter().filter(|o| o.element.is_float()).map(|o| o.name);
        let wanted: Vec<String> = outputs.collect();
        let specs = self.feed.inputs.iter();
        let integers: Vec<String> = specs.filter(|i| i.dtype != DType::F32).map(|i| i.name.clone()).collect();
        let mut lowers = |known: BTreeSet<String>| -> Result<bool, Error> {
            self.feed.known = known;
            match compile::lowered_graph(&model, &self.shapes(data, batch_size)?, &wanted) {
                Ok(_) => Ok(true),
                Err(Error::Lower(LowerError::Node { .. })) => Ok(false),
                Err(e) => Err(e),
            }
        };
        let mut known: BTreeSet<String> = integers.iter().cloned().collect();
        if lowers(known.clone())? {
            // Only those that it takes.
            for name in &integers {
                let mut fewer = known.clone();
                fewer.remove(name);
                if lowers(fewer.clone())? {
                    known = fewer;
                }
            }
        } else {
            known.clear();
        }
        let names: Vec<String> = known.iter().map(|name| format!("'{name}'")).collect();
        self.feed.known = known;
        Ok((!names.is_empty()).then(|| {
            format!("shapes depend on the values of {}: compiling one program per distinct value", names.join(", "))
        }))
    }

    /// The shapes of a data set's first batch.
    fn shapes(&self, data: &Dataset, batch_size: usize) -> Result<Shapes, Error> {
        // Labels take no part, and before the loss is chosen nobody knows their form.
        let feed = Feed { labels: LabelForm::AsGiven, ..self.feed.clone() };
        let batch = data.batch(&feed, &first(data, batch_size))?;
        Ok(batch.shapes())
    }

    /// Checks a data set: its tensors against the inputs, its labels against the loss, its indices against the tables
    /// they are looked up in.
    pub fn check(&self, data: &Dataset, batch_size: usize) -> Result<(), Error> {
        data.check_tensors(&self.feed.inputs)?;
        data.check_values()?;
        let shapes = self.shapes(data, batch_size)?;
        let name = match self.program.loss.as_ref().expect("the loss is chosen first") {
            LossChoice::Added { logits, .. } => logits,
            LossChoice::Held { output } => output,
        };
        let shape = compile::shape_of(&self.program.model, &shapes, name)?;
        let graph = compile::lowered_graph(&self.program.model, &shapes, std::slice::from_ref(name))?;
        self.check_against(data, batch_size, &shape, &graph)
    }

    fn check_against(&self, data: &Dataset, batch_size: usize, shape: &[usize], graph: &Graph) -> Result<(), Error> {
        data.check_indices(&compile::index_bounds(graph))?;
        let wanted = match self.program.loss.as_ref() {
            Some(LossChoice::Added { logits: name, .. } | LossChoice::Held { output: name }) => name,
            None => return Ok(()),
        };
        integers::check(&self.program.model, graph, wanted, data, &self.feed, batch_size)?;
        let Some(LossChoice::Added { loss, logits, class_axis, .. }) = &self.program.loss else { return Ok(()) };
        let last = shape.len().saturating_sub(1);
        let axis = class_axis.unwrap_or(last);
        let wanted = match loss.labels {
            Labels::Classes => {
                (DType::I32, shape.iter().enumerate().filter(|(d, _)| *d != axis).map(|(_, n)| *n).collect())
            }
            Labels::Numbers => (DType::F32, shape.to_vec()),
            // Made with the batch.
            Labels::Tuples | Labels::Scores | Labels::Preferences => (DType::F32, vec![]),
        };
        if matches!(loss.labels, Labels::Classes | Labels::Preferences) {
            data.check_labels(shape.get(axis).copied().unwrap_or(0))?;
        }
        let batch = data.batch(&self.feed, &first(data, batch_size))?;
        if data.task().texts() > 1 {
            return Ok(());
        }
        let labels = batch.labels.as_ref();
        let fits = labels.is_some_and(|l| l.dtype() == wanted.0 && l.shape() == &wanted.1[..]);
        if !fits {
            let have = labels.map_or("there are none".to_string(), |l| format!("they are {}", l.ty()));
            let want = crate::ir::Type::new(wanted.0, wanted.1);
            let why = format!("output '{logits}' is {shape:?}, so labels must be {want}, but {have}");
            return Err(DataError::Fit { path: data.path.clone(), why }.into());
        }
        Ok(())
    }

    /// Gives classes their weights, as far as the loss takes them.
    fn weigh_classes(&mut self, weights: &[f64], smoothing: f64) -> Result<(), Error> {
        if weights.is_empty() {
            return Ok(());
        }
        let refused = |why: String| Err(Error::Usage(format!("--class-weights {why}")));
        let loss = match &self.program.loss {
            Some(LossChoice::Added { loss, .. }) => Some(*loss),
            _ => None,
        };
        let count = match self.kind {
            Some(Kind::Classes { count, .. }) if loss == Some(Loss::CROSS_ENTROPY) => count,
            Some(Kind::Binary { width }) => width,
            _ => {
                let hint = "hint: leave it out, or give --loss cross-entropy or bce";
                return refused(format!("is for cross-entropy, which is not this model's loss\n{hint}"));
            }
        };
        if weights.len() != count {
            let (given, s) = (weights.len(), if count == 1 { "" } else { "s" });
            return refused(format!("gives {given} numbers, and the model has {count} output{s}\nhint: one for each"));
        }
        if smoothing > 0.0 {
            return refused("does not go with --label-smoothing\nhint: leave one of them out".into());
        }
        self.program.class_weights = weights.iter().map(|w| *w as f32).collect();
        Ok(())
    }

    /// Makes evaluations give what metrics read. A metric that does not go with the answers is an error.
    pub fn measure(&mut self, metrics: &[scores::Asked]) -> Result<(), Error> {
        for asked in metrics {
            let name = asked.name();
            match self.kind {
                None => {
                    let why = format!("--metric {name} has no answers to read: the loss is the model's own");
                    return Err(Error::Usage(format!("{why}\nhint: leave it out, or train on the logits")));
                }
                Some(kind) if !(asked.metric.takes)(kind) => {
                    let fits = METRICS.iter().filter(|m| (m.takes)(kind)).map(|m| m.name);
                    let fits: Vec<&str> = fits.collect();
                    let why = format!("--metric {name} is for {}, which this model's answers are not", asked.metric.of);
                    return Err(Error::Usage(format!("{why}\nhint: {} go with them", fits.join(", "))));
                }
                Some(_) => self.program.predicts = true,
            }
        }
        Ok(())
    }

    /// Runs `f` with a session on `device` that holds the parameters.
    pub fn session<T>(
        &self,
        device: &mut dyn Device,
        f: impl FnOnce(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let sizes = self.program.parameters();
        let limits = device.limits();
        let layout = Layout::new(sizes.iter().map(|(n, s)| (n.as_str(), *s)), limits.value_words);
        for (i, segment) in layout.segments.iter().enumerate() {
            device.reserve(&parameters_state(i), segment.words)?;
        }
        for (name, values) in &self.parameters {
            let slot = layout.slot(name).expect("the layout holds every parameter");
            let values: Vec<f32> = values.iter().copied().collect();
            device.write(&parameters_state(slot.segment), slot.offset, bytemuck::cast_slice(&values))?;
        }
        let mut compiler =
            ModelCompiler { program: self.program.clone(), layout: layout.clone(), limits, own: HashMap::new() };
        let holds_loss = matches!(self.program.loss, Some(LossChoice::Held { .. }));
        let mut session = Session {
            device,
            compiler: &mut compiler,
            feed: &self.feed,
            layout: &layout,
            holds_loss,
            kind: self.kind,
            class_weights: self.program.class_weights.clone(),
            plans: HashMap::new(),
        };
        f(&mut session)
    }
}

/// What a model's answers are, by its loss and the shape of what that is taken on.
fn kind(choice: &LossChoice, shape: &[usize], data: &Dataset) -> Option<Kind> {
    let LossChoice::Added { loss, class_axis, .. } = choice else { return None };
    let width = shape.iter().skip(1).product();
    Some(match loss.labels {
        Labels::Classes => {
            let count = class_axis.map_or(shape.last(), |axis| shape.get(axis)).copied().unwrap_or(1);
            Kind::Classes { count, positions: shape.len() > 2, next_token: data.next_token() }
        }
        Labels::Numbers if *loss == Loss::BINARY_CROSS_ENTROPY => Kind::Binary { width },
        Labels::Numbers => Kind::Numbers { width },
        Labels::Scores => Kind::Scores,
        Labels::Tuples => Kind::Ranks,
        Labels::Preferences => Kind::Preferences,
    })
}

/// The examples of a data set's first batch.
fn first(data: &Dataset, batch_size: usize) -> Vec<usize> {
    (0..data.len().min(batch_size.max(1))).collect()
}
