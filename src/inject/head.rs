//! A new classifier: the last linear node before the logits gets a fresh weight of another number of outputs, which is trained whole.

use super::error::InjectError;
use crate::adapters;
use crate::onnx::{self, Bias, Dim, ElementType, Linear, Model, NewNode, NodeId, Signature, encode_floats};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

/// The classes of a new classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What they are called, in order: `LABEL_0` and so on where nobody has named them.
    pub names: Vec<String>,
}

/// The metadata key that holds the names of classes, as `id2label` of a config.json does.
pub const LABELS_KEY: &str = "id2label";

/// The deviation of fresh weights, transformers' `initializer_range`.
const DEVIATION: f64 = 0.02;

/// Operators between a classifier and the logits that do not mix classes: what they carry is their first input.
const CARRIES: &[&str] = &[
    "Identity",
    "Cast",
    "Softmax",
    "LogSoftmax",
    "Sigmoid",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Transpose",
    "Gather",
    "GatherND",
    "Slice",
    "Dropout",
];

impl Head {
    /// Reads what `--head` says: a number of outputs, or names separated by commas.
    pub(crate) fn parse(text: &str) -> Result<Head, String> {
        let text = text.trim();
        if let Ok(n) = text.parse::<i64>() {
            return match usize::try_from(n).ok().filter(|n| (1..=1 << 24).contains(n)) {
                Some(n) => Ok(Head { names: (0..n).map(|i| format!("LABEL_{i}")).collect() }),
                None => Err(format!("--head {n} must be at least 1 output")),
            };
        }
        let names: Vec<String> = text.split(',').map(|n| n.trim().to_string()).collect();
        if names.iter().any(String::is_empty) {
            return Err(format!(
                "--head '{text}' has a class without a name\nhint: --head negative,positive, or --head 2"
            ));
        }
        let mut seen = HashSet::new();
        match names.iter().find(|n| !seen.insert(n.as_str())) {
            Some(twice) => Err(format!("--head names '{twice}' twice")),
            None => Ok(Head { names }),
        }
    }
}

/// A model with a new classifier.
pub(crate) struct Headed {
    pub model: Model,
    /// The module path of the classifier.
    pub path: String,
    /// Its weight and its bias, which are trained whole.
    pub tensors: Vec<String>,
    /// One sentence on what was replaced.
    pub note: String,
}

/// Replaces the classifier. Weights are normal with deviation 0.02, drawn from `seed`; the bias is zero.
pub(crate) fn replaced(base: &Model, head: &Head, seed: u64) -> Result<Headed, InjectError> {
    let outputs = base.outputs();
    let output = outputs.iter().find(|o| o.name == "logits").or(outputs.iter().find(|o| o.element.is_float()));
    let output = output.ok_or_else(|| InjectError::Option("--head: the model has no float output".into()))?;
    let linear = onnx::linear_nodes(base);
    let (l, bias) = classifier(base, &linear, output)?;
    let n = head.names.len();
    let element = base.initializer_type(&l.weight).map(|t| t.0).filter(|e| e.is_float());
    let element = element.unwrap_or(if output.element.is_float() { output.element } else { ElementType::F32 });
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::from_le_bytes(*b"new head"));
    let values: Vec<f64> = (0..l.in_features * n).map(|_| adapters::normal(&mut rng) * DEVIATION).collect();
    let encode = |values: &[f64]| encode_floats(element, values).expect("a float type");
    let mut model = base.clone();
    let taken = |name: &str| base.is_constant(name) || base.producers().contains_key(name);
    let free = |name: &str| {
        let mut names = std::iter::once(name.to_string()).chain((1..).map(|i| format!("{name}_{i}")));
        names.find(|n| !taken(n)).expect("there are enough numbers")
    };
    let weight = free(&format!("{}.head.weight", l.path));
    model.add_initializer(&weight, element, &[l.in_features, n], encode(&values));
    let mut tensors = vec![weight.clone()];
    let last = match &bias {
        Some(Bias::Added { output, .. }) => output.clone(),
        _ => l.y.clone(),
    };
    let product = if bias.is_some() { free(&format!("{}.head.product", l.path)) } else { last.clone() };
    // From such a name the node's module path is read again.
    let name = |op: &str| format!("/{}/{op}", l.path.replace('.', "/"));
    let mut nodes = vec![NewNode::new(&name("MatMul"), "MatMul", &[&l.x, &weight], &product)];
    if bias.is_some() {
        let bias = free(&format!("{}.head.bias", l.path));
        model.add_initializer(&bias, element, &[n], encode(&vec![0.0; n]));
        nodes.push(NewNode::new(&name("Add"), "Add", &[&product, &bias], &last));
        tensors.push(bias);
    }
    let consumers = base.consumers();
    let old: Vec<String> = base.node(l.node).inputs()[1..].iter().filter(|i| !i.is_empty()).cloned().collect();
    let added = match &bias {
        Some(Bias::Added { node, name, .. }) => Some((*node, name.clone())),
        _ => None,
    };
    // What the old nodes gave, the new ones give, after the last of the old.
    model.insert_before(l.node, nodes);
    model.remove_node(l.node);
    if let Some((node, _)) = &added {
        model.remove_node(*node);
    }
    let mut left: Vec<(String, NodeId)> = old.into_iter().map(|name| (name, l.node)).collect();
    left.extend(added.map(|(node, name)| (name, node)));
    remove_unread(&mut model, base, &consumers, left);
    let changed = below(base, &l.y);
    model.forget_shapes(&changed);
    for o in outputs.iter().filter(|o| changed.contains(&o.name)) {
        let Some(mut dims) = o.dims.clone() else { continue };
        let axis = dims.iter().rposition(|d| *d == Dim::Fixed(l.out_features)).or(dims.len().checked_sub(1));
        if let Some(axis) = axis {
            dims[axis] = Dim::Fixed(n);
        }
        model.reshape_output(&o.name, o.element, &dims);
    }
    let names = head.names.iter().enumerate().map(|(i, n)| (i.to_string(), n.clone().into()));
    let labels: serde_json::Map<String, serde_json::Value> = names.collect();
    model.set_metadata(LABELS_KEY, Some(serde_json::Value::Object(labels).to_string()));
    let note = format!(
        "the classifier '{}' of {} outputs is replaced by a fresh one of {n}, trained whole; '{}' holds its results",
        l.path, l.out_features, output.name
    );
    Ok(Headed { model, path: l.path.clone(), tensors, note })
}

/// The last linear node before an output, and its bias.
fn classifier<'a>(
    base: &Model,
    linear: &'a [Linear],
    output: &Signature,
) -> Result<(&'a Linear, Option<Bias>), InjectError> {
    let (producers, consumers) = (base.producers(), base.consumers());
    let mut name = output.name.clone();
    loop {
        let found = linear.iter().map(|l| (l, l.bias(base, &consumers))).find(|(l, bias)| match bias {
            Some(Bias::Added { output, .. }) => *output == name,
            _ => l.y == name,
        });
        if let Some((l, bias)) = found {
            if l.strides.is_some() {
                let hint = "hint: --head takes classifiers that are matrix products";
                return Err(InjectError::Option(format!("the classifier '{}' is a convolution\n{hint}", l.path)));
            }
            return Ok((l, bias));
        }
        let node = producers.get(name.as_str()).map(|id| base.node(*id));
        match node.filter(|n| n.domain().is_empty() && CARRIES.contains(&n.op_type())).and_then(|n| n.input(0)) {
            Some(input) => name = input.to_string(),
            None => {
                let what = node.map_or("a graph input or constant".to_string(), |n| {
                    format!("node '{}' ({})", n.label(), n.operator())
                });
                let why = format!(
                    "--head finds no classifier: output '{}' comes from {what}, not from a linear node",
                    output.name
                );
                return Err(InjectError::Option(format!(
                    "{why}\nhint: export the model with a classification head of any size"
                )));
            }
        }
    }
}

/// Takes out initializers and nodes that only the nodes taken out have read.
fn remove_unread(
    model: &mut Model,
    base: &Model,
    consumers: &std::collections::HashMap<String, Vec<NodeId>>,
    mut open: Vec<(String, NodeId)>,
) {
    let producers = base.producers();
    let mut gone: HashSet<NodeId> = open.iter().map(|o| o.1).collect();
    let outputs: HashSet<String> = base.outputs().into_iter().map(|o| o.name).collect();
    while let Some((name, _)) = open.pop() {
        let read = consumers.get(&name).is_some_and(|all| all.iter().any(|id| !gone.contains(id)));
        if read || outputs.contains(&name) {
            continue;
        }
        if model.is_initializer(&name) {
            model.remove_initializer(&name);
        } else if let Some(&id) = producers.get(name.as_str()).filter(|id| base.node(**id).outputs().len() == 1) {
            gone.insert(id);
            open.extend(base.node(id).inputs().iter().filter(|i| !i.is_empty()).map(|i| (i.clone(), id)));
            model.remove_node(id);
        }
    }
}

/// Every value that depends on one, itself included.
fn below(model: &Model, name: &str) -> HashSet<String> {
    let mut found = HashSet::from([name.to_string()]);
    for (_, node) in model.nodes() {
        if node.inputs().iter().any(|i| found.contains(i)) {
            found.extend(node.outputs().iter().cloned());
        }
    }
    found
}
