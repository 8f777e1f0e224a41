//! What `eval` shows of a model's answers: a file of them, and tables of classes.

use super::common::table;
use crate::train::scores::{Answer, Kind, Scores};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// Writes one JSON object a line, whole or not at all.
pub fn write(path: &Path, kind: Kind, answers: &[Answer], names: &[String]) -> Result<()> {
    let fail = || format!("cannot write {}", path.display());
    let mut file = atomic_write_file::AtomicWriteFile::open(path).with_context(fail)?;
    let mut out = std::io::BufWriter::new(&mut file);
    for a in answers {
        writeln!(out, "{}", line(kind, a, names)).with_context(fail)?;
    }
    out.flush().with_context(fail)?;
    drop(out);
    file.commit().with_context(fail)
}

/// A number as short as its 32 bits allow.
fn number(x: f32) -> Value {
    x.to_string().parse::<f64>().ok().filter(|x| x.is_finite()).map_or(Value::Null, |x| json!(x))
}

/// One element alone, several as a list.
fn one_or_all(all: Vec<Value>) -> Value {
    match <[Value; 1]>::try_from(all) {
        Ok([one]) => one,
        Err(all) => Value::Array(all),
    }
}

fn line(kind: Kind, a: &Answer, names: &[String]) -> Value {
    let mut out = Map::from_iter([("row".to_string(), json!(a.example + 1))]);
    let mut put = |key: &str, value: Value| out.insert(key.into(), value);
    let class = |x: &f32| json!(*x as i64);
    let all = |xs: &[f32], of: &dyn Fn(&f32) -> Value| xs.iter().map(of).collect::<Vec<Value>>();
    let single = |xs: &[f32], of: &dyn Fn(&f32) -> Value, list: bool| match list {
        true => Value::Array(all(xs, of)),
        false => one_or_all(all(xs, of)),
    };
    match kind {
        Kind::Classes { positions, .. } => {
            put("prediction", single(&a.predicted, &class, positions));
            let name = |x: &f32| names.get(*x as usize).map(|n| json!(n));
            if let Some(name) = a.predicted.first().filter(|_| !positions).and_then(name) {
                put("name", name);
            }
            if !a.probabilities.is_empty() {
                put("probabilities", Value::Array(a.probabilities.iter().map(|x| number(*x)).collect()));
            }
            if !a.labels.is_empty() {
                put("label", single(&a.labels, &class, positions));
            }
        }
        Kind::Binary { .. } => {
            put("prediction", single(&a.predicted, &|x| json!(i32::from(*x > 0.5)), false));
            put("probabilities", Value::Array(a.predicted.iter().map(|x| number(*x)).collect()));
            put("label", single(&a.labels, &|x| number(*x), false));
        }
        Kind::Numbers { .. } | Kind::Scores => {
            put("value", single(&a.predicted, &|x| number(*x), false));
            put("label", single(&a.labels, &|x| number(*x), false));
        }
        Kind::Ranks => drop(put("rank", single(&a.predicted, &class, false))),
        Kind::Preferences => {
            let chosen = a.predicted.first().is_some_and(|m| *m > 0.0);
            put("prediction", json!(if chosen { "chosen" } else { "rejected" }));
            put("margin", single(&a.predicted, &|x| number(*x), false));
        }
    }
    Value::Object(out)
}

/// A line of results with the tables of classes that belong to it.
pub fn with_tables(line: String, scores: &Scores, names: &[String]) -> String {
    let name = |c: usize| names.get(c).cloned().unwrap_or_else(|| c.to_string());
    let mut parts = vec![line];
    if !scores.f1_per_class.is_empty() {
        let rows = scores.f1_per_class.iter().enumerate();
        let rows = rows.map(|(c, f1)| vec![name(c), f1.map_or("-".into(), |x| format!("{x:.4}"))]);
        parts.push(table(&["class", "f1"], rows.collect()));
    }
    if !scores.confusion_matrix.is_empty() {
        let header: Vec<String> = (0..scores.confusion_matrix.len()).map(name).collect();
        let mut columns = vec!["label / predicted"];
        columns.extend(header.iter().map(String::as_str));
        let rows = scores.confusion_matrix.iter().enumerate();
        let rows = rows.map(|(c, row)| std::iter::once(name(c)).chain(row.iter().map(u64::to_string)).collect());
        parts.push(table(&columns, rows.collect()));
    }
    parts.join("\n\n")
}
