//! Einsum, as sums, transpositions and matmuls of two operands at a time.

use super::{Context, Reason};
use crate::ir::Value;
use std::collections::BTreeMap;

type Lowered = Result<Vec<Value>, Reason>;

/// An axis: a letter, or one of the axes that an ellipsis stands for, counted from the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

/// A term's labels, its ellipsis standing for `hidden` axes.
fn labels(term: &str, hidden: usize) -> Result<Vec<Label>, Reason> {
    let mut out = Vec::new();
    let mut rest = term;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("...") {
            out.extend((0..hidden).rev().map(Label::Ellipsis));
            rest = after;
            continue;
        }
        if !first.is_alphabetic() {
            return Err(format!("'{first}' in the term '{term}' is no label").into());
        }
        out.push(Label::Letter(first));
        rest = &rest[first.len_utf8()..];
    }
    Ok(out)
}

/// An operand whose axes have labels, each once.
#[derive(Clone)]
struct Term {
    value: Value,
    labels: Vec<Label>,
}

impl Term {
    fn at(&self, label: Label) -> Option<usize> {
        self.labels.iter().position(|l| *l == label)
    }

    /// With labels that stand twice reduced to their diagonal.
    fn diagonal(mut self, c: &mut Context) -> Result<Term, Reason> {
        while let Some((first, second)) = (0..self.labels.len()).find_map(|i| {
            let j = (i + 1..self.labels.len()).find(|&j| self.labels[j] == self.labels[i])?;
            Some((i, j))
        }) {
            let rank = self.labels.len();
            let others: Vec<usize> = (0..rank).filter(|d| *d != first && *d != second).collect();
            let perm: Vec<usize> = [first, second].into_iter().chain(others.iter().copied()).collect();
            let turned = c.b.transpose(self.value, &perm)?;
            let shape = c.shape(turned);
            let n = shape[0];
            if shape[1] != n {
                return Err(format!("a label stands for {n} and for {}", shape[1]).into());
            }
            let flat = c.b.reshape(turned, [&[n * n], &shape[2..]].concat())?;
            let places = c.integers([n], (0..n).map(|i| (i * n + i) as i32).collect());
            let value = c.b.gather(flat, places, 0)?;
            let kept = [first].into_iter().chain(others).map(|d| self.labels[d]).collect();
            self = Term { value, labels: kept };
        }
        Ok(self)
    }

    /// Summed over labels that nothing else reads.
    fn summed(self, c: &mut Context, read: impl Fn(Label) -> bool) -> Result<Term, Reason> {
        let gone: Vec<usize> = (0..self.labels.len()).filter(|&d| !read(self.labels[d])).collect();
        let value = c.b.reduce_sum(self.value, &gone, false)?;
        Ok(Term { value, labels: self.labels.into_iter().filter(|&l| read(l)).collect() })
    }

    /// With its axes in the order of `to`, all of which it has.
    fn ordered(&self, c: &mut Context, to: &[Label]) -> Result<Value, Reason> {
        let perm: Option<Vec<usize>> = to.iter().map(|&l| self.at(l)).collect();
        Ok(c.b.transpose(self.value, &perm.ok_or("the result has a label that no operand has")?)?)
    }
}

/// The product of two terms, summed over the labels that `read` has no use for.
fn product(
    c: &mut Context,
    a: Term,
    b: Term,
    extents: &BTreeMap<Label, usize>,
    read: impl Fn(Label) -> bool,
) -> Result<Term, Reason> {
    let a = a.summed(c, |l| read(l) || b.at(l).is_some())?;
    let b = b.summed(c, |l| read(l) || a.at(l).is_some())?;
    let both =
        |keep: bool| a.labels.iter().copied().filter(|&l| b.at(l).is_some() && read(l) == keep).collect::<Vec<_>>();
    let (batch, inner) = (both(true), both(false));
    let left: Vec<Label> = a.labels.iter().copied().filter(|&l| b.at(l).is_none()).collect();
    let right: Vec<Label> = b.labels.iter().copied().filter(|&l| a.at(l).is_none()).collect();
    let size = |labels: &[Label]| labels.iter().map(|l| extents[l]).product::<usize>();
    let x = a.ordered(c, &[&batch[..], &left, &inner].concat())?;
    let y = b.ordered(c, &[&batch[..], &inner, &right].concat())?;
    let x = c.b.reshape(x, [size(&batch), size(&left), size(&inner)])?;
    let y = c.b.reshape(y, [size(&batch), size(&inner), size(&right)])?;
    let z = c.b.matmul(x, y, false, false)?;
    let labels = [batch, left, right].concat();
    let shape: Vec<usize> = labels.iter().map(|l| extents[l]).collect();
    Ok(Term { value: c.b.reshape(z, shape)?, labels })
}

pub fn einsum(c: &mut Context) -> Lowered {
    let equation: String = c.text("equation", "").chars().filter(|x| !x.is_whitespace()).collect();
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs.to_string(), Some(output.to_string())),
        None => (equation.clone(), None),
    };
    let texts: Vec<&str> = inputs.split(',').collect();
    if texts.len() != c.inputs.len() {
        return Err(format!("'{equation}' has {} terms for {} inputs", texts.len(), c.inputs.len()).into());
    }
    let (mut terms, mut hidden) = (Vec::new(), 0);
    for (i, text) in texts.iter().enumerate() {
        let value = c.x(i)?;
        let rank = c.shape(value).len();
        let named = text.chars().filter(|x| x.is_alphabetic()).count();
        let own = if text.contains("...") { rank.checked_sub(named) } else { (rank == named).then_some(0) };
        let own = own.ok_or_else(|| format!("the term '{text}' does not fit {}", c.ty(value)))?;
        hidden = hidden.max(own);
        terms.push(Term { value, labels: labels(text, own)? }.diagonal(c)?);
    }
    let all: Vec<Label> = terms.iter().flat_map(|t| t.labels.clone()).collect();
    let wanted = match output {
        Some(text) => labels(&text, hidden)?,
        // The axes of an ellipsis, then in order of the alphabet the letters that stand once.
        None => {
            let once = |l: &Label| inputs.chars().filter(|x| Label::Letter(*x) == *l).count() == 1;
            let mut letters: Vec<Label> =
                all.iter().copied().filter(|l| matches!(l, Label::Letter(_)) && once(l)).collect();
            letters.sort();
            (0..hidden).rev().map(Label::Ellipsis).chain(letters).collect()
        }
    };
    // Axes of extent 1 broadcast.
    let mut extents: BTreeMap<Label, usize> = BTreeMap::new();
    for t in &terms {
        for (d, &l) in t.labels.iter().enumerate() {
            let (n, known) = (c.shape(t.value)[d], extents.entry(l).or_insert(1));
            match *known {
                1 => *known = n,
                m if n == 1 || n == m => {}
                m => return Err(format!("a label of '{equation}' stands for {m} and for {n}").into()),
            }
        }
    }
    for t in &mut terms {
        let shape: Vec<usize> = t.labels.iter().map(|l| extents[l]).collect();
        t.value = c.b.broadcast(t.value, shape)?;
    }
    let mut terms = terms.into_iter();
    let mut result = terms.next().ok_or("no term")?;
    let mut rest: Vec<Term> = terms.collect();
    while !rest.is_empty() {
        let next = rest.remove(0);
        let read = |l: Label| wanted.contains(&l) || rest.iter().any(|t| t.at(l).is_some());
        result = product(c, result, next, &extents, read)?;
    }
    let result = result.summed(c, |l| wanted.contains(&l))?;
    Ok(vec![result.ordered(c, &wanted)?])
}
