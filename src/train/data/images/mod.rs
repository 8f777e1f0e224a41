//! Images: read when a batch needs them, and prepared as the model's `preprocessor_config.json` says.

mod recipe;
mod resample;

use super::rows::Row;
use super::sink::{Placed, Sink};
use super::{Column, DataError, Options, Source, class_names};
use crate::ir::Tensor;
use rayon::prelude::*;
use recipe::Recipe;
use resample::Rgb;
use serde_json::Value;
use sha2::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What names of images end in.
const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"];

/// A graph input that takes images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    pub name: String,
    /// Whether channels are the last axis rather than the second.
    pub channels_last: bool,
}

/// The images of a data set.
#[derive(Clone, Debug)]
pub struct Images {
    pub input: Pixels,
    files: Vec<PathBuf>,
    recipe: Arc<Recipe>,
}

impl Images {
    fn new(path: &Path, files: Vec<PathBuf>, options: &Options) -> Result<Images, DataError> {
        let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
        let input = options.pixels.clone();
        let input = input.ok_or_else(|| bad("it holds images, and the model has no input for them".into()))?;
        let recipe = options.beside.as_deref().map_or(Ok(None), Recipe::read).map_err(bad)?;
        let recipe = recipe.ok_or_else(|| {
            bad("images need preprocessor_config.json beside the model, which says how they are prepared\n\
                 hint: transformers writes it with AutoImageProcessor.from_pretrained(NAME).save_pretrained(DIR)"
                .into())
        })?;
        Ok(Images { input, files, recipe: Arc::new(recipe) })
    }

    /// Some of them.
    pub fn only(&self, keep: &[usize]) -> Images {
        Images { files: keep.iter().map(|&i| self.files[i].clone()).collect(), ..self.clone() }
    }

    /// The file of an image.
    pub fn file(&self, i: usize) -> &Path {
        &self.files[i]
    }

    /// The tensor of some images: `(n, 3, height, width)`, or with the channels last.
    pub fn tensor(&self, rows: &[usize]) -> Result<Tensor, DataError> {
        let read = |&i: &usize| Ok((self.recipe.apply(&open(&self.files[i])?), i));
        let all = rows.par_iter().map(read).collect::<Result<Vec<_>, DataError>>()?;
        let [height, width] = all.first().map_or([0, 0], |first| first.0.1);
        if let Some(((_, size), i)) = all.iter().find(|image| image.0.1 != [height, width]) {
            let why = format!(
                "it becomes {} x {}, and others of its batch {height} x {width}\n\
                 hint: a preprocessor_config.json with a size, or --batch-size 1",
                size[0], size[1]
            );
            return Err(DataError::Format { path: self.files[*i].clone(), why });
        }
        let n = all.len();
        if !self.input.channels_last {
            return Ok(Tensor::f32([n, 3, height, width], all.into_iter().flat_map(|image| image.0.0).collect()));
        }
        let area = height * width;
        let turned =
            |x: Vec<f32>| (0..area).flat_map(move |i| [x[i], x[area + i], x[2 * area + i]]).collect::<Vec<f32>>();
        Ok(Tensor::f32([n, height, width, 3], all.into_iter().flat_map(|image| turned(image.0.0)).collect()))
    }
}

/// An image in three channels of eight bits.
fn open(path: &Path) -> Result<Rgb, DataError> {
    let fail = |error| DataError::Open { path: path.to_path_buf(), error };
    let bad = |why: String| DataError::Format {
        path: path.to_path_buf(),
        why: format!("it is no image that can be read: {why}"),
    };
    let reader = image::ImageReader::open(path).map_err(fail)?.with_guessed_format().map_err(fail)?;
    let rgb = reader.decode().map_err(|e| bad(e.to_string()))?.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    if width == 0 || height == 0 {
        return Err(bad("it has no pixels".into()));
    }
    Ok(Rgb { width, height, pixels: rgb.into_raw() })
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    EXTENSIONS.contains(&ending.as_str())
}

/// What lies in a folder, in order of names.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let fail = |error| DataError::Open { path: folder.to_path_buf(), error };
    let entries = std::fs::read_dir(folder).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let mut all: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).collect();
    all.sort();
    Ok(all)
}

/// Whether a path is a folder of class folders with images.
pub fn is_folder(path: &Path) -> bool {
    let folders = listed(path).unwrap_or_default().into_iter().filter(|p| p.is_dir());
    folders.into_iter().any(|f| listed(&f).unwrap_or_default().iter().any(|p| is_image(p)))
}

/// A data set of a folder of class folders, and its digest. Classes are numbered in order of names, or as the model calls them.
pub fn folder(path: &Path, options: &Options, notes: &mut Vec<String>) -> Result<(Source, String), DataError> {
    let bad = |why: String| DataError::Format { path: path.to_path_buf(), why };
    let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let hidden = |p: &&PathBuf| !name(p).starts_with('.');
    let (mut files, mut labels, mut classes, mut other) = (vec![], vec![], vec![], 0);
    for class in listed(path)?.iter().filter(|p| p.is_dir()).filter(hidden) {
        let (images, rest): (Vec<PathBuf>, Vec<PathBuf>) = listed(class)?.into_iter().partition(|p| is_image(p));
        other += rest.iter().filter(|p| p.is_file()).filter(hidden).count();
        labels.extend(std::iter::repeat_n(classes.len() as i32, images.len()));
        files.extend(images);
        classes.push(name(class));
    }
    if other > 0 {
        notes.push(format!("{}: {other} files are no images by their names, and left out", path.display()));
    }
    let model = class_names::of_model(options);
    match class_names::matched(&classes, &model).map_err(bad)? {
        Some(by_name) => labels.iter_mut().for_each(|l: &mut i32| *l = by_name[*l as usize]),
        None => notes.push(format!("{}: its classes are {}", path.display(), numbered(&classes))),
    }
    let digest = digest(&files)?;
    let tensors = BTreeMap::from([("labels".to_string(), Tensor::i32([labels.len()], labels))]);
    let images = Images::new(path, files, options)?;
    Ok((Source::Tensors { examples: images.files.len(), tensors, images: Some(images) }, digest))
}

/// Classes with their numbers.
fn numbered(classes: &[String]) -> String {
    const MOST: usize = 12;
    let all: Vec<String> = classes.iter().take(MOST).enumerate().map(|(i, name)| format!("{i} {name}")).collect();
    format!("{}{}", all.join(", "), if classes.len() > MOST { ", ..." } else { "" })
}

/// SHA-256 of the names and contents of files, in hexadecimal.
fn digest(files: &[PathBuf]) -> Result<String, DataError> {
    let one = |path: &PathBuf| {
        let bytes = std::fs::read(path).map_err(|error| DataError::Open { path: path.clone(), error })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(format!("{name} {}\n", super::input::sha256(&bytes)))
    };
    let all: Result<Vec<String>, DataError> = files.par_iter().map(one).collect();
    let mut sha = sha2::Sha256::new();
    all?.iter().for_each(|line| sha.update(line));
    Ok(sha.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Takes the rows of a table: `image`, a path from the table's folder, and `label`.
pub struct Table<'a> {
    options: &'a Options,
    path: PathBuf,
    file: Arc<Path>,
    files: Vec<PathBuf>,
    labels: Vec<Value>,
    /// What the file calls its classes.
    classes: Vec<String>,
    inputs: BTreeMap<String, Vec<f32>>,
    skipped: usize,
    notes: &'a mut Vec<String>,
}

impl<'a> Table<'a> {
    pub fn new(path: &Path, options: &'a Options, notes: &'a mut Vec<String>) -> Table<'a> {
        Table {
            options,
            path: path.to_path_buf(),
            file: path.into(),
            files: vec![],
            labels: vec![],
            classes: vec![],
            inputs: BTreeMap::new(),
            skipped: 0,
            notes,
        }
    }

    /// The rows that follow are those of this file.
    pub fn begin(&mut self, file: &Path) {
        self.file = file.into();
    }

    fn take(&mut self, placed: Placed) -> Result<(), DataError> {
        let row = Row::new(&self.file, placed, &self.options.columns)?;
        let image = row.object.get("image").and_then(Value::as_str);
        let Some(image) = image else {
            let has = super::rows::keys(&row.object);
            let hint = "hint: --columns image=PATH_COLUMN,label=CLASS_COLUMN names other columns";
            return Err(row.error(format!("it has no 'image' with the path of a file; its columns are {has}\n{hint}")));
        };
        let path = self.file.parent().unwrap_or(Path::new("")).join(image);
        if !path.is_file() {
            let from = "hint: paths start at the folder of the table";
            return Err(row.error(format!("there is no file {}\n{from}", path.display())));
        }
        let label = row.object.get("label").cloned().unwrap_or_default();
        for column in &self.options.inputs {
            let x = row.object.get(&column.name).and_then(Value::as_f64);
            let x = x.filter(|x| column.range.is_none_or(|(low, high)| (low..=high).contains(x)));
            let x = x.ok_or_else(|| row.error(format!("it has no '{}' that the model takes", column.name)))?;
            self.inputs.entry(column.name.clone()).or_default().push(x as f32);
        }
        self.files.push(path);
        self.labels.push(label);
        Ok(())
    }

    /// The data set, and the digest of its images.
    pub fn finish(self) -> Result<(Source, String), DataError> {
        let bad = |why: String| DataError::Format { path: self.path.clone(), why };
        if self.skipped > 0 {
            self.notes.push(format!(
                "{}: skipped {} unreadable rows (--skip-bad-rows)",
                self.path.display(),
                self.skipped
            ));
        }
        let mut tensors = BTreeMap::new();
        let model = class_names::of_model(self.options);
        if self.labels.iter().any(|l| !l.is_null()) {
            let (labels, note) = labels(&self.labels, &self.classes, &model).map_err(bad)?;
            self.notes.extend(note.map(|n| format!("{}: {n}", self.path.display())));
            tensors.insert("labels".to_string(), labels);
        }
        for (column, values) in self.options.inputs.iter().filter_map(|c| Some((c, self.inputs.get(&c.name)?))) {
            let n = values.len();
            let t = match column.integer {
                true => Tensor::i32([n], values.iter().map(|&x| x as i32).collect()),
                false => Tensor::f32([n], values.clone()),
            };
            tensors.insert(column.name.clone(), t);
        }
        let digest = digest(&self.files)?;
        let images = Images::new(&self.path, self.files, self.options)?;
        Ok((Source::Tensors { examples: images.files.len(), tensors, images: Some(images) }, digest))
    }
}

impl Sink for Table<'_> {
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
        self.classes = names;
        Ok(())
    }

    fn row(&mut self, row: Result<Placed, DataError>) -> Result<(), DataError> {
        match row.and_then(|placed| self.take(placed)) {
            Err(_) if self.skipped < self.options.skip_bad_rows => {
                self.skipped += 1;
                Ok(())
            }
            taken => taken,
        }
    }
}

/// Labels as a tensor: class numbers, class names, or other numbers; and what is to be said of them.
fn labels(all: &[Value], file: &[String], model: &[String]) -> Result<(Tensor, Option<String>), String> {
    let missing = all.iter().position(Value::is_null);
    if let Some(i) = missing {
        return Err(format!("row {} has no label, and others have\nhint: a label in every row, or in none", i + 1));
    }
    let n = all.len();
    if all.iter().all(Value::is_string) {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        let names: BTreeSet<String> = all.iter().map(text).collect();
        let mut names: Vec<String> = names.into_iter().collect();
        let by_name = class_names::matched(&names, model)?;
        let note = by_name.is_none().then(|| format!("its classes are {}", numbered(&names)));
        let mut numbers: BTreeMap<String, i32> = BTreeMap::new();
        for (i, name) in names.drain(..).enumerate() {
            numbers.insert(name, by_name.as_ref().map_or(i as i32, |b| b[i]));
        }
        return Ok((Tensor::i32([n], all.iter().map(|v| numbers[&text(v)]).collect()), note));
    }
    if all.iter().all(Value::is_i64) {
        let numbers: Option<Vec<i32>> = all.iter().map(|v| i32::try_from(v.as_i64()?).ok()).collect();
        let mut numbers = numbers.ok_or("a label does not fit 32 bits")?;
        if let Some(by_name) = class_names::matched(file, model)? {
            let moved =
                numbers.iter().map(|&x| by_name.get(usize::try_from(x).ok()?).copied()).collect::<Option<Vec<i32>>>();
            numbers = moved.ok_or("a label is none of the table's own classes")?;
        }
        return Ok((Tensor::i32([n], numbers), None));
    }
    let numbers: Option<Vec<f32>> = all.iter().map(|v| Some(v.as_f64()? as f32)).collect();
    let numbers = numbers.ok_or("labels are class numbers, class names or other numbers, all of one kind")?;
    Ok((Tensor::f32([n], numbers), None))
}
