//! `prompt`: trained rows stand before the embeddings of every sequence's tokens (prompt tuning, arXiv 2104.08691; started from a text,
//! SK-Tuning, 2410.08598).
//!
//! Tokens of no meaning are put before the token ids, so that positions, masks and shapes follow as for any longer text; what the
//! table gives for them is replaced by the trained rows. Outputs with a sequence axis lose its first places again. Merging appends
//! the rows to the table.

use super::{
    Config, Drawing, Elsewhere, ElsewhereFolding, Emission, Emitted, Emitter, Entry, Form, Places, Rewrite, Rewrites,
    Scene, Setting, SettingKind, Spec, Start, Target, Tensors, base_name,
};
use crate::onnx::{Dim, ElementType, Model, Node, NodeId, Signature};
use ndarray::ArrayD;
use rand::Rng;
use std::collections::BTreeMap;

const ROWS: &str = "prompt_embeddings";
const COUNT: &str = "virtual-tokens";
const TEXT: &str = "prompt-text";
/// The key of a merged model's metadata: the token ids to put before every sequence.
pub const IDS_KEY: &str = "reslora.prompt_ids";
/// Before the names of nodes and values.
const PREFIX: &str = "reslora.prompt";
/// Keys of a target's names: the graph input of token ids, what the table gives, its type, a token that stands for the rows; and
/// outputs with a sequence axis.
const IDS: &str = "ids";
const EMBEDDED: &str = "embedded";
const STANDS: &str = "stands-for";
const OUTPUTS: &str = "outputs";
/// Graph inputs with a sequence axis, and what stands in them for the rows.
const ALONG: &[(&str, Along)] =
    &[("attention_mask", Along::Ones), ("token_type_ids", Along::Zeros), ("position_ids", Along::Positions)];

#[derive(Clone, Copy)]
enum Along {
    Ones,
    Zeros,
    /// Counted from 0; the positions of the tokens follow.
    Positions,
}

pub const ENTRY: Entry = Entry {
    name: "prompt",
    aliases: &[],
    help: "trained embeddings of virtual tokens before every sequence",
    settings: &[
        Setting {
            name: COUNT,
            help: "how many virtual tokens",
            kind: SettingKind::Count { default: Some(20), least: 1 },
        },
        Setting {
            name: TEXT,
            help: "a text whose tokens' embeddings they start as, repeated or cut; else tokens drawn at random",
            kind: SettingKind::Tokens,
        },
    ],
    rank: false,
    alpha: false,
    dropout: false,
    residual: None,
    residuals: &[],
    images: false,
    reads_roles: false,
    suffixes: &[ROWS],
    tensors: |_, _| Ok(vec![]),
    shared,
    inputs: &[],
    form: Form::Elsewhere(Elsewhere {
        what: "token embedding",
        places,
        targets: |_, places| Ok(places),
        emit: |scene| emit(scene, None),
        folding: ElsewhereFolding::Rewrites(Rewrites {
            rewrites,
            metadata: |_, config| vec![(IDS_KEY.to_string(), ids(config))],
            adapted: Some(|scene| emit(scene, Some(scene.config.targets[0].in_features))),
        }),
    }),
};

fn count(config: &Config) -> usize {
    config.count(COUNT).unwrap_or(20) as usize
}

/// The ids that the rows have in the merged model: those behind the table's own.
fn ids(config: &Config) -> String {
    let first = config.targets[0].in_features;
    (first..first + count(config)).map(|id| id.to_string()).collect::<Vec<_>>().join(",")
}

/// The rows `[virtual tokens, hidden]`.
fn shared(config: &Config) -> Vec<Spec> {
    let hidden = config.targets.first().map_or(0, |t| t.out_features);
    vec![Spec::new(ROWS, [count(config), hidden], Start::Drawn(rows))]
}

fn rows(call: &mut Drawing) -> Result<ArrayD<f32>, String> {
    let table = call.config.targets.first().ok_or("the model has no token embedding")?;
    let n = call.shape[0];
    let ids: Vec<usize> = match (call.config.text(TEXT), call.tokens) {
        ("", _) => (0..n).map(|_| call.rng.random_range(0..table.in_features)).collect(),
        (text, []) => return Err(format!("--prompt-text '{text}' has no tokens\nhint: give --tokenizer FILE")),
        (_, tokens) => tokens.iter().copied().cycle().take(n).collect(),
    };
    if let Some(id) = ids.iter().find(|id| **id >= table.in_features) {
        return Err(format!("the tokenizer gives token {id}, and the model's table has {} rows", table.in_features));
    }
    let values = (call.initializer)(&table.weight, Some(&ids))?;
    ArrayD::from_shape_vec(call.shape.to_vec(), values.iter().map(|x| *x as f32).collect()).map_err(|e| e.to_string())
}

/// The graph input that a value is, through conversions.
fn input_of<'a>(model: &'a Model, inputs: &[Signature], value: &'a str) -> Option<String> {
    if inputs.iter().any(|i| i.name == value) && !model.is_initializer(value) {
        return Some(value.to_string());
    }
    let (_, node) = model.nodes().find(|(_, n)| n.outputs().iter().any(|o| o == value))?;
    let view = ["Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"].contains(&node.op_type());
    view.then(|| input_of(model, inputs, node.input(0)?)).flatten()
}

/// The lookup of token embeddings: of several tables that a graph input of integers looks up, the one called `input_ids`, else the
/// longest.
fn places(call: &Places) -> Result<Vec<Target>, String> {
    let (model, inputs) = (call.model, call.model.inputs());
    let lookup = |(id, node): (NodeId, &Node)| {
        let table = node.input(0).filter(|_| node.op_type() == "Gather")?;
        let (element, dims) = model.initializer_type(table)?;
        let [rows, hidden] = dims[..] else { return None };
        let ids = input_of(model, &inputs, node.input(1)?)?;
        (element.is_float() && node.attr_int("axis").unwrap_or(0) == 0)
            .then(|| (id, table.to_string(), rows, hidden, ids))
    };
    let found: Vec<_> = model.nodes().filter_map(lookup).collect();
    let named = found.iter().find(|f| f.4 == "input_ids" && found.iter().all(|g| g.4 != f.4 || g.2 <= f.2));
    let (id, table, vocabulary, hidden, ids) = named
        .or_else(|| found.iter().max_by_key(|f| f.2))
        .cloned()
        .ok_or("the model looks up no table of embeddings by a graph input of token ids: prompt needs one")?;
    if let Some(past) = inputs.iter().find(|i| i.name.starts_with("past_key_values")) {
        return Err(format!(
            "the model reads a key-value cache ('{}'), before which no tokens can be put: export it without a cache",
            past.name
        ));
    }
    let embedded = model.node(id).outputs()[0].clone();
    let rank = |value: &str| (call.shape_of)(value).map(|s| s.len());
    let axes = |name: &str| inputs.iter().find(|i| i.name == name).and_then(|i| Some(i.dims.as_ref()?.len()));
    if axes(&ids).is_some_and(|n| n != 2) || rank(&embedded).is_some_and(|n| n != 3) {
        return Err(format!("'{ids}' does not have the two axes batch and sequence, which prompt needs"));
    }
    for (name, _) in ALONG {
        if axes(name).is_some_and(|n| n != 2) {
            return Err(format!("'{name}' does not have the two axes batch and sequence, which prompt needs"));
        }
    }
    let sequence = inputs.iter().find(|i| i.name == ids).and_then(|i| i.dims.as_ref()?.get(1).cloned());
    if let Some(Dim::Fixed(n)) = sequence {
        return Err(format!("'{ids}' has a fixed length of {n}: export the model with a dynamic sequence axis"));
    }
    let long = (call.shape_of)(&ids).and_then(|s| s.get(1).copied());
    let along = |o: &Signature| {
        let named = |d: &Dim| matches!(d, Dim::Named(_)) && Some(d) == sequence.as_ref();
        let by_name = o.dims.as_ref().and_then(|d| d.get(1)).is_some_and(named);
        let shape = (call.shape_of)(&o.name);
        by_name || shape.is_some_and(|s| s.len() >= 3 && s.get(1).copied() == long)
    };
    let outputs: Vec<String> = model.outputs().into_iter().filter(along).map(|o| o.name).collect();
    let names = [
        (IDS, ids.clone()),
        (EMBEDDED, embedded),
        (STANDS, stands_for(model, vocabulary).to_string()),
        (OUTPUTS, outputs.join("\n")),
    ];
    Ok(vec![Target {
        path: table.strip_suffix(".weight").unwrap_or(&table).to_string(),
        weight: table,
        in_features: vocabulary,
        out_features: hidden,
        names: names.map(|(k, v)| (k.to_string(), v)).into_iter().collect::<BTreeMap<_, _>>(),
        ..Target::default()
    }])
}

/// A token id that nothing in the graph compares a value with, as it compares token ids with that of padding.
fn stands_for(model: &Model, vocabulary: usize) -> usize {
    let compared: Vec<f64> = model
        .nodes()
        .filter(|(_, n)| ["Equal", "Sub", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"].contains(&n.op_type()))
        .flat_map(|(_, n)| {
            n.inputs().iter().filter_map(|i| model.initializer(i)?.to_f64()).flatten().collect::<Vec<_>>()
        })
        .collect();
    (0..vocabulary).rev().find(|id| !compared.contains(&(*id as f64))).unwrap_or(0)
}

/// `[batch, n]` of a row of whole numbers, of the type of a graph input.
fn before(e: &mut Emitter, input: &str, element: ElementType, role: &str, row: &[i64]) -> String {
    let shape = e.node(&format!("{role}.shape"), "Shape", &[input]);
    let (zero, one) = (e.integers("reslora.at.0", &[0]), e.integers("reslora.at.1", &[1]));
    let batch = e.node(&format!("{role}.batch"), "Slice", &[&shape, &zero, &one]);
    let n = e.integers(&format!("reslora.shape.{}", row.len()), &[row.len() as i64]);
    let shape = e.concat(&format!("{role}.before.shape"), &[&batch, &n], 0);
    let row = e.integers(&format!("{PREFIX}.{role}.row"), row);
    let all = e.node(&format!("{role}.before"), "Expand", &[&row, &shape]);
    if element == ElementType::I64 { all } else { e.cast_to(&format!("{role}.before.cast"), &all, element) }
}

/// The nodes. `appended`: those that a merged model needs, whose table has the rows from this one on.
fn emit(scene: &Scene, appended: Option<usize>) -> Emission {
    let (model, config) = (scene.model, scene.config);
    let target = &config.targets[0];
    let n = count(config);
    let mut out = Emission::default();
    let mut e = scene.emitter(PREFIX, ElementType::F32);
    let own = |name: &str| name.starts_with(PREFIX);
    let outputs = || target.names[OUTPUTS].split('\n').filter(|o| !o.is_empty());
    let first = appended.unwrap_or_else(|| target.names[STANDS].parse().unwrap_or(0)) as i64;
    let ids: Vec<i64> = (0..n as i64).map(|i| if appended.is_some() { first + i } else { first }).collect();
    let along = ALONG.iter().map(|(name, along)| {
        let row: Vec<i64> = match along {
            Along::Ones => vec![1; n],
            Along::Zeros => vec![0; n],
            Along::Positions => (0..n as i64).collect(),
        };
        (*name, row, matches!(along, Along::Positions))
    });
    let inputs = model.inputs();
    for (name, row, counted) in std::iter::once((target.names[IDS].as_str(), ids, false)).chain(along) {
        let Some(input) = inputs.iter().find(|i| i.name == name) else { continue };
        let row = before(&mut e, name, input.element, name, &row);
        let rest = match counted {
            false => name.to_string(),
            true => {
                let by = e.integers(&format!("{PREFIX}.count"), &[n as i64]);
                let by = match input.element {
                    ElementType::I64 => by,
                    element => e.cast_to(&format!("{name}.count.cast"), &by, element),
                };
                e.node(&format!("{name}.moved"), "Add", &[name, &by])
            }
        };
        let new = e.concat(name, &[&row, &rest], 1);
        let mut nodes = e.take();
        for node in scene.readers(name, &new, &own) {
            out.blocks.push(Emitted::before(PREFIX, node, name, &new, std::mem::take(&mut nodes)));
        }
    }
    if appended.is_none() {
        let (embedded, base) = (&target.names[EMBEDDED], base_name(PREFIX));
        let element = model.initializer_type(&target.weight).map_or(ElementType::F32, |t| t.0);
        e.go_to(PREFIX, element);
        let rows = e.tensor(ROWS);
        let shape = e.node("rows.shape", "Shape", &[&base]);
        let (zero, one) = (e.integers("reslora.at.0", &[0]), e.integers("reslora.at.1", &[1]));
        let batch = e.node("rows.batch", "Slice", &[&shape, &zero, &one]);
        let each = e.integers(&format!("{PREFIX}.rows.size"), &[n as i64, target.out_features as i64]);
        let shape = e.concat("rows.each", &[&batch, &each], 0);
        let rows = e.node("rows", "Expand", &[&rows, &shape]);
        let tokens = from(&mut e, "tokens", &base, n);
        let all = e.concat("embedded", &[&rows, &tokens], 1);
        // Where the embeddings are an output of the model too, that loses the first places, and what reads them inside does not.
        let inside = match outputs().any(|o| o == embedded) {
            true => {
                from(&mut e, "embedded.tokens", &all, n);
                scene.readers(embedded, &all, &own)
            }
            false => vec![],
        };
        let nodes = e.take();
        if let Some(node) = scene.producer(embedded, &base) {
            out.blocks.push(Emitted::after(PREFIX, node, embedded, &base, nodes));
        }
        out.blocks.extend(inside.into_iter().map(|node| Emitted::before(PREFIX, node, embedded, &all, vec![])));
    }
    for name in outputs().filter(|o| appended.is_some() || *o != target.names[EMBEDDED]) {
        let base = base_name(&format!("{PREFIX}.{name}"));
        let Some(producer) = scene.producer(name, &base) else { continue };
        // What reads the output inside the graph goes on with all places.
        let inside = scene.readers(name, &base, &own);
        from(&mut e, &format!("{name}.tokens"), &base, n);
        out.blocks.push(Emitted::after(PREFIX, producer, name, &base, e.take()));
        out.blocks.extend(inside.into_iter().map(|node| Emitted::before(PREFIX, node, name, &base, vec![])));
    }
    out.constants = e.into_constants();
    out
}

/// The places from the n-th on.
fn from(e: &mut Emitter, role: &str, x: &str, n: usize) -> String {
    let mut at = |n: i64| e.integers(&format!("reslora.at.{n}"), &[n]);
    let (start, end, axis) = (at(n as i64), at(i64::MAX), at(1));
    e.node(role, "Slice", &[x, &start, &end, &axis])
}

/// The rows follow the table's own. Where other nodes read the table, as an output projection does, they keep theirs.
fn rewrites(model: &Model, config: &Config, tensors: &Tensors) -> Result<Vec<Rewrite>, String> {
    let target = &config.targets[0];
    let gather = |n: &Node| n.outputs().first() == Some(&target.names[EMBEDDED]);
    let reader = model.nodes().find(|(_, n)| gather(n)).map(|(id, _)| id).ok_or("the table's lookup is not there")?;
    let values = tensors[ROWS].iter().map(|x| f64::from(*x)).collect();
    let (path, initializer) = (target.path.clone(), target.weight.clone());
    Ok(vec![Rewrite { path, initializer, readers: vec![reader], values, append: true }])
}
