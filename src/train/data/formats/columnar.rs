//! Arrow's columns as rows: what Parquet and Arrow files share. Features that `datasets` writes into a schema name the classes.

use super::{Place, Placed, Sink};
use crate::train::data::DataError;
use crate::train::data::input::Input;
use crate::train::data::rows::is_known;
use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Schema};
use serde_json::{Map, Number, Value};

/// Whether a file's column is one that is read here.
pub fn reads(column: &str, sink: &dyn Sink) -> bool {
    let named = sink.columns().iter().any(|c| c.1 == column);
    named || sink.inputs().iter().any(|c| c.name == column) || is_known(column)
}

/// A table that is read batch by batch.
pub struct Table<'a> {
    input: &'a Input,
    /// Every column, in the file's order, and whether it is read.
    columns: Vec<(String, bool)>,
    rows: usize,
}

impl<'a> Table<'a> {
    pub fn new(input: &'a Input, schema: &Schema, sink: &mut dyn Sink) -> Result<Table<'a>, DataError> {
        let label = sink.columns().iter().find(|c| c.0 == "label").map_or("label", |c| &c.1).to_string();
        if let Some(names) = class_names(schema, &label) {
            sink.classes(names)?;
        }
        let columns = schema.fields().iter().map(|f| (f.name().clone(), reads(f.name(), sink))).collect();
        Ok(Table { input, columns, rows: 0 })
    }

    /// Hands over the rows of a batch. Columns that are not read are there as null.
    pub fn rows(&mut self, batch: &RecordBatch, sink: &mut dyn Sink) -> Result<(), DataError> {
        for r in 0..batch.num_rows() {
            self.rows += 1;
            let mut object = Map::new();
            let mut wrong = None;
            for (name, read) in &self.columns {
                let column = batch.column_by_name(name).filter(|_| *read);
                let found = column.map_or(Ok(Value::Null), |c| value(c, r));
                match found {
                    Ok(value) => drop(object.insert(name.clone(), value)),
                    Err(why) => drop(wrong.get_or_insert(format!("column '{name}' {why}"))),
                }
            }
            let place = Place::Row(self.rows);
            sink.row(match wrong {
                None => Ok(Placed { place, value: Value::Object(object) }),
                Some(why) => Err(DataError::Row { path: self.input.path.clone(), place, why }),
            })?;
        }
        Ok(())
    }
}

/// The names of the classes that a column numbers, as `datasets` writes them into a schema.
fn class_names(schema: &Schema, column: &str) -> Option<Vec<String>> {
    let features: Value = serde_json::from_str(schema.metadata().get("huggingface")?).ok()?;
    let feature = &features["info"]["features"][column];
    (feature["_type"] == "ClassLabel").then_some(())?;
    feature["names"].as_array()?.iter().map(|n| n.as_str().map(String::from)).collect()
}

/// An element as JSON has it.
fn value(column: &dyn Array, at: usize) -> Result<Value, String> {
    macro_rules! whole {
        ($t:ty) => {
            Value::from(column.as_primitive::<$t>().value(at))
        };
    }
    let float = |x: f64| match Number::from_f64(x) {
        Some(n) => Ok(Value::Number(n)),
        None => {
            Err(format!("holds {x}, which is not a finite number\nhint: leave such rows out, or --skip-bad-rows N"))
        }
    };
    let list =
        |part: arrow_array::ArrayRef| (0..part.len()).map(|i| value(&part, i)).collect::<Result<Value, String>>();
    if column.is_null(at) {
        return Ok(Value::Null);
    }
    Ok(match column.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::Bool(column.as_boolean().value(at)),
        DataType::Int8 => whole!(Int8Type),
        DataType::Int16 => whole!(Int16Type),
        DataType::Int32 => whole!(Int32Type),
        DataType::Int64 => whole!(Int64Type),
        DataType::UInt8 => whole!(UInt8Type),
        DataType::UInt16 => whole!(UInt16Type),
        DataType::UInt32 => whole!(UInt32Type),
        DataType::UInt64 => whole!(UInt64Type),
        DataType::Float16 => float(f64::from(column.as_primitive::<Float16Type>().value(at).to_f32()))?,
        DataType::Float32 => float(f64::from(column.as_primitive::<Float32Type>().value(at)))?,
        DataType::Float64 => float(column.as_primitive::<Float64Type>().value(at))?,
        DataType::Utf8 => column.as_string::<i32>().value(at).into(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(at).into(),
        DataType::Utf8View => column.as_string_view().value(at).into(),
        DataType::List(_) => list(column.as_list::<i32>().value(at))?,
        DataType::LargeList(_) => list(column.as_list::<i64>().value(at))?,
        DataType::FixedSizeList(..) => list(column.as_fixed_size_list().value(at))?,
        DataType::ListView(_) => list(column.as_list_view::<i32>().value(at))?,
        DataType::LargeListView(_) => list(column.as_list_view::<i64>().value(at))?,
        DataType::Struct(fields) => {
            let parts = fields.iter().zip(column.as_struct().columns());
            Value::Object(parts.map(|(f, c)| Ok((f.name().clone(), value(c, at)?))).collect::<Result<_, String>>()?)
        }
        DataType::Dictionary(..) => {
            let dictionary = column.as_any_dictionary();
            let key = value(dictionary.keys(), at)?.as_u64().unwrap_or(0) as usize;
            return value(dictionary.values(), key);
        }
        other => {
            return Err(format!(
                "is of type {other}, which is not supported\nhint: save it as text, numbers, true or false, or lists of them"
            ));
        }
    })
}
