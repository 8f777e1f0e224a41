//! `tdpbf16ps` in software, to the bit: products of even and of odd elements are summed apart along a tile, each step fused and rounded
//! once, then added to each other and to the result; subnormal numbers count as zero. Source: Intel's Instruction Set Extensions
//! Programming Reference, TDPBF16PS.

use super::operands::{Segment, Sum};
use crate::ops::engine::packed::{DEPTH, LINES, TILE};

/// As [`super::block`].
pub unsafe fn block([tall, wide]: [usize; 2], segments: &[Segment; 2], sum: Sum) {
    for (i, j) in (0..tall).flat_map(|i| (0..wide).map(move |j| (i, j))) {
        let mut tile = [0.0; LINES * LINES];
        // SAFETY: by the caller, for all of this.
        unsafe {
            let at = |r: usize| sum.at.add((i * LINES + r) * sum.row + j * LINES);
            for (r, row) in tile.chunks_exact_mut(LINES).enumerate().filter(|_| sum.add) {
                row.copy_from_slice(std::slice::from_raw_parts(at(r), LINES));
            }
            for s in segments {
                for t in 0..s.tiles {
                    let left = std::slice::from_raw_parts(s.left.add((2 * t + i) * TILE), TILE);
                    let right = std::slice::from_raw_parts(s.right.add((2 * t + j) * TILE), TILE);
                    multiply(&mut tile, left, right);
                }
            }
            for (r, row) in tile.chunks_exact(LINES).enumerate() {
                std::ptr::copy_nonoverlapping(row.as_ptr(), at(r), LINES);
            }
        }
    }
}

/// One instruction: `sums (16, 16) += left (16, 32) right (32, 16)`.
fn multiply(sums: &mut [f32; LINES * LINES], left: &[u16], right: &[u16]) {
    for (left, sums) in left.chunks_exact(DEPTH).zip(sums.chunks_exact_mut(LINES)) {
        let mut parts = [[0.0f32; 2]; LINES];
        for (left, right) in left.chunks_exact(2).zip(right.chunks_exact(DEPTH)) {
            for (part, right) in parts.iter_mut().zip(right.chunks_exact(2)) {
                for (part, (&a, &b)) in part.iter_mut().zip(left.iter().zip(right)) {
                    *part = fused(widened(a), widened(b), *part);
                }
            }
        }
        for (sum, [even, odd]) in sums.iter_mut().zip(parts) {
            *sum = flushed(flushed(*sum) + flushed(even + odd));
        }
    }
}

fn widened(bits: u16) -> f32 {
    flushed(f32::from_bits((bits as u32) << 16))
}

fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// `a b + c`, rounded once. A product of two bf16 is exact in f32 unless it is subnormal.
fn fused(a: f32, b: f32, c: f32) -> f32 {
    let product = a * b;
    flushed(if product == 0.0 || product.is_subnormal() { a.mul_add(b, c) } else { product + c })
}
