//! Labels of whole examples, as a row of text gives them.

use serde_json::Value;

/// The label of a whole example.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// The number of a class.
    Class(i32),
    /// A number to predict.
    Number(f32),
    /// One number for each output.
    Many(Vec<f32>),
}

impl Label {
    /// Reads a `label`; names are those of the classes, in order.
    pub fn read(value: &Value, _names: &[String]) -> Result<Label, String> {
        let label = value.as_i64().and_then(|l| i32::try_from(l).ok());
        label.map(Label::Class).ok_or_else(|| format!("'label' must be a whole number, not {value}"))
    }
}
