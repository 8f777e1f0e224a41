//! The gradient of `attention` in q, k and v, from its operands, its result, its rows' largest exponents and sums, and the
//! result's gradient g; probabilities are computed anew. With `p` the probabilities and `δ = Σ g y` of each row:
//! `dv = pᵀ g`, `ds = p (g vᵀ - δ)` times the rule's slope, `dq = ds k`, `dk = dsᵀ q`.
//!
//! Also gives `(B, H, S, 3)`: what came with each row, and δ.

use super::forward::{params, problems, tile};
use super::heads::{ATTRS, Heads, KEYS, ROWS, Rule, gathered, right};
use super::lanes::{self, Rows};
use crate::ops::engine::prelude::*;
use crate::ops::matmul::matrix::{Matrix, Target};
use crate::ops::matmul::multiply::gemm;
use std::borrow::Cow;

pub const PRIMITIVE: Primitive = Primitive {
    name: "attention_grad",
    attrs: ATTRS,
    infer: |ins, attrs| match ins {
        [q, k, v, y, stats, g, bias @ ..] if bias.len() <= 1 && attrs.get_float("scale").is_some() => {
            let h = Heads::new(q, k, v, attrs)?;
            bias.iter().try_for_each(|b| h.admits(b))?;
            if **y != h.y_type(attrs) || g != y || **stats != h.rows_type(2) {
                return Err(format!("a result {y}, its rows {stats} and its gradient {g} do not fit the operands"));
            }
            Ok(vec![(*q).clone(), (*k).clone(), (*v).clone(), h.rows_type(3)])
        }
        _ => Err("takes queries, keys, values, result, its rows, its gradient, perhaps a bias, and a scale".into()),
    },
    cpu: Cpu::Kernel { f32: cpu, f64: cpu },
    vjp: Vjp::Never,
    gpu: Gpu::Kernel(gpu),
    results: Results::All,
    accumulates: NOTHING,
    halves: NO_HALVES,
    windows: NO_WINDOWS,
    work,
    samples: || {
        let of = |p: super::forward::Problem| {
            let [q, k, v, y] = p.types();
            let [b, h, _, s, ..] = p.extents;
            let stats = Type::f32([b, h, s, 2]);
            let bias = p.bias.map(|(shape, fill)| (Type::f32(shape), fill));
            let floats = [q, k, v, y.clone()].into_iter().map(|t| (t, Fill::Normal));
            // Rows that no probability is larger than.
            let rows = [(stats, Fill::Positive), (y, Fill::Normal)];
            Sample::new(floats.chain(rows).chain(bias).collect(), p.attrs)
        };
        problems().into_iter().map(of).collect()
    },
};

/// The operand behind queries, keys, values, result, its rows and its gradient, if there is one.
const BIAS: usize = 6;

fn cpu<T: Real>(c: &mut CpuCall<T>) {
    let h = Heads::of(c.types_in, c.attrs);
    let rule = Rule::new(&h, c.attrs, c.ins.get(BIAS).map(|b| (b.float(), &c.types_in[BIAS])));
    let [dq, dk, dv, rows] = &mut *c.outs else { panic!("infer gives four outputs") };
    let call = Call {
        h,
        rule,
        ins: std::array::from_fn(|i| c.ins[i].float()),
        dq: Shared::new(dq.float()),
        dk: Shared::new(dk.float()),
        dv: Shared::new(dv.float()),
        rows: Shared::new(rows.float()),
        bf16: c.attrs.flag("bf16"),
    };
    let shared = h.heads / h.share;
    let cost = h.share * h.queries * h.keys * (h.width + h.value);
    parallel::ranges(h.batch * shared, parallel::rows_grain(cost / 4), |range| {
        let wide = h.width + h.value;
        let held = [ROWS * KEYS, ROWS * KEYS, ROWS * h.width, ROWS * h.value, KEYS * wide, ROWS];
        parallel::scratch(held.iter().sum(), |scratch: &mut [T]| {
            let mut rest = scratch;
            let mut parts = held.map(|n| {
                let (part, after) = std::mem::take(&mut rest).split_at_mut(n);
                rest = after;
                part
            });
            for task in range {
                call.shared_head(task / shared, task % shared, &mut parts);
            }
        });
    });
}

struct Call<'a, T> {
    h: Heads,
    rule: Rule<'a, T>,
    /// q, k, v, y, rows of y, gradient of y.
    ins: [&'a [T]; 6],
    dq: Shared<'a, T>,
    dk: Shared<'a, T>,
    dv: Shared<'a, T>,
    rows: Shared<'a, T>,
    /// Whether products round their operands to bf16.
    bf16: bool,
}

impl<T: Real> Call<'_, T> {
    /// Everything of one head of keys and the heads of queries that share it, which no other task touches.
    fn shared_head(&self, b: usize, kv: usize, scratch: &mut [&mut [T]; 6]) {
        let h = &self.h;
        for head in kv * h.share..(kv + 1) * h.share {
            for block in 0..h.queries.div_ceil(ROWS) {
                let fresh = head == kv * h.share && block == 0;
                self.block(b, kv, head, block, fresh, scratch);
            }
        }
    }

    /// What one block of queries adds to the gradients of keys and values, and the gradient of the queries; `fresh` if keys and
    /// values have none yet.
    fn block(&self, b: usize, kv: usize, head: usize, block: usize, fresh: bool, scratch: &mut [&mut [T]; 6]) {
        let (h, [q, k, v, y, stats, g]) = (&self.h, self.ins);
        let [p_part, ds_part, q_part, g_part, kv_part, delta] = scratch;
        let from = block * ROWS;
        let rows = ROWS.min(h.queries - from);
        let stats = &stats[((b * h.heads + head) * h.queries + from) * 2..][..2 * rows];
        let y_at = h.y.at(b, head, from);
        parallel::simd_call(Deltas {
            y: &y[y_at..],
            g: &g[y_at..],
            row: h.y.row,
            width: h.value,
            out: &mut delta[..rows],
        });
        for (r, &delta) in delta[..rows].iter().enumerate() {
            let at = ((b * h.heads + head) * h.queries + from + r) * 3;
            // SAFETY: one task a row.
            unsafe {
                self.rows.put(at, stats[2 * r]);
                self.rows.put(at + 1, stats[2 * r + 1]);
                self.rows.put(at + 2, delta);
            }
        }
        let seen = self.rule.seen(h, b, head, block);
        if fresh {
            for key in (0..seen.start).chain(seen.end..h.keys) {
                let (dk, dv) = (h.k.at(b, kv, key), h.v.at(b, kv, key));
                // SAFETY: one task a head of keys.
                unsafe {
                    self.dk.part(dk..dk + h.width).fill(T::zero());
                    self.dv.part(dv..dv + h.value).fill(T::zero());
                }
            }
        }
        let q_at = h.q.at(b, head, from);
        let queries = Matrix::new(gathered(q, q_at, h.q.row, [rows, h.width], q_part), h.width, 1);
        let gradients = Matrix::new(gathered(g, y_at, h.y.row, [rows, h.value], g_part), h.value, 1);
        for key in seen.clone().step_by(KEYS) {
            let n = KEYS.min(seen.end - key);
            let (k_at, v_at) = (h.k.at(b, kv, key), h.v.at(b, kv, key));
            let (p, ds) = (&mut p_part[..rows * n], &mut ds_part[..rows * n]);
            let (k_part, v_part) = kv_part.split_at_mut(KEYS * h.width);
            let (keys, key_row) = right(k, k_at, h.k.row, [n, h.width], k_part);
            let (values, value_row) = right(v, v_at, h.v.row, [n, h.value], v_part);
            {
                let (p, ds) = (Shared::new(p), Shared::new(ds));
                let at = |data| Target { data, at: 0, row: n };
                // SAFETY: the scratch is this task's own.
                unsafe {
                    gemm([rows, n, h.width], queries, Matrix::new(keys, 1, key_row), at(&p), false, false, self.bf16);
                    gemm(
                        [rows, n, h.value],
                        gradients,
                        Matrix::new(values, 1, value_row),
                        at(&ds),
                        false,
                        false,
                        self.bf16,
                    );
                }
            }
            let bias = |r: usize| self.rule.bias(b, head, from + r, key, n);
            parallel::simd_call(Slopes { p, ds, n, rule: &self.rule, bias, stats, delta });
            let (p, ds): (&[T], &[T]) = (p, ds);
            let part = |data, at, row| Target { data, at, row };
            // SAFETY: one task a head of keys, and so a head of queries.
            unsafe {
                let dv = part(&self.dv, v_at, h.v.row);
                gemm([n, h.value, rows], Matrix::new(p, 1, n), gradients, dv, !fresh, false, self.bf16);
                let dk = part(&self.dk, k_at, h.k.row);
                gemm([n, h.width, rows], Matrix::new(ds, 1, n), queries, dk, !fresh, false, self.bf16);
                let dq = part(&self.dq, q_at, h.q.row);
                let keys = Matrix::new(keys, key_row, 1);
                gemm([rows, h.width, n], Matrix::new(ds, n, 1), keys, dq, key != seen.start, false, self.bf16);
            }
        }
    }
}

/// `Σ g y` of each row.
struct Deltas<'a, T> {
    y: &'a [T],
    g: &'a [T],
    row: usize,
    width: usize,
    out: &'a mut [T],
}

impl<T: Real> pulp::NullaryFnOnce for Deltas<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (r, out) in self.out.iter_mut().enumerate() {
            let part = r * self.row..r * self.row + self.width;
            *out = crate::ops::engine::rows::dot(&self.y[part.clone()], &self.g[part]);
        }
    }
}

/// Products `q kᵀ` to probabilities and `g vᵀ` to the gradient of `q kᵀ`, both `(rows, n)`.
struct Slopes<'a, T, B> {
    p: &'a mut [T],
    ds: &'a mut [T],
    n: usize,
    rule: &'a Rule<'a, T>,
    bias: B,
    stats: &'a [T],
    delta: &'a [T],
}

impl<'b, T: Real, B: Fn(usize) -> Option<(&'b [T], bool)>> pulp::NullaryFnOnce for Slopes<'_, T, B> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (scale, cap) = (self.rule.scale, self.rule.cap);
        for (r, (p, ds)) in self.p.chunks_exact_mut(self.n).zip(self.ds.chunks_exact_mut(self.n)).enumerate() {
            let (top, over, delta) = (self.stats[2 * r], self.stats[2 * r + 1], self.delta[r]);
            let mut inner = scale;
            if let Some(cap) = cap {
                for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
                    let t = (*p * scale / cap).tanh_();
                    *p = cap * t;
                    *ds = delta + (*ds - delta) * (T::one() - t * t);
                }
                inner = T::one();
            }
            let (bias, one) = match (self.bias)(r) {
                Some((bias, true)) => (bias, T::zero()),
                other => (&[][..], other.map_or(T::zero(), |(bias, _)| bias[0])),
            };
            let weight = |s: T, b: T| (s * inner + b - top).exp_fused() * over;
            if bias.is_empty() {
                for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
                    *p = weight(*p, one);
                    *ds = (*ds - delta) * scale * *p;
                }
            } else {
                for ((p, ds), &b) in p.iter_mut().zip(ds.iter_mut()).zip(bias) {
                    *p = weight(*p, b);
                    *ds = (*ds - delta) * scale * *p;
                }
            }
        }
    }
}

/// The products, masked or not: scores, their gradient, and the gradients of q, k and v.
fn work(types_in: &[Type], types_out: &[Type], attrs: &Attrs) -> Work {
    let h = Heads::of(types_in, attrs);
    Work::new(h.flops(3 * h.width + 2 * h.value), types_in, types_out)
}

fn gpu(c: &GpuCall) -> Vec<Dispatch> {
    let h = Heads::of(c.types_in, c.attrs);
    let common = params(&h, c.attrs, c.types_in.get(BIAS));
    let bias = Binding::Input(if c.types_in.len() > BIAS { BIAS } else { 0 });
    let [q, k, v, y, stats, g] = std::array::from_fn(Binding::Input);
    let [dq, dk, dv, rows] = std::array::from_fn(Binding::Output);
    let (in_lanes, tile) = tile(&h, c);
    let (q_tiles, k_tiles) = (h.queries.div_ceil(tile), h.keys.div_ceil(tile));
    let dispatch = |kernel: Kernel, constants, bindings, groups: usize, size: usize, tiles: usize| {
        let (workgroups, width) = grid(groups, size, c.traits);
        let params = [&common[..], &[tiles as u32, width]].concat();
        let shader = Shader { name: kernel.0, source: kernel.1 };
        Dispatch { shader, constants, bindings, params, workgroups }
    };
    let columns = |name, n: usize| (name, n.div_ceil(16) as f64);
    let (for_q, for_kv) = if in_lanes {
        let own = |kernel: Text, rows: [Rows; 2], weights: &[&str]| {
            ((kernel.0, lanes::source(kernel.1, &rows, weights, c.traits).into()), vec![])
        };
        let for_q = own(Q_LANES, [Rows::QUERIES, Rows::GRADIENTS], &["slopes"]);
        (for_q, own(KV_LANES, [Rows::KEYS, Rows::VALUES], &["weights", "slopes"]))
    } else {
        let both = vec![columns("COLUMNS_K", h.width), columns("COLUMNS_V", h.value)];
        ((whole(Q), vec![columns("COLUMNS", h.width)]), (whole(KV), both))
    };
    let (in_q, in_kv) = (vec![q, k, v, bias, g, rows, dq], vec![q, k, v, bias, g, rows, dk, dv]);
    vec![
        dispatch(whole(ROWS_KERNEL), vec![], vec![y, g, stats, rows], h.batch * h.heads * h.queries, 64, 1),
        dispatch(for_q.0, for_q.1, in_q, h.batch * h.heads * q_tiles, 1, q_tiles),
        dispatch(for_kv.0, for_kv.1, in_kv, h.batch * (h.heads / h.share) * k_tiles, 1, k_tiles),
    ]
}

/// Name and source.
type Kernel = (&'static str, Cow<'static, str>);

/// Name and file.
type Text = (&'static str, &'static str);

/// A file as it is.
fn whole(text: Text) -> Kernel {
    (text.0, text.1.into())
}

const ROWS_KERNEL: Text = ("attention_grad_rows", include_str!("../../../shaders/attention/attention_grad_rows.wgsl"));
const Q: Text = ("attention_grad_q", include_str!("../../../shaders/attention/attention_grad_q.wgsl"));
const Q_LANES: Text =
    ("attention_grad_q_lanes", include_str!("../../../shaders/attention/attention_grad_q_lanes.wgsl"));
const KV: Text = ("attention_grad_kv", include_str!("../../../shaders/attention/attention_grad_kv.wgsl"));
const KV_LANES: Text =
    ("attention_grad_kv_lanes", include_str!("../../../shaders/attention/attention_grad_kv_lanes.wgsl"));
