//! Numbers of whole examples that an adapter's graph inputs read, as `task` and `quality`: columns of text, or tensors.

use super::{DataError, Dataset, Source};
use crate::ir::Tensor;
use serde_json::{Map, Value};

/// A graph input of one number for each example.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its name in the graph, and in the data.
    pub name: String,
    pub integer: bool,
    /// The least and the largest value that it may have; `None` where that is not known.
    pub range: Option<(f64, f64)>,
}

impl Column {
    /// Why a value is refused.
    fn check(&self, x: f64) -> Result<(), String> {
        match self.range {
            Some((low, high)) if !(low..=high).contains(&x) => {
                Err(format!("'{}' is {x}, out of range: it goes from {low} to {high}", self.name))
            }
            _ if !x.is_finite() => Err(format!("'{}' is {x}, which is no finite number", self.name)),
            _ => Ok(()),
        }
    }

    fn read(&self, object: &Map<String, Value>) -> Result<f32, String> {
        let what = if self.integer { "a whole number" } else { "a number" };
        let value = object.get(&self.name).filter(|v| !v.is_null()).ok_or_else(|| {
            let keys = super::rows::keys(object);
            format!(
                "there is no '{}', which the model's adapter reads: {what} for each row; its keys are {keys}\n\
                 hint: add it, or --columns {}=COLUMN names the column that holds it",
                self.name, self.name
            )
        })?;
        // Text formats without types hold numbers as text.
        let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
        let number = number.filter(|x| !self.integer || x.fract() == 0.0);
        let number = number.ok_or_else(|| format!("'{}' is {value}, not {what}", self.name))?;
        self.check(number)?;
        Ok(number as f32)
    }

    /// The column of some examples, `(N)`.
    fn tensor(&self, values: Vec<f32>) -> Tensor {
        match self.integer {
            true => Tensor::i32([values.len()], values.into_iter().map(|x| x as i32).collect()),
            false => Tensor::f32([values.len()], values),
        }
    }
}

/// The numbers of a row, one for each column.
pub fn read(columns: &[Column], object: &Map<String, Value>) -> Result<Vec<f32>, String> {
    columns.iter().map(|c| c.read(object)).collect()
}

/// Tensors of examples that have these numbers, by name.
pub fn tensors(columns: &[Column], examples: &[&[f32]]) -> Vec<(String, Tensor)> {
    let of = |(i, c): (usize, &Column)| (c.name.clone(), c.tensor(examples.iter().map(|e| e[i]).collect()));
    columns.iter().enumerate().map(of).collect()
}

impl Dataset {
    /// Checks the tensors that columns are read from; names the example that is wrong.
    pub(super) fn check_columns(&self) -> Result<(), DataError> {
        let Source::Tensors { tensors, examples, .. } = &self.source else { return Ok(()) };
        let misfit = |why: String| DataError::Fit { path: self.path.clone(), why };
        for column in &self.options.inputs {
            // What is missing is said with the model's inputs.
            let Some(t) = tensors.get(&column.name) else { continue };
            let width = (t.elements() / (*examples).max(1)).max(1);
            let values: Vec<f64> = match (t.as_f32(), t.as_i32()) {
                (Some(x), _) => x.iter().map(|&x| f64::from(x)).collect(),
                (_, Some(x)) => x.iter().map(|&x| f64::from(x)).collect(),
                _ => continue,
            };
            let bad = values.iter().enumerate().find_map(|(i, &x)| Some((i, column.check(x).err()?)));
            if let Some((i, why)) = bad {
                return Err(misfit(format!("example {}: {why}", i / width + 1)));
            }
        }
        Ok(())
    }
}
