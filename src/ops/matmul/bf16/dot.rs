//! Blocks of results with AVX512-BF16: eight rows by two vectors of sums stay in registers.

use super::operands::{Segment, Sum};
use crate::ops::engine::packed::{DEPTH, LINES, TILE};
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Rows of results that are held at once.
const ROWS: usize = 8;

/// Whether the processor has the instruction.
pub fn available() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"))
}

/// As [`super::block`].
pub unsafe fn block([tall, wide]: [usize; 2], segments: &[Segment; 2], sum: Sum) {
    // SAFETY: by the caller.
    unsafe {
        match wide {
            2 => rows::<2>(tall, segments, sum),
            _ => rows::<1>(tall, segments, sum),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const WIDE: usize>(tall: usize, segments: &[Segment; 2], sum: Sum) {
    for first in (0..tall * LINES).step_by(ROWS) {
        // SAFETY: by the caller.
        unsafe {
            let at = |r: usize| sum.at.add((first + r) * sum.row);
            let mut sums = [[_mm512_setzero_ps(); WIDE]; ROWS];
            for (r, sums) in sums.iter_mut().enumerate().filter(|_| sum.add) {
                for (v, x) in sums.iter_mut().enumerate() {
                    *x = _mm512_loadu_ps(at(r).add(v * LINES));
                }
            }
            for s in segments {
                for t in 0..s.tiles {
                    let left = s.left.add((2 * t + first / LINES) * TILE + first % LINES * DEPTH);
                    let right = s.right.add(2 * t * TILE);
                    for pair in 0..DEPTH / 2 {
                        let mut columns = [_mm512_setzero_si512(); WIDE];
                        for (v, x) in columns.iter_mut().enumerate() {
                            *x = _mm512_loadu_si512(right.add(v * TILE + pair * DEPTH).cast());
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let two = left.add(r * DEPTH + 2 * pair).cast::<i32>().read_unaligned();
                            let two = bf16s(_mm512_set1_epi32(two));
                            for (x, &column) in sums.iter_mut().zip(&columns) {
                                *x = _mm512_dpbf16_ps(*x, two, bf16s(column));
                            }
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, &x) in sums.iter().enumerate() {
                    _mm512_storeu_ps(at(r).add(v * LINES), x);
                }
            }
        }
    }
}

/// The same bits as elements of bf16.
#[inline(always)]
fn bf16s(x: __m512i) -> __m512bh {
    // SAFETY: the types are as large, and any bits are of both.
    unsafe { std::mem::transmute(x) }
}
