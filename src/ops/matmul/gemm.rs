//! A product as a node says it: what each input is, and the extents of each term. Decoded once; kernels read this alone.

use crate::ir::Program;
use crate::ops::engine::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// The inputs of a call by their numbers; the left operand is input 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Operands {
    /// Right operands, which stand side by side where there are several.
    pub rhs: Range<usize>,
    /// The second term: an adapter's factors.
    pub low_rank: Option<[usize; 2]>,
    /// What the product is added to.
    pub init: Option<usize>,
    /// What the epilogue's program reads beside the sum.
    pub epilogue: Range<usize>,
}

impl Operands {
    /// Those of a call with this many inputs, or why no call has so many.
    pub fn of(inputs: usize, attrs: &Attrs) -> Result<Operands, String> {
        if let Some(group) = Group::of(attrs) {
            return Ok(Operands { rhs: 1..1 + group.count, low_rank: None, init: None, epilogue: inputs..inputs });
        }
        let own = inputs.saturating_sub(attrs.get_int("extras").unwrap_or(0) as usize);
        let (low_rank, init) = match own {
            2 => (None, None),
            3 => (None, Some(2)),
            4 => (Some([2, 3]), None),
            5 => (Some([2, 3]), Some(4)),
            _ => return Err("takes two operands, or four, and one to add".into()),
        };
        Ok(Operands { rhs: 1..2, low_rank, init, epilogue: own..inputs })
    }
}

/// A call of `matmul`, `matmul_fused` or `matmul_group`.
#[derive(Clone, Debug)]
pub struct Gemm<'a> {
    /// `(.., M, K) · (.., K, N)`; a group's right operands count as one.
    pub base: Pair,
    pub group: Option<Group>,
    /// The second term, of the same M and N.
    pub low_rank: Option<Pair>,
    pub init: Option<Init>,
    pub epilogue: Epilogue<'a>,
    /// Whether operands are rounded to the nearest half before they are multiplied.
    pub halves: bool,
    /// Whether they are rounded to the nearest bf16.
    pub bf16: bool,
    operands: Operands,
}

/// Two operands that are multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Their input numbers.
    pub lhs: usize,
    pub rhs: usize,
    /// Whether they are stored as `(.., K, M)` and `(.., N, K)`.
    pub trans_a: bool,
    pub trans_b: bool,
    pub dims: Dims,
}

/// What a product is added to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Init {
    pub input: usize,
    /// Whether it is one row `(N)` for all, and not of the result's shape.
    pub row: bool,
}

/// The elementwise program that each sum ends in.
#[derive(Clone, Debug)]
pub struct Epilogue<'a> {
    pub program: Option<&'a Arc<Program>>,
    /// The inputs that it reads beside the sum.
    pub operands: Range<usize>,
    /// Whether the first result is the sum itself.
    pub keeps: bool,
}

impl<'a> Gemm<'a> {
    /// The call of a node that `infer` has admitted.
    pub fn decode(types_in: &[Type], attrs: &'a Attrs) -> Gemm<'a> {
        let operands = Operands::of(types_in.len(), attrs).expect("checked by infer");
        let group = Group::of(attrs);
        let pair = |[lhs, rhs]: [usize; 2], trans_b: &str| {
            let (trans_a, trans_b) = (attrs.flag("trans_a"), attrs.flag(trans_b));
            Pair { lhs, rhs, trans_a, trans_b, dims: Dims::of(&types_in[lhs], &types_in[rhs], trans_a, trans_b) }
        };
        let mut base = pair([0, 1], "trans_b");
        base.dims.n *= group.map_or(1, |g| g.count);
        Gemm {
            base,
            group,
            low_rank: operands.low_rank.map(|inputs| pair(inputs, "trans_b2")),
            init: operands.init.map(|input| Init { input, row: types_in[input].rank() == 1 }),
            epilogue: Epilogue {
                program: attrs.get_program(),
                operands: operands.epilogue.clone(),
                keeps: attrs.flag("keeps"),
            },
            halves: attrs.flag("halves"),
            bf16: attrs.flag("bf16"),
            operands,
        }
    }

    /// The terms whose sum it is.
    pub fn terms(&self) -> impl Iterator<Item = &Pair> {
        std::iter::once(&self.base).chain(&self.low_rank)
    }

    /// The inputs that are multiplied, in the order in which kernels bind them.
    pub fn multiplied(&self) -> Vec<Binding> {
        let second = self.low_rank.iter().flat_map(|p| [p.lhs, p.rhs]);
        std::iter::once(self.base.lhs).chain(self.operands.rhs.clone()).chain(second).map(Binding::Input).collect()
    }
}

/// Extents of a product, and the strides of its operands' rows and columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: (usize, usize),
    pub b: (usize, usize),
}

impl Dims {
    pub fn of(a: &Type, b: &Type, trans_a: bool, trans_b: bool) -> Dims {
        let rank = a.rank();
        let (ar, ac) = (a.shape[rank - 2], a.shape[rank - 1]);
        let (br, bc) = (b.shape[rank - 2], b.shape[rank - 1]);
        let (m, k, a_strides) = if trans_a { (ac, ar, (1, ac)) } else { (ar, ac, (ac, 1)) };
        let (n, b_strides) = if trans_b { (br, (1, bc)) } else { (bc, (bc, 1)) };
        Dims { batch: a.shape[..rank - 2].iter().product(), m, n, k, a: a_strides, b: b_strides }
    }

    /// The innermost extents of the operands as they are stored.
    pub fn inner(&self) -> [usize; 2] {
        [if self.a.1 == 1 { self.k } else { self.m }, if self.b.1 == 1 { self.n } else { self.k }]
    }
}

/// Several products of one left operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub count: usize,
    pub trans_b: bool,
    /// Whether results are stored as `(N, M)`.
    pub trans_y: bool,
    /// What results are multiplied by.
    pub scale: Option<f64>,
}

impl Group {
    pub fn of(attrs: &Attrs) -> Option<Group> {
        attrs.get_int("group").map(|count| Group {
            count: count as usize,
            trans_b: attrs.flag("trans_b"),
            trans_y: attrs.flag("trans_y"),
            scale: attrs.get_float("scale"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_follow_from_their_number_and_the_attributes() {
        let of = |inputs, extras| Operands::of(inputs, &Attrs::new().with("extras", Attr::Int(extras)));
        let call = |low_rank, init, epilogue| Operands { rhs: 1..2, low_rank, init, epilogue };
        assert_eq!(of(2, 0), Ok(call(None, None, 2..2)));
        assert_eq!(of(3, 0), Ok(call(None, Some(2), 3..3)));
        assert_eq!(of(4, 0), Ok(call(Some([2, 3]), None, 4..4)));
        assert_eq!(of(7, 2), Ok(call(Some([2, 3]), Some(4), 5..7)));
        assert!(of(6, 0).is_err() && of(3, 2).is_err());
        let group = Operands::of(4, &Attrs::new().with("group", Attr::Int(3)));
        assert_eq!(group, Ok(Operands { rhs: 1..4, low_rank: None, init: None, epilogue: 4..4 }));
    }
}
