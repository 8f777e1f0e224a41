//! RNN, GRU and LSTM, step by step. All steps' products with the input are one matmul.

use super::functions::activation;
use super::{Context, Reason};
use crate::ir::{DType, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// The most steps of a sequence: each becomes nodes of its own.
const MAX_STEPS: usize = 2_000;

/// An activation with its two numbers.
struct Function {
    name: String,
    alpha: Option<f32>,
    beta: Option<f32>,
}

impl Function {
    fn of(&self, c: &mut Context, x: Value) -> Result<Value, Reason> {
        activation(c, &self.name, x, self.alpha, self.beta)
    }
}

/// The activations of every direction: `count` each. Those that take numbers take them in turn from the node's lists.
fn functions(c: &Context, defaults: &[&str], directions: usize) -> Result<Vec<Vec<Function>>, Reason> {
    let names = c.node.attr_strings("activations").unwrap_or_default();
    let all: Vec<String> = match names.len() {
        0 => (0..directions).flat_map(|_| defaults.iter().map(|s| s.to_string())).collect(),
        n if n == defaults.len() * directions => names,
        n => return Err(format!("{n} activations for {directions} directions").into()),
    };
    let list = |name: &str| c.node.attr_floats(name).map(<[f32]>::to_vec).unwrap_or_default();
    let (mut alphas, mut betas) = (list("activation_alpha").into_iter(), list("activation_beta").into_iter());
    let takes = |name: &str| match name.to_ascii_lowercase().as_str() {
        "affine" | "scaledtanh" | "hardsigmoid" => (true, true),
        "leakyrelu" | "thresholdedrelu" | "elu" => (true, false),
        _ => (false, false),
    };
    let mut made = all.into_iter().map(|name| {
        let (alpha, beta) = takes(&name);
        Function { alpha: if alpha { alphas.next() } else { None }, beta: if beta { betas.next() } else { None }, name }
    });
    Ok((0..directions).map(|_| made.by_ref().take(defaults.len()).collect()).collect())
}

/// What one direction of a layer is computed with. Weights are `(gates · H, ..)`.
struct Cell {
    hidden: usize,
    /// Products of the inputs with W, and biases: `(T, B, gates · H)`.
    projected: Value,
    r: Value,
    /// The recurrent half of the bias, where it is not added to the other: `(gates · H)`.
    rb: Option<Value>,
    peepholes: Option<Value>,
    functions: Vec<Function>,
    clip: Option<f32>,
}

impl Cell {
    fn clipped(&self, c: &mut Context, x: Value) -> Result<Value, Reason> {
        let Some(clip) = self.clip else { return Ok(x) };
        let (low, high) = (c.b.scalar(-f64::from(clip)), c.b.scalar(f64::from(clip)));
        let x = c.b.binary("max", x, low)?;
        Ok(c.b.binary("min", x, high)?)
    }

    /// An activation of a clipped sum.
    fn gate(&self, c: &mut Context, function: usize, x: Value) -> Result<Value, Reason> {
        let x = self.clipped(c, x)?;
        self.functions[function].of(c, x)
    }

    fn part(&self, c: &mut Context, x: Value, gate: usize) -> Result<Value, Reason> {
        let axis = c.shape(x).len() - 1;
        Ok(c.b.slice(x, axis, gate * self.hidden, self.hidden, 1)?)
    }
}

/// One step: the step's projected input `(B, gates · H)` and the states `(B, H)` to the next states, the output first.
type Step = fn(&mut Context, &Cell, Value, &[Value]) -> Result<Vec<Value>, Reason>;

fn rnn_step(c: &mut Context, cell: &Cell, x: Value, states: &[Value]) -> Result<Vec<Value>, Reason> {
    let own = c.b.matmul(states[0], cell.r, false, true)?;
    let sum = c.b.add(x, own)?;
    Ok(vec![cell.gate(c, 0, sum)?])
}

fn gru_step(c: &mut Context, cell: &Cell, x: Value, states: &[Value]) -> Result<Vec<Value>, Reason> {
    let (h, n) = (states[0], cell.hidden);
    let linear = c.int("linear_before_reset", 0) != 0;
    let gates = c.b.slice(cell.r, 0, 0, 2 * n, 1)?;
    let own = c.b.matmul(h, gates, false, true)?;
    let from = c.b.slice(x, 1, 0, 2 * n, 1)?;
    let sum = c.b.add(from, own)?;
    let sum = cell.gate(c, 0, sum)?;
    let (z, r) = (cell.part(c, sum, 0)?, cell.part(c, sum, 1)?);
    let weights = c.b.slice(cell.r, 0, 2 * n, n, 1)?;
    let from = cell.part(c, x, 2)?;
    let own = if linear {
        let mut own = c.b.matmul(h, weights, false, true)?;
        if let Some(bias) = cell.rb {
            own = c.b.add(own, bias)?;
        }
        c.b.mul(r, own)?
    } else {
        let reset = c.b.mul(r, h)?;
        let own = c.b.matmul(reset, weights, false, true)?;
        match cell.rb {
            Some(bias) => c.b.add(own, bias)?,
            None => own,
        }
    };
    let sum = c.b.add(from, own)?;
    let new = cell.gate(c, 1, sum)?;
    // (1 - z) ∘ new + z ∘ h
    let change = c.b.sub(h, new)?;
    let change = c.b.mul(z, change)?;
    Ok(vec![c.b.add(new, change)?])
}

fn lstm_step(c: &mut Context, cell: &Cell, x: Value, states: &[Value]) -> Result<Vec<Value>, Reason> {
    let (h, memory) = (states[0], states[1]);
    let own = c.b.matmul(h, cell.r, false, true)?;
    let sum = c.b.add(x, own)?;
    let [i, o, f, g] = [cell.part(c, sum, 0)?, cell.part(c, sum, 1)?, cell.part(c, sum, 2)?, cell.part(c, sum, 3)?];
    // Peepholes see the memory: that before the step, but for the output gate.
    let peep = |c: &mut Context, gate: Value, which: usize, memory: Value| -> Result<Value, Reason> {
        let Some(p) = cell.peepholes else { return Ok(gate) };
        let own = cell.part(c, p, which)?;
        let own = c.b.mul(own, memory)?;
        Ok(c.b.add(gate, own)?)
    };
    let i = peep(c, i, 0, memory)?;
    let i = cell.gate(c, 0, i)?;
    let f = if c.int("input_forget", 0) != 0 {
        let one = c.b.scalar(1.0);
        c.b.sub(one, i)?
    } else {
        let f = peep(c, f, 2, memory)?;
        cell.gate(c, 0, f)?
    };
    let g = cell.gate(c, 1, g)?;
    let (kept, new) = (c.b.mul(f, memory)?, c.b.mul(i, g)?);
    let memory = c.b.add(kept, new)?;
    let o = peep(c, o, 1, memory)?;
    let o = cell.gate(c, 0, o)?;
    let shown = cell.functions[2].of(c, memory)?;
    Ok(vec![c.b.mul(o, shown)?, memory])
}

/// Which kind of layer: gates, states, activations.
struct Kind {
    gates: usize,
    states: usize,
    functions: &'static [&'static str],
    step: Step,
}

pub fn rnn(c: &mut Context) -> Lowered {
    layer(c, &Kind { gates: 1, states: 1, functions: &["Tanh"], step: rnn_step })
}

pub fn gru(c: &mut Context) -> Lowered {
    layer(c, &Kind { gates: 3, states: 1, functions: &["Sigmoid", "Tanh"], step: gru_step })
}

pub fn lstm(c: &mut Context) -> Lowered {
    layer(c, &Kind { gates: 4, states: 2, functions: &["Sigmoid", "Tanh", "Tanh"], step: lstm_step })
}

/// `(T, B, I)`, or `(B, T, I)` under layout 1, to every step's output and the last states.
fn layer(c: &mut Context, kind: &Kind) -> Lowered {
    let (mut x, w, r) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let batch_first = c.int("layout", 0) != 0;
    if batch_first {
        x = c.b.transpose(x, &[1, 0, 2])?;
    }
    let ([steps, batch, width], [directions, wide, hidden]) = (&c.shape(x)[..], &c.shape(r)[..]) else {
        return Err(format!("an input {} with recurrent weights {}", c.shape(x), c.shape(r)).into());
    };
    let (steps, batch, width, directions, hidden) = (*steps, *batch, *width, *directions, *hidden);
    if *wide != kind.gates * hidden || c.shape(w)[..] != [directions, kind.gates * hidden, width] {
        return Err(format!("weights {} and {} for {} gates", c.shape(w), c.shape(r), kind.gates).into());
    }
    if c.int("hidden_size", hidden as i64) != hidden as i64 {
        return Err(format!("hidden_size {} with recurrent weights {}", c.int("hidden_size", 0), c.shape(r)).into());
    }
    let backwards: Vec<bool> = match c.text("direction", "forward").as_str() {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => return Err(format!("direction '{other}' is not known").into()),
    };
    if backwards.len() != directions {
        return Err(format!("weights of {directions} directions for {}", backwards.len()).into());
    }
    if steps > MAX_STEPS {
        return Err(format!(
            "a sequence of {steps} steps, each of which becomes nodes of its own; up to {MAX_STEPS} are supported\n\
             hint: cut the data into shorter sequences"
        )
        .into());
    }
    let mut functions = functions(c, kind.functions, directions)?.into_iter();
    let clip = c.node.attr_float("clip").filter(|x| *x > 0.0);
    let (bias, peepholes) = (c.opt(3), if kind.states == 2 { c.opt(7) } else { None });
    // Examples that have ended keep their states and give zeros.
    let lengths = match c.opt(4) {
        Some(lengths) => {
            let lengths = c.b.cast(lengths, DType::I32)?;
            let full =
                c.b.constant_of(lengths)
                    .is_some_and(|t| t.as_i32().is_some_and(|x| x.iter().all(|&n| n as usize == steps)));
            if full { None } else { Some(c.b.reshape(lengths, [batch, 1])?) }
        }
        None => None,
    };
    let (mut outputs, mut finals) = (Vec::new(), vec![Vec::new(); kind.states]);
    for (d, &backward) in backwards.iter().enumerate() {
        let own = |c: &mut Context, v: Value| -> Result<Value, Reason> {
            let one = c.b.slice(v, 0, d, 1, 1)?;
            let shape = c.shape(one);
            Ok(c.b.reshape(one, &shape[1..])?)
        };
        let (w, r) = (own(c, w)?, own(c, r)?);
        let flat = c.b.reshape(x, [steps * batch, width])?;
        let mut projected = c.b.matmul(flat, w, false, true)?;
        let gates = kind.gates * hidden;
        let mut rb = None;
        if let Some(bias) = bias {
            let both = own(c, bias)?;
            let (mut wb, own) = (c.b.slice(both, 0, 0, gates, 1)?, c.b.slice(both, 0, gates, gates, 1)?);
            if kind.gates == 3 {
                // The candidate's recurrent bias may stand inside the reset.
                let first = c.b.slice(own, 0, 0, 2 * hidden, 1)?;
                let first = c.b.unslice(first, 0, 0, gates, 1)?;
                wb = c.b.add(wb, first)?;
                rb = Some(c.b.slice(own, 0, 2 * hidden, hidden, 1)?);
            } else {
                wb = c.b.add(wb, own)?;
            }
            projected = c.b.add(projected, wb)?;
        }
        let projected = c.b.reshape(projected, [steps, batch, gates])?;
        let peepholes = match peepholes {
            Some(p) => Some(own(c, p)?),
            None => None,
        };
        let functions = functions.next().ok_or("activations of every direction")?;
        let cell = Cell { hidden, projected, r, rb, peepholes, functions, clip };
        let mut states = Vec::new();
        for s in 0..kind.states {
            states.push(match c.opt(5 + s) {
                Some(given) => {
                    let given = if batch_first { c.b.transpose(given, &[1, 0, 2])? } else { given };
                    own(c, given)?
                }
                None => c.floats([batch, hidden], vec![0.0; batch * hidden]),
            });
        }
        let mut shown: Vec<Value> = Vec::with_capacity(steps);
        let zeros = c.floats([batch, hidden], vec![0.0; batch * hidden]);
        for step in 0..steps {
            let t = if backward { steps - 1 - step } else { step };
            let at = c.b.slice(cell.projected, 0, t, 1, 1)?;
            let at = c.b.reshape(at, [batch, gates])?;
            let mut next = (kind.step)(c, &cell, at, &states)?;
            let mut output = next[0];
            if let Some(lengths) = lengths {
                let now = c.integers([], vec![t as i32]);
                let live = c.b.binary("less", now, lengths)?;
                output = c.b.select(live, output, zeros)?;
                for (new, old) in next.iter_mut().zip(&states) {
                    *new = c.b.select(live, *new, *old)?;
                }
            }
            shown.push(c.b.reshape(output, [1, 1, batch, hidden])?);
            states = next;
        }
        if backward {
            shown.reverse();
        }
        outputs.push(match shown.is_empty() {
            true => c.floats([0, 1, batch, hidden], vec![]),
            false => c.b.concat(&shown, 0)?,
        });
        for (all, state) in finals.iter_mut().zip(&states) {
            all.push(c.b.reshape(*state, [1, batch, hidden])?);
        }
    }
    let mut y = c.b.concat(&outputs, 1)?;
    if batch_first {
        y = c.b.transpose(y, &[2, 0, 1, 3])?;
    }
    let mut out = vec![y];
    for all in finals {
        let last = c.b.concat(&all, 0)?;
        out.push(if batch_first { c.b.transpose(last, &[1, 0, 2])? } else { last });
    }
    Ok(out)
}
