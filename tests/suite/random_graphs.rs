//! Random small programs with valid shapes: a list of draws becomes a graph, and a shorter list a smaller one, so that failures shrink.

use proptest::prelude::{Strategy, any};
use reslora_compile::internals::ir::{
    Attr, Attrs, BuildError, Builder, Graph, Sink, Tensor, Type, Value, Weight, outputs,
};
use reslora_compile::internals::ops::{Fill, RULES, draw};

/// One operation: which, and what picks its operands and attributes.
type Draw = (u8, [u16; 4]);

/// The most elements of a value.
const LARGEST: usize = 4096;

/// Programs of up to `n` operations on inputs, parameters, a frozen weight and constants, with a loss over every value that nothing
/// else reads, and some of those values as outputs.
pub fn graphs(n: usize) -> impl Strategy<Value = Graph> {
    let ops = proptest::collection::vec((0..KINDS, any::<[u16; 4]>()), 1..=n);
    ops.prop_map(|draws| built(&draws).expect("shapes are valid"))
}

fn built(draws: &[Draw]) -> Result<Graph, BuildError> {
    let mut b = Builder::new(RULES);
    let weight = draw(&Type::f32([8, 8]), Fill::Normal, 7);
    let mut values = vec![
        b.input("x", Type::f32([2, 4, 8])),
        b.input("rows", Type::f32([8, 8])),
        b.parameter("a", [8, 8]),
        b.parameter("bias", [8]),
        b.weight(Weight::new("w", 1, move || weight.clone()), Type::f32([8, 8])),
        b.constant(Tensor::f32([1], vec![0.5])),
    ];
    let leaves = values.len();
    for d in draws {
        if let Some(v) = operation(&mut b, &values, *d)? {
            values.push(v);
        }
    }
    let used: Vec<Value> = b.graph.nodes.iter().flat_map(|n| n.inputs.clone()).collect();
    let ends: Vec<Value> = values.split_off(leaves).into_iter().filter(|v| !used.contains(v)).collect();
    let mut loss = b.scalar(0.0);
    for (i, &v) in ends.iter().enumerate() {
        // A sum of a bounded function, so that large values do not hide small ones.
        let bounded = b.unary("tanh", v)?;
        let axes: Vec<usize> = (0..b.shape(v).len()).collect();
        let sum = b.reduce_sum(bounded, &axes, false)?;
        loss = b.add(loss, sum)?;
        if i % 2 == 0 {
            b.output(format!("y{i}"), v, Sink::Fetch);
        }
    }
    b.output(outputs::LOSS, loss, Sink::Fetch);
    Ok(b.graph)
}

const KINDS: u8 = 17;
const UNARY: &[&str] = &["exp", "tanh", "sigmoid", "neg", "sin", "silu", "gelu", "abs", "erf"];
const BINARY: &[&str] = &["add", "mul", "sub", "max", "min"];

/// The value of one draw; `None` where its operands do not fit. Chains of several operations are what passes look for.
fn operation(b: &mut Builder, values: &[Value], (kind, p): Draw) -> Result<Option<Value>, BuildError> {
    let pick = |i: usize| values[p[i] as usize % values.len()];
    let (x, y) = (pick(0), pick(1));
    let shape = b.shape(x).0.clone();
    let (rank, n) = (shape.len(), b.shape(x).elements());
    let axis = p[2] as usize % rank.max(1);
    Ok(match kind {
        0..=2 => {
            // Within (-1, 1), so that no exponential overflows.
            let x = b.unary("tanh", x)?;
            Some(b.unary(UNARY[p[2] as usize % UNARY.len()], x)?)
        }
        3..=5 => {
            let joint = reslora_compile::internals::ir::Shape::broadcast(&shape, b.shape(y))
                .filter(|s| s.elements() <= LARGEST);
            joint.map(|_| b.binary(BINARY[p[2] as usize % BINARY.len()], x, y)).transpose()?
        }
        6 | 7 => product(b, x, y, p)?,
        8 if rank > 0 => Some(b.reduce_sum(x, &[axis], p[3] % 2 == 0)?),
        9 => {
            let divisors: Vec<usize> = (1..=n).filter(|d| n.is_multiple_of(*d)).collect();
            let d = divisors[p[2] as usize % divisors.len()];
            Some(b.reshape(x, [d, n / d])?)
        }
        10 if rank > 1 => {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.swap(axis, p[3] as usize % rank);
            Some(b.transpose(x, &perm)?)
        }
        11 if n <= LARGEST / 2 => {
            let wide: Vec<usize> = [2].into_iter().chain(shape).collect();
            Some(b.broadcast(x, wide)?)
        }
        12 if rank > 0 => {
            let start = p[3] as usize % shape[axis];
            Some(b.slice(x, axis, start, 1 + p[1] as usize % (shape[axis] - start), 1)?)
        }
        13 if rank > 0 && 2 * n <= LARGEST => Some(b.concat(&[x, x], axis)?),
        14 if rank > 0 => {
            let rows = b.reshape(x, [n / shape[rank - 1], shape[rank - 1]])?;
            let soft = b.emit("softmax", &[rows], Attrs::new().with("safe", Attr::Bool(p[2] % 2 == 0)))?;
            Some(b.reshape(soft, shape)?)
        }
        15 => {
            // A gate, as x times its sigmoid, and a scale.
            let gate = b.unary("sigmoid", x)?;
            let gated = b.mul(gate, x)?;
            let half = b.scalar(0.5);
            Some(b.mul(gated, half)?)
        }
        16 => {
            // A linear node with a bias, and an adapter of rank 4 beside it.
            let (w, a) = (values[4], values[2]);
            let rows = b.shape(x).elements() / 8;
            if !n.is_multiple_of(8) {
                return Ok(None);
            }
            let x = b.reshape(x, [rows, 8])?;
            let (down, up) = (b.slice(a, 0, 0, 4, 1)?, b.slice(a, 1, 0, 4, 1)?);
            let base = b.matmul(x, w, false, p[2] % 2 == 0)?;
            let t = b.matmul(x, down, false, true)?;
            let term = b.matmul(t, up, false, true)?;
            let sum = b.add(base, term)?;
            Some(b.add(sum, values[3])?)
        }
        _ => None,
    })
}

/// A product of two matrices, whichever way they fit.
fn product(b: &mut Builder, x: Value, y: Value, p: [u16; 4]) -> Result<Option<Value>, BuildError> {
    let (&[m, k], &[r, c]) = (&b.shape(x).0[..], &b.shape(y).0[..]) else { return Ok(None) };
    for flags in (0..4).map(|i| (i + p[3]) % 4) {
        let (ta, tb) = (flags & 1 == 1, flags & 2 == 2);
        let (rows, inner) = if ta { (k, m) } else { (m, k) };
        let (other, columns) = if tb { (c, r) } else { (r, c) };
        if inner == other && rows * columns <= LARGEST {
            return b.matmul(x, y, ta, tb).map(Some);
        }
    }
    Ok(None)
}
