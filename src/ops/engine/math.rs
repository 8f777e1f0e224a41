//! Scalar functions of the host kernels, generic over the element type.
//!
//! The f32 versions are branch-free polynomials that compilers vectorise; each is within a few units in the last place of
//! the exact result (`tests` compare them with `libm`). The f64 versions are the standard library's, for checking gradients.

use std::fmt::Debug;

/// A float type of the host kernels.
pub trait Real: num_traits::Float + num_traits::NumAssign + Debug + Default + Send + Sync + 'static {
    fn of(x: f64) -> Self;
    fn to_f64(self) -> f64;
    fn exp_(self) -> Self;
    /// [`Real::exp_`] with fused multiplications and additions: a third less work where the processor has those, and slow
    /// where a loop is not compiled for them.
    fn exp_fused(self) -> Self;
    fn tanh_(self) -> Self;
    fn erf_(self) -> Self;
    /// The standard normal distribution function and density, together.
    fn normal_(self) -> (Self, Self);

    #[inline(always)]
    fn sigmoid_(self) -> Self {
        Self::one() / (Self::one() + (-self).exp_())
    }
}

impl Real for f64 {
    fn of(x: f64) -> f64 {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn exp_(self) -> f64 {
        self.exp()
    }
    fn exp_fused(self) -> f64 {
        self.exp()
    }
    fn tanh_(self) -> f64 {
        self.tanh()
    }
    fn erf_(self) -> f64 {
        libm::erf(self)
    }
    fn normal_(self) -> (f64, f64) {
        (normal_cdf(self), normal_pdf(self))
    }
}

impl Real for f32 {
    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }

    /// Cephes' `expf`: 2ⁿ times a polynomial on [-ln 2 / 2, ln 2 / 2].
    #[inline(always)]
    fn exp_(self) -> f32 {
        const MAGIC: f32 = 12_582_912.0;
        let x = self;
        let lo = if x < -104.0 { -104.0 } else { x };
        let y = if lo > 89.0 { 89.0 } else { lo };
        let shifted = y * std::f32::consts::LOG2_E + MAGIC;
        let n = shifted - MAGIC;
        let r = y - n * 0.693_359_4 - n * -2.121_944_4e-4;
        let mut p = 1.987_569_1e-4;
        p = p * r + 1.398_199_9e-3;
        p = p * r + 8.333_452e-3;
        p = p * r + 4.166_579_6e-2;
        p = p * r + 1.666_666_5e-1;
        p = p * r + 0.5;
        let e = p * r * r + r + 1.0;
        let k = shifted.to_bits() as i32 - MAGIC.to_bits() as i32;
        let half = k >> 1;
        let power = |k: i32| f32::from_bits(((k + 127) << 23) as u32);
        let result = e * power(half) * power(k - half);
        if x.is_nan() { x } else { result }
    }

    #[inline(always)]
    fn exp_fused(self) -> f32 {
        const MAGIC: f32 = 12_582_912.0;
        let x = self;
        let lo = if x < -104.0 { -104.0 } else { x };
        let y = if lo > 89.0 { 89.0 } else { lo };
        let shifted = y.mul_add(std::f32::consts::LOG2_E, MAGIC);
        let n = shifted - MAGIC;
        let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, y));
        let p = 1.987_569_1e-4_f32.mul_add(r, 1.398_199_9e-3);
        let p = p.mul_add(r, 8.333_452e-3).mul_add(r, 4.166_579_6e-2);
        let p = p.mul_add(r, 1.666_666_5e-1).mul_add(r, 0.5);
        let e = (p * r).mul_add(r, r) + 1.0;
        let k = shifted.to_bits() as i32 - MAGIC.to_bits() as i32;
        let half = k >> 1;
        let power = |k: i32| f32::from_bits(((k + 127) << 23) as u32);
        let result = e * power(half) * power(k - half);
        if x.is_nan() { x } else { result }
    }

    /// Eigen's rational approximation.
    #[inline(always)]
    fn tanh_(self) -> f32 {
        const LIMIT: f32 = 7.905_311;
        let x = self;
        let lo = if x < -LIMIT { -LIMIT } else { x };
        let y = if lo > LIMIT { LIMIT } else { lo };
        let z = y * y;
        let mut p = -2.760_768_4e-16;
        p = p * z + 2.000_188e-13;
        p = p * z + -8.604_672e-11;
        p = p * z + 5.122_297e-8;
        p = p * z + 1.485_722_4e-5;
        p = p * z + 6.372_619_4e-4;
        p = p * z + 4.893_524_6e-3;
        let mut q = 1.198_258_4e-6;
        q = q * z + 1.185_347_1e-4;
        q = q * z + 2.268_434_6e-3;
        q = q * z + 4.893_525e-3;
        let t = y * p / q;
        if x.abs() < 4e-4 || x.is_nan() { x } else { t }
    }

    /// Eigen's rational approximation.
    #[inline(always)]
    fn erf_(self) -> f32 {
        const LIMIT: f32 = 4.0;
        let x = self;
        let lo = if x < -LIMIT { -LIMIT } else { x };
        let y = if lo > LIMIT { LIMIT } else { lo };
        let z = y * y;
        let mut p = -2.726_142_3e-10;
        p = p * z + 2.770_681_4e-8;
        p = p * z + -2.101_024e-6;
        p = p * z + -5.692_506_4e-5;
        p = p * z + -7.349_906_3e-4;
        p = p * z + -2.954_6e-3;
        p = p * z + -1.609_603_3e-2;
        let mut q = -1.456_607_2e-5;
        q = q * z + -2.133_740_6e-4;
        q = q * z + -1.682_827e-3;
        q = q * z + -7.373_329e-3;
        q = q * z + -1.426_473_9e-2;
        // From 4 on it is 1 to the last place, and the approximation one step less.
        let e = if x.abs() >= LIMIT { x.signum() } else { y * p / q };
        if x.is_nan() { x } else { e }
    }

    /// Abramowitz and Stegun's 7.1.26, whose exponential is that of the density: its own error is 1.5e-7 at most.
    #[inline(always)]
    fn normal_(self) -> (f32, f32) {
        let e = (-0.5 * self * self).exp_();
        let t = 1.0 / (1.0 + 0.231_641_9 * self.abs());
        let mut p = 0.530_702_7;
        p = p * t - 0.726_576;
        p = p * t + 0.710_706_9;
        p = p * t - 0.142_248_37;
        p = p * t + 0.127_414_8;
        let tail = p * t * e;
        (if self > 0.0 { 1.0 - tail } else { tail }, 0.398_942_3 * e)
    }
}

/// The standard normal density.
#[inline(always)]
pub fn normal_pdf<T: Real>(x: T) -> T {
    T::of(0.398_942_280_401_432_7) * (T::of(-0.5) * x * x).exp_()
}

/// The standard normal distribution function.
#[inline(always)]
pub fn normal_cdf<T: Real>(x: T) -> T {
    T::of(0.5) * (T::one() + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf_())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error in units of the last place of a float of the result's size, where that is not tiny.
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, lo: f32, hi: f32) -> f64 {
        (0..200_000)
            .map(|i| lo + (hi - lo) * i as f32 / 200_000.0)
            .map(|x| {
                let want = exact(x as f64);
                (f(x) as f64 - want).abs() / (want.abs().max(1e-30) * f32::EPSILON as f64)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn f32_functions_are_close_to_libm() {
        assert!(worst(f32::exp_, f64::exp, -87.0, 88.5) < 3.0);
        assert!(worst(f32::exp_fused, f64::exp, -87.0, 88.5) < 3.0);
        assert!(worst(f32::tanh_, f64::tanh, -12.0, 12.0) < 6.0);
        assert!(worst(f32::erf_, libm::erf, -6.0, 6.0) < 12.0);
    }

    #[test]
    fn the_normal_distribution_is_close_to_libm() {
        for i in -80_000..80_000 {
            let x = i as f32 * 1e-4;
            let (cdf, pdf) = x.normal_();
            let (want_cdf, want_pdf) = (x as f64).normal_();
            assert!((cdf as f64 - want_cdf).abs() < 3e-7 && (pdf as f64 - want_pdf).abs() < 3e-7, "{x}: {cdf} {pdf}");
        }
        assert!(f32::NAN.normal_().0.is_nan());
        assert_eq!((f32::INFINITY.normal_(), f32::NEG_INFINITY.normal_()), ((1.0, 0.0), (0.0, 0.0)));
    }

    #[test]
    fn f32_functions_keep_special_values() {
        assert_eq!(f32::NEG_INFINITY.exp_(), 0.0);
        assert_eq!(f32::INFINITY.exp_(), f32::INFINITY);
        assert_eq!(f32::MIN.exp_(), 0.0);
        assert_eq!((f32::NEG_INFINITY.exp_fused(), f32::MIN.exp_fused(), 0.0f32.exp_fused()), (0.0, 0.0, 1.0));
        assert!(f32::NAN.exp_fused().is_nan());
        assert!(f32::NAN.exp_().is_nan() && f32::NAN.tanh_().is_nan() && f32::NAN.erf_().is_nan());
        assert_eq!(f32::NEG_INFINITY.sigmoid_(), 0.0);
        assert_eq!((0.0f32.exp_(), 0.0f32.tanh_(), 0.0f32.erf_()), (1.0, 0.0, 0.0));
    }
}
