//! From a model and a shape to a plan.

use super::weighing::OwnLoss;
use super::{Error, ValueShapes, dumping, integers};
use crate::adapters::{self, Config, Merge, Residual};
use crate::calibrate::{self, BlockValues};
use crate::ir::{Builder, FloatType, Graph, Leaf, Sink, Tensor, Value, outputs};
use crate::lower::loss::{self, Loss};
use crate::lower::{self, Lowered, Request};
use crate::onnx::{self, Dim, Linear, Model, Signature};
use crate::passes::{self, Kind, Options};
use crate::plan::{self, Layout, Limits, Plan};
use crate::train::data::Batch;
use crate::train::{CompileError, Compiler, Purpose, Shapes, Weight};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Where the loss comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LossChoice {
    /// Added to what the model computes.
    Added {
        loss: Loss,
        /// The value that it is taken on.
        logits: String,
        /// The axis of the classes, where it is not the last.
        class_axis: Option<usize>,
        /// The value holds probabilities rather than logits.
        probabilities: bool,
    },
    /// This scalar output of the model's own.
    Held { output: String },
}

/// A value of the model, and strides where it is an image of which a convolution reads some places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    pub value: String,
    pub strides: Option<Vec<i64>>,
}

/// What [`Purpose::Calibrate`] gives of one block, in place of statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    pub x: Option<Tap>,
    pub t: Option<Tap>,
    /// Sums of products over rows, or the rows themselves.
    pub sums: bool,
}

/// A frozen model beside the one that is trained, which reads the same batches.
#[derive(Clone, Debug)]
pub struct Reference {
    pub model: Arc<Model>,
    /// The value that is compared.
    pub logits: String,
}

/// What is compiled, for any shape.
#[derive(Clone)]
pub struct Program {
    pub model: Arc<Model>,
    /// Initializers that are parameters.
    pub trained: BTreeSet<String>,
    /// `None` where nothing but outputs or statistics is wanted.
    pub loss: Option<LossChoice>,
    /// The configuration of an injected model, for statistics of its blocks.
    pub config: Option<Config>,
    /// Outputs that [`Purpose::Infer`] fetches.
    pub outputs: Vec<String>,
    /// What [`Purpose::Calibrate`] gives; empty for the statistics of every block.
    pub signals: Vec<Signal>,
    /// Whether optimisations beyond the necessary run.
    pub fuse: bool,
    /// How the loss is taken; smoothing is left out of evaluations.
    pub form: loss::Form,
    /// What each class counts in training, or each yes of an output; empty for all the same.
    pub class_weights: Vec<f32>,
    /// Whether evaluations give what the model answers besides.
    pub predicts: bool,
    /// The model whose logits the loss compares with: a teacher, or a reference.
    pub reference: Option<Reference>,
    /// The type to which products round their operands.
    pub products: FloatType,
    /// Whether rows that a mask leaves no key compute 0 in evaluation too, as in training, rather than what the file says.
    pub guard: bool,
    /// Training batches hold several texts in a row.
    pub packs: bool,
}

/// Compiles a program for one device.
pub struct ModelCompiler {
    pub program: Program,
    pub layout: Layout,
    pub limits: Limits,
    /// How the model's own loss counts batches, by shape.
    pub own: HashMap<Shapes, OwnLoss>,
}

impl Compiler for ModelCompiler {
    fn compile(&mut self, shapes: &Shapes, purpose: Purpose) -> Result<Plan, CompileError> {
        let graph = self.program.graph(shapes, purpose, self.limits)?;
        Ok(plan::plan(graph, &self.layout, self.limits)?)
    }

    fn weigh(&mut self, batch: &Batch) -> Result<Weight, CompileError> {
        let Some(LossChoice::Held { output }) = &self.program.loss else { return Ok(Weight::Unknown) };
        let shapes = batch.shapes();
        if !self.own.contains_key(&shapes) {
            let found = OwnLoss::find(&self.program.model, &shapes, output)?;
            self.own.insert(shapes.clone(), found);
        }
        Ok(self.own[&shapes].weight(&batch.inputs))
    }

    fn finish(&mut self, graph: Graph) -> Result<Graph, CompileError> {
        passes::check(&graph, "build")?;
        let options = Options { kind: Kind::Update, ..self.program.options(Purpose::Infer, self.limits) };
        Ok(dumping::optimize(graph, &options, dumping::update_program)?)
    }
}

impl Program {
    /// The finished graph for a shape, for a device of these limits.
    pub fn graph(&self, shapes: &Shapes, purpose: Purpose, limits: Limits) -> Result<Graph, Error> {
        let graph = self.forward(shapes, purpose)?;
        dumping::optimize(graph, &self.options(purpose, limits), |_| dumping::model_program(purpose, shapes))
    }

    /// What the passes are to do.
    fn options(&self, purpose: Purpose, limits: Limits) -> Options {
        let training = matches!(purpose, Purpose::Train { .. });
        Options {
            kind: if training { Kind::Training } else { Kind::Forward },
            fuse: self.fuse,
            products: self.products,
            guard: self.guard || training || purpose == Purpose::Calibrate,
            packs: self.packs && (training || purpose == Purpose::Infer),
            limits,
        }
    }

    /// Lowered, with the outputs that a purpose wants.
    pub fn forward(&self, shapes: &Shapes, purpose: Purpose) -> Result<Graph, Error> {
        let training = matches!(purpose, Purpose::Train { .. });
        let signals: &[Signal] = if purpose == Purpose::Calibrate { &self.signals } else { &[] };
        let statistics =
            matches!(purpose, Purpose::Calibrate | Purpose::Train { statistics: true }) && signals.is_empty();
        let blocks = if statistics { self.block_names() } else { vec![] };
        let mut wanted: Vec<String> = match (purpose, &self.loss) {
            (Purpose::Infer, _) => self.outputs.clone(),
            (Purpose::Calibrate, _) | (_, None) => vec![],
            (_, Some(LossChoice::Added { logits: name, .. } | LossChoice::Held { output: name })) => vec![name.clone()],
        };
        wanted.extend(blocks.iter().flat_map(|(l, xa)| [Some(l.x.clone()), xa.clone()]).flatten());
        wanted.extend(signals.iter().flat_map(|s| [&s.x, &s.t]).flatten().map(|t| t.value.clone()));
        let known = &shapes.known();
        let request = Request { model: &self.model, shapes, known, trained: &self.trained, wanted: &wanted, training };
        let Lowered { mut b, values } = lower::lower(&request)?;
        match (purpose, &self.loss) {
            (Purpose::Infer, _) => {
                for name in &self.outputs {
                    b.output(name.clone(), values[name], Sink::Fetch);
                }
            }
            (Purpose::Calibrate, _) | (_, None) => {}
            (_, Some(LossChoice::Held { output })) => {
                let value = loss::attach_held(&mut b, values[output])?;
                b.output(outputs::LOSS, value, Sink::Fetch);
            }
            (_, Some(LossChoice::Added { loss, logits, class_axis, probabilities })) => {
                let smoothing = if training { self.form.smoothing } else { 0.0 };
                let mut form = loss::Form { class_axis: *class_axis, smoothing, ..self.form };
                if training && !self.class_weights.is_empty() {
                    let weights = Tensor::f32([self.class_weights.len()], self.class_weights.clone());
                    form.weights = Some(b.constant(weights));
                }
                if let Some(Reference { model, logits: name }) =
                    self.reference.as_ref().filter(|_| loss.reads_reference())
                {
                    let (wanted, trained) = (vec![name.clone()], BTreeSet::new());
                    let request = Request { model, shapes, known, trained: &trained, wanted: &wanted, training: false };
                    let other = lower::lower_onto(b, &request)?;
                    (b, form.reference) = (other.b, Some(other.values[name]));
                }
                let (value, correct) = loss::attach(&mut b, *loss, values[logits], &form, *probabilities)?;
                b.output(outputs::LOSS, value, Sink::Fetch);
                if self.predicts && purpose == Purpose::Evaluate {
                    let predicted = loss::predict(&mut b, *loss, values[logits], &form, *probabilities)?;
                    b.output(outputs::PREDICTION, predicted.answer, Sink::Fetch);
                    if let Some(probabilities) = predicted.probabilities {
                        b.output(outputs::PROBABILITIES, probabilities, Sink::Fetch);
                    }
                }
                if let (Purpose::Evaluate, Some(correct)) = (purpose, correct) {
                    b.output(outputs::CORRECT, correct, Sink::Fetch);
                }
            }
        }
        if statistics {
            let mask = values.get("attention_mask").copied();
            let mut found = Vec::new();
            for (l, xa) in &blocks {
                let x = rows(&mut b, values[&l.x], l.strides.as_deref())?;
                // What a convolution has projected, its strides have thinned out already.
                let dense = l.strides.as_ref().map(|s| vec![1; s.len()]);
                let xa = xa.as_ref().map(|v| rows(&mut b, values[v], dense.as_deref())).transpose()?;
                found.push(BlockValues { x, xa });
            }
            calibrate::attach(&mut b, &found, mask)?;
        }
        if !signals.is_empty() {
            let mask = values.get("attention_mask").copied();
            let mut found = Vec::new();
            for s in signals {
                let mut tap = |t: &Option<Tap>| {
                    t.as_ref().map(|t| rows(&mut b, values[&t.value], t.strides.as_deref())).transpose()
                };
                found.push(calibrate::Signals { x: tap(&s.x)?, t: tap(&s.t)?, sums: s.sums });
            }
            calibrate::attach_moments(&mut b, &found, mask)?;
        }
        if purpose != Purpose::Calibrate {
            integers::watch(&mut b);
        }
        passes::check(&b.graph, "lower")?;
        Ok(b.graph)
    }

    /// Module paths of the blocks that have statistics, in order.
    pub fn blocks(&self) -> Vec<String> {
        match &self.config {
            Some(c) if c.merge() == Merge::Approximate => c.targets.iter().map(|t| t.path.clone()).collect(),
            _ => vec![],
        }
    }

    /// For each block, its linear node and (for middle-shortcut) the name of its own projection.
    fn block_names(&self) -> Vec<(Linear, Option<String>)> {
        let Some(config) = &self.config else { return vec![] };
        let (linear, emission) = (onnx::linear_nodes(&self.model), adapters::emit_again(&self.model, config));
        let name = |path: &String| {
            let l = linear.iter().find(|l| l.path == *path).expect("a target is a linear node");
            let block = emission.blocks.iter().find(|b| b.path == *path);
            let carried = block.and_then(|b| b.carried.clone());
            (l.clone(), carried.filter(|_| config.residual() == Residual::MiddleShortcut))
        };
        self.blocks().iter().map(name).collect()
    }

    /// The parameters and their numbers of elements.
    pub fn parameters(&self) -> Vec<(String, usize)> {
        let size = |name: &String| {
            let (_, dims) = self.model.initializer_type(name).expect("trained tensors are initializers");
            (name.clone(), dims.iter().product())
        };
        self.trained.iter().map(size).collect()
    }
}

/// A linear node's input with its channels last: images `(B, C, ..)` as the convolution reads them, at its strides.
fn rows(b: &mut Builder, mut x: Value, strides: Option<&[i64]>) -> Result<Value, Error> {
    let Some(strides) = strides else { return Ok(x) };
    for (axis, &stride) in (2..).zip(strides) {
        let places = b.shape(x)[axis].div_ceil(stride.max(1) as usize);
        x = b.slice(x, axis, 0, places, stride)?;
    }
    let order: Vec<usize> = [0].into_iter().chain(2..strides.len() + 2).chain([1]).collect();
    Ok(b.transpose(x, &order)?)
}

/// A shape to try a model at: two examples, a few positions.
pub fn sample_shapes(inputs: &[Signature]) -> Shapes {
    shapes_at(inputs, 2, 8)
}

/// The inputs' shapes at a batch and sequence length, where the file leaves them open.
pub fn shapes_at(inputs: &[Signature], batch: usize, seq: usize) -> Shapes {
    let extent = |rank: usize, d: usize, dim: &Dim| match dim {
        Dim::Fixed(n) => *n,
        Dim::Named(n) if n.contains("past") && !n.contains('+') => 0,
        _ if d == 0 => batch,
        // An image's height and width.
        _ if rank == 4 && d >= 2 => 64,
        _ => seq,
    };
    let shape = |s: &Signature| {
        let dims = s.dims.clone().unwrap_or_default();
        (s.name.clone(), dims.iter().enumerate().map(|(d, dim)| extent(dims.len(), d, dim)).collect())
    };
    inputs.iter().map(shape).collect()
}

/// The shape of every value that the model's first output depends on, at a sample shape.
pub fn value_shapes(model: &Arc<Model>) -> Result<ValueShapes, Error> {
    let operators = lower::unsupported(model);
    if !operators.is_empty() {
        return Err(lower::LowerError::Unsupported { file: model.path().display().to_string(), operators }.into());
    }
    value_shapes_at(model, &sample_shapes(&model.inputs()))
}

/// The shape of every value that the model's outputs depend on.
pub fn value_shapes_at(model: &Arc<Model>, shapes: &Shapes) -> Result<ValueShapes, Error> {
    let wanted: Vec<String> = model.outputs().into_iter().map(|o| o.name).collect();
    let trained = BTreeSet::new();
    let request =
        Request { model, shapes, known: &shapes.known(), trained: &trained, wanted: &wanted, training: false };
    let Lowered { b, values } = lower::lower(&request)?;
    Ok(values.into_iter().map(|(name, v)| (name, b.shape(v).0.clone())).collect())
}

/// For each integer input whose elements name rows of a table, the number of rows.
pub fn index_bounds(graph: &Graph) -> BTreeMap<String, usize> {
    let mut bounds = BTreeMap::new();
    for node in graph.nodes.iter().filter(|n| n.op == "gather") {
        let index = graph.through_reshapes(node.inputs[1]);
        if let Some(Leaf::Input(name)) = graph.leaf(index) {
            let n = graph.shape(node.inputs[0])[node.attrs.int("axis") as usize];
            let bound = bounds.entry(name.clone()).or_insert(n);
            *bound = n.min(*bound);
        }
    }
    bounds
}

/// The model lowered at some shapes as far as some of its values.
pub fn lowered_graph(model: &Arc<Model>, shapes: &Shapes, wanted: &[String]) -> Result<Graph, Error> {
    let trained = BTreeSet::new();
    Ok(lower::lower(&Request { model, shapes, known: &shapes.known(), trained: &trained, wanted, training: false })?
        .b
        .graph)
}

/// The model lowered at some shapes as far as one of its values, and that value.
pub fn lowered_value(model: &Arc<Model>, shapes: &Shapes, name: &str) -> Result<(Graph, Value), Error> {
    let (wanted, trained) = (vec![name.to_string()], BTreeSet::new());
    let request =
        Request { model, shapes, known: &shapes.known(), trained: &trained, wanted: &wanted, training: false };
    let Lowered { b, values } = lower::lower(&request)?;
    Ok((b.graph, values[name]))
}

/// Shape of a value at some shapes of the inputs.
pub fn shape_of(model: &Arc<Model>, shapes: &Shapes, name: &str) -> Result<Vec<usize>, Error> {
    let (graph, value) = lowered_value(model, shapes, name)?;
    Ok(graph.shape(value).0.clone())
}
