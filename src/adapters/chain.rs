//! Chains: which adapters a residual path joins.

use super::Target;
use std::collections::BTreeMap;
use std::fmt;

/// A place where a chain ends although another block of the same name follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Break {
    /// Module path of the block that the chain ends with.
    pub before: String,
    /// Module path of the block that begins another chain.
    pub after: String,
    /// Why they are not joined.
    pub why: String,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain ends between {} and {}: {}", self.before, self.after, self.why)
    }
}

/// A module path with every component of digits alone blanked: `h.0.attn1.to_q` is `h.*.attn1.to_q`.
pub fn key(path: &str) -> String {
    let blank =
        |c: &str| if !c.is_empty() && c.bytes().all(|b| b.is_ascii_digit()) { "*".into() } else { c.to_string() };
    path.split('.').map(blank).collect::<Vec<_>>().join(".")
}

/// What decides whether two neighbours of a chain are joined.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// The input's leading extents, where the structure reads inputs of other blocks.
    pub leading: Option<Vec<usize>>,
    /// A module that is called several times stands alone.
    pub alone: bool,
}

/// Sets `prev` of every target (in execution order) that continues a chain, and reports the breaks.
pub fn link(targets: &mut [Target], links: &[Link]) -> Vec<Break> {
    let mut chains: BTreeMap<String, usize> = BTreeMap::new();
    let mut breaks = Vec::new();
    for i in 0..targets.len() {
        if let Some(&before) = chains.get(&key(&targets[i].path)) {
            let (p, t) = (&targets[before], &targets[i]);
            let why = if links[i].alone || links[before].alone {
                Some("a module that is called several times stands alone".to_string())
            } else if (p.in_features, p.out_features) != (t.in_features, t.out_features) {
                let (a, b, c, d) = (p.in_features, p.out_features, t.in_features, t.out_features);
                Some(format!("{a} to {b} features, then {c} to {d}"))
            } else if (p.rank, p.alpha) != (t.rank, t.alpha) {
                Some("they have another rank or alpha".to_string())
            } else if links[before].leading != links[i].leading {
                Some(format!(
                    "inputs differ before their last axis: {:?}, then {:?}",
                    links[before].leading, links[i].leading
                ))
            } else {
                None
            };
            match why {
                None => targets[i].prev = Some(targets[before].path.clone()),
                Some(why) => breaks.push(Break { before: p.path.clone(), after: t.path.clone(), why }),
            }
        }
        chains.insert(key(&targets[i].path), i);
    }
    breaks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str, features: (usize, usize)) -> Target {
        Target {
            path: path.into(),
            weight: "w".into(),
            in_features: features.0,
            out_features: features.1,
            ..Target::default()
        }
    }

    #[test]
    fn only_components_of_digits_alone_are_blanked() {
        assert_eq!(key("h.0.attn1.to_q"), "h.*.attn1.to_q");
        assert_eq!(key("layer.10.fc2"), "layer.*.fc2");
    }

    #[test]
    fn a_chain_breaks_at_features_and_leading_extents() {
        let mut targets =
            vec![target("h.0.q", (4, 4)), target("h.1.q", (4, 4)), target("h.2.q", (8, 4)), target("h.3.q", (8, 4))];
        let lead = |n| Link { leading: Some(vec![2, n]), alone: false };
        let breaks = link(&mut targets, &[lead(5), lead(5), lead(5), lead(3)]);
        let prev: Vec<_> = targets.iter().map(|t| t.prev.as_deref()).collect();
        assert_eq!(prev, [None, Some("h.0.q"), None, None]);
        assert_eq!(breaks.len(), 2);
    }
}
