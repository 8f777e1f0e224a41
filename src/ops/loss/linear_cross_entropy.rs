//! The loss of each row of `x W + b` under its label, and that loss's gradient in x, without the logits of all rows at once.
//!
//! `x (R, D)`, labels `(R)` (a negative one does not count), frozen weights in one or more parts that stand side by side along
//! the V columns, and maybe a bias `(V)`. Gives the loss of each row `(R)`, its gradient `dx (R, D)`, and memory that kernels
//! work in. Rows that count are taken `rows` at a time: their logits become the loss and, in place, the gradient of the
//! logits, and a second product takes that to x. Since nothing else depends on the logits, the backward pass only scales dx.
//! With `halves` or `bf16`, products round their operands as matmul's do.

use crate::ops::engine::prelude::*;
use crate::ops::engine::rows;
use crate::ops::engine::rows::row_workgroup;
use crate::ops::matmul::gemm::Dims;
use crate::ops::matmul::host::{Operand, operand};
use crate::ops::matmul::matrix::{Matrix, Target};
use crate::ops::matmul::multiply::{gemm, packs_rights};
use crate::ops::matmul::product;
use smallvec::SmallVec;

pub const PRIMITIVE: Primitive = Primitive {
    name: "linear_cross_entropy",
    attrs: &[needs("rows", AttrKind::Int), flag("trans"), flag("both"), flag("bias"), flag("halves"), flag("bf16")],
    infer,
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Tuned { kernel: gpu, candidates },
    results: Results::First(RESULTS),
    accumulates: NOTHING,
    halves: Halves { host: |input, axes| is_weight(input, axes) && packs_rights::<f32>(), device: is_weight, tiles },
    windows: NO_WINDOWS,
    work,
    samples,
};

/// Outputs that hold results; those after them are memory to work in.
const RESULTS: usize = 2;

// Outputs by number.
const LOSS: usize = 0;
const DX: usize = 1;
/// Numbers of the rows that count, in order.
const ORDER: usize = 2;
/// How many rows of each chunk count.
const COUNTS: usize = 3;
/// Largest logit, sum of exponentials under it, and the label's logit, for each row of a chunk.
const STATS: usize = 4;
/// A chunk's rows of x, and of the gradient.
const PACKED: usize = 5;
const GRADIENT: usize = 6;
/// A chunk's logits, one output for each part of the weight.
const LOGITS: usize = 7;

/// The parts of a call: what its attributes say of its operands.
struct Form {
    r: usize,
    d: usize,
    /// Columns of each part of the weight.
    parts: SmallVec<[usize; 4]>,
    /// Weights are stored as `(V, D)`.
    trans: bool,
    /// Each weight comes twice: all of them as `(D, V)`, then all as `(V, D)`.
    both: bool,
    bias: bool,
    /// Rows to a chunk.
    rows: usize,
}

impl Form {
    fn new(ins: &[&Type], attrs: &Attrs) -> Result<Form, String> {
        let (trans, both, bias) = (attrs.flag("trans"), attrs.flag("both"), attrs.flag("bias"));
        let (x, labels) = (ins.first().ok_or("takes x")?, ins.get(1).ok_or("takes labels")?);
        let rows = attrs.get_int("rows").filter(|&n| n > 0).ok_or("needs a number of rows")? as usize;
        if !x.is_float() || x.rank() != 2 || labels.dtype != DType::I32 || labels.shape[..] != [x.shape[0]] {
            return Err("takes rows of two axes and an integer label for each".into());
        }
        let (r, d) = (x.shape[0], x.shape[1]);
        let (weights, ways) = (ins.len() - 2 - (bias && ins.len() > 2) as usize, 1 + both as usize);
        let count = weights / ways;
        if count == 0 || both && trans || !weights.is_multiple_of(ways) {
            return Err("takes a weight, or one both ways".into());
        }
        let columns = |w: &Type, trans: bool| match w.shape[..] {
            [v, k] if trans && k == d && w.is_float() => Ok(v),
            [k, v] if !trans && k == d && w.is_float() => Ok(v),
            _ => Err(format!("a weight of {w} does not take rows of {d}")),
        };
        let parts =
            ins[2..2 + count].iter().map(|w| columns(w, trans)).collect::<Result<SmallVec<[usize; 4]>, String>>()?;
        if both {
            for (w, &v) in ins[2 + count..2 + 2 * count].iter().zip(&parts) {
                if columns(w, true)? != v {
                    return Err("a weight that comes both ways is one weight".into());
                }
            }
        }
        let form = Form { r, d, parts, trans, both, bias, rows: rows.min(r.max(1)) };
        match ins.last() {
            Some(b) if bias && !(b.is_float() && b.shape[..] == [form.columns()]) => {
                Err(format!("a bias of {b} does not fit"))
            }
            _ => Ok(form),
        }
    }

    fn of(types_in: &[Type], attrs: &Attrs) -> Form {
        let refs: SmallVec<[&Type; 16]> = types_in.iter().collect();
        Form::new(&refs, attrs).expect("checked by infer")
    }

    fn columns(&self) -> usize {
        self.parts.iter().sum()
    }

    fn chunks(&self) -> usize {
        self.r.div_ceil(self.rows)
    }

    /// For each part: its first column, its columns, and the inputs that hold it for the product with x and for the one back,
    /// each with whether it is stored as `(V, D)`.
    fn weights(&self) -> impl Iterator<Item = Part> {
        let mut first = 0;
        self.parts.iter().enumerate().map(move |(i, &columns)| {
            let start = first;
            first += columns;
            let back = if self.both { (2 + self.parts.len() + i, true) } else { (2 + i, self.trans) };
            Part { index: i, start, columns, forth: (2 + i, self.trans), back }
        })
    }

    /// The product of so many rows with a part of the weight.
    fn forth(&self, p: &Part, rows: usize) -> Dims {
        let b = self.strides(p.columns, p.forth.1);
        Dims { batch: 1, m: rows, n: p.columns, k: self.d, a: (self.d, 1), b }
    }

    /// The product of so many rows' gradients with it.
    fn back(&self, p: &Part, rows: usize) -> Dims {
        let (row, col) = self.strides(p.columns, p.back.1);
        Dims { batch: 1, m: rows, n: self.d, k: p.columns, a: (p.columns, 1), b: (col, row) }
    }

    /// Those of a part as `(D, V)`.
    fn strides(&self, columns: usize, trans: bool) -> (usize, usize) {
        if trans { (1, self.d) } else { (columns, 1) }
    }

    fn bias(&self) -> Option<usize> {
        self.bias.then_some(2 + self.parts.len() * (1 + self.both as usize))
    }
}

/// One part of the weight.
struct Part {
    index: usize,
    start: usize,
    columns: usize,
    forth: (usize, bool),
    back: (usize, bool),
}

/// Two products.
fn work(types_in: &[Type], types_out: &[Type], attrs: &Attrs) -> Work {
    let f = Form::of(types_in, attrs);
    Work::new(4.0 * (f.r * f.d * f.columns()) as f64, types_in, types_out)
}

/// Whether an input of so many axes is a weight; a bias has one axis.
fn is_weight(input: usize, axes: usize) -> bool {
    input >= 2 && axes == 2
}

/// Each part of the weight, for the product with x and for the one back.
fn tiles(types_in: &[Type], attrs: &Attrs) -> Vec<Tiled> {
    if !attrs.flag("bf16") {
        return vec![];
    }
    let f = Form::of(types_in, attrs);
    let both = |p: Part| {
        let of = |input, d: Dims| Tiled { input, extents: [d.k, d.n], strides: d.b };
        [of(p.forth.0, f.forth(&p, 1)), of(p.back.0, f.back(&p, 1))]
    };
    f.weights().flat_map(both).collect()
}

fn infer(ins: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, String> {
    let f = Form::new(ins, attrs)?;
    let mut outs = vec![
        Type::f32([f.r]),
        Type::f32([f.r, f.d]),
        Type::i32([f.r]),
        Type::i32([f.chunks()]),
        Type::f32([f.rows, 3]),
        Type::f32([f.rows, f.d]),
        Type::f32([f.rows, f.d]),
    ];
    outs.extend(f.parts.iter().map(|&v| Type::f32([f.rows, v])));
    Ok(outs)
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let mut grads = vec![None; c.node.inputs.len()];
    if let (Some(g), true) = (c.grads[LOSS], c.wants[0]) {
        let (dx, rows) = (c.y(DX), c.b.shape(g)[0]);
        let wide = c.b.reshape(g, [rows, 1])?;
        grads[0] = Some(c.b.mul(dx, wide)?);
    }
    Ok(grads)
}

fn samples() -> Vec<Sample> {
    let of = |r: usize, d: usize, weights: &[[usize; 2]], bias: Option<usize>, flags: &[&str], rows: i64| {
        let v = if flags.contains(&"trans") { 0 } else { 1 };
        let columns = weights.iter().map(|w| w[v]).sum();
        let mut inputs = vec![(Type::f32([r, d]), Fill::Normal), (Type::i32([r]), Fill::Label(columns))];
        inputs.extend(weights.iter().map(|w| (Type::f32(*w), Fill::Frozen)));
        inputs.extend(bias.map(|n| (Type::f32([n]), Fill::Frozen)));
        let attrs = Attrs::new().with("rows", Attr::Int(rows));
        let attrs = flags.iter().fold(attrs, |a, f| a.with(f, Attr::Bool(true)));
        Sample::new(inputs, attrs)
    };
    vec![
        of(7, 6, &[[37, 6]], None, &["trans"], 3),
        of(5, 4, &[[4, 19]], Some(19), &["bias"], 8),
        of(70, 12, &[[40, 12], [29, 12], [3, 12]], Some(72), &["trans", "bias"], 16),
        of(20, 8, &[[8, 12], [8, 8]], None, &[], 6),
        of(5, 4, &[[300, 4]], None, &["trans"], 4),
    ]
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let f = Form::of(c.types_in, c.attrs);
    let (x, labels) = (c.ins[0].float(), c.ins[1].int());
    let bias = f.bias().map(|i| c.ins[i].float());
    let [loss, dx, order, _, _, packed, gradient, logits @ ..] = &mut *c.outs else { panic!("infer gives these") };
    let (loss, dx) = (loss.float(), dx.float());
    let order = &mut order.int()[..];
    let mut counted = 0;
    for (r, &label) in labels.iter().enumerate() {
        if label >= 0 {
            order[counted] = r as i32;
            counted += 1;
        } else {
            loss[r] = T::zero();
            dx[r * f.d..(r + 1) * f.d].fill(T::zero());
        }
    }
    let (halves, bf16) = (c.attrs.flag("halves"), c.attrs.flag("bf16"));
    let weights: SmallVec<[Operand<T>; 4]> = c.ins[2..].iter().map(|w| operand(w.elements(), halves)).collect();
    let matrix = |input: usize, columns: usize, trans: bool| {
        let strides = if trans { (1, f.d) } else { (columns, 1) };
        weights[input - 2].matrix(0..f.d * columns, strides)
    };
    let mut logits: SmallVec<[&mut [T]; 4]> = logits.iter_mut().map(|l| l.float()).collect();
    for chunk in order[..counted].chunks(f.rows) {
        let (n, first) = (chunk.len(), chunk[0] as usize);
        let consecutive = chunk[n - 1] as usize - first == n - 1;
        let threads = n * f.d * f.columns() >= 64 * 64 * 64;
        let packed = &mut packed.float()[..n * f.d];
        let own = &x[first * f.d..];
        if !consecutive {
            rows::each(packed, f.d, |i, to| to.copy_from_slice(&x[chunk[i] as usize * f.d..][..f.d]));
        }
        let source = operand(Elements::Full(if consecutive { &own[..n * f.d] } else { &packed[..] }), halves);
        for p in f.weights() {
            let y = Shared::new(&mut logits[p.index][..n * p.columns]);
            let y = Target { data: &y, at: 0, row: p.columns };
            let w = matrix(p.forth.0, p.columns, p.forth.1);
            // SAFETY: one product at a time writes the logits.
            unsafe { gemm([n, p.columns, f.d], source.matrix(0..n * f.d, (f.d, 1)), w, y, false, threads, bf16) };
        }
        losses(&f, chunk, labels, bias, &mut logits, loss);
        let gradient = &mut gradient.float()[..n * f.d];
        let to = if consecutive { &mut dx[first * f.d..][..n * f.d] } else { &mut gradient[..] };
        let to = Shared::new(to);
        for p in f.weights() {
            let y = Target { data: &to, at: 0, row: f.d };
            let w = matrix(p.back.0, p.columns, p.back.1);
            let w = Matrix { row: w.col, col: w.row, ..w };
            let g = operand(Elements::Full(&logits[p.index][..n * p.columns]), halves);
            let g = g.matrix(0..n * p.columns, (p.columns, 1));
            // SAFETY: one product at a time writes the gradient.
            unsafe { gemm([n, f.d, p.columns], g, w, y, p.index > 0, threads, bf16) };
        }
        if !consecutive {
            for (from, &row) in gradient.chunks_exact(f.d).zip(chunk) {
                dx[row as usize * f.d..][..f.d].copy_from_slice(from);
            }
        }
    }
}

/// Losses of a chunk's rows from their logits, which become the gradients of those losses.
fn losses<T: Real>(
    f: &Form,
    chunk: &[i32],
    labels: &[i32],
    bias: Option<&[T]>,
    logits: &mut [&mut [T]],
    loss: &mut [T],
) {
    let loss = Shared::new(loss);
    let logits: SmallVec<[Shared<T>; 4]> = logits.iter_mut().map(|l| Shared::new(l)).collect();
    parallel::ranges(chunk.len(), parallel::rows_grain(f.columns()), |range| {
        for i in range {
            let label = (labels[chunk[i] as usize] as usize).min(f.columns() - 1);
            // SAFETY: one task a row.
            let parts =
                f.weights().map(|p| (p.start, unsafe { logits[p.index].part(i * p.columns..(i + 1) * p.columns) }));
            let mut parts: SmallVec<[(usize, &mut [T]); 4]> = parts.collect();
            let (mut top, mut own) = (T::neg_infinity(), T::zero());
            for (start, x) in &mut parts {
                if let Some(bias) = bias {
                    parallel::simd(|| x.iter_mut().zip(&bias[*start..]).for_each(|(x, &b)| *x += b));
                }
                top = top.max(parallel::simd(|| rows::max(x)));
                own = label.checked_sub(*start).and_then(|k| x.get(k).copied()).unwrap_or(own);
            }
            let mut total = T::zero();
            for (_, x) in &mut parts {
                total += parallel::simd_call(Exponentials { x, top });
            }
            let scale = T::one() / total;
            for (start, x) in &mut parts {
                parallel::simd(|| x.iter_mut().for_each(|x| *x *= scale));
                if let Some(hit) = label.checked_sub(*start).and_then(|k| x.get_mut(k)) {
                    *hit -= T::one();
                }
            }
            // SAFETY: as above; a chunk names each row once.
            unsafe { loss.put(chunk[i] as usize, top + total.ln() - own) };
        }
    });
}

/// `x = eˣ⁻ᵗᵒᵖ`, and their sum.
struct Exponentials<'a, T> {
    x: &'a mut [T],
    top: T,
}

impl<T: Real> pulp::NullaryFnOnce for Exponentials<'_, T> {
    type Output = T;

    #[inline(always)]
    fn call(self) -> T {
        self.x.iter_mut().for_each(|x| *x = (*x - self.top).exp_());
        rows::sum(self.x, |x| x)
    }
}

/// The kernels that its larger product, of x with the weight, may choose among; both get it where it suits both.
fn candidates(c: &GpuCall) -> Vec<&'static str> {
    let f = Form::of(c.types_in, c.attrs);
    // A race clamps extents, which parts and a bias of all their columns do not survive together.
    match f.parts[..] {
        [_] => {
            f.weights().flat_map(|p| product::candidates_within(c, &f.forth(&p, f.rows), c.packs(p.forth.0))).collect()
        }
        _ => vec![],
    }
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let f = Form::of(c.types_in, c.attrs);
    let (inputs, outputs) = (Binding::Input, Binding::Output);
    let shader = |name, source: &'static str| Shader { name, source: source.into() };
    let words = |xs: &[usize]| -> Vec<u32> {
        let mut out: Vec<u32> = xs.iter().map(|&x| x as u32).collect();
        out.resize(out.len().next_multiple_of(4), 0);
        out
    };
    let size = if c.traits.software { 8 } else { 256 };
    let mut all = vec![Dispatch {
        shader: shader("count_rows", include_str!("../../../shaders/loss/count_rows.wgsl")),
        constants: vec![("SIZE", size as f64)],
        bindings: vec![inputs(1), outputs(ORDER), outputs(COUNTS)],
        params: words(&[f.r, f.rows, f.chunks()]),
        workgroups: [1, 1, 1],
    }];
    // One invocation an element of `rows` rows of x.
    let copy = |mode: usize, chunk: usize, n: usize, bindings: Vec<Binding>| {
        let (workgroups, width) = grid(n * f.d, 256, c.traits);
        let (name, source) = match mode {
            0 => ("clear_rows", include_str!("../../../shaders/loss/clear_rows.wgsl")),
            _ => ("move_rows", include_str!("../../../shaders/loss/move_rows.wgsl")),
        };
        let params = words(&[n * f.d, width as usize, f.d, chunk, f.rows, mode, 0, 0]);
        Dispatch { shader: shader(name, source), constants: vec![], bindings, params, workgroups }
    };
    all.push(copy(0, 0, f.r, vec![inputs(1), outputs(LOSS), outputs(DX)]));
    for chunk in 0..f.chunks() {
        let n = f.rows.min(f.r - chunk * f.rows);
        let lists = [outputs(ORDER), outputs(COUNTS)];
        let product = |dims: &Dims, weight: usize, [a, y]: [Binding; 2]| {
            product::within(c, dims, [a, inputs(weight), y], c.packs(weight))
                .into_iter()
                .map(move |d| product::counted(d, outputs(COUNTS), chunk))
        };
        all.push(copy(1, chunk, n, vec![inputs(0), lists[0], lists[1], outputs(PACKED)]));
        for p in f.weights() {
            all.extend(product(&f.forth(&p, n), p.forth.0, [outputs(PACKED), outputs(LOGITS + p.index)]));
        }
        let (workgroups, width) = grid(n, 1, c.traits);
        for pass in 0..2 {
            for p in f.weights() {
                let (name, source) = match pass {
                    0 => ("chunk_loss", include_str!("../../../shaders/loss/chunk_loss.wgsl")),
                    _ => ("chunk_loss_grad", include_str!("../../../shaders/loss/chunk_loss_grad.wgsl")),
                };
                let mut bindings = vec![inputs(1), lists[0], lists[1], outputs(LOGITS + p.index), outputs(STATS)];
                if pass == 0 {
                    // Where there is no bias, something of its type that is not read.
                    bindings.extend([outputs(LOSS), inputs(f.bias().unwrap_or(0))]);
                }
                let last = p.index + 1 == f.parts.len();
                let flags = (p.index == 0) as usize | (last as usize) << 1 | (f.bias as usize) << 2;
                all.push(Dispatch {
                    shader: shader(name, source),
                    constants: vec![("SIZE", row_workgroup(p.columns, c.traits) as f64)],
                    bindings,
                    params: words(&[width as usize, p.columns, p.start, f.columns(), chunk, f.rows, flags, 0]),
                    workgroups,
                });
            }
        }
        for p in f.weights() {
            all.extend(product(&f.back(&p, n), p.back.0, [outputs(LOGITS + p.index), outputs(GRADIENT)]));
            let mode = if p.index == 0 { 2 } else { 3 };
            all.push(copy(mode, chunk, n, vec![outputs(GRADIENT), lists[0], lists[1], outputs(DX)]));
        }
    }
    all
}
