// output[o, index[k], i] += g[o, k, i] on zeros. Pass 0 clears the output; in pass 1 one invocation owns each (o, i) and
// walks k in order, so that sums need no atomics and come out the same every time.
// Relies on: up to 256 invocations, 0 bytes of workgroup memory, subgroups: no; f16: no; bindings aligned to 4 bytes.

override SIZE: u32 = 64;

struct Params {
    total: u32,
    width: u32,
    n: u32,
    k: u32,
    inner: u32,
    columns: u32,
    phase: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<i32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x + id.y * params.width;
    if (params.phase == 0u) {
        if (i < params.total) {
            output[i] = 0.0;
        }
        return;
    }
    if (i >= params.columns) {
        return;
    }
    let outer = i / params.inner;
    let inner = i % params.inner;
    let n = i32(params.n);
    for (var k = 0u; k < params.k; k = k + 1u) {
        var row = index[k];
        if (row < 0) {
            row = row + n;
        }
        row = clamp(row, 0, n - 1);
        let at = (outer * params.n + u32(row)) * params.inner + inner;
        output[at] = output[at] + g[(outer * params.k + k) * params.inner + inner];
    }
}
