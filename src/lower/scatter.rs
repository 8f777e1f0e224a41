//! Scatters: updates written into a tensor, or combined with what is there.

use super::layout::{element_places, row_places};
use super::{Context, Reason};
use crate::ir::{Attr, Attrs, DType, Value};

type Lowered = Result<Vec<Value>, Reason>;

/// How updates change the row that they are for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combine {
    /// They take its place. Of several, the last does if indices are known while compiling; else indices must differ, as the standard
    /// asks.
    Last,
    Add,
    Mul,
    Max,
    Min,
}

/// The most updates of one row that are multiplied or compared.
const MAX_ROUNDS: usize = 256;

impl Combine {
    fn of(c: &Context) -> Result<Combine, Reason> {
        Ok(match c.text("reduction", "none").as_str() {
            "none" => Combine::Last,
            "add" => Combine::Add,
            "mul" => Combine::Mul,
            "max" => Combine::Max,
            "min" => Combine::Min,
            other => return Err(format!("reduction '{other}' is not known").into()),
        })
    }

    fn primitive(self) -> &'static str {
        match self {
            Combine::Last | Combine::Add => "add",
            Combine::Mul => "mul",
            Combine::Max => "max",
            Combine::Min => "min",
        }
    }

    /// The number that leaves every other as it is.
    fn neutral(self, float: bool) -> f64 {
        match (self, float) {
            (Combine::Last | Combine::Add, _) => 0.0,
            (Combine::Mul, _) => 1.0,
            (Combine::Max, true) => f64::NEG_INFINITY,
            (Combine::Min, true) => f64::INFINITY,
            (Combine::Max, false) => f64::from(i32::MIN),
            (Combine::Min, false) => f64::from(i32::MAX),
        }
    }
}

/// `x` `(rows, width)` with `updates` `(K, width)` in the rows that `places` `(K)` name.
pub fn scatter(c: &mut Context, x: Value, places: Value, updates: Value, how: Combine) -> Result<Value, Reason> {
    let ([rows, width], [count, _]) = (&c.shape(x)[..], &c.shape(updates)[..]) else {
        return Err("a scatter takes rows".into());
    };
    let (rows, width, count) = (*rows, *width, *count);
    if count == 0 || rows == 0 {
        return Ok(x);
    }
    let float = c.ty(x).is_float();
    let known = c.b.constant_of(places).and_then(|t| t.as_i32().map(<[i32]>::to_vec));
    let add = |c: &mut Context, updates: Value| {
        let attrs = [("axis", 0), ("size", rows as i64), ("index_rank", 1)];
        let attrs = attrs.into_iter().fold(Attrs::new(), |a, (name, v)| a.with(name, Attr::Int(v)));
        c.b.emit("scatter_add", &[updates, places], attrs)
    };
    match (how, known) {
        (Combine::Last, Some(places)) => {
            let mut from: Vec<i32> = (0..rows as i32).collect();
            for (k, &row) in places.iter().enumerate() {
                from[row as usize] = (rows + k) as i32;
            }
            let all = c.b.concat(&[x, updates], 0)?;
            let from = c.integers([rows], from);
            Ok(c.b.gather(all, from, 0)?)
        }
        (Combine::Add, _) if float => {
            let sums = add(c, updates)?;
            Ok(c.b.add(x, sums)?)
        }
        (Combine::Last, None) if float => {
            let ones = c.floats([count, 1], vec![1.0; count]);
            let (hits, sums, zero) = (add(c, ones)?, add(c, updates)?, c.b.scalar(0.0));
            let hit = c.b.binary("less", zero, hits)?;
            Ok(c.b.select(hit, sums, x)?)
        }
        (_, Some(places)) => {
            let mut updates_of: Vec<Vec<usize>> = vec![vec![]; rows];
            places.iter().enumerate().for_each(|(k, &row)| updates_of[row as usize].push(k));
            let rounds = updates_of.iter().map(Vec::len).max().unwrap_or(0);
            if rounds > MAX_ROUNDS {
                return Err(format!("{rounds} updates of one row; up to {MAX_ROUNDS} are supported").into());
            }
            let neutral = c.filled(x, [1, width], how.neutral(float));
            let all = c.b.concat(&[updates, neutral], 0)?;
            let mut y = x;
            for round in 0..rounds {
                let from = updates_of.iter().map(|own| own.get(round).copied().unwrap_or(count) as i32).collect();
                let from = c.integers([rows], from);
                let own = c.b.gather(all, from, 0)?;
                y = c.b.binary(how.primitive(), y, own)?;
            }
            Ok(y)
        }
        (_, None) => Err(
            "its indices depend on the data: they must be known while compiling for integers, and for the reductions \
                          mul, max and min"
                .into(),
        ),
    }
}

/// Updates of single elements, along one axis.
pub fn scatter_elements(c: &mut Context) -> Lowered {
    let how = Combine::of(c)?;
    let (x, index, updates) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let shape = c.shape(x);
    let axis = c.axis(c.int("axis", 0), shape.len())?;
    let count = c.shape(index).elements();
    if count == 0 {
        return Ok(vec![x]);
    }
    let places = element_places(c, index, &shape, axis)?;
    let places = c.b.reshape(places, [count])?;
    let (flat, updates) = (c.b.reshape(x, [shape.elements(), 1])?, c.b.reshape(updates, [count, 1])?);
    let y = scatter(c, flat, places, updates, how)?;
    Ok(vec![c.b.reshape(y, shape)?])
}

/// Updates of whole slices, named by tuples of indices.
pub fn scatter_nd(c: &mut Context) -> Lowered {
    let how = Combine::of(c)?;
    let (x, index, updates) = (c.x(0)?, c.x(1)?, c.x(2)?);
    let (shape, at) = (c.shape(x), c.shape(index));
    let depth = at.last().copied().filter(|&d| d >= 1 && d <= shape.len()).ok_or("indices do not fit")?;
    let (rows, width): (usize, usize) = (shape[..depth].iter().product(), shape[depth..].iter().product());
    let count = at.elements() / depth;
    if count == 0 {
        return Ok(vec![x]);
    }
    let places = row_places(c, index, &shape, 0)?;
    let (flat, updates) = (c.b.reshape(x, [rows, width])?, c.b.reshape(updates, [count, width])?);
    let y = scatter(c, flat, places, updates, how)?;
    Ok(vec![c.b.reshape(y, shape)?])
}

/// A cache with new positions written into it, from an index of each example on.
pub fn tensor_scatter(c: &mut Context) -> Lowered {
    let (cache, update) = (c.x(0)?, c.x(1)?);
    let (shape, new) = (c.shape(cache), c.shape(update));
    let axis = c.axis(c.int("axis", -2), shape.len())?;
    let circular = match c.text("mode", "linear").as_str() {
        "linear" => false,
        "circular" => true,
        other => return Err(format!("mode '{other}' is not known").into()),
    };
    let (batch, length, many) = (shape[0], shape[axis], new[axis]);
    let middle: usize = shape[1..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    if axis == 0 || (0..shape.len()).any(|d| d != axis && shape[d] != new[d]) {
        return Err(format!("updates {new} of a cache {shape} along axis {axis}").into());
    }
    let starts = match c.opt(2) {
        Some(starts) => c.b.reshape(starts, [batch, 1, 1])?,
        None => c.integers([1, 1, 1], vec![0]),
    };
    let steps = c.integers([1, 1, many], (0..many as i32).collect());
    let mut at = c.b.add(starts, steps)?;
    if circular {
        let n = c.integers([], vec![length as i32]);
        at = c.b.binary("modulo", at, n)?;
    } else {
        at = super::layout::named_row(c, at, length)?;
    }
    let base = (0..batch * middle).map(|i| (i * length) as i32).collect();
    let base = c.integers([batch, middle, 1], base);
    let places = c.b.add(at, base)?;
    let places = c.b.reshape(places, [batch * middle * many])?;
    let flat = c.b.reshape(cache, [batch * middle * length, inner])?;
    let updates = c.b.reshape(update, [batch * middle * many, inner])?;
    let y = scatter(c, flat, places, updates, Combine::Last)?;
    Ok(vec![c.b.reshape(y, shape)?])
}

/// The first elements of each sequence in reverse order, as many as its length says.
pub fn reverse_sequence(c: &mut Context) -> Lowered {
    let (x, lengths) = (c.x(0)?, c.x(1)?);
    let shape = c.shape(x);
    let (batch_axis, time_axis) = (c.int("batch_axis", 1), c.int("time_axis", 0));
    let (batch, time) = match (batch_axis, time_axis) {
        (1, 0) if shape.len() > 1 => (shape[1], shape[0]),
        (0, 1) if shape.len() > 1 => (shape[0], shape[1]),
        _ => return Err(format!("batch_axis {batch_axis} and time_axis {time_axis} must be 0 and 1").into()),
    };
    // Position t of (time, batch) or (batch, time) comes from length - 1 - t while t is less than the length.
    let time_first = time_axis == 0;
    let wide = |v: [usize; 2]| if time_first { v } else { [v[1], v[0]] };
    let steps = c.integers(wide([time, 1]), (0..time as i32).collect());
    let lengths = c.b.cast(lengths, DType::I32)?;
    let lengths = c.b.reshape(lengths, wide([1, batch]))?;
    let one = c.integers([], vec![1]);
    let last = c.b.sub(lengths, one)?;
    let mirrored = c.b.sub(last, steps)?;
    let inside = c.b.binary("less", steps, lengths)?;
    let from = c.b.select(inside, mirrored, steps)?;
    let from = super::layout::named_row(c, from, time)?;
    let grid = c.integers(wide([1, batch]), (0..batch as i32).collect());
    let stride = c.integers([], vec![if time_first { batch } else { 1 } as i32]);
    let other = c.integers([], vec![if time_first { 1 } else { time } as i32]);
    let (along, across) = (c.b.mul(from, stride)?, c.b.mul(grid, other)?);
    let places = c.b.add(along, across)?;
    let places = c.b.reshape(places, [time * batch])?;
    let rows = c.b.reshape(x, [time * batch, shape[2..].iter().product()])?;
    let y = c.b.gather(rows, places, 0)?;
    Ok(vec![c.b.reshape(y, shape)?])
}
