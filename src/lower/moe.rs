//! ONNX Runtime's mixture of experts. Every expert sees every token; those that a token is not sent to weigh nothing.

use super::{Context, Reason};
use crate::ir::{Attr, Attrs, DType, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// `(E, rows, C)` through weights `(E, O, C)` with biases `(E, O)`.
fn linear(c: &mut Context, x: Value, w: Value, bias: Option<Value>) -> Result<Value, Reason> {
    let y = c.b.matmul(x, w, false, true)?;
    let Some(bias) = bias else { return Ok(y) };
    let [experts, n] = c.shape(bias)[..] else { return Err("biases must have two axes".into()) };
    let bias = c.b.reshape(bias, [experts, 1, n])?;
    Ok(c.b.add(y, bias)?)
}

/// The same of tokens `(rows, C)` that all experts see, as one product.
fn linear_of_all(c: &mut Context, x: Value, w: Value, bias: Option<Value>) -> Result<Value, Reason> {
    let ([experts, n, width], [rows, _]) = (&c.shape(w)[..], &c.shape(x)[..]) else {
        return Err("weights must have three axes".into());
    };
    let (experts, n, width, rows) = (*experts, *n, *width, *rows);
    let flat = c.b.reshape(w, [experts * n, width])?;
    let mut y = c.b.matmul(x, flat, false, true)?;
    if let Some(bias) = bias {
        let bias = c.b.reshape(bias, [experts * n])?;
        y = c.b.add(y, bias)?;
    }
    let apart = c.b.reshape(y, [rows, experts, n])?;
    Ok(c.b.transpose(apart, &[1, 0, 2])?)
}

/// `gate σ(alpha gate) (value + beta)`, both clamped if there is a limit.
fn swi_glu(c: &mut Context, mut gate: Value, mut value: Value) -> Result<Value, Reason> {
    if let Some(limit) = c.node.attr_float("swiglu_limit") {
        let (low, high) = (c.b.scalar(-f64::from(limit)), c.b.scalar(f64::from(limit)));
        gate = c.b.binary("min", gate, high)?;
        value = c.b.binary("max", value, low)?;
        value = c.b.binary("min", value, high)?;
    }
    let scaled = c.b.scale(gate, c.float("activation_alpha", 1.0) as f64)?;
    let open = c.b.unary("sigmoid", scaled)?;
    let (gated, beta) = (c.b.mul(gate, open)?, c.b.scalar(c.float("activation_beta", 0.0) as f64));
    let raised = c.b.add(value, beta)?;
    Ok(c.b.mul(gated, raised)?)
}

/// Two halves of the last axis of `(E, rows, 2 n)`: every other element, or one after the other.
fn halves(c: &mut Context, x: Value, interleaved: bool) -> Result<(Value, Value), Reason> {
    let n = c.shape(x)[2] / 2;
    Ok(match interleaved {
        true => (c.b.slice(x, 2, 0, n, 2)?, c.b.slice(x, 2, 1, n, 2)?),
        false => (c.b.slice(x, 2, 0, n, 1)?, c.b.slice(x, 2, n, n, 1)?),
    })
}

/// The weight of each expert for each token, `(rows, E)`: its share of a softmax if it is among the k largest, else 0.
fn weights(c: &mut Context, logits: Value, k: usize) -> Result<Value, Reason> {
    let [rows, experts] = c.shape(logits)[..] else { return Err("router_probs must have two axes".into()) };
    let shares = c.b.unary("softmax", logits)?;
    let apart = c.b.reshape(shares, [rows, experts, 1])?;
    let order = c.b.emit("argsort", &[apart], Attrs::new().with("ascending", Attr::Bool(false)))?;
    let first = c.b.slice(order, 1, 0, k, 1)?;
    let all = c.integers([1, 1, experts], (0..experts as i32).collect());
    let hit = c.b.binary("equal", first, all)?;
    let hit = c.b.cast(hit, DType::F32)?;
    let taken = c.b.reduce_sum(hit, &[1], false)?;
    let kept = c.b.mul(shares, taken)?;
    if c.int("normalize_routing_weights", 0) == 0 {
        return Ok(kept);
    }
    let sum = c.b.reduce_sum(kept, &[1], true)?;
    Ok(c.b.div(kept, sum)?)
}

/// Tokens `(.., C)` with logits `(rows, E)` for each expert.
pub fn mixture(c: &mut Context) -> Lowered {
    let (x, logits) = (c.x(0)?, c.x(1)?);
    let shape = c.shape(x);
    let flat = c.rows(x)?;
    let [rows, _] = c.shape(flat)[..] else { return Err("takes tokens".into()) };
    let experts = c.shape(logits).last().copied().unwrap_or(0);
    let k = c.int("k", 1).max(0) as usize;
    if k == 0 || k > experts || c.shape(logits)[..] != [rows, experts] {
        return Err(format!("{k} of the experts in {} for {rows} tokens", c.shape(logits)).into());
    }
    let share = weights(c, logits, k)?;
    let (first, bias) = (c.x(2)?, c.opt(3));
    let inner = linear_of_all(c, flat, first, bias)?;
    let activation = c.text("activation_type", "relu");
    let inner = match (activation.as_str(), c.int("swiglu_fusion", 0)) {
        ("relu", 0) => {
            let zero = c.b.scalar(0.0);
            c.b.binary("max", inner, zero)?
        }
        ("gelu", 0) => c.b.unary("gelu_tanh", inner)?,
        ("silu", 0) => {
            let gate = c.b.unary("sigmoid", inner)?;
            c.b.mul(inner, gate)?
        }
        ("identity", 0) => inner,
        ("swiglu", 0) => {
            let (third, bias) = (c.x(6)?, c.opt(7));
            let value = linear_of_all(c, flat, third, bias)?;
            swi_glu(c, inner, value)?
        }
        ("swiglu", fusion @ (1 | 2)) => {
            let (gate, value) = halves(c, inner, fusion == 1)?;
            swi_glu(c, gate, value)?
        }
        (other, fusion) => {
            return Err(format!("activation '{other}' with swiglu_fusion {fusion} is not supported").into());
        }
    };
    let (second, bias) = (c.x(4)?, c.opt(5));
    let y = linear(c, inner, second, bias)?;
    let share = c.b.transpose(share, &[1, 0])?;
    let share = c.b.reshape(share, [experts, rows, 1])?;
    let y = c.b.mul(y, share)?;
    let y = c.b.reduce_sum(y, &[0], false)?;
    Ok(vec![c.b.reshape(y, shape)?])
}
