//! Runs inference once on tensors exactly as given, and returns every output in the type the model declares.

use super::training::load;
use super::{Error, integers};
use crate::adapter::Adapter;
use crate::device::{Device, Run};
use crate::ir::{DType, Tensor};
use crate::lower::{self, LowerError};
use crate::onnx::{self, Dim, ElementType, Model, Signature};
use crate::train::data::Batch;
use crate::train::{Purpose, TrainError};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// An output.
pub struct Ran {
    pub name: String,
    pub element: ElementType,
    pub dims: Vec<usize>,
    /// Its elements as the model declares them, little-endian.
    pub bytes: Vec<u8>,
}

/// Runs a model once. Integer inputs that shapes depend on are taken as they are while compiling.
pub fn run(
    model: &Arc<Model>,
    adapter: Option<&Adapter>,
    given: BTreeMap<String, Tensor>,
    device: &mut dyn Device,
) -> Result<Vec<Ran>, Error> {
    let inputs: Vec<Signature> = model
        .inputs()
        .into_iter()
        .filter(|i| lower::branch_input(i).is_none() || given.contains_key(&i.name))
        .collect();
    let given = checked(model, &inputs, given)?;
    let integers: BTreeMap<String, Tensor> =
        given.iter().filter(|(_, t)| t.dtype() != DType::F32).map(|(n, t)| (n.clone(), t.clone())).collect();
    let mut first = None;
    for known in [BTreeMap::new(), integers, given.clone()] {
        match attempt(model, adapter, &given, known, device) {
            Err(e @ Error::Lower(LowerError::Node { .. })) => drop(first.get_or_insert(e)),
            Err(Error::Train(e)) if because_unknown(&e) => drop(first.get_or_insert(e.into())),
            other => return other,
        }
    }
    Err(first.expect("every attempt failed"))
}

/// Whether a model could not be lowered for these inputs, which may do once more of them are known.
pub fn because_unknown(e: &TrainError) -> bool {
    let TrainError::Compile(e) = e else { return false };
    matches!(e.downcast_ref::<Error>(), Some(Error::Lower(LowerError::Node { .. })))
}

/// The tensors against the model's inputs: names, types and declared extents.
fn checked(
    model: &Model,
    inputs: &[Signature],
    mut given: BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>, Error> {
    let file = model.path().display();
    let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
    if let Some(extra) = given.keys().find(|n| !names.contains(&n.as_str())) {
        return Err(Error::Usage(format!("{file} has no input '{extra}'\nhint: its inputs are {}", names.join(", "))));
    }
    let mut out = BTreeMap::new();
    for input in inputs {
        let Some(t) = given.remove(&input.name) else {
            let why = format!("{file} reads '{}', which the data does not hold", input.name);
            return Err(Error::Usage(format!("{why}\nhint: `run` takes every input as it is: {}", names.join(", "))));
        };
        let want = lower::dtype(input.element);
        let wrong = |what: String| Error::Usage(format!("'{}' is {}, but {file} takes {what}", input.name, t.ty()));
        if want.is_some_and(|d| d != t.dtype()) {
            return Err(wrong(input.element.to_string()));
        }
        let Some(dims) = &input.dims else {
            out.insert(input.name.clone(), t);
            continue;
        };
        let fits = dims.len() == t.shape().len()
            && dims.iter().zip(t.shape()).all(|(d, n)| !matches!(d, Dim::Fixed(want) if want != n));
        if !fits {
            return Err(wrong(format!("a shape of {dims:?}")));
        }
        out.insert(input.name.clone(), t);
    }
    Ok(out)
}

/// Runs with some of the inputs known while compiling.
fn attempt(
    model: &Arc<Model>,
    adapter: Option<&Adapter>,
    given: &BTreeMap<String, Tensor>,
    known: BTreeMap<String, Tensor>,
    device: &mut dyn Device,
) -> Result<Vec<Ran>, Error> {
    let mut trainee = load(model, adapter)?;
    let inputs: Vec<(String, Tensor)> =
        given.iter().filter(|(n, _)| !known.contains_key(*n)).map(|(n, t)| (n.clone(), t.clone())).collect();
    let batch = Batch { known: known.into_iter().collect(), ..Batch::of(inputs) };
    let shapes = batch.shapes();
    let graph = trainee.program.forward(&shapes, Purpose::Infer)?;
    integers::check_one(model, &graph, &batch)?;
    // What is known already, no device has to compute.
    let mut found: BTreeMap<String, Tensor> = BTreeMap::new();
    for o in &graph.outputs {
        if let Some(t) = graph.constant(o.value) {
            found.insert(o.name.clone(), (**t).clone());
        }
    }
    trainee.program.outputs.retain(|o| !found.contains_key(o));
    if !trainee.program.outputs.is_empty() {
        trainee.session(device, |session| {
            let plan = session.plan(&batch, Purpose::Infer)?;
            session.device.submit(vec![Run { plan, inputs: batch.inputs.clone() }])?;
            found.extend(session.collect(true)?.into_iter().flat_map(|f| f.runs).flatten());
            Ok(())
        })?;
    }
    let outputs = model.outputs();
    outputs.iter().map(|o| declared(o, found.remove(&o.name))).collect()
}

/// An output in its declared type.
fn declared(output: &Signature, found: Option<Tensor>) -> Result<Ran, Error> {
    let name = &output.name;
    let t = found.ok_or_else(|| Error::Model(format!("output '{name}' was not computed")))?;
    let element = match (output.element, t.dtype()) {
        (ElementType::Other(0), DType::F32) => ElementType::F32,
        (ElementType::Other(0), DType::I32) => ElementType::I64,
        (ElementType::Other(0), DType::Bool) => ElementType::Bool,
        (element, _) => element,
    };
    let refuse = |what: String| Error::Model(format!("output '{name}' is {element}, {what}"));
    let bytes = match &t {
        // Quantised integers are computed as floats, so that a gradient can pass their rounding.
        Tensor::F32(x) if lower::dtype(element) == Some(DType::I32) && x.iter().all(|x| x.fract() == 0.0) => {
            let values: Vec<i64> = x.iter().map(|&x| x as i64).collect();
            onnx::encode_integers(element, &values).map_err(|x| refuse(format!("which cannot hold {x}")))?
        }
        Tensor::F32(x) => {
            let values: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let bytes = onnx::encode_floats(element, &values);
            bytes.ok_or_else(|| refuse("but the model computes floats for it".into()))?
        }
        Tensor::I32(_) | Tensor::Bool(_) => {
            let values: Vec<i64> = match &t {
                Tensor::I32(x) => x.iter().map(|&x| i64::from(x)).collect(),
                _ => t.words().iter().map(|&x| i64::from(x != 0)).collect(),
            };
            let bytes = onnx::encode_integers(element, &values);
            bytes.map_err(|x| refuse(format!("which cannot hold {x}: such arithmetic is not supported here")))?
        }
    };
    Ok(Ran { name: name.clone(), element, dims: t.shape().to_vec(), bytes })
}

/// Writes outputs to a `.safetensors` or `.npz` file.
pub fn save(outputs: &[Ran], path: &Path) -> Result<(), Error> {
    let fail = |e: String| Error::Model(format!("cannot write {}: {e}", path.display()));
    let bytes = match path.extension().and_then(|e| e.to_str()) {
        Some("npz") => npz(outputs).map_err(fail)?,
        _ => {
            let mut views = Vec::new();
            for o in outputs {
                let ty = dtype(o.element)
                    .ok_or_else(|| fail(format!("no safetensors type holds '{}', which is {}", o.name, o.element)))?;
                views.push((&o.name, TensorView::new(ty, o.dims.clone(), &o.bytes).map_err(|e| fail(e.to_string()))?));
            }
            safetensors::serialize(views, None).map_err(|e| fail(e.to_string()))?
        }
    };
    let mut file = atomic_write_file::AtomicWriteFile::open(path).map_err(|e| fail(e.to_string()))?;
    file.write_all(&bytes).and_then(|()| file.commit()).map_err(|e| fail(e.to_string()))
}

fn dtype(element: ElementType) -> Option<Dtype> {
    use ElementType as E;
    Some(match element {
        E::F64 => Dtype::F64,
        E::F32 => Dtype::F32,
        E::F16 => Dtype::F16,
        E::Bf16 => Dtype::BF16,
        E::I64 => Dtype::I64,
        E::I32 => Dtype::I32,
        E::I16 => Dtype::I16,
        E::I8 => Dtype::I8,
        E::U64 => Dtype::U64,
        E::U32 => Dtype::U32,
        E::U16 => Dtype::U16,
        E::U8 => Dtype::U8,
        E::Bool => Dtype::BOOL,
        E::F8E4M3 => Dtype::F8_E4M3,
        E::F8E5M2 => Dtype::F8_E5M2,
        _ => return None,
    })
}

/// An uncompressed `.npz`: for each array the header of numpy's format 1.0 and the elements by rows.
fn npz(outputs: &[Ran]) -> Result<Vec<u8>, String> {
    use ElementType as E;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for o in outputs {
        let descr = match o.element {
            E::F64 => "<f8",
            E::F32 => "<f4",
            E::F16 => "<f2",
            E::I64 => "<i8",
            E::I32 => "<i4",
            E::I16 => "<i2",
            E::I8 => "|i1",
            E::U64 => "<u8",
            E::U32 => "<u4",
            E::U16 => "<u2",
            E::U8 => "|u1",
            E::Bool => "|b1",
            other => {
                return Err(format!("numpy has no {other}, which '{}' is\nhint: write a .safetensors file", o.name));
            }
        };
        let dims: String = o.dims.iter().map(|d| format!("{d},")).collect();
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(format!("{}.npy", o.name), options).map_err(|e| e.to_string())?;
        let length = u16::try_from(header.len()).map_err(|_| "too many axes".to_string())?.to_le_bytes();
        let parts: [&[u8]; 4] = [b"\x93NUMPY\x01\x00", &length, header.as_bytes(), &o.bytes];
        for part in parts {
            zip.write_all(part).map_err(|e| e.to_string())?;
        }
    }
    Ok(zip.finish().map_err(|e| e.to_string())?.into_inner())
}
