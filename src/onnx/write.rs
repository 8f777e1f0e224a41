//! Writes a model: unchanged parts as the bytes that were read, to temporary files that are renamed when complete.

use super::element::ElementType;
use super::external_data::ExternalFile;
use super::model::{Data, Initializer, Item, Model};
use super::wire::{self, Edit};
use atomic_write_file::AtomicWriteFile;
use onnx_protobuf::{Message, StringStringEntryProto};
use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a model cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot write {}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error(
        "{}: {bytes} bytes do not fit one ONNX file, which protobuf limits to 2 GiB\nhint: save the model with external data",
        path.display()
    )]
    TooLarge { path: PathBuf, bytes: usize },
    #[error("{}: the file that was written is not the model: tensor '{tensor}': {why}\nhint: nothing was put in its place; please report this", path.display())]
    Differs { path: PathBuf, tensor: String, why: String },
}

/// Writes `model` to `path`, and the data it keeps outside the file to `<path>.data`. Both are written into a temporary folder
/// first, read back, and compared with the model tensor by tensor; only then do they take their places.
pub fn write(model: &Model, path: &Path) -> Result<(), WriteError> {
    let io = |error| WriteError::Io { path: path.to_path_buf(), error };
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(io)?;
    let folder = tempfile::Builder::new().prefix(".reslora-").tempdir_in(dir).map_err(io)?;
    let draft = folder.path().join(path.file_name().unwrap_or_default());
    write_in_place(model, &draft)?;
    let differs = |tensor: &str, why: &str| WriteError::Differs {
        path: path.to_path_buf(),
        tensor: tensor.to_string(),
        why: why.to_string(),
    };
    let back = super::read::read(&draft).map_err(|e| differs("", &e.to_string()))?;
    for name in model.initializers() {
        let same = match (model.initializer(name), back.initializer(name)) {
            (Some(a), Some(b)) => a.element == b.element && a.dims == b.dims && a.bytes == b.bytes,
            (a, b) => a.is_none() && b.is_none(),
        };
        if !same {
            return Err(differs(name, "its bytes on disk are not those that were to be written"));
        }
    }
    drop(back);
    // The data first: until the model is there, nothing names it.
    let (data, target) = (data_path(&draft), data_path(path));
    if data.exists() {
        std::fs::rename(&data, &target).map_err(io)?;
    }
    std::fs::rename(&draft, path).map_err(io)
}

fn write_in_place(model: &Model, path: &Path) -> Result<(), WriteError> {
    let io = |error| WriteError::Io { path: path.to_path_buf(), error };
    let data_path = data_path(path);
    let layout = Layout::new(model, &data_path);
    let parts: Vec<Part> = model.items.iter().map(|item| part(model, item, &layout)).collect();
    let graph: usize = parts.iter().map(Part::len).sum();
    if graph > i32::MAX as usize - (1 << 20) {
        return Err(WriteError::TooLarge { path: path.to_path_buf(), bytes: graph });
    }
    let data = match layout.files.is_empty() {
        true => None,
        false => {
            let mut file = AtomicWriteFile::open(&data_path).map_err(io)?;
            layout.write(model, &mut file).map_err(io)?;
            Some(file)
        }
    };
    let mut file = AtomicWriteFile::open(path).map_err(io)?;
    assemble(model, &parts, graph, &mut file).map_err(io)?;
    if let Some(data) = data {
        data.commit().map_err(io)?;
    }
    file.commit().map_err(io)
}

/// `<path>.data`
pub fn data_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".data");
    path.with_file_name(name)
}

/// The bytes of one field of the graph, tag and all.
enum Part {
    Source(Range<usize>),
    New(Vec<u8>),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::Source(r) => r.len(),
            Part::New(bytes) => bytes.len(),
        }
    }

    fn field(number: u32, payload: &[u8]) -> Part {
        let mut out = Vec::with_capacity(payload.len() + 8);
        wire::put_bytes(&mut out, number, payload);
        Part::New(out)
    }
}

fn part(model: &Model, item: &Item, layout: &Layout) -> Part {
    match item {
        Item::Other(range) => Part::Source(range.clone()),
        Item::Input(name) => {
            let info = model.signature.input.iter().find(|i| i.name == *name).expect("added with its signature");
            Part::field(11, &info.write_to_bytes().expect("a new input serialises"))
        }
        Item::Output(name) => {
            let info = model.signature.output.iter().find(|o| o.name == *name).expect("added with its signature");
            Part::field(12, &info.write_to_bytes().expect("a new output serialises"))
        }
        Item::InitializerInput { span: Some(range), .. } => Part::Source(range.clone()),
        Item::InitializerInput { name, span: None } => Part::field(11, &input_of(&model.initializers[name])),
        Item::Node(id) => match model.node_spans.get(id) {
            Some(span) => Part::Source(span.clone()),
            None => Part::field(1, &model.nodes[id].raw),
        },
        Item::Initializer(name) => {
            let t = &model.initializers[name];
            match (&t.spans, &t.data, &t.replaced) {
                (Some(s), Data::External { .. }, _) => {
                    Part::field(5, &relocated(&model.source[s.payload.clone()], name, t, layout))
                }
                (Some(s), _, None) => Part::Source(s.all.clone()),
                (Some(s), _, Some(new)) => Part::field(5, &replaced(&model.source[s.payload.clone()], t, new)),
                (None, _, _) => {
                    let mut message = t.header.write_to_bytes().expect("a new tensor serialises");
                    if let Data::Memory(bytes) = &t.data {
                        wire::put_bytes(&mut message, 9, bytes);
                    }
                    Part::field(5, &message)
                }
            }
        }
    }
}

/// The graph input of an initializer.
fn input_of(t: &Initializer) -> Vec<u8> {
    use onnx_protobuf::{TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto::Dimension, type_proto};
    let dim = |&n: &i64| {
        let mut d = Dimension::new();
        d.set_dim_value(n);
        d
    };
    let shape = TensorShapeProto { dim: t.header.dims.iter().map(dim).collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: t.header.data_type, shape: Some(shape).into(), ..Default::default() };
    let mut ty = TypeProto::new();
    ty.set_tensor_type(tensor);
    let info = ValueInfoProto { name: t.header.name.clone(), type_: Some(ty).into(), ..Default::default() };
    info.write_to_bytes().expect("a new input serialises")
}

/// A tensor's message with other elements, in the form (raw bytes or typed list) that it had.
fn replaced(message: &[u8], t: &Initializer, new: &[u8]) -> Vec<u8> {
    let element = ElementType::from_number(t.header.data_type);
    let (number, payload) = match (&t.data, element) {
        (Data::Typed, ElementType::F32) => (4, new.to_vec()),
        (Data::Typed, ElementType::F64) => (10, new.to_vec()),
        (Data::Typed, ElementType::F16 | ElementType::Bf16) => {
            let mut out = Vec::new();
            new.chunks_exact(2).for_each(|c| wire::put_varint(&mut out, u16::from_le_bytes([c[0], c[1]]) as u64));
            (5, out)
        }
        _ => (9, new.to_vec()),
    };
    let mut payload = Some(payload);
    let mut out = wire::edit(message, |f, _| match f.number == number {
        true => payload.take().map_or(Edit::Drop, Edit::Payload),
        false => Edit::Keep,
    });
    if let Some(payload) = payload {
        wire::put_bytes(&mut out, number, &payload);
    }
    out
}

/// Where the data that a model keeps outside its file goes: each file it came from, whole, one after the other.
struct Layout {
    location: String,
    files: Vec<(Arc<ExternalFile>, usize)>,
    /// Changed tensors that shared bytes with others: they get a place of their own, after the files, in this order.
    moved: Vec<(String, usize)>,
}

/// Files after the first begin at multiples of this, so that offsets stay aligned to pages.
const ALIGN: usize = 65_536;

impl Layout {
    fn new(model: &Model, data_path: &Path) -> Layout {
        let location = data_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut layout = Layout { location, files: vec![], moved: vec![] };
        let mut end = 0;
        for name in model.initializers() {
            if let Data::External { file, .. } = &model.initializers[name].data
                && layout.base(file).is_none()
            {
                let base = usize::next_multiple_of(end, ALIGN);
                end = base + file.bytes().len();
                layout.files.push((file.clone(), base));
            }
        }
        let mut taken: Vec<(&Arc<ExternalFile>, &Range<usize>, &str)> = (model.initializers.iter())
            .filter_map(|(name, t)| match &t.data {
                Data::External { file, range } if !range.is_empty() => Some((file, range, name.as_str())),
                _ => None,
            })
            .collect();
        taken.sort_by_key(|t| (Arc::as_ptr(t.0) as usize, t.1.start, t.1.end, t.2));
        let mut shared: HashSet<&str> = HashSet::new();
        for (i, a) in taken.iter().enumerate() {
            for b in taken[i + 1..].iter().take_while(|b| Arc::ptr_eq(a.0, b.0) && b.1.start < a.1.end) {
                shared.extend([a.2, b.2]);
            }
        }
        for name in model.initializers().filter(|n| shared.contains(n)) {
            let t = &model.initializers[name];
            if let Some(new) = t.replaced.as_ref().filter(|new| {
                let Data::External { file, range } = &t.data else { return false };
                file.bytes()[range.clone()] != new[..]
            }) {
                let at = usize::next_multiple_of(end, ALIGN);
                layout.moved.push((name.to_string(), at));
                end = at + new.len();
            }
        }
        layout
    }

    fn moved(&self, name: &str) -> Option<usize> {
        self.moved.iter().find(|(n, _)| n == name).map(|(_, at)| *at)
    }

    fn base(&self, file: &Arc<ExternalFile>) -> Option<usize> {
        self.files.iter().find(|(f, _)| Arc::ptr_eq(f, file)).map(|(_, base)| *base)
    }

    /// Writes every file with the replaced tensors in their places.
    fn write(&self, model: &Model, to: &mut impl Write) -> std::io::Result<()> {
        let mut out = BufWriter::new(to);
        let mut written = 0;
        for (file, base) in &self.files {
            out.write_all(&vec![0; base - written])?;
            let mut patches: Vec<(Range<usize>, &[u8])> = model
                .initializers
                .iter()
                .filter(|(name, _)| self.moved(name).is_none())
                .filter_map(|(_, t)| match (&t.data, &t.replaced) {
                    (Data::External { file: f, range }, Some(new)) if Arc::ptr_eq(f, file) => {
                        Some((range.clone(), new.as_slice()))
                    }
                    _ => None,
                })
                .collect();
            patches.sort_by_key(|(r, _)| r.start);
            let mut at = 0;
            for (range, new) in patches {
                out.write_all(&file.bytes()[at..range.start.max(at)])?;
                out.write_all(new)?;
                at = range.end;
            }
            out.write_all(&file.bytes()[at..])?;
            written = base + file.bytes().len();
        }
        for (name, at) in &self.moved {
            let new = model.initializers[name].replaced.as_ref().expect("moved because it was replaced");
            out.write_all(&vec![0; at - written])?;
            out.write_all(new)?;
            written = at + new.len();
        }
        out.flush()
    }
}

/// An external tensor's message with its new location, and with its new offset where that moved.
fn relocated(message: &[u8], name: &str, t: &Initializer, layout: &Layout) -> Vec<u8> {
    let Data::External { file, range } = &t.data else { panic!("called for external tensors only") };
    let base = layout.base(file).expect("the layout holds every external file");
    let moved = layout.moved(name);
    let offset = moved.unwrap_or(base + range.start);
    let stays = offset == range.start;
    let mut seen = (false, false);
    let text = |key: &str, value: String| {
        let mut entry = Vec::new();
        wire::put_bytes(&mut entry, 1, key.as_bytes());
        wire::put_bytes(&mut entry, 2, value.as_bytes());
        entry
    };
    let mut out = wire::edit(message, |f, payload| {
        if f.number != 13 {
            return Edit::Keep;
        }
        let entry = StringStringEntryProto::parse_from_bytes(payload).unwrap_or_default();
        match entry.key.as_str() {
            "location" => Edit::Payload(text("location", layout.location.clone())),
            "offset" => {
                seen.0 = true;
                match stays {
                    true => Edit::Keep,
                    false => Edit::Payload(text("offset", offset.to_string())),
                }
            }
            "length" => {
                seen.1 = true;
                Edit::Keep
            }
            // A checksum of the old file says nothing of the new one.
            "checksum" => Edit::Drop,
            _ => Edit::Keep,
        }
    });
    if !stays && !seen.0 {
        wire::put_bytes(&mut out, 13, &text("offset", offset.to_string()));
    }
    if !seen.1 && (!stays || layout.files.len() > 1) {
        wire::put_bytes(&mut out, 13, &text("length", range.len().to_string()));
    }
    out
}

fn assemble(model: &Model, parts: &[Part], graph: usize, to: &mut impl Write) -> std::io::Result<()> {
    const METADATA: u8 = 14 << 3 | wire::BYTES;
    let mut out = BufWriter::new(to);
    let top = |out: &mut dyn Write, ranges: &[Range<usize>]| -> std::io::Result<()> {
        for r in ranges {
            match model.source[r.start] {
                METADATA => out.write_all(&model.metadata_field(r).unwrap_or(Cow::Borrowed(&[])))?,
                _ => out.write_all(&model.source[r.clone()])?,
            }
        }
        Ok(())
    };
    top(&mut out, &model.before)?;
    if graph == model.graph_len {
        out.write_all(&model.source[model.graph_header.clone()])?;
    } else {
        let mut header = Vec::new();
        wire::put_header(&mut header, 7, graph);
        out.write_all(&header)?;
    }
    for part in parts {
        match part {
            Part::Source(range) => out.write_all(&model.source[range.clone()])?,
            Part::New(bytes) => out.write_all(bytes)?,
        }
    }
    top(&mut out, &model.after)?;
    for (key, value) in &model.metadata {
        let old = model.header.metadata_props.iter().find(|p| p.key == *key).map(|p| &p.value);
        if let Some(value) = value
            && old != Some(value)
        {
            let mut entry = Vec::new();
            wire::put_bytes(&mut entry, 1, key.as_bytes());
            wire::put_bytes(&mut entry, 2, value.as_bytes());
            let mut field = Vec::new();
            wire::put_bytes(&mut field, 14, &entry);
            out.write_all(&field)?;
        }
    }
    out.flush()
}
