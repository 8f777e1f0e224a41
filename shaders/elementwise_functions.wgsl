// Functions that instructions of elementwise programs call.

// Eigen's rational approximation.
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
    return y * p / q;
}

// WGSL's pow is undefined for a negative base; whole exponents have a meaning there.
fn pow_(x: f32, y: f32) -> f32 {
    if (x >= 0.0) {
        return pow(x, y);
    }
    let magnitude = pow(-x, y);
    return select(magnitude, -magnitude, (i32(y) & 1) != 0);
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
    return 0.5 * x * (1.0 + tanh(0.7978845608 * (x + 0.044715 * x * x * x)));
}

fn gelu_tanh_grad_(x: f32, g: f32) -> f32 {
    let t = tanh(0.7978845608 * (x + 0.044715 * x * x * x));
    let du = 0.7978845608 * (1.0 + 0.134145 * x * x);
    return g * 0.5 * (1.0 + t + x * (1.0 - t * t) * du);
}

fn silu_grad_(x: f32, g: f32) -> f32 {
    let s = 1.0 / (1.0 + exp(-x));
    return g * s * (1.0 + x * (1.0 - s));
}
