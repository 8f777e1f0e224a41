// The order of the elements along the middle axis of (outer, n, inner), as indices; one invocation an element, which counts those
// that come before it. Equal elements stay in order; NaN is the largest. Words are floats or integers.
// Relies on: up to 64 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

struct Params {
    total: u32,
    width: u32,
    n: u32,
    inner: u32,
    is_float: u32,
    ascending: u32,
    unused0: u32,
    unused1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<i32>;

// A word whose order among unsigned integers is that of the numbers.
fn key(word: u32) -> u32 {
    if (params.is_float == 0u) {
        return word ^ 0x80000000u;
    }
    let size = word & 0x7fffffffu;
    if (size > 0x7f800000u) {
        return 0xffffffffu;
    }
    // Both zeros are one.
    if (size == 0u) {
        return 0x80000000u;
    }
    return select(word ^ 0x80000000u, ~word, word != size);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.total) {
        return;
    }
    let own_index = i / params.inner % params.n;
    let base = i / (params.inner * params.n) * params.n * params.inner + i % params.inner;
    let own = key(input[i]);
    var before = 0u;
    for (var k = 0u; k < params.n; k = k + 1u) {
        let other = key(input[base + k * params.inner]);
        let first = select(other > own, other < own, params.ascending != 0u);
        if (first || (other == own && k < own_index)) {
            before = before + 1u;
        }
    }
    output[base + before * params.inner] = i32(own_index);
}
