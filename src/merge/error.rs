//! Why a merge is not possible.

use crate::adapters::{FitError, Structure};
use crate::onnx::ElementType;

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
    Fit(#[from] FitError),
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
    #[error("{structure} cannot be folded into weights: {why}\nhint: keep the adapters in the file with --keep-branch")]
    KeepsBranch { structure: Structure, why: &'static str },
    #[error(
        "{structure} computes with the graph input '{input}', example by example\nhint: choose one with --{input}, or keep the adapters in \
         the file with --keep-branch"
    )]
    NotChosen { structure: Structure, input: &'static str },
    #[error("'{path}' cannot be folded: {why}\nhint: keep the adapters in the file with --keep-branch")]
    Fold { path: String, why: String },
    #[error("the model's nodes do not match its configuration: {0}")]
    Nodes(String),
}
