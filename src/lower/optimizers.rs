//! The standard's optimisers as operators (ai.onnx.preview.training): one step of each tensor.

use super::{Context, Reason};
use crate::ir::{DType, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// The tensors of a step: the rate, whether steps came before, and `kinds` lists of equally many tensors.
struct Operands {
    rate: Value,
    step: Value,
    lists: Vec<Vec<Value>>,
}

fn operands(c: &mut Context, kinds: usize) -> Result<Operands, Reason> {
    let (rate, step) = (c.x(0)?, c.x(1)?);
    let scalar = |c: &mut Context, v: Value| -> Result<Value, Reason> {
        let v = c.b.reshape(v, [])?;
        Ok(c.b.cast(v, DType::F32)?)
    };
    let (rate, step) = (scalar(c, rate)?, scalar(c, step)?);
    let n = (c.inputs.len() - 2) / kinds;
    if c.inputs.len() != 2 + n * kinds || n == 0 {
        return Err(format!("{} inputs", c.inputs.len()).into());
    }
    let mut lists = Vec::new();
    for k in 0..kinds {
        lists.push((0..n).map(|i| c.x(2 + k * n + i)).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(Operands { rate, step, lists })
}

/// `g + norm_coefficient x`
fn regularised(c: &mut Context, x: Value, g: Value) -> Result<Value, Reason> {
    let decay = c.b.scale(x, c.float("norm_coefficient", 0.0) as f64)?;
    Ok(c.b.add(g, decay)?)
}

/// `a x + b y`
fn mixed(c: &mut Context, a: f64, x: Value, b: f64, y: Value) -> Result<Value, Reason> {
    let (x, y) = (c.b.scale(x, a)?, c.b.scale(y, b)?);
    Ok(c.b.add(x, y)?)
}

/// `g / (√h + epsilon)`
fn scaled(c: &mut Context, g: Value, h: Value) -> Result<Value, Reason> {
    let (root, epsilon) = (c.b.unary("sqrt", h)?, c.b.scalar(c.float("epsilon", 1e-6) as f64));
    let below = c.b.add(root, epsilon)?;
    Ok(c.b.div(g, below)?)
}

fn stepped(c: &mut Context, x: Value, rate: Value, change: Value) -> Result<Value, Reason> {
    let change = c.b.mul(rate, change)?;
    Ok(c.b.sub(x, change)?)
}

pub fn adagrad(c: &mut Context) -> Lowered {
    let o = operands(c, 3)?;
    let one = c.b.scalar(1.0);
    let slower = c.b.scale(o.step, c.float("decay_factor", 0.0) as f64)?;
    let slower = c.b.add(slower, one)?;
    let rate = c.b.div(o.rate, slower)?;
    let (mut xs, mut hs) = (Vec::new(), Vec::new());
    for i in 0..o.lists[0].len() {
        let (x, g, h) = (o.lists[0][i], o.lists[1][i], o.lists[2][i]);
        let g = regularised(c, x, g)?;
        let square = c.b.mul(g, g)?;
        let h = c.b.add(h, square)?;
        let change = scaled(c, g, h)?;
        xs.push(stepped(c, x, rate, change)?);
        hs.push(h);
    }
    Ok([xs, hs].concat())
}

pub fn adam(c: &mut Context) -> Lowered {
    let o = operands(c, 4)?;
    let (alpha, beta) = (c.float("alpha", 0.9) as f64, c.float("beta", 0.999) as f64);
    let (one, zero) = (c.b.scalar(1.0), c.b.scalar(0.0));
    // Bias is corrected from the first step on.
    let power = |c: &mut Context, base: f64| -> Result<Value, Reason> {
        let base = c.b.scalar(base);
        let raised = c.b.binary("pow", base, o.step)?;
        Ok(c.b.sub(one, raised)?)
    };
    let (first, second) = (power(c, alpha)?, power(c, beta)?);
    let second = c.b.unary("sqrt", second)?;
    let later = c.b.binary("less", zero, o.step)?;
    let first = c.b.select(later, first, one)?;
    let factor = c.b.div(second, first)?;
    let corrected = c.b.mul(o.rate, factor)?;
    let rate = c.b.select(later, corrected, o.rate)?;
    let shrink = 1.0 - c.float("norm_coefficient_post", 0.0) as f64;
    let mut out = [Vec::new(), Vec::new(), Vec::new()];
    for i in 0..o.lists[0].len() {
        let (x, g, v, h) = (o.lists[0][i], o.lists[1][i], o.lists[2][i], o.lists[3][i]);
        let g = regularised(c, x, g)?;
        let v = mixed(c, alpha, v, 1.0 - alpha, g)?;
        let square = c.b.mul(g, g)?;
        let h = mixed(c, beta, h, 1.0 - beta, square)?;
        let change = scaled(c, v, h)?;
        let x = stepped(c, x, rate, change)?;
        out[0].push(c.b.scale(x, shrink)?);
        out[1].push(v);
        out[2].push(h);
    }
    Ok(out.concat())
}

pub fn momentum(c: &mut Context) -> Lowered {
    let o = operands(c, 3)?;
    let (alpha, beta) = (c.float("alpha", 0.0) as f64, c.float("beta", 0.0) as f64);
    let nesterov = match c.text("mode", "standard").as_str() {
        "standard" => false,
        "nesterov" => true,
        other => return Err(format!("mode '{other}' is not known").into()),
    };
    let (zero, one, beta) = (c.b.scalar(0.0), c.b.scalar(1.0), c.b.scalar(beta));
    let later = c.b.binary("less", zero, o.step)?;
    let weight = c.b.select(later, beta, one)?;
    let (mut xs, mut vs) = (Vec::new(), Vec::new());
    for i in 0..o.lists[0].len() {
        let (x, g, v) = (o.lists[0][i], o.lists[1][i], o.lists[2][i]);
        let g = regularised(c, x, g)?;
        let (kept, own) = (c.b.scale(v, alpha)?, c.b.mul(g, weight)?);
        let v = c.b.add(kept, own)?;
        let change = if nesterov { mixed(c, 1.0, g, alpha, v)? } else { v };
        xs.push(stepped(c, x, o.rate, change)?);
        vs.push(v);
    }
    Ok([xs, vs].concat())
}
