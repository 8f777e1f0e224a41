//! Tokenised examples, by number: in memory while they take little of it, else in a temporary file.
//!
//! Both give the same examples in the same order, so a data set may be larger than memory, and is still shuffled as a whole.

use super::labels::Label;
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// A tokenised example.
#[derive(Clone, Debug, PartialEq)]
pub struct TextExample {
    pub ids: Vec<i32>,
    pub type_ids: Vec<i32>,
    /// One label a position, aligned with the logits (no shift); empty where an example is classified.
    pub labels: Vec<i32>,
    /// The label of the whole example; `None` where each position has one.
    pub label: Option<Label>,
    /// One number for each of [`Options::inputs`](super::Options::inputs).
    pub numbers: Vec<f32>,
    /// The other texts of a row that has several, such as an anchor's positive and negatives.
    pub further: Vec<Sequence>,
}

/// One more text of an example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sequence {
    pub ids: Vec<i32>,
    pub type_ids: Vec<i32>,
    /// As [`TextExample::labels`].
    pub labels: Vec<i32>,
}

impl TextExample {
    /// Ids, segment ids and labels of the n-th text.
    pub fn text(&self, n: usize) -> (&[i32], &[i32], &[i32]) {
        match n.checked_sub(1) {
            None => (&self.ids, &self.type_ids, &self.labels),
            Some(n) => (&self.further[n].ids, &self.further[n].type_ids, &self.further[n].labels),
        }
    }

    /// Tokens of its longest text.
    pub fn longest(&self) -> usize {
        self.further.iter().map(|s| s.ids.len()).fold(self.ids.len(), usize::max)
    }
}

/// Why the temporary file of tokens does not work.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot keep tokens in a temporary file in {}: {error}\nhint: TMPDIR names a folder on a disk with more room", folder.display()
)]
pub struct SpillError {
    folder: PathBuf,
    error: std::io::Error,
}

/// The most bytes that a data set's examples take in memory; beyond, all of them move to a temporary file.
const IN_MEMORY: usize = 128 << 20;

/// Examples by number, or some of them. Copies share what they hold.
#[derive(Clone, Debug)]
pub struct Examples {
    store: Arc<Store>,
    /// The numbers of those that are kept; `None` for all.
    kept: Option<Arc<[u32]>>,
}

#[derive(Debug)]
struct Store {
    place: Place,
    /// Tokens of each example's longest text.
    lengths: Vec<u32>,
    /// The number, from 0, of the row that made each example; empty where each row made one.
    rows: Vec<u32>,
    summary: Summary,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<TextExample>),
    /// Where each example begins, in words, and where the last one ends.
    File {
        file: File,
        folder: PathBuf,
        starts: Vec<u64>,
    },
}

/// What the labels and ids of all examples have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// The smallest and largest id, and the same of segment ids.
    pub ids: Option<(i32, i32)>,
    pub type_ids: Option<(i32, i32)>,
    /// The smallest and largest of each of their numbers.
    pub numbers: Vec<(f32, f32)>,
    /// The smallest and largest class that counts.
    pub classes: Option<(i32, i32)>,
    /// Whether some label of an example is no class.
    pub unclassed: bool,
    /// Whether some label is written as a fraction, or is a list.
    pub fractions: bool,
    /// How many numbers the first list of labels holds.
    pub width: Option<usize>,
    /// Whether every number is 0, 1 or -100; whole; and whether each list holds one 1.
    pub zero_one: bool,
    pub whole: bool,
    pub one_hot: bool,
    /// Whether there is any label of an example.
    labelled: bool,
    /// Examples of which no label counts.
    uncounted: Vec<u32>,
}

fn widen(range: &mut Option<(i32, i32)>, xs: impl Iterator<Item = i32>) {
    for x in xs {
        *range = Some(range.map_or((x, x), |(a, b)| (a.min(x), b.max(x))));
    }
}

impl Summary {
    fn add(&mut self, number: usize, e: &TextExample) {
        for n in 0..=e.further.len() {
            let (ids, type_ids, labels) = e.text(n);
            widen(&mut self.ids, ids.iter().copied());
            widen(&mut self.type_ids, type_ids.iter().copied());
            widen(&mut self.classes, labels.iter().copied().filter(|l| *l != -100));
        }
        self.numbers.extend(e.numbers.iter().skip(self.numbers.len()).map(|x| (*x, *x)));
        for ((low, high), x) in self.numbers.iter_mut().zip(&e.numbers) {
            (*low, *high) = (low.min(*x), high.max(*x));
        }
        let Some(label) = &e.label else { return };
        if !self.labelled {
            (self.labelled, self.zero_one, self.whole, self.one_hot) = (true, true, true, true);
        }
        match label.class() {
            Some(-100) => self.uncounted.push(number as u32),
            Some(class) => widen(&mut self.classes, [class].into_iter()),
            None => self.unclassed = true,
        }
        self.fractions |= !matches!(label, Label::Class(_));
        let numbers = label.numbers();
        if let Label::Many(xs) = label {
            self.width.get_or_insert(xs.len());
        }
        self.zero_one &= numbers.iter().all(|x| [0.0, 1.0, -100.0].contains(x));
        self.whole &= numbers.iter().all(|x| x.fract() == 0.0);
        self.one_hot &= numbers.iter().filter(|x| **x == 1.0).count() == 1;
    }
}

impl FromIterator<TextExample> for Examples {
    fn from_iter<T: IntoIterator<Item = TextExample>>(all: T) -> Examples {
        let mut writer = Writer { limit: usize::MAX, ..Writer::default() };
        all.into_iter().enumerate().for_each(|(row, e)| writer.push(e, row).expect("nothing is written"));
        writer.finish().expect("nothing is written")
    }
}

impl Examples {
    pub fn len(&self) -> usize {
        self.kept.as_ref().map_or(self.store.lengths.len(), |kept| kept.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn number(&self, example: usize) -> usize {
        self.kept.as_ref().map_or(example, |kept| kept[example] as usize)
    }

    /// Tokens of an example's longest text.
    pub fn length(&self, example: usize) -> usize {
        self.store.lengths[self.number(example)] as usize
    }

    /// Tokens of each example.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).map(|e| self.length(e))
    }

    /// The number of the row that made an example: those of one row, such as the answers of one conversation, share it.
    pub fn row(&self, example: usize) -> usize {
        let number = self.number(example);
        self.store.rows.get(number).map_or(number, |r| *r as usize)
    }

    /// What all examples have in common, those that are not kept included.
    pub fn summary(&self) -> &Summary {
        &self.store.summary
    }

    /// Whether a label of some example counts.
    pub fn counts(&self) -> bool {
        let uncounted = &self.store.summary.uncounted;
        (0..self.len()).any(|e| uncounted.binary_search(&(self.number(e) as u32)).is_err())
    }

    pub fn get(&self, example: usize) -> Result<Cow<'_, TextExample>, SpillError> {
        let number = self.number(example);
        match &self.store.place {
            Place::Memory(all) => Ok(Cow::Borrowed(&all[number])),
            Place::File { file, folder, starts } => {
                let (from, to) = (starts[number], starts[number + 1]);
                let mut words = vec![0u32; (to - from) as usize];
                read_at(file, bytemuck::cast_slice_mut(&mut words), from * 4)
                    .map_err(|error| SpillError { folder: folder.clone(), error })?;
                Ok(Cow::Owned(decode(&words)))
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Result<Cow<'_, TextExample>, SpillError>> {
        (0..self.len()).map(|e| self.get(e))
    }

    /// Some of the examples.
    pub fn only(&self, examples: impl IntoIterator<Item = usize>) -> Examples {
        let kept = examples.into_iter().map(|e| self.number(e) as u32).collect();
        Examples { store: self.store.clone(), kept: Some(kept) }
    }

    pub fn range(&self, range: Range<usize>) -> Examples {
        self.only(range)
    }

    /// Whether they lie in a temporary file.
    pub fn on_disk(&self) -> bool {
        matches!(self.store.place, Place::File { .. })
    }
}

/// Takes examples one after the other.
pub struct Writer {
    memory: Vec<TextExample>,
    bytes: usize,
    /// The most bytes in memory.
    limit: usize,
    file: Option<(BufWriter<File>, PathBuf, Vec<u64>)>,
    lengths: Vec<u32>,
    rows: Vec<u32>,
    /// Whether each row has made one example so far.
    plain: bool,
    last: Option<usize>,
    summary: Summary,
}

impl Default for Writer {
    fn default() -> Writer {
        let set = std::env::var("RESLORA_SPILL_MIB").ok().and_then(|n| n.parse::<usize>().ok());
        Writer {
            memory: vec![],
            bytes: 0,
            limit: set.map_or(IN_MEMORY, |mib| mib << 20),
            file: None,
            lengths: vec![],
            rows: vec![],
            plain: true,
            last: None,
            summary: Summary::default(),
        }
    }
}

impl Writer {
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Adds an example that a row (from 0, in order) made.
    pub fn push(&mut self, example: TextExample, row: usize) -> Result<(), SpillError> {
        let number = self.lengths.len();
        if self.plain && self.last == Some(row) {
            // Rows that made nothing are not told apart: what counts is which examples share one.
            self.plain = false;
            self.rows = (0..number as u32).collect();
        }
        if !self.plain {
            let before = self.rows.last().copied().unwrap_or(0);
            self.rows.push(if self.last == Some(row) { before } else { before + 1 });
        }
        self.last = Some(row);
        self.lengths.push(example.longest() as u32);
        self.summary.add(number, &example);
        if self.file.is_some() {
            return self.write(&example);
        }
        let words = |n: usize| {
            let (ids, type_ids, labels) = example.text(n);
            ids.len() + type_ids.len() + labels.len()
        };
        let words: usize = (0..=example.further.len()).map(words).sum();
        let texts = example.further.len() * size_of::<Sequence>();
        self.bytes += size_of::<TextExample>() + texts + 4 * (words + example.numbers.len());
        self.memory.push(example);
        if self.bytes > self.limit {
            let folder = folder();
            let file = tempfile::tempfile_in(&folder).map_err(|error| SpillError { folder: folder.clone(), error })?;
            self.file = Some((BufWriter::with_capacity(1 << 20, file), folder, vec![0]));
            for example in std::mem::take(&mut self.memory) {
                self.write(&example)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, example: &TextExample) -> Result<(), SpillError> {
        let (file, folder, starts) = self.file.as_mut().expect("there is a file");
        let words = encode(example);
        file.write_all(bytemuck::cast_slice(&words)).map_err(|error| SpillError { folder: folder.clone(), error })?;
        starts.push(starts.last().copied().unwrap_or(0) + words.len() as u64);
        Ok(())
    }

    pub fn finish(self) -> Result<Examples, SpillError> {
        let Writer { memory, file, lengths, rows, summary, .. } = self;
        let place = match file {
            None => Place::Memory(memory),
            Some((writer, folder, starts)) => {
                let fail = |error| SpillError { folder: folder.clone(), error };
                let mut file = writer.into_inner().map_err(|e| fail(e.into_error()))?;
                file.seek(SeekFrom::Start(0)).map_err(fail)?;
                Place::File { file, folder, starts }
            }
        };
        Ok(Examples { store: Arc::new(Store { place, lengths, rows, summary }), kept: None })
    }
}

/// Where temporary files go that may be large. `/tmp` is in memory on many systems, `/var/tmp` never is.
pub fn folder() -> PathBuf {
    let lasting = PathBuf::from("/var/tmp");
    match std::env::var_os("TMPDIR") {
        None if cfg!(unix) && lasting.is_dir() => lasting,
        _ => std::env::temp_dir(),
    }
}

const HAS_TYPES: u32 = 1;
const HAS_LABELS: u32 = 2;

/// Number of further texts, kind of label, number of numbers; each text; numbers, label. A text is the number of its ids, flags, ids,
/// segment ids unless they are zero, labels of positions.
fn encode(e: &TextExample) -> Vec<u32> {
    let (kind, label) = match &e.label {
        None => (0, vec![]),
        Some(Label::Class(c)) => (1, vec![*c as u32]),
        Some(Label::Number(x)) => (2, vec![x.to_bits()]),
        Some(Label::Many(xs)) => (3, xs.iter().map(|x| x.to_bits()).collect()),
    };
    let mut words = vec![e.further.len() as u32, kind, e.numbers.len() as u32];
    for n in 0..=e.further.len() {
        let (ids, type_ids, labels) = e.text(n);
        let types = type_ids.iter().any(|t| *t != 0);
        words.extend([ids.len() as u32, u32::from(types) * HAS_TYPES + u32::from(!labels.is_empty()) * HAS_LABELS]);
        words.extend(ids.iter().map(|x| *x as u32));
        words.extend(type_ids.iter().filter(|_| types).map(|x| *x as u32));
        words.extend(labels.iter().map(|x| *x as u32));
    }
    words.extend(e.numbers.iter().map(|x| x.to_bits()));
    words.extend(label);
    words
}

fn decode(words: &[u32]) -> TextExample {
    let (texts, kind, count) = (words[0] as usize + 1, words[1], words[2] as usize);
    let mut rest = &words[3..];
    let mut sequences = Vec::with_capacity(texts);
    for _ in 0..texts {
        let (n, flags) = (rest[0] as usize, rest[1]);
        rest = &rest[2..];
        let mut take = |there: bool| {
            let (taken, left) = rest.split_at(if there { n } else { 0 });
            rest = left;
            taken.iter().map(|w| *w as i32).collect::<Vec<i32>>()
        };
        let (ids, types) = (take(true), take(flags & HAS_TYPES != 0));
        let labels = take(flags & HAS_LABELS != 0);
        sequences.push(Sequence { ids, type_ids: if types.is_empty() { vec![0; n] } else { types }, labels });
    }
    let floats = |words: &[u32]| words.iter().map(|w| f32::from_bits(*w)).collect::<Vec<f32>>();
    let (numbers, label) = rest.split_at(count);
    let label = match kind {
        0 => None,
        1 => Some(Label::Class(label[0] as i32)),
        2 => Some(Label::Number(f32::from_bits(label[0]))),
        _ => Some(Label::Many(floats(label))),
    };
    let further = sequences.split_off(1);
    let Sequence { ids, type_ids, labels } = sequences.remove(0);
    TextExample { ids, type_ids, labels, label, numbers: floats(numbers), further }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => (bytes, at) = (&mut bytes[n..], at + n as u64),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<TextExample> {
        let example = |ids: &[i32], types: &[i32], labels: &[i32], label, numbers: [f32; 2]| TextExample {
            ids: ids.to_vec(),
            type_ids: types.to_vec(),
            labels: labels.to_vec(),
            label,
            numbers: numbers.to_vec(),
            further: vec![],
        };
        let further = ["a", "bc"].map(|s| Sequence {
            ids: s.bytes().map(i32::from).collect(),
            type_ids: vec![s.len() as i32 - 1; s.len()],
            labels: vec![-100; s.len() / 2 * s.len()],
        });
        vec![
            example(&[1, 2, 3], &[0, 0, 1], &[], Some(Label::Class(-100)), [1.0, 0.25]),
            example(&[7], &[0], &[], Some(Label::Class(2)), [0.0, 0.5]),
            example(&[4, 5], &[0, 0], &[], Some(Label::Number(-0.5)), [3.0, 1.0]),
            example(&[], &[], &[], Some(Label::Many(vec![0.0, 1.0])), [2.0, 0.75]),
            TextExample { further: further.to_vec(), ..example(&[8, 9], &[0, 0], &[9, -100], None, [1.0, 1.0]) },
        ]
    }

    /// What is kept on disk comes back as what is kept in memory.
    #[test]
    fn a_file_holds_what_memory_holds() {
        let made = |limit: usize| {
            let mut writer = Writer { limit, ..Writer::default() };
            for (e, row) in all().into_iter().zip([0, 3, 3, 4, 9]) {
                writer.push(e, row).unwrap();
            }
            writer.finish().unwrap()
        };
        let (memory, file) = (made(usize::MAX), made(100));
        assert!(file.on_disk() && !memory.on_disk());
        let held = |e: &Examples| e.iter().map(|e| e.unwrap().into_owned()).collect::<Vec<_>>();
        assert_eq!(held(&memory), all());
        assert_eq!(held(&file), all());
        assert_eq!(memory.summary(), file.summary());
        assert_eq!(file.summary().numbers, [(0.0, 3.0), (0.25, 1.0)]);
        for e in [memory, file] {
            assert_eq!((0..5).map(|i| e.row(i)).collect::<Vec<_>>(), [0, 1, 1, 2, 3]);
            assert_eq!(e.lengths().collect::<Vec<_>>(), [3, 1, 2, 0, 2]);
            let some = e.only([4, 0]).only([1]);
            assert_eq!(held(&some), all()[..1]);
            assert!(!some.counts() && e.counts());
        }
    }
}
