//! 16 x 16 words of 32 bits in vectors of AVX-512, rows to columns.

use std::arch::x86_64::*;

/// The columns of sixteen rows.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn exchange(mut r: [__m512; 16]) -> [__m512; 16] {
    let mut t = [_mm512_setzero_pd(); 16];
    for i in 0..8 {
        t[2 * i] = _mm512_castps_pd(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]));
        t[2 * i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    }
    for i in 0..4 {
        let [a, b, c, d] = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]];
        r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // Lane group l of r[4 g + j] now holds column 4 l + j of rows 4 g to 4 g + 3.
    let mut columns = [_mm512_setzero_ps(); 16];
    for j in 0..4 {
        let [a, b, c, d] = [r[j], r[4 + j], r[8 + j], r[12 + j]];
        let even = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
        let odd = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
        columns[j] = _mm512_shuffle_f32x4::<0x88>(even.0, even.1);
        columns[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd.0, odd.1);
        columns[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even.0, even.1);
        columns[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd.0, odd.1);
    }
    columns
}
