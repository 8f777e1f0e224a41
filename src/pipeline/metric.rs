//! The evaluation metric before and after a merge, and the share of the gain that is kept.

/// The evaluation metric before and after merging.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Metric {
    /// What it was measured on, in words.
    pub measured_on: String,
    /// Of the model without the adapter.
    pub base: f64,
    /// With the adapter live, and merged.
    pub loss: [f64; 2],
    /// Which loss it is, and why.
    pub chosen: String,
    /// The share of what the adapter gained that the merged model keeps; `None` where it gained nothing to speak of.
    pub kept: Option<f64>,
    /// With the adapter live, and merged, where labels are classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<[f64; 2]>,
}

/// The least of a gain that a merge must keep to pass for one.
pub const KEPT: f64 = 0.9;

impl Metric {
    /// A gain in loss is nothing to speak of below this share of the loss.
    const NOTICED: f64 = 1e-4;

    pub(super) fn new(
        measured_on: String,
        base: f64,
        loss: [f64; 2],
        accuracy: Option<[f64; 2]>,
        chosen: String,
    ) -> Metric {
        let [live, merged] = loss;
        let gain = base - live;
        let kept = (gain > Metric::NOTICED * base.abs().max(live.abs())).then(|| (base - merged) / gain);
        Metric { measured_on, base, loss, chosen, kept, accuracy }
    }

    /// Whether too little of the gain is left.
    pub fn falls_short(&self) -> bool {
        self.kept.is_some_and(|k| k.is_nan() || k < KEPT)
    }
}
