//! Identifies a file that was given in place of another, from its content and never from its name, and suggests what to do.

use std::io::Cursor;
use std::path::Path;

/// What a file was given as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Model,
    Adapter,
    Data,
    Tokenizer,
}

/// What a file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Empty,
    /// With the size of the file it stands for.
    LfsPointer(Option<u64>),
    Html,
    Xml,
    /// What kind of archive or compressed file it is.
    Compressed(&'static str),
    /// With the names of its first files.
    Zip(Vec<String>),
    Onnx,
    OnnxText,
    PyTorch,
    TorchScript,
    ExportedProgram,
    Pickle,
    Ort,
    Safetensors,
    Gguf,
    TfLite,
    SavedModel,
    TensorFlowGraph,
    Hdf5,
    Keras,
    TensorRt,
    Npz,
    Npy,
    Parquet,
    Json,
    Utf16,
    Text,
}

/// Files that begin with these bytes.
const STARTS: &[(&[u8], Kind)] = &[
    (b"\x1f\x8b", Kind::Compressed("a file compressed with gzip")),
    (b"\x28\xb5\x2f\xfd", Kind::Compressed("a file compressed with Zstandard")),
    (b"\xfd7zXZ\0", Kind::Compressed("a file compressed with xz")),
    (b"BZh", Kind::Compressed("a file compressed with bzip2")),
    (b"7z\xbc\xaf\x27\x1c", Kind::Compressed("a 7z archive")),
    (b"Rar!\x1a\x07", Kind::Compressed("a RAR archive")),
    (b"GGUF", Kind::Gguf),
    (b"lmgg", Kind::Gguf),
    (b"tjgg", Kind::Gguf),
    (b"\x89HDF\r\n\x1a\n", Kind::Hdf5),
    (b"ptrt", Kind::TensorRt),
    (b"ftrt", Kind::TensorRt),
    (b"\x93NUMPY", Kind::Npy),
    (b"PAR1", Kind::Parquet),
    (b"ARROW1", Kind::Parquet),
    (b"\xff\xfe", Kind::Utf16),
    (b"\xfe\xff", Kind::Utf16),
];

/// What `bytes`, a whole file, are; `None` where that cannot be told.
pub fn kind(bytes: &[u8]) -> Option<Kind> {
    if bytes.is_empty() {
        return Some(Kind::Empty);
    }
    if let Some(found) = in_place_of_a_file(bytes) {
        return Some(found);
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return Some(zip(bytes));
    }
    if let Some((_, found)) = STARTS.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Some(found.clone());
    }
    match bytes.get(4..8) {
        Some(b"ORTM") => return Some(Kind::Ort),
        Some(b"TFL3") => return Some(Kind::TfLite),
        _ => {}
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some(Kind::Compressed("a tar archive"));
    }
    if let [0x80, 2..=5, ..] = bytes {
        return Some(Kind::Pickle);
    }
    if safetensors(bytes) {
        return Some(Kind::Safetensors);
    }
    if tensorflow(bytes, b"\x08\x01\x12") {
        return Some(Kind::SavedModel);
    }
    if tensorflow(bytes, b"\x0a") {
        return Some(Kind::TensorFlowGraph);
    }
    if onnx(bytes) {
        return Some(Kind::Onnx);
    }
    text(bytes)
}

/// What stands where a file should be that was not downloaded, or not whole: these are errors whatever the file is for, and
/// no file of numbers begins like one.
pub fn in_place_of_a_file(bytes: &[u8]) -> Option<Kind> {
    if bytes.is_empty() {
        return Some(Kind::Empty);
    }
    if bytes.starts_with(b"version https://git-lfs") || bytes.starts_with(b"version https://hawser") {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]);
        let size = text.lines().find_map(|l| l.strip_prefix("size ")).and_then(|s| s.trim().parse().ok());
        return Some(Kind::LfsPointer(size));
    }
    let head = bytes[..bytes.len().min(256)].to_ascii_lowercase();
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head).trim_ascii_start();
    (head.starts_with(b"<!doctype html") || head.starts_with(b"<html")).then_some(Kind::Html)
}

/// A zip archive by what it holds, or by what stands in its bytes if its list is cut off.
fn zip(bytes: &[u8]) -> Kind {
    let mut names: Vec<String> = match zip::ZipArchive::new(Cursor::new(bytes)) {
        Ok(archive) => archive.file_names().flatten().map(|n| n.into_owned()).collect(),
        Err(_) => vec![],
    };
    let named = |ending: &str| match names.is_empty() {
        true => holds(bytes, ending.as_bytes()),
        false => names.iter().any(|n| n.ends_with(ending)),
    };
    if named("data.pkl") {
        let code = names.iter().any(|n| n.contains("/code/")) || named("constants.pkl");
        return if code { Kind::TorchScript } else { Kind::PyTorch };
    }
    if named("archive_format") || named("serialized_exported_program.json") {
        return Kind::ExportedProgram;
    }
    if named("model.weights.h5") {
        return Kind::Keras;
    }
    if names.iter().any(|n| n.ends_with(".npy")) {
        return Kind::Npz;
    }
    // What a person looks for comes first.
    names.sort_by_key(|n| !n.ends_with(".onnx"));
    names.truncate(4);
    Kind::Zip(names)
}

/// Whether `part` stands somewhere in the first or the last megabytes.
fn holds(bytes: &[u8], part: &[u8]) -> bool {
    const FAR: usize = 1 << 22;
    let within = |b: &[u8]| b.windows(part.len()).any(|w| w == part);
    within(&bytes[..bytes.len().min(FAR)]) || bytes.len() > FAR && within(&bytes[bytes.len() - FAR..])
}

/// The length of a JSON header, then the header.
fn safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    u64::from_le_bytes(*length) <= 100_000_000 && rest.trim_ascii_start().starts_with(b"{\"")
}

/// A message of TensorFlow's that begins so: its strings name operations and types as no other file does.
fn tensorflow(bytes: &[u8], start: &[u8]) -> bool {
    bytes.starts_with(start)
        && [&b"saved_model_main_op"[..], b"serving_default", b"_output_shapes", b"\x0a\x05dtype\x12\x02\x30\x01"]
            .iter()
            .any(|part| holds(bytes, part))
}

/// A ModelProto begins with its IR version; a string, an operator set or the graph follows.
fn onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=32, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72, ..])
}

fn text(bytes: &[u8]) -> Option<Kind> {
    let head = &bytes[..bytes.len().min(4096)];
    let head = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The cut may go through a character.
        Err(e) if e.valid_up_to() + 4 > head.len() && head.len() < bytes.len() => {
            std::str::from_utf8(&head[..e.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if head.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c')) {
        return None;
    }
    let head = head.trim_start_matches('\u{feff}').trim_start();
    Some(match head.chars().next() {
        _ if ["ir_version:", "\"irVersion\"", "\"ir_version\""].iter().any(|key| head.contains(key)) => Kind::OnnxText,
        Some('{') => Kind::Json,
        Some('[') if head[1..].trim_start().starts_with(['{', '[', '"', ']', '-']) => Kind::Json,
        Some('[') if head[1..].trim_start().starts_with(|c: char| c.is_ascii_digit()) => Kind::Json,
        Some('<') => Kind::Xml,
        _ => Kind::Text,
    })
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let what = match self {
            Kind::Empty => "an empty file",
            Kind::LfsPointer(None) => "a Git LFS pointer: the file it stands for was not downloaded",
            Kind::LfsPointer(Some(n)) => {
                return write!(f, "a Git LFS pointer: the file of {n} bytes it stands for was not downloaded");
            }
            Kind::Html => "a web page (HTML)",
            Kind::Xml => "XML text",
            Kind::Compressed(what) => what,
            Kind::Zip(names) if names.is_empty() => "a zip archive",
            Kind::Zip(names) => return write!(f, "a zip archive that holds {}", names.join(", ")),
            Kind::Onnx => "an ONNX model",
            Kind::OnnxText => "an ONNX model in text form",
            Kind::PyTorch => "a PyTorch checkpoint: weights without a graph",
            Kind::TorchScript => "a TorchScript module",
            Kind::ExportedProgram => "an exported program of PyTorch's (.pt2)",
            Kind::Pickle => "a Python pickle, as older PyTorch checkpoints are",
            Kind::Ort => "a model in ONNX Runtime's own format (.ort)",
            Kind::Safetensors => "a safetensors file: tensors without a graph",
            Kind::Gguf => "a GGUF model of llama.cpp",
            Kind::TfLite => "a TensorFlow Lite model",
            Kind::SavedModel => "a TensorFlow SavedModel",
            Kind::TensorFlowGraph => "a TensorFlow graph",
            Kind::Hdf5 => "an HDF5 file, as Keras writes them",
            Kind::Keras => "a Keras model",
            Kind::TensorRt => "a TensorRT engine",
            Kind::Npz => "a numpy archive (.npz) of arrays",
            Kind::Npy => "a single numpy array (.npy)",
            Kind::Parquet => "a table in Parquet or Arrow format",
            Kind::Json => "JSON text",
            Kind::Utf16 => "text in UTF-16",
            Kind::Text => "text",
        };
        f.write_str(what)
    }
}

const EXPORT: &str = "load it in PyTorch and export it with torch.onnx.export, or give the .onnx file";
const SAVED_MODEL: &str = "convert its folder: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx";

impl Kind {
    /// What to do to get what was wanted; empty for what is no data at all, where the formats that are read are the answer.
    pub fn hint(&self, wanted: Wanted) -> &'static str {
        use Wanted::{Adapter, Data, Model, Tokenizer};
        match (self, wanted) {
            (Kind::Empty, _) => "download it again, or write it again: what made it did not finish",
            (Kind::LfsPointer(_), _) => {
                "run `git lfs pull` in the folder it was cloned to, or download the file itself"
            }
            (Kind::Html, _) => {
                "download the file itself: a link to a page about it, or one that needs a login, gives a page like this"
            }
            (Kind::Compressed(_) | Kind::Zip(_), _) => "unpack it and give the file inside",
            (Kind::Onnx, Model) => "check the path",
            (Kind::OnnxText, Model) => {
                "convert it in Python: onnx.save(onnx.load(FILE, format=\"textproto\"), \"model.onnx\"); \"json\" for JSON"
            }
            (Kind::PyTorch | Kind::TorchScript | Kind::Pickle | Kind::ExportedProgram, Model) => EXPORT,
            (Kind::Ort, Model) => "give the .onnx file it was made from: .ort files do not convert back",
            (Kind::Safetensors, Model) => {
                "export the model with these weights: optimum-cli export onnx --model FOLDER OUT, or torch.onnx.export"
            }
            (Kind::Gguf, Model) => "export the model it was made from to ONNX: GGUF files do not convert",
            (Kind::TfLite, Model) => "convert it: python -m tf2onnx.convert --tflite FILE --output model.onnx",
            (Kind::SavedModel, Model) => SAVED_MODEL,
            (Kind::TensorFlowGraph, Model) => {
                "convert it: python -m tf2onnx.convert --graphdef FILE --inputs .. --outputs .. --output model.onnx"
            }
            (Kind::Hdf5 | Kind::Keras, Model) => {
                "load it in Keras and write it with model.export(FILE, format=\"onnx\")"
            }
            (Kind::TensorRt, Model) => "give the .onnx file it was built from: engines do not convert back",
            (Kind::Npz | Kind::Npy | Kind::Parquet, Model) => "this is data: give the model's .onnx file here",
            (_, Model) => "give the .onnx file; torch.onnx.export writes one",
            (Kind::PyTorch | Kind::Pickle, Adapter) => {
                "save the adapter as safetensors: model.save_pretrained(FOLDER, safe_serialization=True)"
            }
            (_, Adapter) => "give a safetensors file, or the run directory that train wrote",
            (Kind::Npy, Data) => "save every input by its name: numpy.savez(FILE, input_ids=ids, labels=labels)",
            (Kind::PyTorch | Kind::Pickle, Data) => {
                "save the tensors as safetensors: safetensors.torch.save_file({\"input_ids\": ids, ..}, FILE)"
            }
            (Kind::Parquet, Data) => "give it a name that ends in .parquet or .arrow, whichever it is",
            (Kind::Json | Kind::Text, Data) => "give text a name that ends in .jsonl",
            (Kind::Safetensors, Data) => "give it a name that ends in .safetensors",
            (Kind::Npz, Data) => "give it a name that ends in .npz",
            (_, Data) => "",
            (_, Tokenizer) => "give a Hugging Face tokenizer.json",
        }
    }
}

/// What a folder that was given for a model holds: its `.onnx` files, else what else tells where a model is. Ends with a hint.
pub fn folder(path: &Path) -> String {
    let mut found = Vec::new();
    let mut others = Vec::new();
    let list = |dir: &Path| -> Vec<std::path::PathBuf> {
        let mut all: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        all.sort();
        all
    };
    for entry in list(path) {
        let inside = if entry.is_dir() { list(&entry) } else { vec![entry] };
        for file in inside {
            let name = file.strip_prefix(path).unwrap_or(&file).display().to_string();
            match file.extension().and_then(|e| e.to_str()) {
                Some("onnx") => found.push(name),
                _ => others.push(name),
            }
        }
    }
    let has = |name: &str| others.iter().any(|n| n.ends_with(name));
    match &found[..] {
        [] if has("saved_model.pb") => format!("it is a TensorFlow SavedModel\nhint: {SAVED_MODEL}"),
        [] if has("config.json") && (has(".safetensors") || has(".bin")) => {
            "it holds a model of PyTorch's and no .onnx file\n\
             hint: export it: optimum-cli export onnx --model FOLDER OUT"
                .into()
        }
        [] => "it is a folder without an .onnx file\nhint: check the path".into(),
        [one] => format!("it is a folder\nhint: the model in it is {}", path.join(one).display()),
        many => {
            let more = if many.len() > 8 { format!(" and {} more", many.len() - 8) } else { String::new() };
            let shown = many.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
            format!("it is a folder\nhint: give one of its models: {shown}{more}")
        }
    }
}
