// Sum (mode 0), maximum (mode 1) or sum of squares (mode 2) over the middle axis of (outer, n, inner); one invocation a column.
// Words are floats or integers. Long sums are taken in parts, which keeps rounding errors small.
// Relies on: up to 64 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.
//#import shared/words.wgsl

struct Params {
    columns: u32,
    width: u32,
    n: u32,
    inner: u32,
    mode: u32,
    is_float: u32,
    unused0: u32,
    unused1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (i >= params.columns) {
        return;
    }
    let base = i / params.inner * params.n * params.inner + i % params.inner;
    let first = select(0u, input[base], params.mode == 1u);
    var total = first;
    for (var start = 0u; start < params.n; start = start + 128u) {
        let stop = min(start + 128u, params.n);
        var part = first;
        for (var k = start; k < stop; k = k + 1u) {
            part = join(part, joined(input[base + k * params.inner], params.mode), params.mode, params.is_float);
        }
        total = join(total, part, params.mode, params.is_float);
    }
    output[i] = total;
}
