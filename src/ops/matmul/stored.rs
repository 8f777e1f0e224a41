//! Elements of operands as they are stored, read as vectors of f32.

use half::{bf16, f16};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of a vector.
#[cfg(target_arch = "x86_64")]
pub const LANES: usize = 16;

/// An element as it is stored.
pub trait Stored: Copy {
    fn get(self) -> f32;
    /// Sixteen of them.
    ///
    /// # Safety
    /// The processor has AVX-512, and the sixteen elements are there.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(from: *const Self) -> __m512;
    /// Fewer, with zeros behind them.
    ///
    /// # Safety
    /// The processor has AVX-512, and the elements of the mask, which are the first, are there.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_first(mask: __mmask16, from: *const Self) -> __m512;
}

impl Stored for f32 {
    fn get(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: by the caller.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_first(mask: __mmask16, from: *const f32) -> __m512 {
        // SAFETY: by the caller.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
}

impl Stored for f16 {
    fn get(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(from: *const f16) -> __m512 {
        // SAFETY: by the caller.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_first(mask: __mmask16, from: *const f16) -> __m512 {
        let mut all = [f16::ZERO; LANES];
        // SAFETY: by the caller; the copy is as long as a vector.
        unsafe {
            std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), mask.count_ones() as usize);
            f16::load(all.as_ptr())
        }
    }
}

impl Stored for bf16 {
    fn get(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(from: *const bf16) -> __m512 {
        // SAFETY: by the caller. The upper half of an f32's bits is the bf16.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_first(mask: __mmask16, from: *const bf16) -> __m512 {
        let mut all = [bf16::ZERO; LANES];
        // SAFETY: by the caller; the copy is as long as a vector.
        unsafe {
            std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), mask.count_ones() as usize);
            bf16::load(all.as_ptr())
        }
    }
}
