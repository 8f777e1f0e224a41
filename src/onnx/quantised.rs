//! Quantised weights: small integers with a scale per group, as MatMulNBits and DequantizeLinear read them.
//!
//! `w = (q - zero) × scale`, as <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md> and
//! <https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html> define them.

use super::element::{ElementType, encode_floats};
use super::{Model, Node};

/// Which elements share a scale.
#[derive(Clone, Debug, PartialEq)]
enum Groups {
    /// All of them.
    Tensor,
    /// Those at one place of the axis before the last `inner` elements: `(i / inner) % extent`.
    Axis { inner: usize, extent: usize },
    /// Runs of `block` along an axis of `extent`, `inner` elements apart.
    Blocks { inner: usize, extent: usize, block: usize },
}

impl Groups {
    fn of(&self, i: usize) -> usize {
        match *self {
            Groups::Tensor => 0,
            Groups::Axis { inner, extent } => i / inner % extent,
            Groups::Blocks { inner, extent, block } => {
                let (outer, along, within) = (i / (inner * extent), i / inner % extent, i % inner);
                (outer * extent.div_ceil(block) + along / block) * inner + within
            }
        }
    }
}

/// How the codes are kept in their tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Packing {
    /// One element each, of the tensor's type.
    Plain(ElementType),
    /// Codes of `bits` bits one after another, the first in the lowest bits of a byte.
    Whole { bits: usize },
    /// MatMulNBits: rows of `blocks` runs of `block` codes of `bits` bits, the first in the lowest bits of a byte.
    Runs { bits: usize, block: usize, blocks: usize },
}

/// A quantised weight, unpacked.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    /// Names of the tensors it is kept in.
    codes_name: String,
    scales_name: String,
    zeros_name: Option<String>,
    /// The weight's shape.
    pub dims: Vec<usize>,
    codes: Vec<i32>,
    scales: Vec<f64>,
    /// One for each scale, or one for all.
    zeros: Vec<f64>,
    groups: Groups,
    packing: Packing,
    /// The least and the largest code.
    range: (i32, i32),
}

impl Quantised {
    /// The weight of a MatMulNBits, `[N, K]`, the constant that a DequantizeLinear reads, or the table of a
    /// GatherBlockQuantized.
    pub fn read(model: &Model, node: &Node) -> Result<Quantised, String> {
        let mut q = Quantised::describe(model, node)?;
        let view = model.initializer(&q.codes_name).expect("it was described");
        q.codes = match q.packing {
            Packing::Plain(_) => view.to_i64().expect("an integer type").into_iter().map(|x| x as i32).collect(),
            Packing::Whole { bits } => unpack(&view.bytes, bits).collect(),
            Packing::Runs { bits, block, blocks } => {
                let rows = view.bytes.chunks_exact(blocks * block * bits / 8);
                rows.flat_map(|row| unpack(row, bits).take(q.dims[1])).collect()
            }
        };
        Ok(q)
    }

    /// [`Quantised::read`] without the codes: checks the weight and finds its shape at little cost.
    pub fn describe(model: &Model, node: &Node) -> Result<Quantised, String> {
        match (node.domain(), node.op_type()) {
            ("com.microsoft", "MatMulNBits") => Quantised::runs(model, node),
            (_, "DequantizeLinear") => {
                let block = node.attr_int("block_size").unwrap_or(0).max(0) as usize;
                Quantised::plain(model, node, [1, 2], node.attr_int("axis").unwrap_or(1), block)
            }
            ("com.microsoft", "GatherBlockQuantized") => {
                let block = node.attr_int("block_size").unwrap_or(128).max(0) as usize;
                Quantised::plain(model, node, [2, 3], node.attr_int("quantize_axis").unwrap_or(1), block)
            }
            _ => Err(format!("{} holds no quantised weight", node.operator())),
        }
    }

    fn runs(model: &Model, node: &Node) -> Result<Quantised, String> {
        let attr = |name: &str| {
            let value = node.attr_int(name).and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0);
            value.ok_or_else(|| format!("attribute {name} is missing"))
        };
        let (k, n, block) = (attr("K")?, attr("N")?, attr("block_size")?);
        let bits = node.attr_int("bits").unwrap_or(4).max(0) as usize;
        if !matches!(bits, 2 | 4 | 8) {
            return Err(format!("{bits} bits are not supported"));
        }
        if node.input(4).is_some() {
            return Err("reordered columns (g_idx) are not supported".into());
        }
        let tensor = |i: usize| {
            let name = node.input(i).ok_or_else(|| format!("input {i} is missing"))?;
            let view = model.initializer(name).ok_or_else(|| format!("input {i} ('{name}') is not a constant"))?;
            Ok::<_, String>((name.to_string(), view))
        };
        let blocks = k.div_ceil(block);
        let (codes_name, packed) = tensor(1)?;
        let (scales_name, scales) = tensor(2)?;
        let run = block * bits / 8;
        if packed.bytes.len() != n * blocks * run || scales.elements() != n * blocks {
            return Err(format!("{n} rows of {blocks} blocks of {block} do not fit its tensors"));
        }
        let scales = scales.to_f64().ok_or("scales are no floats")?;
        let (zeros_name, zeros) = match node.input(3) {
            None => (None, vec![(1 << (bits - 1)) as f64]),
            Some(_) => {
                let (name, view) = tensor(3)?;
                let zeros: Vec<f64> = if view.element.is_float() {
                    view.to_f64().expect("a float type")
                } else {
                    let row = (blocks * bits).div_ceil(8);
                    view.bytes.chunks_exact(row).flat_map(|r| unpack(r, bits).take(blocks)).map(f64::from).collect()
                };
                if zeros.len() != n * blocks {
                    return Err(format!("{} zero points for {} blocks", zeros.len(), n * blocks));
                }
                (Some(name), zeros)
            }
        };
        Ok(Quantised {
            codes_name,
            scales_name,
            zeros_name,
            dims: vec![n, k],
            codes: vec![],
            scales,
            zeros,
            groups: Groups::Blocks { inner: 1, extent: k, block },
            packing: Packing::Runs { bits, block, blocks },
            range: (0, (1 << bits) - 1),
        })
    }

    /// Codes in input 0, scales and zero points in the inputs named, blocks along `axis`.
    fn plain(
        model: &Model,
        node: &Node,
        [scales, zeros]: [usize; 2],
        axis: i64,
        block: usize,
    ) -> Result<Quantised, String> {
        let tensor = |i: usize| {
            let name = node.input(i).ok_or_else(|| format!("input {i} is missing"))?;
            let view = model.initializer(name).ok_or_else(|| format!("input {i} ('{name}') is not a constant"))?;
            Ok::<_, String>((name.to_string(), view))
        };
        let (codes_name, view) = tensor(0)?;
        // GatherBlockQuantized also packs four bits into bytes.
        let bits = node.attr_int("bits").unwrap_or(4).max(0) as usize;
        let packed = node.op_type() == "GatherBlockQuantized" && view.element == ElementType::U8;
        let range = match view.element {
            ElementType::U8 if packed && matches!(bits, 2 | 4 | 8) => (0, (1 << bits) - 1),
            ElementType::I4 => (-8, 7),
            ElementType::U4 => (0, 15),
            ElementType::I8 => (-128, 127),
            ElementType::U8 => (0, 255),
            ElementType::I16 => (-32768, 32767),
            ElementType::U16 => (0, 65535),
            ElementType::I32 => (i32::MIN, i32::MAX),
            other => return Err(format!("codes of {other} are not supported")),
        };
        let mut dims = view.dims.clone();
        if packed && let Some(last) = dims.last_mut() {
            *last *= 8 / bits;
        }
        let (scales_name, scales) = tensor(scales)?;
        let axis = (if axis < 0 { axis + dims.len() as i64 } else { axis }) as usize;
        let inner = |axis: usize| dims[axis + 1..].iter().product::<usize>();
        let (groups, count) = match scales.elements() {
            1 if scales.dims.len() <= 1 && block == 0 => (Groups::Tensor, 1),
            _ if axis >= dims.len() => return Err(format!("axis {axis} of {} axes", dims.len())),
            _ if block > 0 => {
                let all: usize = dims.iter().product();
                let runs = all / dims[axis].max(1) * dims[axis].div_ceil(block);
                (Groups::Blocks { inner: inner(axis), extent: dims[axis], block }, runs)
            }
            _ => (Groups::Axis { inner: inner(axis), extent: dims[axis] }, dims[axis]),
        };
        if scales.elements() != count {
            return Err(format!("{} scales for {count} groups", scales.elements()));
        }
        let scales = scales.to_f64().ok_or("scales are no floats")?;
        let (zeros_name, zeros) = match node.input(zeros) {
            None if packed => (None, vec![(1 << (bits - 1)) as f64]),
            None => (None, vec![0.0]),
            Some(_) => {
                let (name, view) = tensor(zeros)?;
                let zeros = match packed {
                    true => {
                        let row = view.dims.last().copied().unwrap_or(1).max(1);
                        let each = dims[dims.len() - 1].div_ceil(block.max(1));
                        let rows = view.bytes.chunks_exact(row);
                        Some(rows.flat_map(|r| unpack(r, bits).take(each)).map(f64::from).collect())
                    }
                    false => view.to_f64(),
                };
                (
                    Some(name),
                    zeros.filter(|z: &Vec<f64>| z.len() == scales.len()).ok_or("zero points do not fit scales")?,
                )
            }
        };
        let packing = if packed { Packing::Whole { bits } } else { Packing::Plain(view.element) };
        Ok(Quantised {
            codes_name,
            scales_name,
            zeros_name,
            dims,
            codes: vec![],
            scales,
            zeros,
            groups,
            packing,
            range,
        })
    }

    fn zero(&self, group: usize) -> f64 {
        self.zeros[if self.zeros.len() == 1 { 0 } else { group }]
    }

    /// The weight, in the order of `dims`.
    pub fn dequantise(&self) -> Vec<f32> {
        let value = |(i, &q): (usize, &i32)| {
            let group = self.groups.of(i);
            ((q as f64 - self.zero(group)) as f32) * self.scales[group] as f32
        };
        self.codes.iter().enumerate().map(value).collect()
    }

    /// The tensor that holds the codes.
    pub fn name(&self) -> &str {
        &self.codes_name
    }
}

/// Codes of `bits` bits, the first of each byte in its lowest.
fn unpack(bytes: &[u8], bits: usize) -> impl Iterator<Item = i32> + '_ {
    let mask = ((1u32 << bits) - 1) as u8;
    bytes.iter().flat_map(move |b| (0..8 / bits).map(move |i| (b >> (i * bits) & mask) as i32))
}

/// The reverse of [`unpack`], each row filled up to whole bytes with zeros.
fn pack(codes: &[i32], bits: usize) -> Vec<u8> {
    let byte = |c: &[i32]| c.iter().enumerate().fold(0u8, |b, (i, &q)| b | (q as u8) << (i * bits));
    codes.chunks(8 / bits).map(byte).collect()
}

/// How well one group's codes fit.
struct Fit {
    scale: f64,
    zero: f64,
    error: f64,
}

impl Quantised {
    /// Replaces the weight by `target` (in the order of `dims`), in the same form. Each group keeps its scale and zero point
    /// or takes new ones, whichever leaves the smaller square error; returns `‖dequantised - target‖ / ‖target‖`.
    pub fn requantise(&mut self, model: &Model, target: &[f64]) -> f64 {
        let mut members: Vec<Vec<usize>> = vec![vec![]; self.scales.len()];
        (0..target.len()).for_each(|i| members[self.groups.of(i)].push(i));
        let element = model.initializer_type(&self.scales_name).map_or(ElementType::F32, |t| t.0);
        let rounded = |s: f64| round_to(element, s);
        let float_zeros = self
            .zeros_name
            .as_ref()
            .and_then(|z| model.initializer_type(z))
            .is_some_and(|(element, _)| element.is_float());
        let own_zeros = self.zeros_name.is_some() && self.zeros.len() == self.scales.len();
        let (lo, hi) = (self.range.0 as f64, self.range.1 as f64);
        let mut total = 0.0;
        for (group, members) in members.iter().enumerate() {
            let values: Vec<f64> = members.iter().map(|&i| target[i]).collect();
            let fit = |scale: f64, zero: f64| {
                let error = |w: &f64| (code(*w, scale, zero, lo, hi) - zero) * scale - w;
                Fit { scale, zero, error: values.iter().map(|w| error(w).powi(2)).sum() }
            };
            let zero = self.zero(group);
            let mut best = fit(self.scales[group], zero);
            let (min, max) = values.iter().fold((0.0f64, 0.0f64), |(a, b), &x| (a.min(x), b.max(x)));
            for shrink in [1.0, 0.97, 0.94, 0.9, 0.85, 0.8] {
                let candidate = if own_zeros {
                    let scale = rounded(shrink * (max - min) / (hi - lo));
                    let zero = lo - shrink * min / scale;
                    fit(scale, if float_zeros { zero } else { zero.round().clamp(lo, hi) })
                } else {
                    // The side with more codes takes the larger extreme, as onnxruntime's quantiser does.
                    let extreme = if -min > max { min / (lo - zero) } else { max / (hi - zero) };
                    fit(rounded(shrink * extreme), zero)
                };
                if candidate.scale.is_normal() && candidate.error < best.error {
                    best = candidate;
                }
            }
            total += best.error;
            self.scales[group] = best.scale;
            if own_zeros {
                self.zeros[group] = best.zero;
            }
            for (&i, w) in members.iter().zip(&values) {
                self.codes[i] = code(*w, best.scale, best.zero, lo, hi) as i32;
            }
        }
        (total / target.iter().map(|w| w * w).sum::<f64>().max(f64::MIN_POSITIVE)).sqrt()
    }

    /// Writes codes, scales and zero points into the tensors they were read from.
    pub fn store(&self, model: &mut Model) {
        let (element, _) = model.initializer_type(&self.scales_name).expect("it was read from there");
        let codes = match self.packing {
            Packing::Plain(element) => encode_ints(element, &self.codes),
            Packing::Whole { bits } => pack(&self.codes, bits),
            Packing::Runs { bits, block, blocks } => {
                let mut bytes = Vec::new();
                for row in self.codes.chunks_exact(self.dims[1]) {
                    let mut row = row.to_vec();
                    row.resize(block * blocks, 0);
                    bytes.extend(pack(&row, bits));
                }
                bytes
            }
        };
        model.replace_data(&self.codes_name, codes);
        model.replace_data(&self.scales_name, encode_floats(element, &self.scales).expect("scales are floats"));
        let Some(name) = &self.zeros_name else { return };
        let (element, _) = model.initializer_type(name).expect("it was read from there");
        let zeros: Vec<i32> = self.zeros.iter().map(|&z| z as i32).collect();
        let bytes = match (self.packing, encode_floats(element, &self.zeros)) {
            (_, Some(bytes)) => bytes,
            (Packing::Plain(_), None) => encode_ints(element, &zeros),
            (Packing::Whole { bits }, None) => pack(&zeros, bits),
            (Packing::Runs { bits, blocks, .. }, None) => zeros.chunks(blocks).flat_map(|r| pack(r, bits)).collect(),
        };
        model.replace_data(name, bytes);
    }
}

fn code(w: f64, scale: f64, zero: f64, lo: f64, hi: f64) -> f64 {
    (w / scale + zero).round().clamp(lo, hi)
}

/// The nearest number that an element type holds.
fn round_to(element: ElementType, x: f64) -> f64 {
    match element {
        ElementType::F16 => half::f16::from_f64(x).to_f64(),
        ElementType::Bf16 => half::bf16::from_f64(x).to_f64(),
        ElementType::F64 => x,
        _ => x as f32 as f64,
    }
}

fn encode_ints(element: ElementType, values: &[i32]) -> Vec<u8> {
    match element.bits() {
        Some(4) => pack(&values.iter().map(|q| q & 15).collect::<Vec<_>>(), 4),
        Some(8) => values.iter().map(|&q| q as u8).collect(),
        Some(16) => values.iter().flat_map(|&q| (q as u16).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|q| q.to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_elements() {
        // Two rows of five in blocks of two along the last axis: three scales a row.
        let rows = Groups::Blocks { inner: 1, extent: 5, block: 2 };
        assert_eq!((0..10).map(|i| rows.of(i)).collect::<Vec<_>>(), [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]);
        // Blocks of two along the first axis of (3, 2): scales are (2, 2).
        let columns = Groups::Blocks { inner: 2, extent: 3, block: 2 };
        assert_eq!((0..6).map(|i| columns.of(i)).collect::<Vec<_>>(), [0, 1, 0, 1, 2, 3]);
        assert_eq!((0..6).map(|i| Groups::Axis { inner: 2, extent: 3 }.of(i)).collect::<Vec<_>>(), [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn packing_is_undone_by_unpacking() {
        for bits in [2, 4, 8] {
            let codes: Vec<i32> = (0..16).map(|i| i * 7 % (1 << bits)).collect();
            let bytes = pack(&codes, bits);
            assert_eq!(bytes.len(), 16 * bits / 8);
            assert_eq!(unpack(&bytes, bits).collect::<Vec<_>>(), codes);
        }
    }
}
