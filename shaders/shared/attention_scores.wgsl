// What the kernels of attention share: parameters, the bias, and the way from scores (the products of queries and keys) to exponents.
//#import shared/math.wgsl

struct Params {
    batch: u32,
    heads: u32,
    share: u32,
    queries: u32,
    keys: u32,
    width: u32,
    value: u32,
    // 1: there is a bias. 2: a row that is -inf throughout gives zeros.
    flags: u32,
    q_batch: u32,
    q_head: u32,
    q_row: u32,
    k_batch: u32,
    k_head: u32,
    k_row: u32,
    v_batch: u32,
    v_head: u32,
    v_row: u32,
    y_batch: u32,
    y_head: u32,
    y_row: u32,
    bias_batch: u32,
    bias_head: u32,
    bias_query: u32,
    bias_key: u32,
    scale: f32,
    cap: f32,
    tiles: u32,
    grid: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(4) var<storage, read> bias: array<f32>;

const LOWEST: f32 = -3.4028234e38;

fn exponent(s: f32, b: u32, head: u32, query: u32, key: u32) -> f32 {
    var e = s * params.scale;
    if (params.cap != 0.0) {
        e = params.cap * tanh_(e / params.cap);
    }
    if ((params.flags & 1u) != 0u) {
        e = e + bias[b * params.bias_batch + head * params.bias_head + query * params.bias_query + key * params.bias_key];
    }
    return e;
}

// Those of one key and four queries.
fn exponents(s: vec4<f32>, b: u32, head: u32, query: vec4<u32>, key: u32) -> vec4<f32> {
    var e = s * params.scale;
    if (params.cap != 0.0) {
        e = params.cap * tanh_vec4_(e / params.cap);
    }
    if ((params.flags & 1u) != 0u) {
        e = e + biases(b, head, key, query);
    }
    return e;
}

fn biases(b: u32, head: u32, key: u32, query: vec4<u32>) -> vec4<f32> {
    let at = b * params.bias_batch + head * params.bias_head + key * params.bias_key;
    let step = query * params.bias_query;
    return vec4<f32>(bias[at + step.x], bias[at + step.y], bias[at + step.z], bias[at + step.w]);
}

// The probability behind a score, and the slope of its exponent.
fn weight(s: f32, b: u32, head: u32, query: u32, key: u32, top: f32, over: f32) -> vec2<f32> {
    var e = s * params.scale;
    var slope = params.scale;
    if (params.cap != 0.0) {
        let t = tanh_(e / params.cap);
        e = params.cap * t;
        slope = slope * (1.0 - t * t);
    }
    if ((params.flags & 1u) != 0u) {
        e = e + bias[b * params.bias_batch + head * params.bias_head + query * params.bias_query + key * params.bias_key];
    }
    return vec2<f32>(exp_(e - top) * over, slope);
}

// Scores to the exponents of probabilities and the slopes of those.
struct Exponents {
    e: vec4<f32>,
    slope: vec4<f32>,
}

fn ruled(s: vec4<f32>) -> Exponents {
    var e = s * params.scale;
    var slope = vec4<f32>(params.scale);
    if (params.cap != 0.0) {
        let t = tanh_vec4_(e / params.cap);
        e = params.cap * t;
        slope = slope * (1.0 - t * t);
    }
    return Exponents(e, slope);
}
