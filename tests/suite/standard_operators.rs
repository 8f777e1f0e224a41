//! Operators on cases of the standard's own tests (fixtures/operators/standard), and their gradients against finite differences in
//! f64.

use reslora_compile::internals::device::Cpu;
use reslora_compile::internals::ir::{Builder, DType, Def, Graph, Leaf, Sink, Tensor, Type, Value};
use reslora_compile::internals::lower::{self, Request};
use reslora_compile::internals::onnx::Model;
use reslora_compile::internals::ops::host::Buffer;
use reslora_compile::internals::ops::{self, Fill, draw};
use reslora_compile::internals::passes::differentiate;
use reslora_compile::internals::pipeline;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// The models of the folder, in order of names.
pub fn cases() -> Vec<PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/operators/standard");
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut cases: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    cases.sort();
    cases
}

fn name(path: &std::path::Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// Elements as f64.
fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    fn all<const N: usize>(bytes: &[u8], read: fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.chunks_exact(N).map(|b| read(b.try_into().unwrap())).collect()
    }
    match dtype {
        Dtype::F32 => all(bytes, |b: [u8; 4]| f32::from_le_bytes(b) as f64),
        Dtype::F64 => all(bytes, f64::from_le_bytes),
        Dtype::I64 => all(bytes, |b: [u8; 8]| i64::from_le_bytes(b) as f64),
        Dtype::I32 => all(bytes, |b: [u8; 4]| i32::from_le_bytes(b) as f64),
        Dtype::U32 => all(bytes, |b: [u8; 4]| u32::from_le_bytes(b) as f64),
        Dtype::I16 => all(bytes, |b: [u8; 2]| i16::from_le_bytes(b) as f64),
        Dtype::U16 => all(bytes, |b: [u8; 2]| u16::from_le_bytes(b) as f64),
        Dtype::I8 => all(bytes, |b: [u8; 1]| b[0] as i8 as f64),
        Dtype::U8 | Dtype::BOOL => all(bytes, |b: [u8; 1]| b[0] as f64),
        other => panic!("{other:?}"),
    }
}

fn tensor(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Tensor {
    let x = values(dtype, bytes);
    match dtype {
        Dtype::F32 | Dtype::F64 => Tensor::f32(shape, x.into_iter().map(|x| x as f32).collect()),
        Dtype::BOOL => Tensor::bool(shape, x.into_iter().map(|x| x as u32).collect()),
        _ => Tensor::i32(shape, x.into_iter().map(|x| x as i32).collect()),
    }
}

/// A model, and what its file of tensors gives for its inputs.
fn read(path: &std::path::Path) -> (Arc<Model>, BTreeMap<String, Tensor>) {
    let model = pipeline::read(path).unwrap();
    let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let input = |name: String| {
        let t = tensors.tensor(&name).unwrap_or_else(|e| panic!("{}: {name}: {e}", path.display()));
        (name, tensor(t.dtype(), t.shape(), t.data()))
    };
    let given = model.inputs().into_iter().map(|i| input(i.name)).collect();
    (model, given)
}

/// Cases whose wanted outputs are written by hand, with four digits.
const FOUR_DIGITS: &[&str] =
    &["averagepool_2d_ceil_last_window_starts_on_pad", "roialign_aligned_false", "roialign_aligned_true"];

#[test]
fn every_case_computes_what_the_standard_wants() {
    let mut wrong = Vec::new();
    for path in cases() {
        let (model, given) = read(&path);
        let outputs = match pipeline::run(&model, None, given, &mut Cpu::new(None)) {
            Ok(outputs) => outputs,
            Err(e) => {
                wrong.push(e.to_string());
                continue;
            }
        };
        let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for o in outputs {
            let want = tensors.tensor(&o.name).unwrap();
            let (have, wanted) = (values(want.dtype(), &o.bytes), values(want.dtype(), want.data()));
            let whole = !matches!(want.dtype(), Dtype::F32 | Dtype::F64);
            let relative = if FOUR_DIGITS.contains(&name(&path).as_str()) { 1e-3 } else { 2e-5 };
            let size = wanted.iter().filter(|x| x.is_finite()).fold(1e-3f64, |m, x| m.max(x.abs()));
            let near =
                |(h, w): (&f64, &f64)| h == w || h.is_nan() && w.is_nan() || !whole && (h - w).abs() <= relative * size;
            if o.dims != want.shape() || have.len() != wanted.len() || !have.iter().zip(&wanted).all(near) {
                wrong.push(format!(
                    "{} {}: {:?} {have:?}, not {:?} {wanted:?}",
                    name(&path),
                    o.name,
                    o.dims,
                    want.shape()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Operators whose gradient is not the slope: rounding is passed straight through.
const ROUNDED: &[&str] =
    &["QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"];

/// `Σ w y` over the float outputs of a model, its float inputs being parameters; `None` where no float input decides a float output.
fn weighted(model: &Arc<Model>, given: &BTreeMap<String, Tensor>) -> Option<Graph> {
    let float = |t: &Tensor| t.dtype() == DType::F32;
    let known: BTreeMap<String, Tensor> =
        given.iter().filter(|(_, t)| !float(t)).map(|(n, t)| (n.clone(), t.clone())).collect();
    let shapes = given.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
    let wanted: Vec<String> = model.outputs().into_iter().map(|o| o.name).collect();
    let trained = BTreeSet::new();
    let request =
        Request { model, shapes: &shapes, trained: &trained, known: &known, wanted: &wanted, training: false };
    let lowered = lower::lower(&request).unwrap_or_else(|e| panic!("{e}"));
    let mut b: Builder = lowered.b;
    for info in &mut b.graph.values {
        if let Def::Leaf(Leaf::Input(name)) = &info.def
            && info.ty.is_float()
        {
            info.def = Def::Leaf(Leaf::Parameter(name.clone()));
        }
    }
    let mut b = Builder::on(b.graph, ops::RULES);
    let mut loss: Option<Value> = None;
    for (i, name) in wanted.iter().enumerate() {
        let y = lowered.values[name];
        let ty = b.ty(y).clone();
        if !ty.is_float() || ty.elements() == 0 || b.constant_of(y).is_some() {
            continue;
        }
        let w = b.constant(draw(&ty, Fill::Normal, 99 + i as u64));
        let product = b.mul(y, w).unwrap();
        let axes: Vec<usize> = (0..ty.rank()).collect();
        let sum = b.reduce_sum(product, &axes, false).unwrap();
        loss = Some(match loss {
            Some(loss) => b.add(loss, sum).unwrap(),
            None => sum,
        });
    }
    b.output("loss", loss?, Sink::Fetch);
    Some(b.graph)
}

/// Moves numbers a little, away from the places where functions have two slopes.
fn moved(t: &Tensor, seed: usize) -> Vec<f64> {
    let step = |i: usize| (((i * 37 + seed * 11) % 19) as f64 - 9.3) * 1.3e-3;
    let x = t.as_f32().unwrap();
    x.iter()
        .enumerate()
        .map(|(i, &x)| if x.is_finite() { f64::from(x) * (1.0 + step(i)) + 0.7 * step(i) } else { f64::from(x) })
        .collect()
}

#[test]
fn every_gradient_is_the_slope() {
    let (mut wrong, mut checked) = (Vec::new(), BTreeSet::new());
    for path in cases() {
        let (model, given) = read(&path);
        let operator = model.nodes().next().unwrap().1.operator();
        if ROUNDED.contains(&operator.as_str()) {
            continue;
        }
        let Some(graph) = weighted(&model, &given) else { continue };
        let graph = differentiate(graph, "loss").unwrap_or_else(|e| panic!("{}: {e}", name(&path)));
        let floats: BTreeMap<&String, Vec<f64>> = given
            .iter()
            .enumerate()
            .filter(|(_, (_, t))| t.dtype() == DType::F32)
            .map(|(i, (n, t))| (n, moved(t, i)))
            .collect();
        let run = |x: &BTreeMap<&String, Vec<f64>>| {
            let feed = |leaf: &Leaf, _: &Type| match leaf {
                Leaf::Parameter(name) => Buffer::Float(x[name].clone()),
                other => panic!("{}: {other:?}", name(&path)),
            };
            ops::interpret::<f64>(&graph, &feed)
        };
        let float = |b: &Buffer<f64>| match b {
            Buffer::Float(x) => x.clone(),
            Buffer::Int(_) => panic!("a float"),
        };
        let loss = |x: &BTreeMap<&String, Vec<f64>>| float(&run(x)[graph.output("loss").unwrap().index()])[0];
        let base = run(&floats);
        for (name_in, x) in &floats {
            let Some(g) = graph.output(&format!("grad.{name_in}")) else { continue };
            let g = float(&base[g.index()]);
            for e in (0..x.len()).step_by(1 + x.len() / 7) {
                if !x[e].is_finite() {
                    continue;
                }
                let at = |h: f64| {
                    let mut moved = floats.clone();
                    moved.get_mut(name_in).unwrap()[e] += h;
                    loss(&moved)
                };
                let h = 1e-6 * x[e].abs().max(1.0);
                let slope = (at(h) - at(-h)) / (2.0 * h);
                checked.insert(operator.clone());
                let off = (slope - g[e]).abs();
                if off.is_nan() || off > 2e-4 * slope.abs().max(1.0) {
                    wrong.push(format!("{} {name_in}[{e}]: the slope is {slope}, not {}", name(&path), g[e]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked.len() > 60, "only {checked:?} have a gradient");
}

/// What rounds passes a gradient on where it does not saturate: the slope is that of the scale alone.
#[test]
fn quantising_passes_a_gradient_straight_through_and_none_where_it_saturates() {
    let dir = tempfile::tempdir().unwrap();
    let scalar = |name: &str, x: f32| crate::build::tensor(name, &[], &[x]);
    let mut zero = crate::build::ints("z", &[], &[10]);
    zero.data_type = 2;
    zero.int64_data.clear();
    zero.raw_data = vec![10];
    let net = crate::build::Net::new(21)
        .input("x", crate::build::F32, &["4"])
        .initializer(scalar("s", 0.5))
        .initializer(zero)
        .node("/q", "QuantizeLinear", &["x", "s", "z"], &["q"], &[])
        .node("/dq", "DequantizeLinear", &["q", "s", "z"], &["y"], &[])
        .output("y", crate::build::F32, &["4"]);
    let path = net.write(&dir.path().join("qdq.onnx"));
    let model = pipeline::read(&path).unwrap();
    let x = vec![0.3f32, -1.1, 400.0, -7.0];
    let given = BTreeMap::from([("x".to_string(), Tensor::f32([4], x.clone()))]);
    let graph = differentiate(weighted(&model, &given).unwrap(), "loss").unwrap();
    let feed = |_: &Leaf, _: &Type| Buffer::Float(x.iter().map(|&x| f64::from(x)).collect());
    let all = ops::interpret::<f64>(&graph, &feed);
    let w = draw(&Type::f32([4]), Fill::Normal, 99);
    let w: Vec<f64> = w.as_f32().unwrap().iter().map(|&w| f64::from(w)).collect();
    let Buffer::Float(g) = &all[graph.output("grad.x").unwrap().index()] else { panic!("a float") };
    let want = [w[0], w[1], 0.0, 0.0];
    assert!(g.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{g:?}, not {want:?}");
    let Buffer::Float(loss) = &all[graph.output("loss").unwrap().index()] else { panic!("a float") };
    let rounded = 0.5 * w[0] - w[1] + 122.5 * w[2] - 5.0 * w[3];
    assert!((loss[0] - rounded).abs() < 1e-9, "{loss:?}, not {rounded}");
}
