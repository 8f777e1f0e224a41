//! `softmax(rule(q kᵀ) + bias) v` for each head: q `(B, H, S, D)`, k `(B, M, T, D)` and v `(B, M, T, E)` to `(B, H, S, E)`, each of
//! the M heads of keys serving H / M heads of queries; no scores are kept. The rule is `scale · s`, or with `cap`
//! `cap · tanh(scale · s / cap)`; the bias broadcasts to `(B, H, S, T)`. Flags `seq_q`, `seq_k`, `seq_v` and `seq_y` say that an
//! operand or the result is stored `(B, S, H, D)`.
//!
//! Also gives `(B, H, S, 2)`: of each row the largest exponent and one over the sum of `e^(exponent - largest)`. (Their
//! log-sum-exp as one number would lose the sum beside the exponents of a row that is masked throughout.) With `safe`, such a row
//! of -∞ gives zeros, not NaN. With `bf16`, which only the host knows, both products round their operands as matmul's do.

use super::heads::{ATTRS, FLAGS, Heads, KEYS, ROWS, Rule, exponents, fold, gathered, right};
use super::lanes;
use crate::ops::engine::prelude::*;
use crate::ops::matmul::matrix::{Matrix, Target};
use crate::ops::matmul::multiply::gemm;

pub const PRIMITIVE: Primitive = Primitive {
    name: "attention",
    attrs: ATTRS,
    infer: |ins, attrs| match ins {
        [q, k, v, bias @ ..] if bias.len() <= 1 && attrs.get_float("scale").is_some() => {
            let h = Heads::new(q, k, v, attrs)?;
            if h.width.max(h.value) > MAX_WIDTH {
                return Err(format!("heads of more than {MAX_WIDTH} elements"));
            }
            bias.iter().try_for_each(|b| h.admits(b))?;
            Ok(vec![h.y_type(attrs), h.rows_type(2)])
        }
        _ => Err("takes queries, keys, values, perhaps a bias, and a scale".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Emit(vjp),
    gpu: Gpu::Kernel(gpu),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work,
    samples,
};

/// The operand behind queries, keys and values, if there is one.
const BIAS: usize = 3;

/// The widest head that device kernels take.
pub const MAX_WIDTH: usize = 256;

/// A problem: extents B, H, M, S, T, D, E; which operands are stored by positions; the bias; the rule.
pub struct Problem {
    pub extents: [usize; 7],
    pub seq: [bool; 4],
    pub bias: Option<([usize; 4], Fill)>,
    pub attrs: Attrs,
}

impl Problem {
    fn new(extents: [usize; 7], bias: Option<([usize; 4], Fill)>) -> Problem {
        let attrs = Attrs::new().with("scale", Attr::Float(0.4));
        Problem { extents, seq: [false; 4], bias, attrs }
    }

    fn seq(mut self, seq: [bool; 4]) -> Problem {
        self.seq = seq;
        self.attrs = FLAGS.iter().zip(seq).fold(self.attrs, |a, (name, on)| a.with(name, Attr::Bool(on)));
        self
    }

    fn with(mut self, name: &str, value: Attr) -> Problem {
        self.attrs = self.attrs.with(name, value);
        self
    }

    /// Types of q, k, v and y as they are stored.
    pub fn types(&self) -> [Type; 4] {
        let [b, h, m, s, t, d, e] = self.extents;
        let of = |i: usize, heads: usize, rows: usize, width: usize| {
            Type::f32(if self.seq[i] { [b, rows, heads, width] } else { [b, heads, rows, width] })
        };
        [of(0, h, s, d), of(1, m, t, d), of(2, m, t, e), of(3, h, s, e)]
    }
}

/// Every layout, mask and way of sharing heads.
pub fn problems() -> Vec<Problem> {
    let causal = Fill::Window(usize::MAX);
    let mut all = vec![
        Problem::new([2, 2, 2, 5, 5, 4, 4], None),
        // Odd extents, more keys than queries, values of another width.
        Problem::new([1, 3, 3, 7, 11, 5, 3], None),
        // Padding; biases of every shape.
        Problem::new([2, 2, 2, 5, 3, 4, 4], Some(([2, 1, 1, 3], Fill::Mask))),
        Problem::new([2, 2, 2, 5, 6, 4, 4], Some(([2, 1, 5, 6], Fill::Mask))),
        Problem::new([2, 2, 2, 5, 6, 4, 4], Some(([1, 2, 5, 1], Fill::Frozen))),
        // Causal, heads being shared; a window.
        Problem::new([2, 6, 2, 5, 5, 4, 4], Some(([1, 1, 5, 5], causal))),
        Problem::new([1, 2, 1, 9, 9, 4, 4], Some(([1, 1, 9, 9], Fill::Window(3)))),
        // Several blocks of queries and keys.
        Problem::new([1, 2, 1, 70, 300, 6, 6], None),
        Problem::new([1, 1, 1, 150, 150, 4, 4], Some(([1, 1, 150, 150], Fill::Window(40)))),
        Problem::new([1, 2, 2, 5, 5, 4, 4], Some(([1, 1, 5, 5], causal)))
            .with("cap", Attr::Float(1.5))
            .with("safe", Attr::Bool(true)),
        // Rows that see nothing.
        Problem::new([2, 2, 1, 5, 6, 4, 4], Some(([2, 1, 5, 6], Fill::Padded))).with("safe", Attr::Bool(true)),
        Problem::new([1, 2, 2, 70, 300, 8, 4], Some(([1, 1, 70, 300], Fill::Padded)))
            .with("cap", Attr::Float(1.5))
            .with("safe", Attr::Bool(true)),
        Problem::new([1, 1, 1, 3, 4, 256, 256], None).with("scale", Attr::Float(1.0 / 16.0)),
        Problem::new([2, 6, 3, 4, 2, 8, 8], Some(([2, 6, 4, 2], Fill::Mask))).seq([true; 4]),
    ];
    all.extend((0..4).map(|on| Problem::new([2, 4, 2, 3, 6, 5, 4], None).seq(std::array::from_fn(|i| i == on))));
    all
}

fn samples() -> Vec<Sample> {
    let of = |p: Problem| {
        let [q, k, v, _] = p.types();
        let bias = p.bias.map(|(shape, fill)| (Type::f32(shape), fill));
        Sample::new([q, k, v].into_iter().map(|t| (t, Fill::Normal)).chain(bias).collect(), p.attrs)
    };
    problems().into_iter().map(of).collect()
}

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let h = Heads::of(c.types_in, c.attrs);
    let (q, k, v) = (c.ins[0].float(), c.ins[1].float(), c.ins[2].float());
    let rule = Rule::new(&h, c.attrs, c.ins.get(BIAS).map(|b| (b.float(), &c.types_in[BIAS])));
    let (safe, bf16) = (c.attrs.flag("safe"), c.attrs.flag("bf16"));
    let [y, stats] = &mut *c.outs else { panic!("infer gives two outputs") };
    let (y, stats) = (Shared::new(y.float()), Shared::new(stats.float()));
    let blocks = h.queries.div_ceil(ROWS);
    let cost = ROWS.min(h.queries) * h.keys * (h.width + h.value);
    parallel::ranges(h.batch * h.heads * blocks, parallel::rows_grain(cost / 8), |range| {
        let held = [ROWS * KEYS, ROWS * h.width, KEYS * h.width.max(h.value), 3 * ROWS];
        parallel::scratch(held.iter().sum(), |scratch: &mut [T]| {
            let (scores, rest) = scratch.split_at_mut(held[0]);
            let (q_part, rest) = rest.split_at_mut(held[1]);
            let (k_part, rest) = rest.split_at_mut(held[2]);
            let (top, rest) = rest.split_at_mut(ROWS);
            let (sum, factor) = rest.split_at_mut(ROWS);
            for task in range {
                let (b, head, block) = (task / blocks / h.heads, task / blocks % h.heads, task % blocks);
                let (from, kv) = (block * ROWS, head / h.share);
                let rows = ROWS.min(h.queries - from);
                top.fill(T::neg_infinity());
                sum.fill(T::zero());
                let seen = rule.seen(&h, b, head, block);
                let y_at = h.y.at(b, head, from);
                let queries = gathered(q, h.q.at(b, head, from), h.q.row, [rows, h.width], q_part);
                for key in seen.clone().step_by(KEYS) {
                    let n = KEYS.min(seen.end - key);
                    let s = &mut scores[..rows * n];
                    let (keys, key_row) = right(k, h.k.at(b, kv, key), h.k.row, [n, h.width], k_part);
                    let (queries, keys) = (Matrix::new(queries, h.width, 1), Matrix::new(keys, 1, key_row));
                    let out = Target { data: &Shared::new(s), at: 0, row: n };
                    // SAFETY: the scratch is this task's own.
                    unsafe { gemm([rows, n, h.width], queries, keys, out, false, false, bf16) };
                    let bias = |r: usize| rule.bias(b, head, from + r, key, n);
                    parallel::simd_call(Soften { s, n, rule: &rule, bias, top, sum, factor });
                    let first = key == seen.start;
                    let earlier = Times { data: &y, at: y_at, row: h.y.row, width: h.value, factors: &factor[..rows] };
                    if !first {
                        parallel::simd_call(earlier);
                    }
                    let (values, value_row) = right(v, h.v.at(b, kv, key), h.v.row, [n, h.value], k_part);
                    let (p, values) = (Matrix::new(s, n, 1), Matrix::new(values, value_row, 1));
                    let out = Target { data: &y, at: y_at, row: h.y.row };
                    // SAFETY: one task a block of rows.
                    unsafe { gemm([rows, h.value, n], p, values, out, !first, false, bf16) };
                }
                for (r, (top, sum)) in top.iter_mut().zip(&mut *sum).enumerate().take(rows) {
                    let empty = *top == T::neg_infinity();
                    *sum = match (empty, safe) {
                        (false, _) => T::one() / *sum,
                        (true, true) => T::zero(),
                        (true, false) => T::nan(),
                    };
                    let at = ((b * h.heads + head) * h.queries + from + r) * 2;
                    // SAFETY: one task a row.
                    unsafe {
                        stats.put(at, if empty { T::zero() } else { *top });
                        stats.put(at + 1, *sum);
                    }
                }
                parallel::simd_call(Times { data: &y, at: y_at, row: h.y.row, width: h.value, factors: &sum[..rows] });
            }
        });
    });
}

/// Multiplies each row of the result by its factor; no other task uses the rows.
struct Times<'s, 'a, T> {
    data: &'s Shared<'a, T>,
    at: usize,
    row: usize,
    width: usize,
    factors: &'s [T],
}

impl<T: Real> pulp::NullaryFnOnce for Times<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (r, &f) in self.factors.iter().enumerate() {
            let at = self.at + r * self.row;
            // SAFETY: the rows are lent.
            for x in unsafe { self.data.part(at..at + self.width) } {
                *x *= f;
            }
        }
    }
}

/// Scores of some rows to `e^(exponent - largest so far)`, as a value that [`parallel::simd_call`] compiles for the processor at
/// hand. `factor` is what earlier sums and results are to be multiplied by.
struct Soften<'a, T, B> {
    s: &'a mut [T],
    n: usize,
    rule: &'a Rule<'a, T>,
    bias: B,
    top: &'a mut [T],
    sum: &'a mut [T],
    factor: &'a mut [T],
}

impl<'b, T: Real, B: Fn(usize) -> Option<(&'b [T], bool)>> pulp::NullaryFnOnce for Soften<'_, T, B> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (r, s) in self.s.chunks_exact_mut(self.n).enumerate() {
            let here = exponents(s, self.rule.scale, self.rule.cap, (self.bias)(r));
            let before = self.top[r];
            let top = if here > before { here } else { before };
            // A row of nothing but -∞ so far sums to zero.
            let base = if top == T::neg_infinity() { T::zero() } else { top };
            let sum = fold(s, &[], |x, _| (x - base).exp_fused(), T::zero(), |a, b| a + b);
            let factor = match before == T::neg_infinity() {
                true => T::zero(),
                false => (before - top).exp_(),
            };
            self.sum[r] = self.sum[r] * factor + sum;
            self.factor[r] = factor;
            self.top[r] = top;
        }
    }
}

/// The products, masked or not: scores and results.
fn work(types_in: &[Type], types_out: &[Type], attrs: &Attrs) -> Work {
    let h = Heads::of(types_in, attrs);
    Work::new(h.flops(h.width + h.value), types_in, types_out)
}

fn vjp(c: &mut VjpCall) -> Result<Vec<Option<Value>>, BuildError> {
    let mut grads = vec![None; c.node.inputs.len()];
    let Some(g) = c.grads[0] else { return Ok(grads) };
    if c.wants.get(BIAS) == Some(&true) {
        let types = c.node.inputs.iter().map(|&v| c.b.ty(v).to_string()).collect::<Vec<_>>().join(", ");
        let why = "a bias that depends on a parameter has no gradient in one operation".into();
        return Err(BuildError { op: "attention".into(), types, at: format!(" at node '{}'", c.node.origin), why });
    }
    let mut inputs = vec![c.x(0), c.x(1), c.x(2), c.y(0), c.y(1), g];
    inputs.extend(c.node.inputs.get(BIAS));
    let outs = c.b.emit_all("attention_grad", &inputs, c.node.attrs.clone())?;
    for i in 0..3 {
        grads[i] = Some(outs[i]);
    }
    Ok(grads)
}

/// Words that every kernel of attention has in front: extents, places, rule.
pub fn params(h: &Heads, attrs: &Attrs, bias: Option<&Type>) -> Vec<u32> {
    let mut words: Vec<u32> =
        [h.batch, h.heads, h.share, h.queries, h.keys, h.width, h.value].iter().map(|&x| x as u32).collect();
    words.push(bias.is_some() as u32 + 2 * attrs.flag("safe") as u32);
    for place in [h.q, h.k, h.v, h.y] {
        words.extend(place.words());
    }
    words.extend(bias.map_or([0; 4], |b| h.bias_strides(b)).map(|s| s as u32));
    words.push((attrs.float("scale") as f32).to_bits());
    words.push((attrs.get_float("cap").unwrap_or(0.0) as f32).to_bits());
    words
}

/// Whether a device kernel is the one for software adapters, which reads rows as vectors of four; and the rows of its tiles.
pub fn tile(h: &Heads, c: &GpuCall) -> (bool, usize) {
    let in_lanes = c.traits.software && h.width.is_multiple_of(4) && h.value.is_multiple_of(4);
    (in_lanes, if in_lanes { lanes::TILE } else { 32 })
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let h = Heads::of(c.types_in, c.attrs);
    let mut params = params(&h, c.attrs, c.types_in.get(BIAS));
    let (in_lanes, rows) = tile(&h, c);
    let tiles = h.queries.div_ceil(rows);
    let (workgroups, width) = grid(h.batch * h.heads * tiles, 1, c.traits);
    params.extend([tiles as u32, width]);
    // Without a bias, something that is not read takes its place.
    let bias = if c.types_in.len() > BIAS { BIAS } else { 0 };
    let (name, source, constants) = if in_lanes {
        let text = lanes::reductions(include_str!("../../../shaders/attention/attention_lanes.wgsl"), c.traits);
        let source = lanes::source(&text, &[lanes::Rows::QUERIES], &["weights"], c.traits);
        ("attention_lanes", source.into(), vec![])
    } else {
        let columns = h.value.div_ceil(16) as f64;
        ("attention", include_str!("../../../shaders/attention/attention.wgsl").into(), vec![("COLUMNS", columns)])
    };
    let bindings = [0, 1, 2, bias].into_iter().map(Binding::Input).chain([0, 1].map(Binding::Output)).collect();
    vec![Dispatch { shader: Shader { name, source }, constants, bindings, params, workgroups }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;
    use crate::ops::{draw, eval};

    /// Attention over one head of three queries and four keys, with the same bias for each query: its rows, by this primitive and by
    /// a softmax of its own.
    fn both(bias: [f32; 4], safe: bool) -> [Vec<f32>; 2] {
        let of = |shape: [usize; 4], seed| draw(&Type::f32(shape), Fill::Normal, seed);
        let (q, k, v) = (of([1, 1, 3, 2], 1), of([1, 1, 4, 2], 2), of([1, 1, 4, 2], 3));
        let bias = Tensor::f32([1, 1, 1, 4], bias.to_vec());
        let flag = Attrs::new().with("safe", Attr::Bool(safe));
        let rule = flag.clone().with("scale", Attr::Float(1.0));
        let y = eval("attention", &[&q, &k, &v, &bias], &rule).remove(0);
        let product = |a: &Tensor, b: &Tensor, flip| {
            eval("matmul", &[a, b], &Attrs::new().with("trans_b", Attr::Bool(flip))).remove(0)
        };
        let scores = eval("add", &[&product(&q, &k, true), &bias], &Attrs::new()).remove(0);
        let flat = Tensor::f32([3, 4], scores.as_f32().expect("floats").to_vec());
        let p = eval("softmax", &[&flat], &flag).remove(0);
        let p = Tensor::f32([1, 1, 3, 4], p.as_f32().expect("floats").to_vec());
        [y, product(&p, &v, false)].map(|t| t.as_f32().expect("floats").to_vec())
    }

    #[test]
    fn rows_that_see_nothing_are_what_softmax_makes_of_them() {
        const NONE: f32 = f32::NEG_INFINITY;
        for bias in [[-1e30; 4], [f32::MIN; 4], [f32::MIN, 0.0, -1e30, NONE], [NONE, NONE, NONE, 1.0]] {
            let [y, want] = both(bias, false);
            assert!(y.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6), "{bias:?}: {y:?} {want:?}");
        }
        assert!(both([NONE; 4], false).iter().flatten().all(|x| x.is_nan()));
        assert!(both([NONE; 4], true).iter().flatten().all(|&x| x == 0.0));
    }
}
