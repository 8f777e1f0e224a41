//! Attention operators of runtime optimisers and newer opsets, decomposed into matmuls and a softmax.

use super::{Context, Reason};
use crate::ir::{Attr, Attrs, DType, Tensor, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// How scores become weights.
struct Rule {
    scale: f64,
    /// Position i sees positions up to i, counted from the first that is not past.
    causal: bool,
    /// Keys that are past.
    past: usize,
    /// Position i sees this many positions up to and with its own; 0 for all.
    window: usize,
    /// `cap · tanh(score / cap)`; 0 for none.
    softcap: f32,
    /// Added to the scores, broadcasting to `(B, N, S, T)`.
    biases: Vec<Value>,
    /// Whether a row that is masked throughout gives zeros, not NaN.
    safe: bool,
}

/// What attention computes on the way: scaled products, those after the soft cap, with biases, and the weights.
struct Attended {
    y: Value,
    stages: [Value; 4],
}

impl Rule {
    /// The usual scale, unless the node has its own.
    fn of(c: &Context, head: usize) -> Rule {
        let given = c.float("scale", 0.0);
        let scale = if given == 0.0 { 1.0 / (head as f64).sqrt() } else { given as f64 };
        let softcap = c.float("softcap", 0.0);
        Rule { scale, causal: false, past: 0, window: 0, softcap, biases: vec![], safe: false }
    }
}

/// `softmax(scale · q kᵀ + biases) v` for q `(B, N, S, D)`, k `(B, M, T, D)` and v `(B, M, T, E)`, each of the M heads
/// serving N / M queries; `(B, N, S, E)`.
fn attend(c: &mut Context, q: Value, k: Value, v: Value, rule: &Rule) -> Result<Value, Reason> {
    Ok(attended(c, q, k, v, rule)?.y)
}

fn attended(c: &mut Context, q: Value, k: Value, v: Value, rule: &Rule) -> Result<Attended, Reason> {
    let (qs, ks) = (c.shape(q), c.shape(k));
    let (heads, queries, keys) = (qs[1], qs[2], ks[2]);
    if ks[1] == 0 || heads % ks[1] != 0 {
        return Err(format!("{heads} heads of queries do not share {} heads of keys evenly", ks[1]).into());
    }
    let (k, v) = (repeat(c, k, heads)?, repeat(c, v, heads)?);
    let mut scores = c.b.matmul(q, k, false, true)?;
    scores = c.b.scale(scores, rule.scale)?;
    let products = scores;
    if rule.softcap != 0.0 {
        let small = c.b.scale(scores, 1.0 / rule.softcap as f64)?;
        let bent = c.b.unary("tanh", small)?;
        scores = c.b.scale(bent, rule.softcap as f64)?;
    }
    let capped = scores;
    for &bias in &rule.biases {
        scores = c.b.add(scores, bias)?;
    }
    if rule.causal || rule.window > 0 {
        let seen = |i: usize| {
            let (query, key) = ((i / keys + rule.past) as i64, (i % keys) as i64);
            (!rule.causal || key <= query) && (rule.window == 0 || key > query - rule.window as i64)
        };
        let mask = (0..queries * keys).map(|i| if seen(i) { 0.0 } else { f32::NEG_INFINITY }).collect();
        let mask = c.b.constant(Tensor::f32([queries, keys], mask));
        scores = c.b.add(scores, mask)?;
    }
    let shape = c.shape(scores);
    let rows = c.rows(scores)?;
    let weights = c.b.emit("softmax", &[rows], Attrs::new().with("safe", Attr::Bool(rule.safe)))?;
    let weights = c.b.reshape(weights, shape)?;
    let y = c.b.matmul(weights, v, false, false)?;
    Ok(Attended { y, stages: [products, capped, scores, weights] })
}

/// `(B, M, T, D)` with each head written out `heads / M` times.
pub fn repeat(c: &mut Context, x: Value, heads: usize) -> Result<Value, Reason> {
    let [b, m, t, d] = c.shape(x)[..] else { return Err("heads must have four axes".into()) };
    if m == heads {
        return Ok(x);
    }
    let apart = c.b.reshape(x, [b, m, 1, t, d])?;
    let wide = c.b.broadcast(apart, [b, m, heads / m, t, d])?;
    Ok(c.b.reshape(wide, [b, heads, t, d])?)
}

/// `(B, S, N · D)` as `(B, N, S, D)`.
fn split_heads(c: &mut Context, x: Value, heads: usize) -> Result<Value, Reason> {
    match c.shape(x)[..] {
        [_, _, _, _] => Ok(x),
        [b, s, width] if heads > 0 && width % heads == 0 => {
            let apart = c.b.reshape(x, [b, s, heads, width / heads])?;
            Ok(c.b.transpose(apart, &[0, 2, 1, 3])?)
        }
        _ => Err(format!("{} does not split into {heads} heads", c.shape(x)).into()),
    }
}

/// `(B, N, S, D)` as `(B, S, N · D)`.
fn join_heads(c: &mut Context, x: Value) -> Result<Value, Reason> {
    let [b, n, s, d] = c.shape(x)[..] else { return Err("heads must have four axes".into()) };
    let moved = c.b.transpose(x, &[0, 2, 1, 3])?;
    Ok(c.b.reshape(moved, [b, s, n * d])?)
}

/// Parts of the last axis, of the given extents.
fn parts<const N: usize>(c: &mut Context, x: Value, extents: [usize; N]) -> Result<[Value; N], Reason> {
    let shape = c.shape(x);
    let axis = shape.len() - 1;
    if shape[axis] != extents.iter().sum::<usize>() {
        return Err(format!("{shape} does not split into {extents:?}").into());
    }
    let mut start = 0;
    let mut out = [x; N];
    for (part, n) in out.iter_mut().zip(extents) {
        *part = c.b.slice(x, axis, start, n, 1)?;
        start += n;
    }
    Ok(out)
}

/// What was computed before this call: in training there is none, and a past that is there comes in front.
fn with_past(c: &mut Context, past: usize, x: Value) -> Result<Value, Reason> {
    match c.opt(past) {
        Some(p) if c.shape(p).elements() > 0 => Ok(c.b.concat(&[p, x], 2)?),
        _ => Ok(x),
    }
}

/// 0 where `keep` holds, `masked` elsewhere.
fn mask_bias(c: &mut Context, keep: Value, masked: f32) -> Result<Value, Reason> {
    let keep = if c.ty(keep).dtype == DType::Bool { keep } else { c.b.cast(keep, DType::Bool)? };
    let (zero, masked) = (c.b.scalar(0.0), c.b.scalar(masked as f64));
    Ok(c.b.select(keep, zero, masked)?)
}

/// The bias that hides keys: a mask `(B, T)` or `(B, S, T)` of what is there, or the number of keys `(B)` of each example, after
/// which the first key of each may follow `(2B)`. As in ONNX Runtime, a row without a key is not empty: what hides keys is the
/// node's `mask_filter_value`, a number.
fn key_bias(c: &mut Context, mask: Value, batch: usize, keys: usize) -> Result<Value, Reason> {
    let shape = c.shape(mask);
    let keep = match shape[..] {
        [n] if n == batch || n == 2 * batch => {
            let at = c.b.constant(Tensor::i32([1, 1, 1, keys], (0..keys as i32).collect()));
            let ends = c.b.slice(mask, 0, 0, batch, 1)?;
            let ends = c.b.reshape(ends, [batch, 1, 1, 1])?;
            let before = c.b.binary("less", at, ends)?;
            if n == batch {
                before
            } else {
                let starts = c.b.slice(mask, 0, batch, batch, 1)?;
                let starts = c.b.reshape(starts, [batch, 1, 1, 1])?;
                let after = c.b.binary("less_equal", starts, at)?;
                c.b.binary("and", before, after)?
            }
        }
        [b, t] if t == keys => c.b.reshape(mask, [b, 1, 1, t])?,
        [b, s, t] if t == keys => c.b.reshape(mask, [b, 1, s, t])?,
        _ => return Err(format!("a mask {shape} over {keys} keys is not supported").into()),
    };
    let masked = c.float("mask_filter_value", -1e4);
    mask_bias(c, keep, masked)
}

/// Turns pairs of elements of `(B, N, S, D)` by angles whose cosines and sines broadcast to `(B, N, S, R / 2)`; elements
/// from R on stay. Pairs are neighbours if `interleaved`, else i and i + R / 2.
fn rotate(c: &mut Context, x: Value, cos: Value, sin: Value, interleaved: bool) -> Result<Value, Reason> {
    let [b, n, s, d] = c.shape(x)[..] else { return Err("heads must have four axes".into()) };
    let half = c.shape(cos).last().copied().unwrap_or(0);
    if 2 * half > d {
        return Err(format!("angles for {} elements of heads of {d}", 2 * half).into());
    }
    let turned = c.b.slice(x, 3, 0, 2 * half, 1)?;
    let (first, second) = if interleaved {
        let pairs = c.b.reshape(turned, [b, n, s, half, 2])?;
        let (first, second) = (c.b.slice(pairs, 4, 0, 1, 1)?, c.b.slice(pairs, 4, 1, 1, 1)?);
        (c.b.reshape(first, [b, n, s, half])?, c.b.reshape(second, [b, n, s, half])?)
    } else {
        (c.b.slice(turned, 3, 0, half, 1)?, c.b.slice(turned, 3, half, half, 1)?)
    };
    let product = |c: &mut Context, x, y| c.b.mul(x, y);
    let (fc, ss) = (product(c, first, cos)?, product(c, second, sin)?);
    let (sc, fs) = (product(c, second, cos)?, product(c, first, sin)?);
    let (first, second) = (c.b.sub(fc, ss)?, c.b.add(sc, fs)?);
    let turned = if interleaved {
        let wide = [b, n, s, half, 1];
        let (first, second) = (c.b.reshape(first, wide)?, c.b.reshape(second, wide)?);
        let pairs = c.b.concat(&[first, second], 4)?;
        c.b.reshape(pairs, [b, n, s, 2 * half])?
    } else {
        c.b.concat(&[first, second], 3)?
    };
    if 2 * half == d {
        return Ok(turned);
    }
    let rest = c.b.slice(x, 3, 2 * half, d - 2 * half, 1)?;
    Ok(c.b.concat(&[turned, rest], 3)?)
}

/// Cosines and sines for `(B, N, S, ..)` from caches `(positions, R / 2)`: the rows `positions` names, else those from
/// `start` on.
fn angles(
    c: &mut Context,
    caches: [Value; 2],
    positions: Option<Value>,
    start: usize,
    length: usize,
) -> Result<[Value; 2], Reason> {
    let mut out = caches;
    for (cache, out) in caches.iter().zip(&mut out) {
        let shape = c.shape(*cache);
        *out = match (&shape[..], positions) {
            (&[_, half], Some(at)) => {
                let b = c.shape(at)[0];
                let rows = c.b.gather(*cache, at, 0)?;
                c.b.reshape(rows, [b, 1, length, half])?
            }
            (&[rows, half], None) if start + length <= rows => {
                let rows = c.b.slice(*cache, 0, start, length, 1)?;
                c.b.reshape(rows, [1, 1, length, half])?
            }
            (&[b, s, half], None) => c.b.reshape(*cache, [b, 1, s, half])?,
            _ => return Err(format!("the cache {shape} has no angles for {length} positions").into()),
        };
    }
    Ok(out)
}

/// ONNX Runtime's GroupQueryAttention: causal, with queries, keys and values apart or in one, and angles inside if
/// `do_rotary`. Input 5 is the number of keys of each example, less one.
pub fn group_query_attention(c: &mut Context) -> Lowered {
    let (heads, kv) = (c.int("num_heads", 0) as usize, c.int("kv_num_heads", 0) as usize);
    if c.opt(11).is_some() || c.int("smooth_softmax", 0) > 0 {
        return Err("a softmax with a sink is not supported".into());
    }
    let query = c.x(0)?;
    let (q, k, v) = match (c.opt(1), c.opt(2)) {
        (Some(k), Some(v)) => (query, k, v),
        _ => {
            let head = c.shape(query).last().copied().unwrap_or(0) / (heads + 2 * kv).max(1);
            let [q, k, v] = parts(c, query, [heads * head, kv * head, kv * head])?;
            (q, k, v)
        }
    };
    let (mut q, mut k, v) = (split_heads(c, q, heads)?, split_heads(c, k, kv)?, split_heads(c, v, kv)?);
    let (length, head) = (c.shape(q)[2], c.shape(q)[3]);
    if c.int("do_rotary", 0) != 0 {
        let past = c.opt(3).map_or(0, |p| c.shape(p)[2]);
        let caches = [c.x(7)?, c.x(8)?];
        let [cos, sin] = angles(c, caches, c.opt(9), past, length)?;
        let interleaved = c.int("rotary_interleaved", 0) != 0;
        q = rotate(c, q, cos, sin, interleaved)?;
        k = rotate(c, k, cos, sin, interleaved)?;
    }
    let (k, v) = (with_past(c, 3, k)?, with_past(c, 4, v)?);
    let keys = c.shape(k)[2];
    let window = c.int("local_window_size", -1).max(0) as usize;
    let mut rule = Rule { causal: true, past: keys - length, window, safe: true, ..Rule::of(c, head) };
    if let Some(last) = c.opt(5) {
        let b = c.shape(last).elements();
        let last = c.b.reshape(last, [b, 1, 1, 1])?;
        let at = c.b.constant(Tensor::i32([1, 1, 1, keys], (0..keys as i32).collect()));
        let keep = c.b.binary("less_equal", at, last)?;
        rule.biases.push(mask_bias(c, keep, f32::NEG_INFINITY)?);
    }
    rule.biases.extend(c.opt(10));
    let y = attend(c, q, k, v, &rule)?;
    Ok(vec![join_heads(c, y)?, k, v])
}

/// ONNX Runtime's MultiHeadAttention: projections apart, or queries, keys and values in one as `(B, S, N, 3, D)`.
pub fn multi_head_attention(c: &mut Context) -> Lowered {
    let heads = c.int("num_heads", 0) as usize;
    let query = c.x(0)?;
    let (mut q, mut k, mut v) = match (c.opt(1), c.opt(2), &c.shape(query)[..]) {
        (Some(k), Some(v), _) => (query, k, v),
        (None, None, &[b, s, n, 3, d]) => {
            let mut each = [query; 3];
            for (i, part) in each.iter_mut().enumerate() {
                let one = c.b.slice(query, 3, i, 1, 1)?;
                *part = c.b.reshape(one, [b, s, n * d])?;
            }
            (each[0], each[1], each[2])
        }
        _ => return Err("keys and values packed into one are not supported".into()),
    };
    if let Some(bias) = c.opt(3) {
        let width = |c: &Context, x: Value| match c.shape(x)[..] {
            [_, n, _, d] => n * d,
            ref s => s.last().copied().unwrap_or(0),
        };
        let [bq, bk, bv] = parts(c, bias, [width(c, q), width(c, k), width(c, v)])?;
        q = c.b.add(q, bq)?;
        // Keys and values of cross-attention come with heads apart, and their bias put in.
        if c.shape(k).len() == 3 {
            k = c.b.add(k, bk)?;
            v = c.b.add(v, bv)?;
        }
    }
    let (q, k, v) = (split_heads(c, q, heads)?, split_heads(c, k, heads)?, split_heads(c, v, heads)?);
    let own = c.shape(k)[2];
    let (k, v) = (with_past(c, 6, k)?, with_past(c, 7, v)?);
    let (batch, head, keys) = (c.shape(q)[0], c.shape(q)[3], c.shape(k)[2]);
    let mut rule = Rule { causal: c.int("unidirectional", 0) != 0, past: keys - own, ..Rule::of(c, head) };
    if let Some(mask) = c.opt(4) {
        rule.biases.push(key_bias(c, mask, batch, keys)?);
    }
    rule.biases.extend(c.opt(5));
    let y = attend(c, q, k, v, &rule)?;
    Ok(vec![join_heads(c, y)?, k, v])
}

/// ONNX Runtime's Attention: `(B, S, C)` through one product to queries, keys and values.
pub fn packed_attention(c: &mut Context) -> Lowered {
    let heads = c.int("num_heads", 0) as usize;
    if c.opt(4).is_some_and(|p| c.shape(p).elements() > 0) || c.int("do_rotary", 0) != 0 {
        return Err("a past and rotary angles are not supported".into());
    }
    let (x, w) = (c.x(0)?, c.x(1)?);
    let [b, s, width] = c.shape(x)[..] else { return Err("takes an input of three axes".into()) };
    let all = c.shape(w)[1];
    let sizes = match c.node.attr_ints("qkv_hidden_sizes") {
        Some(&[q, k, v]) => [q as usize, k as usize, v as usize],
        _ => [all / 3; 3],
    };
    let flat = c.b.reshape(x, [b * s, width])?;
    let mut y = c.b.matmul(flat, w, false, false)?;
    if let Some(bias) = c.opt(2) {
        y = c.b.add(y, bias)?;
    }
    let y = c.b.reshape(y, [b, s, all])?;
    let [q, k, v] = parts(c, y, sizes)?;
    let (q, k, v) = (split_heads(c, q, heads)?, split_heads(c, k, heads)?, split_heads(c, v, heads)?);
    let mut rule = Rule { causal: c.int("unidirectional", 0) != 0, ..Rule::of(c, sizes[0] / heads.max(1)) };
    if let Some(mask) = c.opt(3) {
        rule.biases.push(key_bias(c, mask, b, s)?);
    }
    rule.biases.extend(c.opt(5));
    let y = attend(c, q, k, v, &rule)?;
    Ok(vec![join_heads(c, y)?])
}

/// Which keys a query sees, for what is not the same in every example: `last` is the number of an example's keys, of which the queries
/// are the last; without it a query follows `past` keys. `window` is how many keys to the left and to the right it sees, -1 for all.
fn visible(
    c: &mut Context,
    (queries, keys, past): (usize, usize, usize),
    last: Option<Value>,
    causal: bool,
    window: [i64; 2],
) -> Result<Value, Reason> {
    let key = c.integers([1, 1, 1, keys], (0..keys as i32).collect());
    let first = if last.is_some() { -(queries as i32) } else { past as i32 };
    let mut query = c.integers([1, 1, queries, 1], (0..queries as i32).map(|i| i + first).collect());
    let mut seen = c.b.constant(Tensor::bool([1, 1, 1, keys], vec![1; keys]));
    if let Some(last) = last {
        let b = c.shape(last).elements();
        let last = c.b.reshape(last, [b, 1, 1, 1])?;
        query = c.b.add(query, last)?;
        seen = c.b.binary("less", key, last)?;
    }
    let mut both = |c: &mut Context, low: Value, high: Value| -> Result<(), Reason> {
        let more = c.b.binary("less_equal", low, high)?;
        seen = c.b.binary("and", seen, more)?;
        Ok(())
    };
    if causal {
        both(c, key, query)?;
    }
    let [left, right] = window;
    if left >= 0 {
        let left = c.integers([], vec![-(left.min(1 << 30) as i32)]);
        let from = c.b.add(query, left)?;
        both(c, from, key)?;
    }
    if right >= 0 {
        let right = c.integers([], vec![right.min(1 << 30) as i32]);
        let to = c.b.add(query, right)?;
        both(c, key, to)?;
    }
    Ok(seen)
}

/// The standard's Attention (operator set 23 and later). A row that is masked throughout gives zeros.
pub fn attention(c: &mut Context) -> Lowered {
    let (q, k, v) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let flat = c.shape(q).len() == 3;
    let (heads, kv) = (c.int("q_num_heads", 0) as usize, c.int("kv_num_heads", 0) as usize);
    let (q, k, v) = (split_heads(c, q, heads)?, split_heads(c, k, kv)?, split_heads(c, v, kv)?);
    let own = c.shape(k)[2];
    let (k, v) = (with_past(c, 4, k)?, with_past(c, 5, v)?);
    let (head, keys) = (c.shape(q)[3], c.shape(k)[2]);
    let (queries, past) = (c.shape(q)[2], keys - own);
    let causal = c.int("is_causal", 0) != 0;
    let (last, window) = (c.opt(6), [c.int("left_window_size", -1), c.int("right_window_size", -1)]);
    let plain = last.is_none() && window == [-1, -1];
    let mut rule = Rule { causal: causal && plain, past, safe: true, ..Rule::of(c, head) };
    if let Some(mask) = c.opt(3) {
        // A mask of fewer keys hides those after it.
        let rank = c.shape(mask).len();
        let boolean = c.ty(mask).dtype == DType::Bool;
        let hidden = if boolean { 0.0 } else { f64::NEG_INFINITY };
        let mask = match c.shape(mask).last() {
            Some(&n) if n < keys && n != 1 => c.section(mask, rank - 1, 0, keys, hidden)?,
            _ => mask,
        };
        rule.biases.push(if boolean { mask_bias(c, mask, f32::NEG_INFINITY)? } else { mask });
    }
    if !plain {
        let seen = visible(c, (queries, keys, past), last, causal, window)?;
        rule.biases.push(mask_bias(c, seen, f32::NEG_INFINITY)?);
    }
    let found = attended(c, q, k, v, &rule)?;
    let mode = c.int("qk_matmul_output_mode", 0);
    let stage = usize::try_from(mode).ok().and_then(|m| found.stages.get(m));
    let stage = *stage.ok_or_else(|| format!("qk_matmul_output_mode {mode} is not known"))?;
    let y = if flat { join_heads(c, found.y)? } else { found.y };
    Ok(vec![y, k, v, stage])
}

/// Rotates `(B, S, N · D)` or `(B, N, S, D)`.
fn rotary(c: &mut Context, caches: [Value; 2], positions: Option<Value>) -> Lowered {
    let x = c.x(0)?;
    let flat = c.shape(x).len() == 3;
    let half = c.shape(caches[0]).last().copied().unwrap_or(0);
    let width = c.shape(x).last().copied().unwrap_or(0);
    let heads = match c.int("num_heads", 0) {
        0 => width / (2 * half).max(1),
        n => n as usize,
    };
    let apart = split_heads(c, x, heads)?;
    let length = c.shape(apart)[2];
    // One position is where the first token stands.
    let (positions, start) = match positions {
        Some(at) if c.shape(at).elements() == 1 && length != 1 => {
            let first = c.b.constant_of(at).and_then(|t| t.as_i32().map(|x| x[0]));
            (None, first.ok_or("the first position must be known while compiling")?.max(0) as usize)
        }
        other => (other, 0),
    };
    let [cos, sin] = angles(c, caches, positions, start, length)?;
    let y = rotate(c, apart, cos, sin, c.int("interleaved", 0) != 0)?;
    Ok(vec![if flat { join_heads(c, y)? } else { y }])
}

/// ONNX Runtime's RotaryEmbedding: input, positions, cosines, sines.
pub fn rotary_embedding_ms(c: &mut Context) -> Lowered {
    if c.int("is_packed_batching", 0) != 0 || c.float("scale", 1.0) != 1.0 {
        return Err("packed batches and a scale are not supported".into());
    }
    let caches = [c.x(2)?, c.x(3)?];
    rotary(c, caches, Some(c.x(1)?))
}

/// The standard's RotaryEmbedding (operator set 23): input, cosines, sines, positions.
pub fn rotary_embedding(c: &mut Context) -> Lowered {
    let caches = [c.x(1)?, c.x(2)?];
    rotary(c, caches, c.opt(3))
}
