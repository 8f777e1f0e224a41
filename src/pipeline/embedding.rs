//! Finds a model's sentence embedding, or how its hidden states become one.

use super::compile::shape_of;
use super::{Error, sample_values};
use crate::inject::{EMBEDDING, POOLINGS, Pooling, hidden_states, pooled};
use crate::onnx::{Model, Signature};
use crate::train::Shapes;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The output that is a sentence embedding `(batch, hidden)`: the one that is called so, else one whose name speaks of an embedding, else
/// the only output of floats. `None` where there is none.
pub fn output(model: &Arc<Model>, shapes: &Shapes) -> Result<Option<String>, Error> {
    let floats: Vec<Signature> = model.outputs().into_iter().filter(|o| o.element.is_float()).collect();
    let mut flat = Vec::new();
    for o in &floats {
        let rank = o.dims.as_ref().map(Vec::len);
        let rank = rank.map_or_else(|| shape_of(model, shapes, &o.name).map(|s| s.len()), Ok)?;
        if rank == 2 {
            flat.push(o.name.clone());
        }
    }
    let named = flat.iter().find(|n| *n == EMBEDDING).or(flat.iter().find(|n| n.to_lowercase().contains("embed")));
    let only = || (flat.len() == 1 && floats.len() == 1 && flat[0] != "logits").then(|| flat[0].clone());
    Ok(named.cloned().or_else(only))
}

/// A model with a sentence embedding where it has hidden states alone: pooled as `1_Pooling/config.json` beside the model says. Also
/// says so. `None` where the model has an embedding.
pub fn found(model: &Arc<Model>, shapes: &Shapes) -> Result<Option<(Arc<Model>, String)>, Error> {
    if output(model, shapes)?.is_some() {
        return Ok(None);
    }
    let values = sample_values(model)?;
    let rank = |o: &Signature| o.dims.as_ref().map(Vec::len).or_else(|| values.get(&o.name).map(Vec::len));
    let hidden = hidden_states(model, &rank)?;
    let folder = model.path().parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let folders: Vec<PathBuf> = folder.into_iter().flat_map(|f| [f.to_path_buf(), f.join("..")]).collect();
    let Some((path, config)) = folders.iter().find_map(|f| object(&f.join("1_Pooling/config.json"))) else {
        let names: Vec<&str> = POOLINGS.iter().map(|p| p.1).collect();
        return Err(Error::Usage(format!(
            "output '{}' holds hidden states, and nothing says how they become an embedding\n             hint: inject --pool {} adds it; 1_Pooling/config.json of sentence-transformers beside the model says it too",
            hidden.name,
            names.join("|")
        )));
    };
    let pooling = pooling(&config).map_err(|why| Error::Usage(format!("{}: {why}", path.display())))?;
    let normalise = normalises(&folders)?;
    let name = POOLINGS.iter().find(|p| p.0 == pooling).map_or("", |p| p.1);
    let length = if normalise { ", of length 1" } else { "" };
    let note = format!("the embedding is the {name} of '{}'{length}, as {} says", hidden.name, path.display());
    Ok(Some((Arc::new(pooled(model, &hidden, pooling, normalise)?), note)))
}

fn object(path: &Path) -> Option<(PathBuf, Value)> {
    let bytes = std::fs::read(path).ok()?;
    Some((path.to_path_buf(), serde_json::from_slice(&bytes).ok()?))
}

/// What a sentence-transformers configuration of pooling says.
fn pooling(config: &Value) -> Result<Pooling, String> {
    let known = |mode: &str| match mode {
        "mean" => Ok(Pooling::Mean),
        "cls" => Ok(Pooling::Cls),
        "lasttoken" => Ok(Pooling::Last),
        other => Err(format!("pooling '{other}' is not supported\nhint: inject --pool mean, cls or last")),
    };
    if let Some(mode) = config["pooling_mode"].as_str() {
        return known(mode);
    }
    const MODES: &[(&str, &str)] = &[
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_lasttoken", "lasttoken"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ];
    let set: Vec<&str> = MODES.iter().filter(|m| config[m.0].as_bool() == Some(true)).map(|m| m.1).collect();
    match set[..] {
        [one] => known(one),
        [] => Err("it names no pooling".into()),
        _ => Err(format!("it asks for several at once: {}\nhint: inject --pool mean, cls or last", set.join(", "))),
    }
}

/// Whether modules.json of sentence-transformers divides embeddings by their lengths. A module that is not known is an error.
fn normalises(folders: &[PathBuf]) -> Result<bool, Error> {
    let Some((path, modules)) = folders.iter().find_map(|f| object(&f.join("modules.json"))) else { return Ok(false) };
    let types: Vec<&str> = modules.as_array().into_iter().flatten().filter_map(|m| m["type"].as_str()).collect();
    let short = |t: &&str| t.rsplit('.').next().unwrap_or(t).to_string();
    let names: Vec<String> = types.iter().map(short).collect();
    match names.iter().find(|n| !["Transformer", "Pooling", "Normalize"].contains(&n.as_str())) {
        Some(other) => Err(Error::Usage(format!(
            "{} has a module '{other}' after the pooling, which is not in the model\n             hint: inject --pool trains without it; or export the model with all its modules",
            path.display()
        ))),
        None => Ok(names.iter().any(|n| n == "Normalize")),
    }
}
