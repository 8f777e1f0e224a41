//! MatMul and Gemm.

use super::{Context, Reason};
use crate::ir::{Builder, Shape, Value};

type Lowered = Result<Vec<Value>, Reason>;

pub fn mat_mul(c: &mut Context) -> Lowered {
    let (a, b) = (c.x(0)?, c.x(1)?);
    Ok(vec![product(c.b, a, b)?])
}

/// NumPy's matmul: vectors gain an axis and lose it again, batch axes broadcast. A product with a matrix is one product
/// of all rows.
pub fn product(b: &mut Builder, x: Value, y: Value) -> Result<Value, Reason> {
    let (xs, ys) = (b.shape(x).clone(), b.shape(y).clone());
    if xs.is_empty() || ys.is_empty() {
        return Err("operands need axes".into());
    }
    if xs.len() == 1 || ys.len() == 1 {
        let wide_x = if xs.len() == 1 { b.reshape(x, [1, xs[0]])? } else { x };
        let wide_y = if ys.len() == 1 { b.reshape(y, [ys[0], 1])? } else { y };
        let z = product(b, wide_x, wide_y)?;
        let mut shape = b.shape(z).clone();
        let rank = shape.len();
        if ys.len() == 1 {
            shape.0.remove(rank - 1);
        }
        if xs.len() == 1 {
            shape.0.remove(rank - 2);
        }
        return Ok(b.reshape(z, shape)?);
    }
    let (m, k) = (xs[xs.len() - 2], xs[xs.len() - 1]);
    let n = ys[ys.len() - 1];
    if ys.len() == 2 {
        let rows = xs.elements() / k.max(1);
        let flat = b.reshape(x, [rows, k])?;
        let z = b.matmul(flat, y, false, false)?;
        let mut shape = xs.clone();
        let last = shape.len() - 1;
        shape.0[last] = n;
        return Ok(b.reshape(z, shape)?);
    }
    let lead = Shape::broadcast(&xs[..xs.len() - 2], &ys[..ys.len() - 2]);
    let lead = lead.ok_or_else(|| format!("batch axes of {xs} and {ys} do not broadcast"))?;
    let x = b.broadcast(x, [&lead[..], &[m, k]].concat())?;
    let y = b.broadcast(y, [&lead[..], &ys[ys.len() - 2..]].concat())?;
    Ok(b.matmul(x, y, false, false)?)
}

/// `alpha A' B' + beta C`
pub fn gemm(c: &mut Context) -> Lowered {
    let (a, b) = (c.x(0)?, c.x(1)?);
    let (ta, tb) = (c.int("transA", 0) != 0, c.int("transB", 0) != 0);
    let (alpha, beta) = (c.float("alpha", 1.0), c.float("beta", 1.0));
    let product = c.b.matmul(a, b, ta, tb)?;
    let mut y = c.b.scale(product, alpha as f64)?;
    if let Some(bias) = c.opt(2)
        && beta != 0.0
    {
        let bias = c.b.scale(bias, beta as f64)?;
        y = c.b.add(y, bias)?;
    }
    Ok(vec![y])
}
