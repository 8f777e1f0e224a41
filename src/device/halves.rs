//! Frozen weights of 16 bits: which ones, and their bits. Rounds to nearest, ties to even.

use crate::ir::{DType, Def, Leaf, Value};
use crate::plan::{Place, Plan, Step};
use half::{bf16, f16};
use std::collections::BTreeSet;

/// The weights of a plan that only kernels read which can unpack halves, by key: of which input of which operation, with so many
/// axes, `unpacks` says.
pub fn packable(plan: &Plan, unpacks: fn(&str, usize, usize) -> bool) -> BTreeSet<String> {
    let graph = &plan.graph;
    let mut all: BTreeSet<String> = BTreeSet::new();
    for info in &graph.values {
        if let (Def::Leaf(Leaf::Weight(w)), DType::F32) = (&info.def, info.ty.dtype) {
            all.insert(w.key());
        }
    }
    let mut keep = |v| {
        if let Some(Place::Weight(key)) = &plan.places[Value::index(v)] {
            all.remove(key);
        }
    };
    for step in &plan.steps {
        match step {
            Step::Copy { from, .. } => keep(*from),
            Step::Node { node, .. } => {
                let node = &graph.nodes[*node];
                let inputs = node.inputs.iter().enumerate();
                let unpacks = |(i, v): &(usize, &Value)| unpacks(&node.op, *i, graph.ty(**v).rank());
                inputs.filter(|read| !unpacks(read)).for_each(|(_, &v)| keep(v));
            }
        }
    }
    plan.fetches.iter().for_each(|f| keep(f.value));
    all
}

/// A type of 16 bits.
pub trait Short: Copy {
    fn nearest(x: f32) -> Self;
    fn full(self) -> f32;
    fn bits(self) -> u16;
}

impl Short for f16 {
    fn nearest(x: f32) -> f16 {
        f16::from_f32(x)
    }
    fn full(self) -> f32 {
        self.to_f32()
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

impl Short for bf16 {
    fn nearest(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
    fn full(self) -> f32 {
        self.to_f32()
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

/// The nearest number of a type; `None` where it is not finite, which leaves the whole weight as it is.
fn nearest<S: Short>(x: f32) -> Option<S> {
    Some(S::nearest(x)).filter(|s| s.full().is_finite())
}

/// Two numbers in a word, the first in the lower bits.
pub fn pack<S: Short>(weight: &[f32]) -> Option<Vec<u32>> {
    let bits = |x: Option<&f32>| x.map_or(Some(0), |&x| nearest::<S>(x).map(|h| h.bits() as u32));
    weight.chunks(2).map(|pair| Some(bits(pair.first())? | bits(pair.get(1))? << 16)).collect()
}

/// The same values as words of f32.
pub fn round<S: Short>(weight: &[f32]) -> Option<Vec<u32>> {
    weight.iter().map(|&x| nearest::<S>(x).map(|h| h.full().to_bits())).collect()
}

#[cfg(test)]
mod tests {
    use super::{pack, round};
    use half::{bf16, f16};

    #[test]
    fn halves_are_the_nearest_and_what_is_out_of_range_stays() {
        let x = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -65504.0];
        assert_eq!(round::<f16>(&x).unwrap(), [1.0f32, 1.0 + 4.0 / 2048.0, -65504.0].map(f32::to_bits));
        assert_eq!(pack::<f16>(&x).unwrap(), [0x3c02_3c00, 0xfbff]);
        for beyond in [65520.0, f32::INFINITY, f32::NAN] {
            assert!(pack::<f16>(&[1.0, beyond]).is_none());
        }
        assert_eq!(pack::<bf16>(&[1.0 + 1.0 / 256.0, 65520.0]).unwrap(), [0x4780_3f80]);
        assert!(pack::<bf16>(&[f32::MAX]).is_none());
    }
}
