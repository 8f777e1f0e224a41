//! Text data sets: rows come in one after the other and become token ids and labels.

use super::example::{self, Classes, Kind};
use super::examples::{Examples, Writer};
use super::made::Why;
use super::rows::{self, Row};
use super::sink::{Place, Placed, Sink};
use super::tokenizer::{self, Text};
use super::tuples::Columns;
use super::{Column, DataError, Options, Source, Task, class_names, sequences};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most rows that are tokenised at once, and the most bytes of them.
const ROWS: usize = 1024;
const BYTES: usize = 4 << 20;

/// Takes rows and makes a data set of them.
pub struct Collector<'a> {
    options: &'a Options,
    text: Text,
    /// The data set, as messages name it.
    path: PathBuf,
    /// The file that is read.
    file: Arc<Path>,
    /// Whether there are several, so that lines alone do not say where something is.
    several: bool,
    /// What the model's classes are called.
    names: Vec<String>,
    /// The model's class for each class of the file that is read, where they differ.
    by_name: Option<Vec<i32>>,
    /// What rows are; known after the first of them.
    kind: Option<Kind>,
    pending: Vec<Row>,
    bytes: usize,
    /// Rows so far.
    rows: usize,
    /// Columns of `--columns` that no row has had yet.
    unseen: BTreeSet<String>,
    out: Writer,
    told: Told,
    skipped: Vec<String>,
    notes: &'a mut Vec<String>,
}

/// What is to be told about all rows.
#[derive(Default)]
struct Told {
    cut: usize,
    left_out: BTreeMap<Why, Places>,
    blank: Places,
    framed: bool,
    alpaca: bool,
    split: usize,
    /// What the first row of a language model's data could mean by a label.
    unread: Option<String>,
}

/// How many rows, and where the first few stand.
#[derive(Default)]
struct Places {
    count: usize,
    first: Vec<(Arc<Path>, Place)>,
}

/// The most rows that a message names.
const NAMED: usize = 5;

impl Places {
    fn add(&mut self, row: &Row) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push((row.path.clone(), row.place));
        }
    }

    fn listed(&self, several: bool) -> String {
        let more = if self.count > self.first.len() { ", ..." } else { "" };
        let unit = self.first.first().map_or("line", |p| p.1.parts().0);
        if several {
            let all: Vec<String> =
                self.first.iter().map(|(path, at)| format!("{} {unit} {}", path.display(), at.parts().1)).collect();
            return format!("{}{more}", all.join(", "));
        }
        let all: Vec<String> = self.first.iter().map(|p| p.1.parts().1.to_string()).collect();
        format!("{unit}{} {}{more}", if self.count == 1 { "" } else { "s" }, all.join(", "))
    }
}

/// A number of things.
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl<'a> Collector<'a> {
    /// Reads with the tokenizer that the options name.
    pub fn new(
        path: &Path,
        options: &'a Options,
        several: bool,
        notes: &'a mut Vec<String>,
    ) -> Result<Collector<'a>, DataError> {
        Ok(Collector {
            text: tokenizer::open(path, options)?,
            names: class_names::of_model(options),
            options,
            path: path.to_path_buf(),
            file: path.into(),
            several,
            by_name: None,
            kind: None,
            pending: vec![],
            bytes: 0,
            rows: 0,
            unseen: options.columns.iter().map(|c| c.1.clone()).collect(),
            out: Writer::default(),
            told: Told::default(),
            skipped: vec![],
            notes,
        })
    }

    /// The rows that follow are those of this file.
    pub fn begin(&mut self, file: &Path) -> Result<(), DataError> {
        self.flush()?;
        self.file = file.into();
        self.set_classes(None);
        Ok(())
    }

    fn set_classes(&mut self, by_name: Option<Vec<i32>>) {
        if let Some(Kind::Classified(classes)) = &mut self.kind {
            classes.by_name = by_name.clone();
        }
        self.by_name = by_name;
    }

    /// A row that cannot be used: skipped, as far as that is allowed.
    fn bad(&mut self, error: DataError) -> Result<(), DataError> {
        let most = self.options.skip_bad_rows;
        if self.skipped.len() >= most {
            return Err(match most {
                0 => error,
                _ => DataError::BadRows { most, error: Box::new(error) },
            });
        }
        self.skipped.push(error.to_string().lines().next().unwrap_or_default().to_string());
        Ok(())
    }

    /// Decides by the first rows what all of them are.
    fn decide(&mut self) -> Result<(), DataError> {
        let Some(first) = self.pending.first() else { return Ok(()) };
        self.missing_column(first)?;
        if self.options.decodes {
            let start = sequences::start(self.options.beside.as_deref());
            let start = start.map_err(|why| DataError::Format { path: self.path.clone(), why })?;
            self.kind = Some(Kind::Sequences(start));
            return Ok(());
        }
        if let Some(columns) = Columns::of(&first.object) {
            self.kind = Some(Kind::Tuples(columns));
            return Ok(());
        }
        let labelled = self.pending.iter().find(|r| r.object.get("label").is_some_and(|l| !l.is_null()));
        self.kind = Some(match labelled {
            Some(row) => {
                let (names, by_name) = (self.names.clone(), self.by_name.clone());
                Kind::Classified(Classes { first: row.place, names, by_name })
            }
            None => {
                let text = first.object.contains_key("text");
                self.told.unread = text.then(|| rows::hint(&first.object, &["label"]));
                Kind::Language(first.place)
            }
        });
        Ok(())
    }

    fn missing_column(&self, first: &Row) -> Result<(), DataError> {
        let Some(column) = self.options.columns.iter().map(|c| &c.1).find(|c| self.unseen.contains(*c)) else {
            return Ok(());
        };
        let has = rows::keys(&first.object);
        let why = format!("no row has a column '{column}' (--columns); its columns are {has}");
        Err(DataError::Format { path: self.path.clone(), why })
    }

    /// Makes examples of the rows that have come.
    fn flush(&mut self) -> Result<(), DataError> {
        if self.kind.is_none() {
            self.decide()?;
        }
        let (rows, text, options) = (std::mem::take(&mut self.pending), &self.text, self.options);
        self.bytes = 0;
        let Some(kind) = &self.kind else { return Ok(()) };
        let made: Vec<_> = rows.par_iter().map(|row| example::of_row(text, row, kind, options)).collect();
        for (row, made) in rows.iter().zip(made) {
            self.rows += 1;
            let made = match made {
                Ok(made) => made,
                Err(why) => {
                    self.bad(row.error(why))?;
                    continue;
                }
            };
            let told = &mut self.told;
            told.cut += made.cut;
            told.framed |= made.framed;
            told.alpaca |= made.alpaca;
            told.split += usize::from(made.split);
            if made.blank {
                told.blank.add(row);
            }
            made.left_out.iter().for_each(|why| told.left_out.entry(*why).or_default().add(row));
            for example in made.examples {
                self.out.push(example, self.rows)?;
            }
        }
        Ok(())
    }

    /// The data set. Nothing to learn in any row is an error.
    pub fn finish(mut self) -> Result<Source, DataError> {
        self.flush()?;
        let task = match &self.kind {
            Some(Kind::Classified(_)) => Task::Classify,
            Some(Kind::Sequences(_)) => Task::SequenceToSequence,
            Some(Kind::Tuples(Columns::Preferences)) => Task::Prefer,
            Some(Kind::Tuples(columns)) => Task::Embed { texts: columns.texts(), scored: *columns == Columns::Scored },
            _ => Task::LanguageModel,
        };
        self.report(task)?;
        let (pad_id, pad_left) = (self.text.pad.unwrap_or(0), self.text.pad_left);
        let examples: Examples = self.out.finish()?;
        Ok(Source::Text { task, examples, pad_id, pad_left })
    }

    /// Says what was cut, left out and skipped.
    fn report(&mut self, task: Task) -> Result<(), DataError> {
        let (path, most, told) = (self.path.display(), self.options.max_length, &self.told);
        if !self.skipped.is_empty() {
            let n = counted(self.skipped.len(), "unreadable row");
            let all: Vec<&str> = self.skipped.iter().take(NAMED).map(String::as_str).collect();
            let more = if self.skipped.len() > NAMED { "; ..." } else { "" };
            self.notes.push(format!("{path}: skipped {n} (--skip-bad-rows): {}{more}", all.join("; ")));
        }
        if task == Task::LanguageModel {
            let endings = ["=labels", "=target", "=class"];
            if let Some(hint) = told.unread.as_ref().filter(|h| endings.iter().any(|end| h.ends_with(end))) {
                self.notes.push(format!(
                    "{path}: no row has a 'label', so each text is learnt token by token; {hint} gives labels"
                ));
            }
            self.notes.extend(self.text.note.iter().filter(|_| told.framed).cloned());
            if told.split > 0 {
                self.notes.push(format!(
                    "{path}: {} conversations became an example for each answer, as the chat template shows an answer \
                     otherwise once others follow",
                    told.split
                ));
            }
            if told.alpaca {
                self.notes.push(format!(
                    "{path}: 'instruction' and 'output' are put into Alpaca's prompt, as there is no chat template"
                ));
            }
        }
        let reason = |(why, at): (&Why, &Places)| {
            let (n, s) = (at.count, if at.count == 1 { "" } else { "s" });
            let what = match why {
                Why::CutOff => {
                    format!(
                        "{n} prompt{s} fill{} the {most} tokens of --max-length, leaving no room for the answer",
                        if n == 1 { "s" } else { "" }
                    )
                }
                Why::NoAnswer => format!("{n} conversation{s} without an answer of the assistant"),
                Why::Single => format!("{n} text{s} of a single token, which has no next one"),
                Why::Empty => format!("{n} empty text{s}"),
            };
            format!("{what} ({})", at.listed(self.several))
        };
        let reasons: Vec<String> = told.left_out.iter().map(reason).collect();
        if self.out.len() == 0 && !reasons.is_empty() {
            let hint = match told.left_out.contains_key(&Why::CutOff) {
                true => "\nhint: a larger --max-length, or shorter prompts",
                false => "",
            };
            let why = format!("it holds no example with anything to learn: {}{hint}", reasons.join("; "));
            return Err(DataError::Format { path: self.path.clone(), why });
        }
        if told.cut > 0 {
            let texts = counted(told.cut, "text");
            self.notes.push(format!("{path}: truncated {texts} to {most} tokens (--max-length)"));
        }
        if told.blank.count > 0 {
            let (n, at) = (told.blank.count, told.blank.listed(self.several));
            self.notes.push(format!("{path}: {n} texts are empty ({at})"));
        }
        if !reasons.is_empty() {
            let n: usize = told.left_out.values().map(|p| p.count).sum();
            let (n, reasons) = (counted(n, "example"), reasons.join("; "));
            self.notes.push(format!("{path}: skipped {n} with no labelled tokens: {reasons}"));
        }
        Ok(())
    }
}

impl Sink for Collector<'_> {
    fn columns(&self) -> &[(String, String)] {
        &self.options.columns
    }

    fn inputs(&self) -> &[Column] {
        &self.options.inputs
    }

    fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    fn classes(&mut self, names: Vec<String>) -> Result<(), DataError> {
        let by_name = class_names::matched(&names, &self.names)
            .map_err(|why| DataError::Format { path: self.file.to_path_buf(), why })?;
        if by_name.is_some() {
            self.notes.push(format!(
                "{}: its classes are {}, the model's {}: labels are matched by name",
                self.file.display(),
                names.join(", "),
                self.names.join(", ")
            ));
        }
        self.set_classes(by_name);
        Ok(())
    }

    fn row(&mut self, row: Result<Placed, DataError>) -> Result<(), DataError> {
        let placed = match row {
            Ok(placed) => placed,
            Err(error) => return self.bad(error),
        };
        if let Some(object) = placed.value.as_object().filter(|_| !self.unseen.is_empty()) {
            self.unseen.retain(|column| !object.contains_key(column));
        }
        match Row::new(&self.file, placed, &self.options.columns) {
            Ok(row) => {
                self.bytes += row.size();
                self.pending.push(row);
            }
            Err(error) => self.bad(error)?,
        }
        match self.pending.len() >= ROWS || self.bytes >= BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }
}
