//! Batches: dispatches of one kernel that do not depend on each other become one, which finds its operands through a table of offsets.
//!
//! A dispatch joins an earlier one if nothing in between touches what it writes, or writes what it reads; or the earlier one moves to
//! it. Ranges of memory decide, so results stay the same bit for bit.

use super::{Range, Wanted};
use crate::device::shader;
use crate::ops::{Binding, Dispatch, Shader, link};
use std::borrow::Cow;
use std::collections::HashMap;

/// How many dispatches back one looks for others of its kernel.
const WINDOW: usize = 96;

/// The most bytes of a table: a quarter of what every adapter binds as uniforms.
const TABLE_BYTES: usize = 16384;

/// What batches must keep to.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// The most bytes of one binding.
    pub binding: u64,
    /// The most workgroups along one axis.
    pub workgroups: u32,
}

/// One dispatch, or several of one kernel.
struct Batch {
    members: Vec<Wanted>,
    /// The kernel's number; `None` where it stays alone.
    kernel: Option<usize>,
    /// What it reads, and (true) what it writes.
    touches: Vec<(bool, Range)>,
}

impl Batch {
    fn new(wanted: Wanted, kernel: Option<usize>) -> Batch {
        let of = |(b, r): &(Binding, Range)| (!matches!(b, Binding::Input(_)), r.clone());
        Batch { touches: wanted.ranges.iter().map(of).collect(), members: vec![wanted], kernel }
    }

    fn append(&mut self, other: Batch) {
        self.members.extend(other.members);
        self.touches.extend(other.touches);
    }

    /// Whether the two must stay in order.
    fn conflicts(&self, other: &Batch) -> bool {
        self.touches.iter().any(|(w, x)| other.touches.iter().any(|(v, y)| (*w || *v) && x.overlaps(y)))
    }
}

/// The list with batches in it.
pub(super) fn batched(all: Vec<Wanted>, bounds: Bounds) -> Vec<Wanted> {
    let mut texts = Texts::default();
    let mut done: Vec<Batch> = Vec::new();
    for wanted in all {
        let kernel = texts.number(&wanted.dispatch);
        let mut one = Batch::new(wanted, kernel);
        if kernel.is_some() {
            match place(&done, &one, bounds) {
                Some(Join::Earlier(i)) => {
                    done[i].append(one);
                    continue;
                }
                Some(Join::Here(i)) => {
                    let mut earlier = done.remove(i);
                    earlier.append(one);
                    one = earlier;
                }
                None => {}
            }
        }
        done.push(one);
    }
    done.into_iter().map(|b| texts.merge(b)).collect()
}

/// Where a dispatch joins the batch of this number.
enum Join {
    Earlier(usize),
    Here(usize),
}

fn place(done: &[Batch], one: &Batch, bounds: Bounds) -> Option<Join> {
    let mut free = true;
    for (i, earlier) in done.iter().enumerate().rev().take(WINDOW) {
        let apart = !earlier.conflicts(one);
        if earlier.kernel == one.kernel && apart && fits(&earlier.members, &one.members, bounds) {
            if free {
                return Some(Join::Earlier(i));
            }
            if done[i + 1..].iter().all(|between| !earlier.conflicts(between)) {
                return Some(Join::Here(i));
            }
        }
        free &= apart;
    }
    None
}

/// Whether the bindings of some dispatches of one kernel can be one each.
fn fits(some: &[Wanted], more: &[Wanted], bounds: Bounds) -> bool {
    let first = &some[0];
    let job = 4 * (4 + first.ranges.len().next_multiple_of(4) + first.dispatch.params.len().next_multiple_of(4));
    if job * (some.len() + more.len()) > TABLE_BYTES {
        return false;
    }
    (0..first.ranges.len()).all(|i| {
        let mut hull = first.ranges[i].1.clone();
        some.iter().chain(more).all(|m| {
            let range = &m.ranges[i].1;
            hull = hull.with(range);
            range.buffer == hull.buffer && hull.size <= bounds.binding
        })
    }) && some.iter().chain(more).map(|m| groups(&m.dispatch) as u64).sum::<u64>() <= u64::from(bounds.workgroups)
}

fn groups(d: &Dispatch) -> usize {
    d.workgroups.iter().map(|&n| n as usize).product()
}

/// The kernels seen, and their sources for batches.
#[derive(Default)]
struct Texts {
    numbers: HashMap<Key, Option<usize>>,
    count: usize,
    many: HashMap<(Cow<'static, str>, usize), Cow<'static, str>>,
}

/// What dispatches of one batch have in common.
type Key = (Cow<'static, str>, Vec<(&'static str, u64)>, usize, Vec<bool>);

impl Texts {
    /// The kernel's number, if it can take batches.
    fn number(&mut self, d: &Dispatch) -> Option<usize> {
        let constants = d.constants.iter().map(|(n, x)| (*n, x.to_bits())).collect();
        let written = d.bindings.iter().map(|b| !matches!(b, Binding::Input(_))).collect();
        let key = (d.shader.source.clone(), constants, d.params.len(), written);
        let next = self.count;
        let can = |key: &Key| shader::batched(&link(&key.0), 2).is_some();
        let number = *self.numbers.entry(key).or_insert_with_key(|key| can(key).then_some(next));
        self.count += usize::from(number == Some(next));
        number
    }

    fn merge(&mut self, batch: Batch) -> Wanted {
        let mut members = batch.members;
        if members.len() == 1 {
            return members.swap_remove(0);
        }
        let first = members[0].clone();
        let hull = |i: usize| {
            let all = members.iter().map(|m| m.ranges[i].1.clone());
            all.reduce(|hull, r| hull.with(&r)).expect("a batch has members")
        };
        let ranges: Vec<(Binding, Range)> = (0..first.ranges.len()).map(|i| (first.ranges[i].0, hull(i))).collect();
        let text = &first.dispatch.shader.source;
        let source = self
            .many
            .entry((text.clone(), members.len()))
            .or_insert_with(|| shader::batched(&link(text), members.len()).expect("the kernel takes batches").into());
        let shader = Shader { name: first.dispatch.shader.name, source: source.clone() };
        let bytes = shader::element_bytes(&link(text));
        let (mut params, mut before) = (Vec::new(), 0);
        for m in &members {
            params.extend(m.dispatch.workgroups);
            params.push(before);
            before += groups(&m.dispatch) as u32;
            let offset = |i: usize| ((m.ranges[i].1.offset - ranges[i].1.offset) / bytes[i]) as u32;
            params.extend((0..ranges.len()).map(offset));
            params.resize(params.len().next_multiple_of(4), 0);
            params.extend(&m.dispatch.params);
            params.resize(params.len().next_multiple_of(4), 0);
        }
        let dispatch = Dispatch { shader, params, workgroups: [before, 1, 1], ..first.dispatch };
        Wanted { nodes: members.into_iter().flat_map(|m| m.nodes).collect(), dispatch, ranges }
    }
}
