// Functions that kernels call in place of WGSL's own where that leaves the result to the driver: its sin and cos are good within
// a few turns, its tanh may be infinite, its exp, pow and division lose digits or range, and what becomes of NaN, infinity and
// subnormal numbers is open. A kernel's source gets those that it calls, and what they call (src/ops/engine/assemble.rs).
//
// They rely on: f32 products and sums rounded to nearest, none of them reordered; a bitcast that keeps bits. They hold whether or not
// a product and a sum become one instruction, and whether or not subnormal numbers are flushed to zero. Errors are in units in the
// last place (ulp) of the result; tests/suite/functions.rs measures them.

fn is_nan_(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// Whether it lies below the smallest normal number, so that comparisons and rounding may take it for 0.
fn is_subnormal_(x: f32) -> bool {
    let size = bitcast<u32>(x) & 0x7fffffffu;
    return size != 0u && size < 0x00800000u;
}

// The float of these bits. WGSL has no way to write infinity or NaN down.
fn float_(bits: u32) -> f32 {
    return bitcast<f32>(bits);
}

// The larger one; the first where they are equal or either is no number, as on the host.
fn max_(x: f32, y: f32) -> f32 {
    return select(x, y, x < y);
}

fn min_(x: f32, y: f32) -> f32 {
    return select(x, y, y < x);
}

// -1, 0 or 1, of subnormal numbers too; 0 of NaN.
fn sign_(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let size = bits & 0x7fffffffu;
    let one = select(1.0, -1.0, bits != size);
    return select(one, 0.0, size == 0u || size > 0x7f800000u);
}

fn floor_(x: f32) -> f32 {
    return select(floor(x), select(0.0, -1.0, bitcast<u32>(x) > 0x80000000u), is_subnormal_(x));
}

fn ceil_(x: f32) -> f32 {
    return select(ceil(x), select(0.0, 1.0, bitcast<u32>(x) < 0x80000000u), is_subnormal_(x));
}

// Halves go to the even number.
fn round_(x: f32) -> f32 {
    let below = floor(x);
    let rest = x - below;
    let odd = floor(below * 0.5) * 2.0 != below;
    return select(below, below + 1.0, rest > 0.5 || (rest == 0.5 && odd));
}

// 2^k for k from -126 to 127.
fn power_of_two_(k: i32) -> f32 {
    return bitcast<f32>(u32(k + 127) << 23u);
}

// e^x within 3 ulp, by Cephes' polynomial on [-ln 2 / 2, ln 2 / 2]; 0 below -104, infinite above 89.
fn exp_(x: f32) -> f32 {
    let y = clamp(x, -104.0, 89.0);
    let n = floor(y * 1.44269504 + 0.5);
    let r = (y - n * 0.693359375) + n * 2.12194440e-4;
    var p = 1.9875691500e-4;
    p = p * r + 1.3981999507e-3;
    p = p * r + 8.3334519073e-3;
    p = p * r + 4.1665795894e-2;
    p = p * r + 1.6666665459e-1;
    p = p * r + 5.0000001201e-1;
    let e = p * (r * r) + r + 1.0;
    let k = i32(n);
    let half = k >> 1u;
    return select(e * power_of_two_(half) * power_of_two_(k - half), x, is_nan_(x));
}

fn exp_vec2_(x: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(exp_(x.x), exp_(x.y));
}

fn exp_vec4_(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(exp_(x.x), exp_(x.y), exp_(x.z), exp_(x.w));
}

// Within 7 ulp, by Eigen's rational approximation.
fn tanh_(x: f32) -> f32 {
    let y = clamp(x, -7.905311, 7.905311);
    let z = y * y;
    var p = -2.7607684e-16;
    p = p * z + 2.000188e-13;
    p = p * z - 8.604672e-11;
    p = p * z + 5.122297e-8;
    p = p * z + 1.4857224e-5;
    p = p * z + 6.3726194e-4;
    p = p * z + 4.8935246e-3;
    var q = 1.1982584e-6;
    q = q * z + 1.1853471e-4;
    q = q * z + 2.2684346e-3;
    q = q * z + 4.893525e-3;
    return select(y * p / q, x, abs(x) < 4e-4 || is_nan_(x));
}

fn tanh_vec4_(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(tanh_(x.x), tanh_(x.y), tanh_(x.z), tanh_(x.w));
}

// 1 / (1 + e^-x) within 5 ulp.
fn sigmoid_(x: f32) -> f32 {
    let e = exp_(-abs(x));
    return select(1.0, e, x < 0.0) / (1.0 + e);
}

// Of a positive number m 2^n by its bits, subnormal or not, with m from sqrt(1/2) to sqrt(2): m - 1 and n.
fn mantissa_and_exponent_(number: u32) -> vec2<f32> {
    var bits = number;
    var e = -127;
    if (bits < 0x00800000u) {
        let shift = countLeadingZeros(bits) - 8u;
        bits = bits << shift;
        e = e + 1 - i32(shift);
    } else {
        e = e + i32(bits >> 23u);
    }
    let m = bitcast<f32>((bits & 0x007fffffu) | 0x3f800000u);
    let above = m > 1.41421356;
    return vec2<f32>(select(m, 0.5 * m, above) - 1.0, f32(select(e, e + 1, above)));
}

// The natural logarithm within 2 ulp, of subnormal numbers too, by Cephes' polynomial on [sqrt(1/2), sqrt(2)].
fn log_(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) == 0u) {
        return float_(0xff800000u);
    }
    if (bits > 0x7f800000u) {
        return float_(0x7fc00000u);
    }
    if (bits == 0x7f800000u) {
        return x;
    }
    let parts = mantissa_and_exponent_(bits);
    return log_near_one_(parts.x, parts.y * -2.12194440e-4) + parts.y * 0.693359375;
}

// log(1 + z) + more, for z from sqrt(1/2) - 1 to sqrt(2) - 1.
fn log_near_one_(z: f32, more: f32) -> f32 {
    var p = 7.0376836292e-2;
    p = p * z - 1.1514610310e-1;
    p = p * z + 1.1676998740e-1;
    p = p * z - 1.2420140846e-1;
    p = p * z + 1.4249322787e-1;
    p = p * z - 1.6668057665e-1;
    p = p * z + 2.0000714765e-1;
    p = p * z - 2.4999993993e-1;
    p = p * z + 3.3333331174e-1;
    let square = z * z;
    let low = p * (z * square) + more;
    return z + (low - 0.5 * square);
}

// x^y within 8 + 4 |y ln m| ulp, m being x without its exponent. A negative base wants a whole exponent; with another the result is NaN.
fn pow_(x: f32, y: f32) -> f32 {
    if ((bitcast<u32>(y) & 0x7fffffffu) == 0u || x == 1.0) {
        return 1.0;
    }
    if (is_nan_(x) || is_nan_(y)) {
        return float_(0x7fc00000u);
    }
    let size = bitcast<u32>(x) & 0x7fffffffu;
    let whole = floor(y) == y && !is_subnormal_(y);
    let positive = bitcast<u32>(y) < 0x80000000u;
    let odd = whole && abs(y) < 16777216.0 && (i32(y) & 1) != 0;
    let sign = select(0u, bitcast<u32>(x) & 0x80000000u, odd);
    if (size == 0u || size == 0x7f800000u) {
        let zero = (size == 0u) == positive;
        return float_(sign | select(0x7f800000u, 0u, zero));
    }
    if (size != bitcast<u32>(x) && !whole) {
        return float_(0x7fc00000u);
    }
    if ((bitcast<u32>(y) & 0x7fffffffu) == 0x7f800000u) {
        let zero = (size < 0x3f800000u) == positive;
        return float_(select(select(0x7f800000u, 0u, zero), 0x3f800000u, size == 0x3f800000u));
    }
    let parts = mantissa_and_exponent_(size);
    let l = log_near_one_(parts.x, 0.0);
    let n = parts.y;
    let exponent = y * (n + l * 1.44269504);
    if (exponent > 129.0 || exponent < -151.0) {
        return float_(sign | select(0u, 0x7f800000u, exponent > 0.0));
    }
    // y n in two parts: the leading bits of y times n are exact.
    let high = bitcast<f32>(bitcast<u32>(y) & 0xfffff000u);
    let k = floor(high * n + 0.5);
    let rest = ((high * n - k) + (y - high) * n) * 0.69314718 + y * l;
    // In three parts, each near the third root of the result, since 2^k alone may not be a float while the result is.
    let third = i32(k) / 3;
    let part = exp_(rest * 0.333333333);
    let once = part * power_of_two_(third);
    let result = once * once * (part * power_of_two_(i32(k) - 2 * third));
    return bitcast<f32>(bitcast<u32>(result) | sign);
}

// The parts of a product of 64 bits: the upper ones first.
fn wide_product_(x: u32, y: u32) -> vec2<u32> {
    let low = (x & 0xffffu) * (y & 0xffffu);
    let first = (x >> 16u) * (y & 0xffffu);
    let second = (x & 0xffffu) * (y >> 16u);
    let middle = (low >> 16u) + (first & 0xffffu) + (second & 0xffffu);
    let upper = (x >> 16u) * (y >> 16u) + (first >> 16u) + (second >> 16u) + (middle >> 16u);
    return vec2<u32>(upper, (low & 0xffffu) | (middle << 16u));
}

// The bits of 2 / pi after the point, 32 at a time, from 32 zeros on.
fn two_over_pi_(i: u32) -> u32 {
    switch (i) {
        case 0u: { return 0u; }
        case 1u: { return 0xa2f9836eu; }
        case 2u: { return 0x4e441529u; }
        case 3u: { return 0xfc2757d1u; }
        case 4u: { return 0xf534ddc0u; }
        case 5u: { return 0xdb629599u; }
        case 6u: { return 0x3c439041u; }
        default: { return 0xfe5163abu; }
    }
}

fn two_over_pi_from_(bit: u32) -> u32 {
    let word = bit >> 5u;
    let shift = bit & 31u;
    let first = two_over_pi_(word) << shift;
    let second = select(two_over_pi_(word + 1u) >> ((32u - shift) & 31u), 0u, shift == 0u);
    return first | second;
}

// x less the nearest multiple of pi / 2, and that multiple: exact to the last place for every float. Small arguments by
// Cody and Waite's constants, large ones by Payne and Hanek's product with 2 / pi in whole numbers.
fn quarters_(x: f32) -> vec2<f32> {
    let bits = bitcast<u32>(x);
    let size = bits & 0x7fffffffu;
    if (size < 0x45800000u) {
        let n = floor(x * 0.636619772 + 0.5);
        let r = ((x - n * 1.5703125) - n * 4.837512969970703125e-4) - n * 7.54978995489188216e-8;
        return vec2<f32>(r, n);
    }
    if (size >= 0x7f800000u) {
        return vec2<f32>(float_(0x7fc00000u), 0.0);
    }
    let m = (size & 0x007fffffu) | 0x00800000u;
    // x = m 2^s, and m whole: of 2 / pi, bits worth 4 and more after the shift make whole turns.
    let start = (size >> 23u) - 150u + 30u;
    let p0 = m * two_over_pi_from_(start);
    let p1 = wide_product_(m, two_over_pi_from_(start + 32u));
    let p2 = wide_product_(m, two_over_pi_from_(start + 64u));
    let middle = p1.y + p2.x;
    let top = p0 + p1.x + select(0u, 1u, middle < p1.y);
    let part = (top << 2u) | (middle >> 30u);
    let quarter = (top >> 30u) + (part >> 31u);
    let fraction = f32(bitcast<i32>(part)) * 2.3283064365386963e-10 + f32(middle << 2u) * 5.421010862427522e-20;
    let r = fraction * 1.57079632679;
    let negative = bits != size;
    return vec2<f32>(select(r, -r, negative), f32(select(quarter, 4u - quarter, negative)));
}

fn wave_(r: f32, quarter: i32) -> f32 {
    let z = r * r;
    var s = -1.9515295891e-4;
    s = s * z + 8.3321608736e-3;
    s = s * z - 1.6666654611e-1;
    s = s * (z * r) + r;
    var c = 2.443315711809948e-5;
    c = c * z - 1.388731625493765e-3;
    c = c * z + 4.166664568298827e-2;
    c = c * (z * z) - 0.5 * z + 1.0;
    let value = select(s, c, (quarter & 1) != 0);
    return select(value, -value, (quarter & 2) != 0);
}

// Within 1.2e-7 of the sine of every float.
fn sin_(x: f32) -> f32 {
    let q = quarters_(x);
    return wave_(q.x, i32(q.y));
}

fn cos_(x: f32) -> f32 {
    let q = quarters_(x);
    return wave_(q.x, i32(q.y) + 1);
}

// Within 3 ulp of the arc tangent of every float (Cephes' atanf).
fn atan_(x: f32) -> f32 {
    let size = abs(x);
    var base = 0.0;
    var t = size;
    if (size > 2.4142136) {
        base = 1.5707964;
        t = -div_(1.0, size);
    } else if (size > 0.41421357) {
        base = 0.7853982;
        t = (size - 1.0) / (size + 1.0);
    }
    let z = t * t;
    let p = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1;
    let y = base + (p * z * t + t);
    return select(y, -y, x < 0.0);
}

// A subnormal or small number 2^64 times as large. What is subnormal goes through whole numbers, since it may be flushed.
fn grown_(bits: u32) -> f32 {
    let size = bits & 0x7fffffffu;
    let subnormal = f32(size) * 2.5849394142282115e-26;
    let grown = select(bitcast<f32>(size) * 1.8446744073709552e19, subnormal, size < 0x00800000u);
    return bitcast<f32>(bitcast<u32>(grown) | (bits & 0x80000000u));
}

// x / y within 3 ulp, for divisors of every size.
fn div_(x: f32, y: f32) -> f32 {
    let size = bitcast<u32>(y) & 0x7fffffffu;
    if (size >= 0x0d000000u && size <= 0x7e000000u) {
        return x / y;
    }
    if (size > 0x7f800000u || is_nan_(x)) {
        return float_(0x7fc00000u);
    }
    let size_x = bitcast<u32>(x) & 0x7fffffffu;
    let sign = (bitcast<u32>(x) ^ bitcast<u32>(y)) & 0x80000000u;
    if (size == 0x7f800000u) {
        return float_(select(sign, 0x7fc00000u, size_x == 0x7f800000u));
    }
    if (size == 0u) {
        return float_(select(sign | 0x7f800000u, 0x7fc00000u, size_x == 0u));
    }
    if (size < 0x0d000000u) {
        return grown_(bitcast<u32>(x)) / grown_(bitcast<u32>(y));
    }
    return (x * 0.0625) / (y * 0.0625);
}

// The square root, within 3 ulp; NaN of what is negative.
fn sqrt_(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) == 0u || bits == 0x7f800000u) {
        return x;
    }
    if (bits > 0x7f800000u) {
        return float_(0x7fc00000u);
    }
    if (bits < 0x0d000000u) {
        return sqrt(grown_(bits)) * 2.3283064365386963e-10;
    }
    return sqrt(x);
}

// The remainder with the sign of x, exact.
fn fmod_(x: f32, y: f32) -> f32 {
    let size = bitcast<u32>(y) & 0x7fffffffu;
    let size_x = bitcast<u32>(x) & 0x7fffffffu;
    if (size == 0u || size > 0x7f800000u || size_x >= 0x7f800000u) {
        return float_(0x7fc00000u);
    }
    if (size_x < size) {
        return x;
    }
    if (size < 0x00800000u) {
        // Less than any number that every driver can tell from zero.
        return bitcast<f32>(bitcast<u32>(x) & 0x80000000u);
    }
    let b = bitcast<f32>(size);
    var rest = bitcast<f32>(size_x);
    for (var k = i32(size_x >> 23u) - i32(size >> 23u); k >= 0; k = k - 1) {
        let part = b * power_of_two_(min(k, 127)) * power_of_two_(max(k - 127, 0));
        if (rest >= part) {
            rest = rest - part;
        }
    }
    return bitcast<f32>(bitcast<u32>(rest) | (bitcast<u32>(x) & 0x80000000u));
}

// Towards zero; the nearest number that fits, and 0 for NaN.
fn i32_(x: f32) -> i32 {
    let whole = i32(clamp(x, -2147483648.0, 2147483520.0));
    return select(select(whole, 2147483647, x >= 2147483648.0), 0, is_nan_(x));
}

// Whether a number is other than 0, subnormal ones included.
fn bool_(x: f32) -> u32 {
    return u32((bitcast<u32>(x) & 0x7fffffffu) != 0u);
}

// The error function within 12 ulp, by Eigen's rational approximation.
fn erf_(x: f32) -> f32 {
    let y = clamp(x, -4.0, 4.0);
    let z = y * y;
    var p = -2.7261423e-10;
    p = p * z + 2.7706814e-8;
    p = p * z - 2.101024e-6;
    p = p * z - 5.6925064e-5;
    p = p * z - 7.3499063e-4;
    p = p * z - 2.9545998e-3;
    p = p * z - 1.6096033e-2;
    var q = -1.4566072e-5;
    q = q * z - 2.1337406e-4;
    q = q * z - 1.682827e-3;
    q = q * z - 7.373329e-3;
    q = q * z - 1.4264739e-2;
    // From 4 on it is 1 to the last place, and the approximation one step less.
    return select(select(y * p / q, sign_(x), abs(x) >= 4.0), x, is_nan_(x));
}

fn div_i32(x: i32, y: i32) -> i32 {
    if (y == 0) {
        return 0;
    }
    return x / y;
}

// The remainder with the sign of the divisor.
fn mod_i32(x: i32, y: i32) -> i32 {
    if (y == 0) {
        return 0;
    }
    let rest = x % y;
    return select(rest, rest + y, rest != 0 && (rest < 0) != (y < 0));
}

fn gelu_tanh_(x: f32) -> f32 {
    return 0.5 * x * (1.0 + tanh_(0.7978845608 * (x + 0.044715 * x * x * x)));
}

fn gelu_tanh_grad_(x: f32, g: f32) -> f32 {
    // Beyond 10 the slope is 0 or 1 to the last place, and x^3 stays small before it.
    let y = clamp(x, -10.0, 10.0);
    let t = tanh_(0.7978845608 * (y + 0.044715 * y * y * y));
    let du = 0.7978845608 * (1.0 + 0.134145 * y * y);
    return g * select(0.5 * (1.0 + t + y * (1.0 - t * t) * du), x, is_nan_(x));
}

fn silu_grad_(x: f32, g: f32) -> f32 {
    let s = sigmoid_(x);
    return g * s * (1.0 + x * (1.0 - s));
}
