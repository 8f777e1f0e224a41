//! Folds changes into the weights of a base, each rounded once to what the file stores.

use super::encode::encoded;
use super::own_weight::{is_shared, own_weight};
use super::{Delta, LayerReport, MergeError, bias};
use crate::adapters::Config;
use crate::onnx::{self, ElementType, Linear, Model};
use ndarray::Array2;
use std::collections::HashSet;

/// Adds changes to the weights of a base.
pub fn fold(
    model: &mut Model,
    config: &Config,
    deltas: &[Delta],
    notes: &mut Vec<String>,
) -> Result<Vec<LayerReport>, MergeError> {
    let linear = onnx::linear_nodes(model);
    let targets: HashSet<&str> = config.targets.iter().map(|t| t.path.as_str()).collect();
    let first = |path: &str| linear.iter().find(|l| l.path == path).expect("a target is a linear node");
    // Two targets may share a weight: all are read before any is written.
    let bases: Vec<Array2<f64>> = deltas.iter().map(|d| weight(model, first(&d.path))).collect();
    let mut layers = Vec::new();
    for (delta, base) in deltas.iter().zip(bases) {
        let norm = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>().sqrt();
        let relative_change = norm(&delta.delta) / norm(&base).max(f64::MIN_POSITIVE);
        let mut requantised = None;
        // An exporter may have written one weight once for every call.
        let mut written = HashSet::new();
        for l in linear.iter().filter(|l| l.path == delta.path && written.insert(l.weight.as_str())) {
            let mut new = &base + &delta.delta / l.alpha as f64;
            let element = model.initializer_type(&l.weight).map_or(ElementType::F32, |t| t.0);
            if relative_change != 0.0 && l.quantised(model).is_none() {
                carry_rounding(element, &mut new);
            }
            let stored: Vec<f64> =
                if l.transposed { new.iter().copied().collect() } else { new.t().iter().copied().collect() };
            if let Some(quantised) = l.quantised(model) {
                let refused =
                    |why: String| MergeError::Quantised { weight: l.weight.clone(), path: l.path.clone(), why };
                if is_shared(model, &linear, l) {
                    return Err(refused("a node that is not adapted reads it too".into()));
                }
                let mut quantised = quantised.map_err(refused)?;
                requantised = Some(0.0);
                if relative_change != 0.0 {
                    let wrong = |what| MergeError::NotFinite {
                        weight: l.weight.clone(),
                        path: l.path.clone(),
                        element: l.element,
                        what,
                    };
                    let check = |x: Option<f64>| x.map_or(Ok(()), |x| Err(wrong(onnx::called(x))));
                    check(stored.iter().copied().find(|x| !x.is_finite()))?;
                    requantised = Some(quantised.requantise(model, &stored));
                    check(quantised.dequantise().into_iter().map(f64::from).find(|x| !x.is_finite()))?;
                    quantised.store(model);
                }
                continue;
            }
            let name = own_weight(model, &linear, l, &targets, notes);
            let element = model.initializer_type(&name).expect("its own weight is an initializer").0;
            let bytes = encoded(element, &stored, &l.weight, &l.path)?;
            model.replace_data(&name, bytes);
        }
        if let Some(bias) = &delta.bias {
            for l in linear.iter().filter(|l| l.path == delta.path) {
                bias::store(model, l, bias, notes)?;
            }
        }
        let unchanged = LayerReport::unchanged(&delta.path, &first(&delta.path).weight);
        layers.push(LayerReport { relative_change, alphas: delta.alphas.clone(), requantised, ..unchanged });
    }
    Ok(layers)
}

/// Rounds a weight `[out, in]` to the 16 bits that a file stores it in, each row by error feedback: what one element loses is added
/// to the next one's. A change too small for the steps between numbers is then kept in sum over a row, where rounding each
/// element alone would lose it whole. Other element types stay as they are.
fn carry_rounding(element: ElementType, weight: &mut Array2<f64>) {
    let round: fn(f64) -> f64 = match element {
        ElementType::F16 => |x| half::f16::from_f64(x).to_f64(),
        ElementType::Bf16 => |x| half::bf16::from_f64(x).to_f64(),
        _ => return,
    };
    for mut row in weight.rows_mut() {
        let mut carried = 0.0;
        for x in &mut row {
            let wanted = *x + carried;
            let stored = round(wanted);
            // What overflows is reported for what it is.
            carried = if stored.is_finite() { wanted - stored } else { 0.0 };
            *x = stored;
        }
    }
}

/// A linear node's weight as `[out, in]`, without Gemm's `alpha`.
pub(super) fn weight(model: &Model, l: &Linear) -> Array2<f64> {
    l.weight_matrix(model).expect("checked before")
}
