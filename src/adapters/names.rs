//! Names of factors and module paths: PyTorch's paths are found among a model's where only leading components differ.

use super::{CONFIG_KEY, Config, FitError, Structure, emit_again};
use crate::onnx::{Linear, Model, linear_nodes};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The module path and the suffix of an adapter's tensor, from its name.
pub fn split(name: &str, structure: Structure) -> Option<(&str, &'static str)> {
    let path = |suffix: &'static str| Some((name.strip_suffix(suffix)?.strip_suffix('.')?, suffix));
    // Of several, the longest: `lora_A.weight` may be the end of another.
    structure.suffixes.iter().copied().filter_map(path).max_by_key(|(_, suffix)| suffix.len())
}

/// The linear nodes of a model but for those that adapters added.
pub fn layers(model: &Model) -> Vec<Linear> {
    let linear = linear_nodes(model);
    let config: Option<Config> = model.metadata(CONFIG_KEY).and_then(|text| serde_json::from_str(text).ok());
    let Some(config) = config else { return linear };
    let added: HashSet<String> =
        emit_again(model, &config).blocks.into_iter().flat_map(|b| b.nodes).map(|n| n.name).collect();
    linear.into_iter().filter(|l| !added.contains(model.node(l.node).name())).collect()
}

/// Whether one of two paths is the end of the other, by whole components.
pub fn tails(a: &str, b: &str) -> bool {
    let ends =
        |long: &str, short: &str| long.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    ends(a, b) || ends(b, a)
}

/// Paths of an adapter with the model's for them; those that belong to no linear node are left out.
#[derive(Debug, Default)]
pub struct Resolved {
    pub paths: BTreeMap<String, String>,
    /// Leading components of the adapter's paths, and those of the model's that were taken for them.
    pub exchange: Option<(String, String)>,
}

impl Resolved {
    /// Another name of the adapter's, as the same change of leading components makes it.
    pub fn renamed(&self, name: &str) -> String {
        let changed = self.exchange.as_ref().and_then(|(from, to)| replaced(name, from, to));
        changed.unwrap_or_else(|| name.to_string())
    }

    /// What a user should know of it.
    pub fn note(&self) -> Option<String> {
        let (from, to) = self.exchange.as_ref()?;
        Some(format!("'{from}' in the adapter's module paths was taken for '{to}' in the model's"))
    }
}

/// Finds an adapter's paths among `all` paths of a model: the same path, else the one path of which it is the end, or which is its
/// end. Where no path is found for some, one change of their leading components that leads all of them into `open` is taken.
pub fn resolve(paths: &BTreeSet<&str>, all: &[&str], open: &[&str]) -> Result<Resolved, FitError> {
    let known: BTreeSet<&str> = all.iter().copied().collect();
    let mut out = Resolved::default();
    let mut rest = Vec::new();
    for &path in paths {
        if known.contains(path) {
            out.paths.insert(path.into(), path.into());
            continue;
        }
        let longer: Vec<&str> = known.iter().copied().filter(|k| k.len() > path.len() && tails(k, path)).collect();
        let shorter = known.iter().copied().filter(|k| k.len() < path.len() && tails(path, k)).max_by_key(|k| k.len());
        match (&longer[..], shorter) {
            ([one], None) => drop(out.paths.insert(path.into(), one.to_string())),
            ([], Some(one)) => drop(out.paths.insert(path.into(), one.to_string())),
            ([], None) => rest.push(path),
            (several, shorter) => {
                let candidates = several.iter().copied().chain(shorter).map(String::from).collect();
                return Err(FitError::Ambiguous { name: path.into(), candidates });
            }
        }
    }
    let taken: BTreeSet<&str> = out.paths.values().map(String::as_str).collect();
    let open: BTreeSet<&str> = open.iter().copied().filter(|p| !taken.contains(p)).collect();
    if let Some((from, to)) = exchange(&rest, &open) {
        out.paths.extend(rest.iter().map(|p| (p.to_string(), replaced(p, &from, &to).expect("it starts so"))));
        out.exchange = Some((from, to));
    }
    let mut seen: BTreeMap<&String, &String> = BTreeMap::new();
    for (path, to) in &out.paths {
        if let Some(first) = seen.insert(to, path) {
            return Err(FitError::Twice { first: first.clone(), second: path.clone(), target: to.clone() });
        }
    }
    Ok(out)
}

fn replaced(path: &str, from: &str, to: &str) -> Option<String> {
    Some(format!("{to}{}", path.strip_prefix(from).filter(|rest| rest.starts_with('.'))?))
}

/// The one pair of leading components of which the second in place of the first leads every path into `open`. Components that are
/// numbers stay: block 0 is never taken for block 1.
fn exchange(paths: &[&str], open: &BTreeSet<&str>) -> Option<(String, String)> {
    let first: Vec<&str> = paths.first()?.split('.').collect();
    let numbered = |c: &[&str]| c.iter().any(|c| c.bytes().all(|b| b.is_ascii_digit()));
    let mut found = BTreeSet::new();
    for other in open {
        let other: Vec<&str> = other.split('.').collect();
        let same = first.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
        let (from, to) = (&first[..first.len() - same], &other[..other.len() - same]);
        if same == 0 || from.is_empty() || to.is_empty() || numbered(from) || numbered(to) {
            continue;
        }
        let (from, to) = (from.join("."), to.join("."));
        if paths.iter().all(|p| replaced(p, &from, &to).is_some_and(|p| open.contains(p.as_str()))) {
            found.insert((from, to));
        }
    }
    if found.len() == 1 { found.pop_first() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(paths: &[&str], all: &[&str]) -> Result<Vec<String>, FitError> {
        resolve(&paths.iter().copied().collect(), all, all).map(|r| r.paths.into_values().collect())
    }

    #[test]
    fn leading_components_may_differ_and_nothing_else() {
        let all = ["m.h.0.q", "m.h.1.q", "m.h.1.v"];
        assert_eq!(found(&["m.h.0.q"], &all).unwrap(), ["m.h.0.q"]);
        assert_eq!(found(&["h.0.q", "h.1.v"], &all).unwrap(), ["m.h.0.q", "m.h.1.v"]);
        assert_eq!(found(&["x.m.h.0.q"], &all).unwrap(), ["m.h.0.q"]);
        assert_eq!(found(&["bert.h.0.q", "bert.h.1.q"], &all).unwrap(), ["m.h.0.q", "m.h.1.q"]);
        assert!(found(&["bert.h.0.q", "other.h.1.q"], &all).unwrap().is_empty());
        assert!(found(&["h.2.q"], &all).unwrap().is_empty());
        assert!(matches!(found(&["q"], &all), Err(FitError::Ambiguous { .. })));
        assert!(matches!(found(&["h.0.q", "m.h.0.q"], &all), Err(FitError::Twice { .. })));
        // Two places that would do are none.
        assert!(found(&["t.0.q"], &["a.0.q", "b.0.q"]).unwrap().is_empty());
    }
}
