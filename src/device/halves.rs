//! Frozen weights in half precision: which ones, and their bits. Rounds to nearest, ties to even.

use crate::ir::{DType, Def, Leaf, Value};
use crate::plan::{Place, Plan, Step};
use half::f16;
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

/// The nearest half; `None` where it is not finite, which leaves the whole weight as it is.
fn nearest(x: f32) -> Option<f16> {
    Some(f16::from_f32(x)).filter(|h| h.is_finite())
}

/// Two halves in a word, the first in the lower bits.
pub fn pack(weight: &[f32]) -> Option<Vec<u32>> {
    let bits = |x: Option<&f32>| x.map_or(Some(0), |&x| nearest(x).map(|h| h.to_bits() as u32));
    weight.chunks(2).map(|pair| Some(bits(pair.first())? | bits(pair.get(1))? << 16)).collect()
}

/// The same values as words of f32.
pub fn round(weight: &[f32]) -> Option<Vec<u32>> {
    weight.iter().map(|&x| nearest(x).map(|h| h.to_f32().to_bits())).collect()
}

#[cfg(test)]
mod tests {
    use super::{pack, round};

    #[test]
    fn halves_are_the_nearest_and_what_is_out_of_range_stays() {
        let x = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -65504.0];
        assert_eq!(round(&x).unwrap(), [1.0f32, 1.0 + 4.0 / 2048.0, -65504.0].map(f32::to_bits));
        assert_eq!(pack(&x).unwrap(), [0x3c02_3c00, 0xfbff]);
        for beyond in [65520.0, f32::INFINITY, f32::NAN] {
            assert!(pack(&[1.0, beyond]).is_none());
        }
    }
}
