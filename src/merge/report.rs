//! What a merge did.

/// What a merge did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// The strategy's name; `branch` where the adapters stay.
    pub strategy: String,
    /// Every target, in execution order.
    pub layers: Vec<LayerReport>,
    /// Initializers that were trained whole.
    pub also_trained: Vec<String>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// What a merge did to one target.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LayerReport {
    /// Module path.
    pub path: String,
    /// The initializer of the weight.
    pub weight: String,
    /// `‖ΔW‖ / ‖W‖`, Frobenius.
    pub relative_change: f64,
    /// The factors by which the strategy scales the terms of the blocks before, nearest first.
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

impl LayerReport {
    /// A layer whose weight stays as it is.
    pub fn unchanged(path: &str, weight: &str) -> LayerReport {
        LayerReport {
            path: path.into(),
            weight: weight.into(),
            relative_change: 0.0,
            alphas: vec![],
            error: None,
            ridge: None,
            requantised: None,
        }
    }
}
