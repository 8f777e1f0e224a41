//! Operands as tiles: 16 lines (rows of a left operand, columns of a right one) of 32 elements along k, each the nearest bf16, with zeros
//! behind the last line and element.

use super::super::stored::Stored;
#[cfg(target_arch = "x86_64")]
use super::super::{stored::LANES, transpose::exchange};
use crate::ops::engine::packed::{DEPTH, LINES, TILE};
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The order of a tile's elements in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Line by line: left operands.
    Lines,
    /// Pair of neighbours along k by pair, each of all lines: right operands.
    Pairs,
}

impl Order {
    fn at(self, line: usize, step: usize) -> usize {
        match self {
            Order::Lines => line * DEPTH + step,
            Order::Pairs => step / 2 * DEPTH + 2 * line + step % 2,
        }
    }
}

/// Elements in memory: step k of line i stands at `i * line + k * step`.
#[derive(Clone, Copy)]
pub struct Source<E> {
    pub data: *const E,
    pub line: usize,
    pub step: usize,
}

impl<E> Source<E> {
    /// The same from another line and step on.
    pub fn from(self, line: usize, step: usize) -> Source<E> {
        Source { data: self.data.wrapping_add(line * self.line + step * self.step), ..self }
    }
}

/// Packs a tile of so many lines and steps.
///
/// # Safety
/// They are within the source, and a tile fits at `out`.
pub unsafe fn pack<E: Stored>(order: Order, from: Source<E>, [lines, steps]: [usize; 2], out: *mut u16) {
    // SAFETY: by the caller.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if super::super::multiply_avx512::available() && (from.line == 1 || from.step == 1) {
            return by_vectors(order, from, [lines, steps], out);
        }
        one_by_one(order, from, [lines, steps], out);
    }
}

/// [`pack`] on any processor and for any strides.
///
/// # Safety
/// As there.
pub unsafe fn one_by_one<E: Stored>(order: Order, from: Source<E>, [lines, steps]: [usize; 2], out: *mut u16) {
    // SAFETY: by the caller.
    unsafe {
        std::ptr::write_bytes(out, 0, TILE);
        for (i, k) in (0..lines).flat_map(|i| (0..steps).map(move |k| (i, k))) {
            let x = (*from.data.add(i * from.line + k * from.step)).get();
            *out.add(order.at(i, k)) = bf16::from_f32(x).to_bits();
        }
    }
}

/// [`pack`] where lines or steps are neighbours in memory.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn by_vectors<E: Stored>(order: Order, from: Source<E>, [lines, steps]: [usize; 2], out: *mut u16) {
    // Words of two neighbours along k: the vectors are lines where steps are neighbours in memory, else pairs.
    let mut words = [_mm512_setzero_si512(); LINES];
    let by_line = from.step == 1;
    // SAFETY: by the caller.
    unsafe {
        if by_line {
            for (i, word) in words.iter_mut().enumerate().take(lines) {
                let line = from.data.add(i * from.line);
                let [low, high] = [0, LANES].map(|k| halves(first(line.wrapping_add(k), steps.saturating_sub(k))));
                *word = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            }
        } else {
            for (p, word) in words.iter_mut().enumerate().take(steps.div_ceil(2)) {
                let row = |k: usize| match k < steps {
                    true => first(from.data.add(k * from.step), lines),
                    false => _mm512_setzero_ps(),
                };
                let [even, odd] = [rounded(row(2 * p)), rounded(row(2 * p + 1))];
                let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                *word = _mm512_or_si512(_mm512_srli_epi32::<16>(even), _mm512_and_si512(odd, upper));
            }
        }
        if by_line != (order == Order::Lines) {
            words = exchange(words.map(|w| _mm512_castsi512_ps(w))).map(|w| _mm512_castps_si512(w));
        }
        for (i, word) in words.into_iter().enumerate() {
            _mm512_storeu_si512(out.add(i * DEPTH).cast(), word);
        }
    }
}

/// The first elements of a vector, zeros behind them.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn first<E: Stored>(from: *const E, count: usize) -> __m512 {
    // SAFETY: by the caller.
    unsafe {
        match count {
            0 => _mm512_setzero_ps(),
            n if n >= LANES => E::load(from),
            n => E::load_first(((1u32 << n) - 1) as __mmask16, from),
        }
    }
}

/// The nearest bf16 of each lane in the upper half of its bits, ties to even.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let near = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    // What is not a number stays that.
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_or_epi32(near, nan, bits, _mm512_set1_epi32(0x0040_0000))
}

/// [`rounded`], as halves of words.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(x: __m512) -> __m256i {
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(x)))
}
