//! How much arithmetic and traffic a primitive is, for reports of speed.

use super::loss::linear_cross_entropy;
use super::matmul::plain;
use crate::ir::{Attrs, Type};
use crate::ops::attention::heads::Heads;

/// Floating-point operations, and bytes read and written once each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub flops: f64,
    pub bytes: f64,
}

/// The work of one node. A product counts two operations for each pair it multiplies, wherever it is, and attention
/// those of its products, masked or not; anything else one for each element that
/// its largest operand or result has, times the instructions of a fused program.
pub fn work(op: &str, attrs: &Attrs, types_in: &[Type], types_out: &[Type]) -> Work {
    let elements = |t: &Type| t.elements() as f64;
    let bytes = 4.0 * types_in.iter().chain(types_out).map(elements).sum::<f64>();
    let flops = match op {
        "matmul" | "matmul_fused" | "matmul_group" => {
            let terms = [Some(plain::dims(types_in, attrs)), plain::more(types_in, attrs)];
            terms.iter().flatten().map(|d| 2.0 * (d.batch * d.m * d.n * d.k) as f64).sum()
        }
        "linear_cross_entropy" => linear_cross_entropy::flops(types_in, attrs),
        "attention" | "attention_grad" => {
            let h = Heads::of(types_in, attrs);
            let pairs = 2.0 * (h.batch * h.heads * h.queries * h.keys) as f64;
            // Scores and results; or scores, their gradient, and the gradients of q, k and v.
            pairs * if op == "attention" { h.width + h.value } else { 3 * h.width + 2 * h.value } as f64
        }
        _ => {
            let instructions = attrs.get_program().map_or(1, |p| p.instrs.len().max(1));
            instructions as f64 * types_in.iter().chain(types_out).map(elements).fold(0.0, f64::max)
        }
    };
    Work { flops, bytes }
}
