// Index of the first largest element along the middle axis of (outer, n, inner); one invocation a column.
// Words are floats or integers.
// Relies on: up to 64 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

struct Params {
    columns: u32,
    width: u32,
    n: u32,
    inner: u32,
    is_float: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<i32>;

fn larger(a: u32, b: u32) -> bool {
    if (params.is_float != 0u) {
        return bitcast<f32>(a) > bitcast<f32>(b);
    }
    return bitcast<i32>(a) > bitcast<i32>(b);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.columns) {
        return;
    }
    let base = i / params.inner * params.n * params.inner + i % params.inner;
    var best = 0u;
    var top = input[base];
    for (var k = 1u; k < params.n; k = k + 1u) {
        let word = input[base + k * params.inner];
        if (larger(word, top)) {
            top = word;
            best = k;
        }
    }
    output[i] = i32(best);
}
