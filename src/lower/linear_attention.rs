//! Layers of hybrid models: linear attention with a state, and causal convolutions with one.

use super::{Context, Reason};
use crate::ir::Value;

type Lowered = Result<Vec<Value>, Reason>;

/// The most steps of a sequence: each becomes nodes of its own.
const MAX_STEPS: usize = 2_000;

/// Position `t` of `(B, T, H · D)`, as `(B, H, rows, D)`.
fn position(c: &mut Context, x: Value, t: usize, heads: usize, rows: usize) -> Result<Value, Reason> {
    let [b, _, width] = c.shape(x)[..] else { return Err("takes operands of three axes".into()) };
    if !width.is_multiple_of(heads * rows) {
        return Err(format!("{} does not split into {heads} heads", c.shape(x)).into());
    }
    let one = c.b.slice(x, 1, t, 1, 1)?;
    Ok(c.b.reshape(one, [b, heads, rows, width / (heads * rows)])?)
}

/// `S ← exp(decay) S + k (beta (v - Sᵀ k))ᵀ`, `y = scale Sᵀ q`, step by step; without decay and without the correction by beta as the
/// update rule says. The state S is `(B, heads, D, E)`.
pub fn linear_attention(c: &mut Context) -> Lowered {
    let (q, k, v) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let (heads, shared) = (c.int("q_num_heads", 0).max(0) as usize, c.int("kv_num_heads", 0).max(0) as usize);
    let (gated, corrected) = match c.text("update_rule", "gated_delta").as_str() {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(format!("update_rule '{other}' is not known").into()),
    };
    // A hint for speed alone.
    c.int("chunk_size", 0);
    if shared == 0 || heads % shared != 0 {
        return Err(format!("{heads} heads of queries do not share {shared} heads of keys evenly").into());
    }
    let ([b, steps, wide], [_, _, value_width]) = (&c.shape(q)[..], &c.shape(v)[..]) else {
        return Err("takes operands of three axes".into());
    };
    let (b, steps, d, e) = (*b, *steps, wide / heads, value_width / shared);
    if steps > MAX_STEPS {
        return Err(format!(
            "a sequence of {steps} steps, each of which becomes nodes of its own; up to {MAX_STEPS} are supported\n\
             hint: cut the data into shorter sequences"
        )
        .into());
    }
    let scale = match c.float("scale", 0.0) {
        0.0 => 1.0 / (d as f64).sqrt(),
        given => given as f64,
    };
    let decay = if gated { Some(c.opt(4).ok_or("its update rule needs a decay")?) } else { None };
    let beta = if corrected { Some(c.opt(5).ok_or("its update rule needs beta")?) } else { None };
    let mut state = match c.opt(3) {
        Some(past) => past,
        None => c.floats([b, shared, d, e], vec![0.0; b * shared * d * e]),
    };
    let mut outputs = Vec::with_capacity(steps);
    for t in 0..steps {
        let (key, mut value) = (position(c, k, t, shared, 1)?, position(c, v, t, shared, 1)?);
        if let Some(decay) = decay {
            let width = c.shape(decay)[2] / shared;
            let g = position(c, decay, t, shared, 1)?;
            let g = c.b.reshape(g, [b, shared, width, 1])?;
            let g = c.b.unary("exp", g)?;
            state = c.b.mul(state, g)?;
        }
        if let Some(beta) = beta {
            let held = c.b.matmul(key, state, false, false)?;
            let off = c.b.sub(value, held)?;
            let own = c.b.slice(beta, 1, t, 1, 1)?;
            let width = c.shape(own)[2];
            let own = c.b.reshape(own, [b, width, 1, 1])?;
            value = c.b.mul(own, off)?;
        }
        let added = c.b.matmul(key, value, true, false)?;
        state = c.b.add(state, added)?;
        let query = position(c, q, t, shared, heads / shared)?;
        let read = c.b.matmul(query, state, false, false)?;
        let read = c.b.scale(read, scale)?;
        outputs.push(c.b.reshape(read, [b, 1, heads * e])?);
    }
    let y = match outputs.is_empty() {
        true => c.floats([b, 0, heads * e], vec![]),
        false => c.b.concat(&outputs, 1)?,
    };
    Ok(vec![y, state])
}

/// A convolution of each channel over the last positions, those before the first coming from a state: `(B, C, L)`.
pub fn causal_conv_with_state(c: &mut Context) -> Lowered {
    let (x, w) = (c.x(0)?, c.x(1)?);
    let ([b, channels, length], [_, 1, taps]) = (&c.shape(x)[..], &c.shape(w)[..]) else {
        return Err(format!("an input {} with kernels {}", c.shape(x), c.shape(w)).into());
    };
    let (b, channels, length, taps) = (*b, *channels, *length, *taps);
    let activation = c.text("activation", "none");
    let padded = match (c.opt(3), taps) {
        (_, 1) => x,
        (Some(past), _) => c.b.concat(&[past, x], 2)?,
        (None, _) => {
            let zeros = c.floats([b, channels, taps - 1], vec![0.0; b * channels * (taps - 1)]);
            c.b.concat(&[zeros, x], 2)?
        }
    };
    let mut sum: Option<Value> = None;
    for k in 0..taps {
        let seen = c.b.slice(padded, 2, k, length, 1)?;
        let weight = c.b.slice(w, 2, k, 1, 1)?;
        let weight = c.b.reshape(weight, [channels, 1])?;
        let own = c.b.mul(seen, weight)?;
        sum = Some(match sum {
            Some(sum) => c.b.add(sum, own)?,
            None => own,
        });
    }
    let mut y = sum.ok_or("a kernel of nothing")?;
    if let Some(bias) = c.opt(2) {
        let bias = c.b.reshape(bias, [channels, 1])?;
        y = c.b.add(y, bias)?;
    }
    let y = match activation.as_str() {
        "none" => y,
        "silu" | "swish" => {
            let gate = c.b.unary("sigmoid", y)?;
            c.b.mul(y, gate)?
        }
        other => return Err(format!("activation '{other}' is not known").into()),
    };
    let state = match taps {
        1 => c.floats([b, channels, 0], vec![]),
        _ => c.b.slice(padded, 2, length, taps - 1, 1)?,
    };
    Ok(vec![y, state])
}
