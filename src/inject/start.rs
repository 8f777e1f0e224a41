//! The tensors of adapters as they start, and what their nodes read besides.

use super::error::InjectError;
use super::options::Options;
use crate::adapters::{Config, Drawing, Emission, Start, Tensors};
use crate::onnx::{self, ElementType, Linear, Model};
use ndarray::ArrayD;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Adds what the nodes read, and the tensors as they start. The number of trained numbers.
pub(super) fn add_initializers(
    model: &mut Model,
    base: &Model,
    config: &Config,
    emission: &Emission,
    start: Option<&Tensors>,
    linear: &[Linear],
    options: &Options,
) -> Result<usize, InjectError> {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    for (name, constant) in &emission.constants {
        model.add_initializer(name, constant.element, &constant.dims, constant.bytes.clone());
    }
    let mut parameters = 0;
    let mut earlier: Vec<(String, ArrayD<f32>)> = Vec::new();
    let mut of = None;
    for (name, target, spec) in config.tensors().map_err(InjectError::Target)? {
        if of != target.map(|t| &t.path) {
            earlier.clear();
            of = target.map(|t| &t.path);
        }
        if base.is_constant(&name) {
            let hint = "fold the adapter that the model was exported with into its weights first";
            return Err(InjectError::Option(format!("the model holds a tensor '{name}' already\nhint: {hint}")));
        }
        let weight = || {
            let path = target.map(|t| &t.path);
            let l = linear.iter().find(|l| Some(&l.path) == path).ok_or("it belongs to no target")?;
            l.multiplied(base)
        };
        let count: usize = spec.shape.iter().product();
        let fresh = match (start, spec.start) {
            (Some(tensors), _) => tensors[&name].clone(),
            (None, Start::Zeros) => ArrayD::zeros(spec.shape.clone()),
            (None, Start::Full(x)) => ArrayD::from_elem(spec.shape.clone(), x),
            (None, Start::KaimingUniform) => {
                let columns = spec.shape.last().copied().unwrap_or(1);
                let bound = 1.0 / (columns as f32).sqrt();
                let values = (0..count).map(|_| rng.random_range(-bound..bound)).collect();
                ArrayD::from_shape_vec(spec.shape.clone(), values).expect("as many as the shape holds")
            }
            (None, Start::Drawn(draw)) => {
                let (shape, rng) = (&spec.shape[..], &mut rng);
                let initializer = |name: &str, rows: Option<&[usize]>| elements(base, name, rows);
                let call = &mut Drawing {
                    rng,
                    config,
                    target,
                    shape,
                    weight: &weight,
                    initializer: &initializer,
                    earlier: &earlier,
                    tokens: &options.tokens,
                    directions: target.and_then(|t| options.directions.get(&t.path)),
                    original: target.and_then(|t| options.originals.get(&t.path)),
                    loftq: options.loftq,
                };
                draw(call).map_err(|why| InjectError::Option(format!("'{name}': {why}")))?
            }
        };
        let list: Vec<f32> = fresh.iter().copied().collect();
        match spec.integer {
            true => {
                let whole = list.iter().flat_map(|x| (*x as i64).to_le_bytes()).collect();
                model.add_initializer(&name, ElementType::I64, &spec.shape, whole);
            }
            false => model.add_initializer(&name, ElementType::F32, &spec.shape, bytes(&list)),
        }
        parameters += if spec.trained { count } else { 0 };
        earlier.push((spec.suffix, fresh));
    }
    for (name, given) in start.into_iter().flatten().filter(|(n, _)| config.also_train.contains(n)) {
        let element = model.initializer_type(name).expect("also-trained tensors are initializers").0;
        let values: Vec<f64> = given.iter().map(|&x| x as f64).collect();
        let bytes = onnx::encode_floats(element, &values).expect("also-trained tensors are floats");
        if let Some(what) = onnx::not_finite(element, &bytes) {
            return Err(InjectError::NotFinite { name: name.clone(), element, what });
        }
        model.replace_data(name, bytes);
    }
    Ok(parameters)
}

/// The elements of an initializer, or of some rows of it.
fn elements(model: &Model, name: &str, rows: Option<&[usize]>) -> Result<Vec<f64>, String> {
    let all = model.initializer(name).ok_or_else(|| format!("the model has no constant '{name}'"))?;
    let refused = || format!("'{name}' is {}", all.element);
    let Some(rows) = rows else { return all.to_f64().ok_or_else(refused) };
    let row_bytes = all.bytes.len() / all.dims[0].max(1);
    let bytes: Vec<u8> = rows.iter().flat_map(|r| all.bytes[r * row_bytes..][..row_bytes].iter().copied()).collect();
    let dims = [vec![rows.len()], all.dims[1..].to_vec()].concat();
    onnx::TensorView { name, element: all.element, dims, bytes: bytes.into() }.to_f64().ok_or_else(refused)
}
