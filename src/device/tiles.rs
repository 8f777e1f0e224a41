//! Frozen weights in tiles, for products of bf16 on the cpu device: which operands of a plan, and their packed forms, which all plans share.

use crate::ir::{DType, Type, Weight};
use crate::ops::{self, PackedWeight, Tiled};
use crate::plan::{Place, Plan, Step};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Inputs of a step that are read in tiles, each with the number of its weight.
pub type Read = SmallVec<[(usize, usize); 2]>;

/// What a plan reads in tiles.
#[derive(Default)]
pub struct Reads {
    /// Of each step.
    pub steps: Vec<Vec<(String, Tiled)>>,
    /// Weights that something reads whole.
    also_whole: BTreeSet<String>,
}

impl Reads {
    pub fn of(plan: &Plan) -> Reads {
        let graph = &plan.graph;
        let key = |v: crate::ir::Value| match &plan.places[v.index()] {
            Some(Place::Weight(key)) => Some(key.clone()),
            _ => None,
        };
        let mut reads = Reads::default();
        for step in &plan.steps {
            let mut tiled = vec![];
            match step {
                Step::Copy { from, .. } => reads.also_whole.extend(key(*from)),
                Step::Node { node, .. } => {
                    let node = &graph.nodes[*node];
                    let types: Vec<Type> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
                    let offered = ops::tiles(&node.op, &types, &node.attrs);
                    for (i, &v) in node.inputs.iter().enumerate() {
                        let Some(key) = key(v) else { continue };
                        let of_input = offered.iter().filter(|t| t.input == i && types[i].dtype == DType::F32);
                        let before = tiled.len();
                        tiled.extend(of_input.map(|t| (key.clone(), *t)));
                        if tiled.len() == before {
                            reads.also_whole.insert(key);
                        }
                    }
                }
            }
            reads.steps.push(tiled);
        }
        reads.also_whole.extend(plan.fetches.iter().filter_map(|f| key(f.value)));
        reads
    }

    /// Weights that are read in tiles and in no other way.
    pub fn alone(&self) -> BTreeSet<String> {
        let tiled = self.steps.iter().flatten().map(|(key, _)| key);
        tiled.filter(|key| !self.also_whole.contains(*key)).cloned().collect()
    }

    /// Each form that is read, by weight.
    fn forms(&self) -> BTreeMap<&str, Vec<Tiled>> {
        let mut forms: BTreeMap<&str, Vec<Tiled>> = BTreeMap::new();
        for (key, tiled) in self.steps.iter().flatten() {
            let known = forms.entry(key).or_default();
            if !known.iter().any(|t| (t.strides, t.extents) == (tiled.strides, tiled.extents)) {
                known.push(*tiled);
            }
        }
        forms
    }
}

/// Packed weights by number.
#[derive(Default)]
pub struct Weights {
    packed: Vec<PackedWeight>,
    numbers: HashMap<String, usize>,
}

impl Weights {
    pub fn get(&self, number: usize) -> &PackedWeight {
        &self.packed[number]
    }

    pub fn bytes(&self) -> usize {
        self.packed.iter().map(PackedWeight::bytes).sum()
    }

    /// Bytes that the forms of a plan will take beyond those that are there.
    pub fn missing(&self, reads: &Reads) -> usize {
        let there =
            |key: &str, t: &Tiled| self.numbers.get(key).is_some_and(|&n| self.packed[n].has(t.strides, t.extents[0]));
        let forms = reads.forms().into_iter();
        forms
            .flat_map(|(key, all)| {
                all.into_iter().filter(move |t| !there(key, t)).map(|t| 2 * t.extents[0] * t.extents[1])
            })
            .sum()
    }

    /// Packs what a plan reads, each weight read once.
    pub fn load(&mut self, reads: &Reads, weights: &HashMap<String, Weight>) {
        for (key, forms) in reads.forms() {
            let number = *self.numbers.entry(key.to_string()).or_insert_with(|| {
                self.packed.push(PackedWeight::default());
                self.packed.len() - 1
            });
            let packed = &mut self.packed[number];
            let mut missing = forms.into_iter().filter(|t| !packed.has(t.strides, t.extents[0])).peekable();
            if missing.peek().is_none() {
                continue;
            }
            let missing: Vec<Tiled> = missing.collect();
            let weight = &weights[key];
            let mut put = |data: &[f32]| {
                for t in &missing {
                    packed.put(t.strides, ops::pack_weight(data, t));
                }
            };
            match weight.held() {
                Some(held) => {
                    put(bytemuck::cast_slice(held.words()));
                    held.release();
                }
                None => put(weight.load().as_f32().expect("products multiply floats")),
            }
        }
    }

    /// What a step reads, by number.
    pub fn read(&self, step: &[(String, Tiled)]) -> Read {
        let mut read: Read = step.iter().map(|(key, t)| (t.input, self.numbers[key])).collect();
        read.dedup();
        read
    }
}
