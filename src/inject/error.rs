//! Why nothing is injected.

use crate::adapters::{FitError, Structure};
use crate::onnx::ElementType;
use regex::Regex;

/// Why nothing was injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    #[error("the model already carries adapters\nhint: merge it first, or inject into its base")]
    Injected,
    #[error("the model has no linear node (MatMul, Gemm or MatMulNBits with a constant weight) to adapt")]
    NoLinear,
    #[error(
        "--target '{pattern}' matches none of the model's {count} linear nodes\nhint: {}the nearest are:\n  {}",
        either(pattern, *list), nearest.join("\n  ")
    )]
    NoMatch { pattern: String, count: usize, nearest: Vec<String>, list: bool },
    #[error("the model has no {what} for {structure} to stand at")]
    NoPlace { what: &'static str, structure: Structure },
    #[error(
        "--target '{pattern}' matches none of the model's {count} places ({what})\nhint: {hint}the nearest are:\n  {}",
        nearest.join("\n  ")
    )]
    NoMatchElsewhere { pattern: String, what: &'static str, count: usize, hint: String, nearest: Vec<String> },
    #[error("every target is excluded by --exclude")]
    AllExcluded,
    #[error(
        "--also-train '{pattern}' matches no float initializer by name or module path\nhint: {}the nearest are:\n  {}",
        either(pattern, *list), nearest.join("\n  ")
    )]
    NoInitializer { pattern: String, nearest: Vec<String>, list: bool },
    #[error("{0}")]
    Option(String),
    #[error("{0}\nhint: leave the target out with --exclude, or take another setting")]
    Target(String),
    #[error(transparent)]
    Adapter(#[from] FitError),
    #[error(
        "the adapter's '{name}' would hold {what} as {element}\nhint: inject into a base of a wider type (float32)"
    )]
    NotFinite { name: String, element: ElementType, what: &'static str },
    #[error(
        "operator set {opset} is too old for {what}\nhint: convert the model with onnx.version_converter to opset 13 or later"
    )]
    Opset { opset: i64, what: String },
}

/// What to write for several patterns, where a comma stood between them.
pub(super) fn either(pattern: &str, list: bool) -> String {
    if list { format!("for either of several, write '{}'; ", pattern.replace(',', "|")) } else { String::new() }
}

/// Whether a pattern that matches nothing is a list: with `|` for its commas it would match.
pub(super) fn is_list<'a>(re: &Regex, mut names: impl Iterator<Item = &'a str>) -> bool {
    let pattern = re.as_str();
    let wider = pattern.contains(',').then(|| Regex::new(&pattern.replace(',', "|")).ok()).flatten();
    wider.is_some_and(|re| names.any(|n| re.is_match(n)))
}
