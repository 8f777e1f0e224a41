// Pairs (a, b) of the elements of rows to (a cos - b sin, b cos + a sin), or with adjoint the transposed map; one invocation a pair.
// Relies on: up to 64 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

struct Params {
    pairs: u32,
    width: u32,
    outer: u32,
    inner: u32,
    d: u32,
    per_example: u32,
    per_outer: u32,
    per_inner: u32,
    // Whether each element of a pair has its own angle.
    both: u32,
    interleaved: u32,
    adjoint: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> cosine: array<f32>;
@group(0) @binding(3) var<storage, read> sine: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let index = at.x + at.y * params.width;
    if (index >= params.pairs) {
        return;
    }
    let half = params.d / 2u;
    let row = index / half;
    let pair = index % half;
    var a = pair;
    var b = pair + half;
    if (params.interleaved != 0u) {
        a = 2u * pair;
        b = a + 1u;
    }
    let angles = row / params.inner / params.outer * params.per_example
        + row / params.inner % params.outer * params.per_outer
        + row % params.inner * params.per_inner;
    var angle_a = angles + pair;
    var angle_b = angle_a;
    if (params.both != 0u) {
        angle_a = angles + a;
        angle_b = angles + b;
    }
    var sin_a = sine[angle_a];
    var sin_b = sine[angle_b];
    if (params.adjoint != 0u) {
        sin_a = -sine[angle_b];
        sin_b = -sine[angle_a];
    }
    let first = x[row * params.d + a];
    let second = x[row * params.d + b];
    y[row * params.d + a] = first * cosine[angle_a] - second * sin_a;
    y[row * params.d + b] = second * cosine[angle_b] + first * sin_b;
}
