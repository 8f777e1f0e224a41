//! Memory planning: parameters in flat segments, values in arenas by their lifetime.

use super::schedule::Uses;
use super::{Fetch, Limits, Place, Plan, PlanError, Step, parameters_state, sink_place};
use crate::ir::{Def, Graph, Leaf, Node, Sink, Value};
use crate::ops;
use crate::ops::elementwise::{Access, accesses};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Places begin at multiples of this many words: 256 bytes, the coarsest alignment that adapters ask for.
const ALIGN: usize = 64;

/// Where parameters stand in flat buffers; gradients and optimiser state are laid out alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    slots: BTreeMap<String, Slot>,
    pub segments: Vec<Segment>,
}

/// A parameter's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub segment: usize,
    pub offset: usize,
    pub words: usize,
}

/// One flat buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub words: usize,
}

impl Layout {
    /// Lays out parameters in order of their names, opening a segment when one is full.
    pub fn new<'a>(parameters: impl IntoIterator<Item = (&'a str, usize)>, limit: usize) -> Layout {
        let mut layout = Layout::default();
        let sorted: BTreeMap<&str, usize> = parameters.into_iter().collect();
        for (name, words) in sorted {
            let room = words.next_multiple_of(ALIGN);
            if layout.segments.last().is_none_or(|s| s.words + room > limit) {
                layout.segments.push(Segment::default());
            }
            let segment = layout.segments.len() - 1;
            let offset = layout.segments[segment].words;
            layout.slots.insert(name.to_string(), Slot { segment, offset, words });
            layout.segments[segment].words += room;
        }
        layout
    }

    pub fn slot(&self, parameter: &str) -> Option<Slot> {
        self.slots.get(parameter).copied()
    }
}

/// Free ranges of the arenas.
struct Arenas {
    /// Per arena: free ranges by offset, and the words in use at most.
    free: Vec<BTreeMap<usize, usize>>,
    limit: usize,
}

impl Arenas {
    /// The smallest free range that fits, or new room at an arena's end.
    fn take(&mut self, words: usize) -> (usize, usize) {
        let words = words.next_multiple_of(ALIGN);
        let mut best: Option<(usize, usize, usize)> = None;
        for (a, free) in self.free.iter().enumerate() {
            for (&offset, &len) in free {
                let open = len == usize::MAX;
                let fits = if open { offset + words <= self.limit } else { len >= words };
                // Room at the end counts as larger than any hole.
                if fits && best.is_none_or(|b| len < b.2) {
                    best = Some((a, offset, len));
                }
            }
        }
        let (a, offset, len) = best.unwrap_or_else(|| {
            self.free.push(BTreeMap::from([(0, usize::MAX)]));
            (self.free.len() - 1, 0, usize::MAX)
        });
        self.free[a].remove(&offset);
        if len == usize::MAX {
            self.free[a].insert(offset + words, usize::MAX);
        } else if len > words {
            self.free[a].insert(offset + words, len - words);
        }
        (a, offset)
    }

    fn give(&mut self, arena: usize, mut offset: usize, words: usize) {
        let free = &mut self.free[arena];
        let mut len = words.next_multiple_of(ALIGN);
        if let Some((&before, &room)) = free.range(..offset).next_back()
            && before + room == offset
        {
            free.remove(&before);
            offset = before;
            len += room;
        }
        if let Some(room) = free.remove(&(offset + len)) {
            len = if room == usize::MAX { usize::MAX } else { len + room };
        }
        free.insert(offset, len);
    }

    /// The words each arena has used at most, given the highest end of any place in it.
    fn sizes(&self, high: &[usize]) -> Vec<usize> {
        (0..self.free.len()).map(|a| high[a]).collect()
    }
}

pub fn assign(graph: Graph, uses: &Uses, layout: &Layout, limits: Limits) -> Result<Plan, PlanError> {
    let mut places: Vec<Option<Place>> = vec![None; graph.values.len()];
    for (i, info) in graph.values.iter().enumerate() {
        if let Def::Leaf(leaf) = &info.def {
            places[i] = Some(match leaf {
                Leaf::Input(name) => Place::Input(name.clone()),
                Leaf::Weight(w) => Place::Weight(w.key()),
                Leaf::Constant(_) => Place::Constant(Value(i as u32)),
                Leaf::State(name) => Place::State { name: name.clone(), offset: 0 },
                Leaf::Parameter(name) => {
                    let slot = layout.slot(name).expect("the layout holds every parameter");
                    Place::State { name: parameters_state(slot.segment), offset: slot.offset }
                }
            });
        }
    }

    let direct = direct_outputs(&graph, uses, layout);
    let mut arenas = Arenas { free: vec![], limit: limits.arena_words };
    let mut high: Vec<usize> = Vec::new();
    let mut dying: HashMap<usize, Vec<Value>> = HashMap::new();
    let mut steps = Vec::new();
    let (mut live, mut lower_bound) = (0, 0);
    // Memory that nothing uses any longer, and from which node on it is free.
    let mut resting: VecDeque<(usize, usize, usize, usize)> = VecDeque::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        while resting.front().is_some_and(|r| r.0 <= i) {
            let (_, arena, offset, words) = resting.pop_front().expect("there is one in front");
            arenas.give(arena, offset, words);
        }
        if node.op == "reshape" {
            let (x, y) = (node.inputs[0], node.outputs[0]);
            places[y.index()] = places[x.index()].clone();
        } else {
            let mut in_place = Vec::new();
            for (o, &y) in node.outputs.iter().enumerate() {
                let words = graph.ty(y).elements();
                if words > limits.value_words {
                    let at = if node.origin.is_empty() { String::new() } else { format!(" at '{}'", node.origin) };
                    let (op, ty) = (node.op.clone(), graph.ty(y).to_string());
                    return Err(PlanError::TooLarge { op, at, ty, words, limit: limits.value_words });
                }
                if let Some(place) = direct.get(&y) {
                    in_place.extend(sharing(&places, node, place).into_iter().map(|input| (input, o)));
                    places[y.index()] = Some(place.clone());
                    continue;
                }
                if let Some(input) = reusable(&graph, uses, &places, i, node, y, &in_place) {
                    let place = places[node.inputs[input].index()].clone().expect("in an arena");
                    in_place.extend(sharing(&places, node, &place).into_iter().map(|k| (k, o)));
                    places[y.index()] = Some(place);
                    // The memory passes on: it dies with its new owner.
                    let old = uses.root[node.inputs[input].index()];
                    dying.values_mut().for_each(|d| d.retain(|v| *v != old));
                    dying.entry(uses.last[y.index()]).or_default().push(y);
                    continue;
                }
                let (arena, offset) = arenas.take(words);
                high.resize(high.len().max(arena + 1), 0);
                high[arena] = high[arena].max(offset + words.next_multiple_of(ALIGN));
                places[y.index()] = Some(Place::Arena { arena, offset });
                live += words.next_multiple_of(ALIGN);
                dying.entry(uses.last[y.index()]).or_default().push(y);
            }
            lower_bound = lower_bound.max(live);
            steps.push(Step::Node { node: i, in_place });
        }
        for v in dying.remove(&i).unwrap_or_default() {
            if let Some(Place::Arena { arena, offset }) = places[v.index()] {
                let words = graph.ty(v).elements();
                resting.push_back((i + 1 + limits.profile.rest, arena, offset, words));
                live -= words.next_multiple_of(ALIGN);
            }
        }
    }

    let mut fetches = Vec::new();
    for out in &graph.outputs {
        match sink_place(&out.sink, layout) {
            None if out.sink == Sink::Fetch => fetches.push(Fetch { name: out.name.clone(), value: out.value }),
            None => {}
            Some(to) if places[out.value.index()].as_ref() == Some(&to) => {}
            Some(to) => steps.push(Step::Copy { from: out.value, to }),
        }
    }
    let arenas = arenas.sizes(&high);
    Ok(Plan { graph, steps, places, arenas, fetches, lower_bound })
}

/// Values that can be computed right where they go: an output of one node, wanted in one place, which nothing reads after
/// the value is computed (or at that node, unless element by element).
fn direct_outputs(graph: &Graph, uses: &Uses, layout: &Layout) -> HashMap<Value, Place> {
    let mut read_until: HashMap<String, usize> = HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        for &v in &node.inputs {
            let name = match graph.leaf(uses.root[v.index()]) {
                Some(Leaf::State(name)) => name.clone(),
                Some(Leaf::Parameter(name)) => match layout.slot(name) {
                    Some(slot) => parameters_state(slot.segment),
                    None => continue,
                },
                _ => continue,
            };
            read_until.insert(name, i);
        }
    }
    let mut wanted: HashMap<Value, usize> = HashMap::new();
    graph.outputs.iter().for_each(|o| *wanted.entry(uses.root[o.value.index()]).or_default() += 1);
    let mut direct = HashMap::new();
    for out in &graph.outputs {
        let root = uses.root[out.value.index()];
        let Some(place @ Place::State { .. }) = sink_place(&out.sink, layout) else { continue };
        let Def::Node { node, .. } = graph.values[root.index()].def else { continue };
        let Place::State { name, .. } = &place else { continue };
        let ends = read_until.get(name).copied();
        let whole = matches!(out.sink, Sink::State(_)) && in_place_safe(graph, &graph.nodes[node], root, name);
        if wanted[&root] == 1 && ends.is_none_or(|e| e < node || e == node && whole) {
            direct.insert(root, place);
        }
    }
    direct
}

/// Whether a node may overwrite the state it reads: element by element, at the same index.
fn in_place_safe(graph: &Graph, node: &Node, out: Value, state: &str) -> bool {
    let reads = |v: Value| matches!(graph.leaf(v), Some(Leaf::State(n)) if n == state);
    ops::is_elementwise(&node.op) && (0..node.inputs.len()).all(|i| !reads(node.inputs[i]) || full(graph, node, out, i))
}

/// Whether input `i` is read at the index that `out` is written at.
fn full(graph: &Graph, node: &Node, out: Value, i: usize) -> bool {
    let x = graph.ty(node.inputs[i]);
    let types = std::slice::from_ref(x);
    // A single element reads as a splat whatever it is.
    x.elements() == graph.ty(out).elements()
        && (x.elements() == 1 || accesses(graph.shape(out), types).1[0] == Access::Full)
}

/// The inputs of `node` that stand at `place`.
fn sharing(places: &[Option<Place>], node: &Node, place: &Place) -> Vec<usize> {
    (0..node.inputs.len()).filter(|&k| places[node.inputs[k].index()].as_ref() == Some(place)).collect()
}

/// An input whose memory the output may take over: it lives in an arena, dies here, and is read at the same index only.
fn reusable(
    graph: &Graph,
    uses: &Uses,
    places: &[Option<Place>],
    i: usize,
    node: &Node,
    y: Value,
    taken: &[(usize, usize)],
) -> Option<usize> {
    // Products and gradients of norms read what they add where they write their first result; nothing else of what they read.
    let adds = ops::added_in_place(&node.op, node.inputs.len(), &node.attrs).filter(|&c| {
        let alone = (0..node.inputs.len())
            .all(|j| j == c || uses.root[node.inputs[j].index()] != uses.root[node.inputs[c].index()]);
        alone && y == node.outputs[0] && graph.ty(node.inputs[c]) == graph.ty(y)
    });
    let candidates = match (ops::is_elementwise(&node.op), adds) {
        (true, _) => 0..node.inputs.len(),
        (false, Some(c)) => c..c + 1,
        (false, None) => return None,
    };
    candidates.into_iter().find(|&k| {
        let x = node.inputs[k];
        let root = uses.root[x.index()];
        let place = &places[x.index()];
        let alike = (0..node.inputs.len()).filter(|&j| uses.root[node.inputs[j].index()] == root);
        matches!(place, Some(Place::Arena { .. }))
            && uses.last[root.index()] == i
            && matches!(graph.values[root.index()].def, Def::Node { .. })
            && graph.ty(root).elements() == graph.ty(y).elements()
            && graph.ty(root).is_float() == graph.ty(y).is_float()
            && alike.clone().all(|j| full(graph, node, y, j))
            && alike.clone().all(|j| taken.iter().all(|t| t.0 != j))
    })
}

/// No two values that are alive at once share words, but for operations in place.
pub fn check(plan: &Plan, uses: &Uses) -> Result<(), PlanError> {
    let graph = &plan.graph;
    let mut alive: HashSet<Value> = HashSet::new();
    let range = |v: Value| match plan.place(v) {
        Place::Arena { arena, offset } => Some((*arena, *offset, offset + graph.ty(v).elements())),
        _ => None,
    };
    for step in &plan.steps {
        let Step::Node { node: i, in_place } = step else { continue };
        let node = &graph.nodes[*i];
        for (o, &y) in node.outputs.iter().enumerate() {
            if let Some((a, from, to)) = range(y) {
                let shared: Vec<Value> =
                    in_place.iter().filter(|p| p.1 == o).map(|p| uses.root[node.inputs[p.0].index()]).collect();
                for &v in alive.iter().filter(|v| !shared.contains(v)) {
                    if let Some((b, start, end)) = range(v)
                        && a == b
                        && from < end
                        && start < to
                    {
                        return Err(PlanError::Overlap(format!("{y} of {} over {v}", node.op)));
                    }
                }
                for v in shared {
                    alive.remove(&v);
                }
            }
            alive.insert(y);
        }
        alive.retain(|v| uses.last[v.index()] > *i);
    }
    for (a, &size) in plan.arenas.iter().enumerate() {
        let over =
            |v: usize| plan.places[v].is_some() && range(Value(v as u32)).is_some_and(|r| r.0 == a && r.2 > size);
        if let Some(v) = (0..graph.values.len()).find(|&v| over(v)) {
            return Err(PlanError::Overlap(format!("%{v} ends beyond arena {a}")));
        }
    }
    Ok(())
}
