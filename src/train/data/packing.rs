//! Packing: several short texts in one row, each told apart by a number of its own.

use super::examples::Writer;
use super::{DataError, Dataset, Source, Task, TextExample};

/// Rows that wait for a text that fits.
const OPEN: usize = 64;

impl Dataset {
    /// Texts of a language model in rows of at most `most` tokens: each goes into the first row that has room. `type_ids` hold the
    /// number of the text in its row, from 1. What is no text of a language model is refused.
    pub fn packed(&self, most: usize) -> Result<Dataset, DataError> {
        let Source::Text { task: Task::LanguageModel, examples, pad_id, .. } = &self.source else {
            return Err(self.misfit("--pack is for texts that a language model learns token by token".into()));
        };
        if !self.options.inputs.is_empty() {
            return Err(self.misfit("--pack has no place for the numbers that this model's adapter reads".into()));
        }
        let (mut open, mut out): (Vec<(TextExample, i32)>, Writer) = (vec![], Writer::default());
        for example in examples.iter() {
            let example = example?;
            let room = |row: &&mut (TextExample, i32)| row.0.ids.len() + example.ids.len() <= most;
            let row = match open.iter_mut().find(room) {
                Some(row) => row,
                None => {
                    if open.len() == OPEN {
                        // The fullest has the least hope of another text.
                        let fullest = (0..OPEN).max_by_key(|&i| open[i].0.ids.len()).unwrap_or(0);
                        let (row, _) = open.remove(fullest);
                        let number = out.len();
                        out.push(row, number)?;
                    }
                    let empty = TextExample {
                        ids: vec![],
                        type_ids: vec![],
                        labels: vec![],
                        label: None,
                        numbers: vec![],
                        further: vec![],
                    };
                    open.push((empty, 0));
                    open.last_mut().expect("just pushed")
                }
            };
            row.1 += 1;
            row.0.ids.extend(&example.ids);
            row.0.labels.extend(&example.labels);
            row.0.type_ids.resize(row.0.ids.len(), row.1);
        }
        for (row, _) in open {
            let number = out.len();
            out.push(row, number)?;
        }
        let (rows, texts) = (out.len(), examples.len());
        let source =
            Source::Text { task: Task::LanguageModel, examples: out.finish()?, pad_id: *pad_id, pad_left: false };
        let mut notes = self.notes.clone();
        notes.push(format!("{}: {texts} texts in {rows} rows of at most {most} tokens (--pack)", self.path.display()));
        Ok(Dataset { source, notes, ..self.clone() })
    }
}
