//! Taking adapters out again: the model with the bytes of its weights changed and nothing else.

mod branch;
mod exact;
mod input_norm;
mod least_squares;
mod weight_norm;

pub use branch::keep_branch;
pub use least_squares::{Solution, error, solve};

use crate::adapter::{Adapter, Norms};
use crate::adapters::{self, BASE_KEY, CONFIG_KEY, Config, DROPOUT_RATIO, KERNEL_SHAPES, SCALE, Structure, Target};
use crate::onnx::{self, ElementType, Linear, Model, NodeId};
use ndarray::{Array2, ArrayD, Ix2};
use std::collections::{BTreeMap, HashMap, HashSet};

/// How to find plain weights for a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    Exact,
    InputNorm,
    WeightNorm,
    LeastSquares,
}

/// One strategy.
pub struct StrategyInfo {
    pub strategy: Strategy,
    pub name: &'static str,
    /// Whether it needs the norms of inputs for this structure.
    pub needs_norms: fn(Structure) -> bool,
    pub applies: fn(Structure) -> bool,
    /// `ΔW`, `[out, in]`, of every target in order.
    pub deltas: fn(&Inputs) -> Result<Vec<Delta>, MergeError>,
}

/// Every strategy, exact first.
pub static STRATEGIES: &[StrategyInfo] =
    &[exact::STRATEGY, input_norm::STRATEGY, weight_norm::STRATEGY, least_squares::STRATEGY];

impl Strategy {
    pub fn info(self) -> &'static StrategyInfo {
        STRATEGIES.iter().find(|s| s.strategy == self).expect("every strategy is in the table")
    }

    pub fn parse(text: &str) -> Option<Strategy> {
        STRATEGIES.iter().find(|s| s.name == text).map(|s| s.strategy)
    }
}

/// What a strategy reads.
pub struct Inputs<'a> {
    pub config: &'a Config,
    /// `A` and `B` by module path, in f64.
    pub factors: &'a BTreeMap<String, (Array2<f64>, Array2<f64>)>,
    /// Base weights as `[out, in]`, by module path.
    pub weights: &'a dyn Fn(&Target) -> Array2<f64>,
    pub norms: &'a BTreeMap<String, Norms>,
    /// The projections that least-squares found, `[rank, in]`, by module path.
    pub projections: &'a BTreeMap<String, Array2<f64>>,
}

/// The change of one weight.
#[derive(Clone)]
pub struct Delta {
    pub path: String,
    pub delta: Array2<f64>,
    /// The projection `A'`, `[rank, in]`, with which the change is `s B A'`; `None` where its rank is another.
    pub a: Option<Array2<f64>>,
    /// The factors found for earlier blocks, nearest first.
    pub alphas: Vec<f64>,
}

impl Delta {
    /// `s B A'`
    fn of(i: &Inputs, t: &Target, a: Array2<f64>, alphas: Vec<f64>) -> Delta {
        let delta = i.factors[&t.path].1.dot(&a) * i.config.scale();
        Delta { path: t.path.clone(), delta, a: Some(a), alphas }
    }
}

/// What a merge reads besides the model and the adapter.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Norms of each block, by module path; strategies that need none take none.
    pub norms: BTreeMap<String, Norms>,
    /// The projections that least-squares found, by module path.
    pub projections: BTreeMap<String, Array2<f64>>,
}

/// What a merge did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    pub strategy: String,
    pub layers: Vec<LayerReport>,
    pub also_trained: Vec<String>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct LayerReport {
    pub path: String,
    pub weight: String,
    /// `‖ΔW‖ / ‖W‖`, Frobenius.
    pub relative_change: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alphas: Vec<f64>,
    /// Relative error of what the merged weight adds to the base's output, against what the adapter added, on held-back rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// The ridge that least-squares took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ridge: Option<f64>,
    /// `‖stored - wanted‖ / ‖wanted‖` of a weight that the file keeps quantised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requantised: Option<f64>,
}

/// Why a merge is not possible.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("{file} carries no adapters\nhint: merge the file that inject wrote")]
    NotInjected { file: String },
    #[error("the configuration in {file} cannot be read: {why}")]
    Config { file: String, why: String },
    #[error(
        "the adapter was trained on another base (digest {adapter}), this model's is {model}\n\
         hint: give the model that was trained, or inject into the base that the adapter belongs to"
    )]
    OtherBase { adapter: String, model: String },
    #[error(transparent)]
    Fit(#[from] adapters::FitError),
    #[error(
        "weight '{weight}' of '{path}' would hold {what} as {element}\nhint: merge into a base of a wider type (float32), or keep the \
         adapters in the file with --keep-branch"
    )]
    NotFinite { weight: String, path: String, element: ElementType, what: &'static str },
    #[error("strategy '{strategy}' does not apply to {structure}\nhint: {hint}")]
    Strategy { strategy: String, structure: Structure, hint: String },
    #[error(
        "merging {structure} by '{strategy}' needs norms of inputs, and there are none\n\
         hint: give --calibrate FILE, or an adapter of a run of at least one step"
    )]
    NoNorms { strategy: String, structure: Structure },
    #[error(
        "weight '{weight}' of '{path}' is quantised and cannot be merged into: {why}\nhint: keep the adapters in the file with --keep-branch"
    )]
    Quantised { weight: String, path: String, why: String },
    #[error(
        "merging {structure} by least-squares needs rows to fit on, and there are none\n\
         hint: give --calibrate FILE; a run's own training data is taken where it is still there"
    )]
    NoRows { structure: Structure },
    #[error("the model's nodes do not match its configuration: {0}")]
    Nodes(String),
}

/// The configuration that an injected model carries.
pub fn config(model: &Model) -> Result<Config, MergeError> {
    let file = model.path().display().to_string();
    let text = model.metadata(CONFIG_KEY).ok_or_else(|| MergeError::NotInjected { file: file.clone() })?;
    serde_json::from_str(text).map_err(|e| MergeError::Config { file, why: e.to_string() })
}

/// Checks that an adapter belongs to an injected model; returns a note if it cannot be told.
pub fn check_base(model: &Model, adapter: &Adapter) -> Result<Option<String>, MergeError> {
    match (&adapter.base, model.metadata(BASE_KEY)) {
        (Some(a), Some(m)) if a != m => Err(MergeError::OtherBase { adapter: a.clone(), model: m.into() }),
        (Some(_), Some(_)) => Ok(None),
        _ => Ok(Some("the adapter does not say which base it was trained on: accepted as it is".into())),
    }
}

/// An adapter under the names that an injected model has, checked to be for that model and to be used as it was made; and notes on
/// what could not be checked. Done again to what it gives, it changes and notes nothing.
pub fn fit(injected: &Model, adapter: &Adapter) -> Result<(Adapter, Vec<String>), MergeError> {
    let config = config(injected)?;
    let mut notes: Vec<String> = check_base(injected, adapter)?.into_iter().collect();
    let fitted = adapters::fit(&config, injected, adapter.config.as_deref(), &adapter.tensors)?;
    notes.extend(fitted.notes);
    let [base, config] = [BASE_KEY, CONFIG_KEY].map(|key| injected.metadata(key).map(String::from));
    Ok((Adapter { tensors: fitted.tensors, base, config, statistics: adapter.statistics.clone() }, notes))
}

/// The model that was injected into: adapters' nodes and initializers removed, nothing merged.
pub fn strip(injected: &Model, config: &Config) -> Result<Model, MergeError> {
    let mut model = injected.clone();
    let emitted = emitted(injected, config)?;
    let names: HashSet<&str> = emitted.iter().flat_map(|(_, nodes)| nodes).map(|n| n.name.as_str()).collect();
    let doomed: Vec<NodeId> = injected.nodes().filter(|(_, n)| names.contains(n.name())).map(|(id, _)| id).collect();
    if doomed.len() != names.len() {
        return Err(MergeError::Nodes(format!("{} of {} adapter nodes are there", doomed.len(), names.len())));
    }
    for (linear, nodes) in &emitted {
        let last = nodes.last().expect("a block ends in an Add");
        model.node_mut(*linear).rename_output(&last.inputs[0], &last.outputs[0]);
    }
    doomed.into_iter().for_each(|id| model.remove_node(id));
    let factors = config.targets.iter().flat_map(|t| [t.a(), t.b()]);
    for name in factors.chain([SCALE, DROPOUT_RATIO].into_iter().chain(KERNEL_SHAPES).map(String::from)) {
        model.remove_initializer(&name);
    }
    for key in model.metadata_keys().iter().filter(|k| k.starts_with("reslora.")) {
        model.set_metadata(key, None);
    }
    Ok(model)
}

/// The nodes that injection added, found by adding them again to the model as it would be without them.
fn emitted(injected: &Model, config: &Config) -> Result<Vec<(NodeId, Vec<onnx::NewNode>)>, MergeError> {
    let producers = injected.producers();
    let mut out = Vec::new();
    for (id, mut nodes) in adapters::emit(injected, config) {
        // The linear node's output has its base name now; the value it had is that of the last Add.
        let last = nodes.last_mut().expect("a block ends in an Add");
        let add = injected.nodes().find(|(_, n)| n.name() == last.name).map(|(_, n)| n);
        let add = add.ok_or_else(|| MergeError::Nodes(format!("there is no node '{}'", last.name)))?;
        if producers.get(add.inputs()[0].as_str()) != Some(&id) {
            return Err(MergeError::Nodes(format!("'{}' does not follow its linear node", last.name)));
        }
        last.outputs = vec![add.outputs()[0].clone()];
        out.push((id, nodes));
    }
    let found: HashSet<String> = onnx::linear_nodes(injected).into_iter().map(|l| l.path).collect();
    match config.targets.iter().find(|t| !found.contains(&t.path)) {
        Some(t) => Err(MergeError::Nodes(format!("there is no linear node '{}'", t.path))),
        None => Ok(out),
    }
}

/// An injected model taken apart: its base with the trained tensors in place, and the adapter's factors.
pub struct Prepared {
    pub model: Model,
    pub config: Config,
    pub factors: Factors,
    pub notes: Vec<String>,
}

/// Takes an injected model apart and checks that the adapter fits it.
pub fn prepare(injected: &Model, adapter: &Adapter) -> Result<Prepared, MergeError> {
    let config = config(injected)?;
    let (adapter, notes) = fit(injected, adapter)?;
    let factors = factors(&config, &adapter);
    let mut model = strip(injected, &config)?;
    let linear = onnx::linear_nodes(&model);
    for l in linear.iter().filter(|l| config.target(&l.path).is_some()) {
        let element = model.initializer_type(&l.weight).map_or(ElementType::Other(0), |t| t.0);
        let refused = |why: String| MergeError::Quantised { weight: l.weight.clone(), path: l.path.clone(), why };
        match l.quantised(&model) {
            Some(read) => drop(read.map_err(refused)?),
            None if !element.is_float() => return Err(refused(format!("it is {element}"))),
            None => {}
        }
    }
    // Tensors that are trained themselves first: a target's weight may be one of them.
    for name in &config.also_train {
        place(&mut model, name, &adapter.tensors[name])?;
    }
    Ok(Prepared { model, config, factors, notes })
}

/// Puts a trained tensor, which was checked to fit, in the place of an initializer.
fn place(model: &mut Model, name: &str, t: &ArrayD<f32>) -> Result<(), MergeError> {
    let element = model.initializer_type(name).expect("checked to be there").0;
    let values: Vec<f64> = t.iter().map(|&x| x as f64).collect();
    let bytes = encoded(element, &values, name, name)?;
    model.replace_data(name, bytes);
    Ok(())
}

/// The elements of a weight as a file stores them; refused where one is not a number, or too large for the type.
fn encoded(element: ElementType, values: &[f64], weight: &str, path: &str) -> Result<Vec<u8>, MergeError> {
    let refused = |what| MergeError::NotFinite { weight: weight.to_string(), path: path.to_string(), element, what };
    let bytes = onnx::encode_floats(element, values).expect("checked to be floats");
    match onnx::not_finite(element, &bytes) {
        Some(what) => Err(refused(what)),
        None => Ok(bytes),
    }
}

/// Checks that a strategy applies to a structure.
pub fn check_strategy(config: &Config, strategy: Strategy) -> Result<(), MergeError> {
    let info = strategy.info();
    if (info.applies)(config.structure) {
        return Ok(());
    }
    let others: Vec<&str> = STRATEGIES.iter().filter(|s| (s.applies)(config.structure)).map(|s| s.name).collect();
    let hint = format!("--strategy {}", others.join(" or "));
    Err(MergeError::Strategy { strategy: info.name.into(), structure: config.structure, hint })
}

/// The change of every target's weight.
pub fn deltas(p: &Prepared, strategy: Strategy, statistics: &Statistics) -> Result<Vec<Delta>, MergeError> {
    let (config, info) = (&p.config, strategy.info());
    check_strategy(config, strategy)?;
    if (info.needs_norms)(config.structure) && config.targets.iter().any(|t| !statistics.norms.contains_key(&t.path)) {
        return Err(MergeError::NoNorms { strategy: info.name.into(), structure: config.structure });
    }
    let linear = onnx::linear_nodes(&p.model);
    let by_path: HashMap<&str, &Linear> = linear.iter().rev().map(|l| (l.path.as_str(), l)).collect();
    let weights = |t: &Target| weight(&p.model, by_path[t.path.as_str()]);
    (info.deltas)(&Inputs {
        config,
        factors: &p.factors,
        weights: &weights,
        norms: &statistics.norms,
        projections: &statistics.projections,
    })
}

/// Adds changes to the weights of a base.
pub fn fold(
    model: &mut Model,
    config: &Config,
    deltas: &[Delta],
    notes: &mut Vec<String>,
) -> Result<Vec<LayerReport>, MergeError> {
    let linear = onnx::linear_nodes(model);
    let targets: HashSet<&str> = config.targets.iter().map(|t| t.path.as_str()).collect();
    let first = |path: &str| linear.iter().find(|l| l.path == path).expect("a target is a linear node");
    // Two targets may share a weight: all are read before any is written.
    let bases: Vec<Array2<f64>> = deltas.iter().map(|d| weight(model, first(&d.path))).collect();
    let mut layers = Vec::new();
    for (delta, base) in deltas.iter().zip(bases) {
        let norm = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>().sqrt();
        let relative_change = norm(&delta.delta) / norm(&base).max(f64::MIN_POSITIVE);
        let mut requantised = None;
        // An exporter may have written one weight once for every call.
        let mut written = HashSet::new();
        for l in linear.iter().filter(|l| l.path == delta.path && written.insert(l.weight.as_str())) {
            let mut new = &base + &delta.delta / l.alpha as f64;
            let element = model.initializer_type(&l.weight).map_or(ElementType::F32, |t| t.0);
            if relative_change != 0.0 && l.quantised(model).is_none() {
                carry_rounding(element, &mut new);
            }
            let stored: Vec<f64> =
                if l.transposed { new.iter().copied().collect() } else { new.t().iter().copied().collect() };
            if let Some(quantised) = l.quantised(model) {
                let refused =
                    |why: String| MergeError::Quantised { weight: l.weight.clone(), path: l.path.clone(), why };
                if is_shared(model, &linear, l) {
                    return Err(refused("a node that is not adapted reads it too".into()));
                }
                let mut quantised = quantised.map_err(refused)?;
                requantised = Some(0.0);
                if relative_change != 0.0 {
                    let wrong = |what| MergeError::NotFinite {
                        weight: l.weight.clone(),
                        path: l.path.clone(),
                        element: l.element,
                        what,
                    };
                    let check = |x: Option<f64>| x.map_or(Ok(()), |x| Err(wrong(onnx::called(x))));
                    check(stored.iter().copied().find(|x| !x.is_finite()))?;
                    requantised = Some(quantised.requantise(model, &stored));
                    check(quantised.dequantise().into_iter().map(f64::from).find(|x| !x.is_finite()))?;
                    quantised.store(model);
                }
                continue;
            }
            let name = own_weight(model, &linear, l, &targets, notes);
            let element = model.initializer_type(&name).expect("its own weight is an initializer").0;
            let bytes = encoded(element, &stored, &l.weight, &l.path)?;
            model.replace_data(&name, bytes);
        }
        layers.push(LayerReport {
            path: delta.path.clone(),
            weight: first(&delta.path).weight.clone(),
            relative_change,
            alphas: delta.alphas.clone(),
            error: None,
            ridge: None,
            requantised,
        });
    }
    Ok(layers)
}

/// Rounds a weight `[out, in]` to the 16 bits that a file stores it in, each row by error feedback: what one element loses is added
/// to the next one's. A change too small for the steps between numbers is then kept in sum over a row, where rounding each
/// element alone would lose it whole. Other element types stay as they are.
fn carry_rounding(element: ElementType, weight: &mut Array2<f64>) {
    let round: fn(f64) -> f64 = match element {
        ElementType::F16 => |x| half::f16::from_f64(x).to_f64(),
        ElementType::Bf16 => |x| half::bf16::from_f64(x).to_f64(),
        _ => return,
    };
    for mut row in weight.rows_mut() {
        let mut carried = 0.0;
        for x in &mut row {
            let wanted = *x + carried;
            let stored = round(wanted);
            // What overflows is reported for what it is.
            carried = if stored.is_finite() { wanted - stored } else { 0.0 };
            *x = stored;
        }
    }
}

/// Folds an adapter into the model it was injected into.
pub fn merge(
    injected: &Model,
    adapter: &Adapter,
    strategy: Strategy,
    statistics: &Statistics,
) -> Result<(Model, Report), MergeError> {
    let mut p = prepare(injected, adapter)?;
    let deltas = deltas(&p, strategy, statistics)?;
    let layers = fold(&mut p.model, &p.config, &deltas, &mut p.notes)?;
    let report = Report {
        strategy: strategy.info().name.into(),
        layers,
        also_trained: p.config.also_train.clone(),
        notes: p.notes,
    };
    Ok((p.model, report))
}

/// `(A, B)` of each block by module path, in f64.
pub type Factors = BTreeMap<String, (Array2<f64>, Array2<f64>)>;

/// The factors of an adapter that fits.
fn factors(config: &Config, adapter: &Adapter) -> Factors {
    let get = |name: String| {
        let t = adapter.tensors[&name].mapv(|x| x as f64);
        t.into_dimensionality::<Ix2>().expect("its shape was checked")
    };
    config.targets.iter().map(|t| (t.path.clone(), (get(t.a()), get(t.b())))).collect()
}

/// A linear node's weight as `[out, in]`.
fn weight(model: &Model, l: &Linear) -> Array2<f64> {
    let (dims, values) = match l.quantised(model) {
        Some(q) => {
            let q = q.expect("checked before");
            (q.dims.clone(), q.dequantise().into_iter().map(f64::from).collect())
        }
        None => {
            let view = model.initializer(&l.weight).expect("linear nodes read initializers");
            (view.dims.clone(), view.to_f64().expect("checked to be floats"))
        }
    };
    // A convolution's kernel of one place has two axes more.
    let stored = Array2::from_shape_vec((dims[0], dims[1]), values).expect("checked when the file was read");
    if l.transposed { stored } else { stored.reversed_axes() }
}

/// The nodes that read a weight, each with the nodes it leads to through changes of layout and type.
type Readers = Vec<(NodeId, Vec<NodeId>)>;

/// Who reads the weight of `l`, and the linear nodes that belong to its target.
fn readers(model: &Model, linear: &[Linear], l: &Linear) -> (Readers, HashSet<NodeId>) {
    let consumers = model.consumers();
    let readers = consumers.get(&l.weight).cloned().unwrap_or_default();
    let mine: HashSet<NodeId> =
        linear.iter().filter(|o| o.path == l.path && o.weight == l.weight).map(|o| o.node).collect();
    (readers.iter().map(|r| (*r, leads(model, &consumers, &mine, *r))).collect(), mine)
}

/// The nodes that a reader of a weight leads to through changes of layout and type.
fn leads(
    model: &Model,
    consumers: &HashMap<String, Vec<NodeId>>,
    mine: &HashSet<NodeId>,
    reader: NodeId,
) -> Vec<NodeId> {
    let (mut open, mut out) = (vec![reader], Vec::new());
    while let Some(id) = open.pop() {
        let node = model.node(id);
        match node.op_type() {
            "Transpose" | "Identity" | "Cast" | "DequantizeLinear" if !mine.contains(&id) => {
                open.extend(node.outputs().iter().flat_map(|o| consumers.get(o).cloned().unwrap_or_default()));
            }
            _ => out.push(id),
        }
    }
    out
}

/// Whether a node that is not the target's depends on its weight.
fn is_shared(model: &Model, linear: &[Linear], l: &Linear) -> bool {
    let (ends, mine) = readers(model, linear, l);
    ends.iter().any(|(_, ends)| ends.iter().any(|id| !mine.contains(id)))
        || model.outputs().iter().any(|o| o.name == l.weight)
}

/// The initializer to change for a target: its weight, or a copy of that if another node reads the weight too and does
/// not belong to the target.
fn own_weight(
    model: &mut Model,
    linear: &[Linear],
    l: &Linear,
    targets: &HashSet<&str>,
    notes: &mut Vec<String>,
) -> String {
    if !is_shared(model, linear, l) {
        return l.weight.clone();
    }
    let (ends, mine) = readers(model, linear, l);
    let copy = format!("{}.weight.merged", l.path);
    let view = model.initializer(&l.weight).expect("linear nodes read initializers");
    let (element, dims, bytes) = (view.element, view.dims.clone(), view.bytes.to_vec());
    model.add_initializer(&copy, element, &dims, bytes);
    let also = if targets.len() > 1 { " or to another target" } else { "" };
    notes.push(format!(
        "'{}' also belongs to a node that is not adapted{also}: '{}' got its own copy",
        l.weight, l.path
    ));
    // Point the target's own readers at the copy; a reader that leads elsewhere too is given a twin.
    for (reader, ends) in ends {
        if ends.iter().all(|id| mine.contains(id)) {
            model.node_mut(reader).rename_input(&l.weight, &copy);
        } else if ends.iter().any(|id| mine.contains(id)) {
            split_reader(model, reader, &l.weight, &copy, &mine);
        }
    }
    copy
}

/// A Transpose (or its like) of a shared weight feeds both the target and others: the target's nodes get one of their own, and so do
/// further nodes between the two that lead both ways.
fn split_reader(model: &mut Model, reader: NodeId, input: &str, copy: &str, mine: &HashSet<NodeId>) {
    let old = model.node(reader).outputs()[0].clone();
    let taken: HashSet<String> = model.producers().keys().map(|k| k.to_string()).collect();
    let names = (1..).map(|n| if n == 1 { format!("{old}.merged") } else { format!("{old}.merged_{n}") });
    let twin = names.into_iter().find(|n| !taken.contains(n)).expect("there are enough numbers");
    let id = model.twin(reader, &twin);
    model.node_mut(id).rename_input(input, copy);
    let consumers = model.consumers();
    for next in consumers.get(&old).cloned().unwrap_or_default() {
        let ends = leads(model, &consumers, mine, next);
        if ends.iter().all(|end| mine.contains(end)) {
            model.node_mut(next).rename_input(&old, &twin);
        } else if ends.iter().any(|end| mine.contains(end)) {
            split_reader(model, next, &old, &twin, mine);
        }
    }
}
